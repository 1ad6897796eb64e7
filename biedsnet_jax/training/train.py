"""Mode train: `train(config, workdir)` is `fit`, in paragraphs of data, segmenter,
state and loop, then the test.
"""

import contextlib
import dataclasses
import pathlib
import sys
from concurrent import futures

import jax
import jax.numpy as jnp

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_data, build_model, run_config, run_split
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat
from biedsnet_jax.data import walk
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.evaluation import evaluate, evaluations, scored_cases
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import console, devices, files, preemption, processes
from biedsnet_jax.runtime.lock import Lock
from biedsnet_jax.training import class_presence, run_log, train_step, validation
from biedsnet_jax.training.loop import Loop
from biedsnet_jax.training.optimizer import make_optimizer


def train(cfg, workdir: str) -> dict | None:
    """Train as `cfg` says, going on where `workdir` stands, then score the test split;
    returns its results.

    Of several processes the first returns them. Raises Preempted where a signal ended
    it.
    """
    with contextlib.ExitStack() as held:
        model, data = _fit(cfg, workdir, held)
        workdir = pathlib.Path(workdir)
        return evaluate.evaluate(
            model, workdir, data, scored_cases.of_training(workdir)
        )


def fit(cfg, workdir: str) -> tuple[Trained, build_data.Data]:
    """`train` without the test, which no search for settings should see: the best
    checkpoint, and the data.
    """
    with contextlib.ExitStack() as held:
        return _fit(cfg, workdir, held)


def _fit(
    cfg, workdir: str, held: contextlib.ExitStack
) -> tuple[Trained, build_data.Data]:
    """Train; `held` gets what the test needs too: the watch for signals, the workdir's
    lock.
    """
    # Data: everything that can be wrong with it is said here, before anything is
    # written or compiled.
    check_config(cfg)
    workdir = pathlib.Path(workdir)
    run_config.check_same_run(cfg, workdir)
    with processes.first_alone("data"):
        data = run_split.open_training(cfg, workdir)
    model = build_model.build(cfg)

    # Update.
    mesh = train_step.make_mesh(cfg)
    optimizer, schedule = make_optimizer(cfg.train)
    fresh = _trace_fresh(cfg, model, optimizer, mesh)
    update = train_step.Update(
        model,
        optimizer,
        ema_decay=cfg.train.ema,
        accumulate=cfg.train.accumulate,
        fixed="distill" in cfg,
    )
    sharding = devices.state_sharding(fresh.out_info, mesh)
    step = train_step.make_train_step(update, mesh, state_sharding=sharding)
    step = _trace_update(cfg, step, fresh.out_info)

    # State: fresh, or the last complete checkpoint's. Traced before anything is
    # written.
    teacher = _restore_teacher(cfg, fresh.out_info, mesh)
    watch = held.enter_context(preemption.Watch())
    lock = _claim(cfg, workdir, data, held) if processes.is_first() else None
    keep = cfg.checkpoint
    with (
        checkpoint.Checkpoints(
            workdir, keep_latest=keep.keep_latest, keep_best=keep.keep_best, lock=lock
        ) as checkpoints,
        futures.ThreadPoolExecutor(1) as beside,
    ):
        # while the state is made or read
        compiling = beside.submit(lambda: step.lower().compile())
        state = _start(fresh, checkpoints, mesh, teacher)
        start = int(state.step)
        if processes.is_first():
            _announce(cfg, data, state, start, mesh)

        # Loop.
        with run_log.RunLog(
            workdir, step=start, to_tensorboard=cfg.log.tensorboard
        ) as log:
            log.config(start, flat(cfg))
            loop = Loop(
                cfg,
                data,
                mesh,
                schedule=schedule,
                update=_result(compiling),
                others=() if teacher is None else ({"teacher": teacher},),
                validation=validation.Validation(cfg, model, data, mesh),
                checkpoints=checkpoints,
                log=log,
                watch=watch,
            )
            last = f"after step {cfg.train.steps}; its checkpoint is written."
            with watch.loop(f"{last} The same command tests it."):
                state = loop.run(state, start)
                checkpoints.wait(saved=int(state.step))

        best = checkpoints.best_step()
        if best != int(state.step):
            state = checkpoints.restore(best, state, mesh)
    return Trained(cfg, model, state.ema_variables, best, mesh), data


def _claim(cfg, workdir, data, held) -> Lock:
    """Lock the workdir until `held` closes, and write down there what the run is."""
    lock = held.enter_context(_hold(workdir))
    # Once more, since only now nobody else writes there.
    run_config.check_same_run(cfg, workdir)
    with files.writing(workdir):
        run_split.write(cfg, workdir, data)
        run_config.save(
            evaluations.config_of_run(cfg, workdir), workdir / "config.json"
        )
    return lock


def _trace_fresh(cfg, model, optimizer, mesh):
    """The program that makes a fresh state, uncompiled."""

    def fresh():
        return train_state.create(build_model.init_variables(model, cfg), optimizer)

    sharding = devices.state_sharding(jax.eval_shape(fresh), mesh)
    return jax.jit(fresh, out_shardings=sharding).trace()


def _trace_update(cfg, update, state):
    """The update for such a state, uncompiled; a network or a loss that refuses the
    config does so here.
    """
    *size, channels = build_data.image_shape(cfg)
    image, mask = (
        jax.ShapeDtypeStruct((cfg.train.batch_size, *size, n), jnp.float32)
        for n in (channels, cfg.data.classes)
    )
    others = ({"teacher": state.ema_variables},) if "distill" in cfg else ()
    return update.trace(
        state,
        {"image": image, "mask": mask},
        jax.eval_shape(jax.random.key, 0),
        *others,
    )


def _hold(workdir) -> Lock:
    """The lock of a workdir, which is made where there is none."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.sync_folder(workdir.parent)
    except OSError as error:
        raise BadInput(
            f"Cannot make the folder {workdir}: {reason(error)}. Give another --workdir."
        ) from error
    return Lock(workdir)


def _restore_teacher(cfg, like, mesh):
    """The variables of a student's teacher; None of a run that has none."""
    if "distill" not in cfg:
        return None
    run_config.check_teacher(cfg)
    variables, step = checkpoint.restore_variables(
        files.expanded(cfg.distill.teacher), like, mesh
    )
    if step != cfg.distill.step:
        raise BadInput(
            f"teacher has changed, best step {step} and not {cfg.distill.step}, {cfg.distill.teacher}; "
            "distill it into a new --output"
        )
    return variables


def _start(fresh, checkpoints, mesh, teacher):
    state = checkpoints.restore_latest(fresh.out_info, mesh)
    if state is not None:
        return state
    state = fresh.lower().compile(compiler_options=devices.RUN_ONCE)()
    return state if teacher is None else _with_weights(state, teacher)


def _with_weights(state, variables):
    """A fresh state with these weights, in copies where its own lie: a state is
    donated.
    """

    def copies(variables):
        return jax.tree.map(
            jnp.copy,
            (variables["params"], variables["params"], variables["batch_stats"]),
        )

    places = jax.tree.map(
        lambda x: x.sharding, (state.params, state.ema_params, state.batch_stats)
    )
    params, ema_params, batch_stats = jax.jit(copies, out_shardings=places)(variables)
    return dataclasses.replace(
        state, params=params, ema_params=ema_params, batch_stats=batch_stats
    )


def _result(compiling):
    """The compiled step; a terminal is told where it takes longer than the state did."""
    if (
        not compiling.done()
        and processes.is_first()
        and console.is_terminal(sys.stderr)
    ):
        console.tell("compiling the training step", sys.stderr)
    return compiling.result()


def _announce(cfg, data, state, start, mesh):
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    counts = ", ".join(
        f"{s} {len(getattr(data, s))} slices of {len(data.cases(s))} cases"
        for s in build_data.SPLITS
    )
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    hosts += f", fsdp {mesh.shape['fsdp']}" if mesh.shape["fsdp"] > 1 else ""
    device = mesh.devices.flat[0].device_kind
    console.tell(
        f"{parameters:,} parameters, {mesh.size} x {device}{hosts}; {counts}",
        sys.stdout,
    )
    if passed := walk.summary(data.source.facts.passed):
        console.tell(f"{passed}; {walk.RECORD} in the workdir lists them", sys.stdout)
    if start:
        console.tell(f"going on from step {start}", sys.stdout)
    # every file was read before, so that a few more are no burden
    if cfg.data.verify:
        for warning in class_presence.warnings(data, cfg.data.classes):
            processes.say(f"warning: {warning}")
