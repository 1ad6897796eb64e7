"""Mode train: `train(config, workdir)` fits a model, decides what is done to its masks,
then tests it.

`fit` goes in paragraphs: data and model, traced programs, state, loop, best checkpoint.
"""

import contextlib
import dataclasses
import pathlib
import sys
from concurrent import futures

import jax
import jax.numpy as jnp

from biedsnet_jax.checkpoints import checkpoint, checkpoint_folder, train_state
from biedsnet_jax.config import (
    build_data,
    build_model,
    build_optimizer,
    plan,
    run_config,
    run_split,
)
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat
from biedsnet_jax.data import walk
from biedsnet_jax.errors import BadInput
from biedsnet_jax.evaluation import (
    choose_postprocess,
    evaluate,
    evaluations,
    scored_cases,
)
from biedsnet_jax.importing import start_weights
from biedsnet_jax.prediction import predictor
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import (
    console,
    devices,
    extras,
    files,
    preemption,
    processes,
    progress,
)
from biedsnet_jax.runtime.lock import Lock
from biedsnet_jax.training import (
    class_presence,
    few_cases,
    freezing,
    known_truth,
    run_log,
    train_step,
    validation,
)
from biedsnet_jax.training.loop import Loop

# What a signal after the last step reads.
_LAST = "after step {step}; its checkpoint is written. The same command tests it."


def train(cfg, workdir: str) -> dict | None:
    """Trains as `cfg` says, from where `workdir` stands, and scores the test split.

    Returns the results on the first of several processes, None on the others. Raises
    Preempted where a signal ended the training.
    """
    with contextlib.ExitStack() as held:
        model, data = _fit(cfg, workdir, held)
        workdir = pathlib.Path(workdir)
        made = predictor.of_model(model)
        if cfg.postprocess:
            made = choose_postprocess.decide(made, workdir, data)
        if processes.is_first():
            count = len(data.cases("test"))
            cases = "case" if count == 1 else "cases"
            line = f"testing {len(data.test)} slices of {count} {cases}"
            console.tell(line, sys.stdout)
        return evaluate.evaluate(
            made.model,
            workdir,
            data,
            scored_cases.of_training(workdir, data),
            made=made,
        )


def fit(cfg, workdir: str) -> tuple[Trained, build_data.Data]:
    """Trains without the test, which no search for settings should see.

    Returns the model of the best checkpoint, and the data.
    """
    with contextlib.ExitStack() as held:
        return _fit(cfg, workdir, held)


def _fit(
    cfg, workdir: str, held: contextlib.ExitStack
) -> tuple[Trained, build_data.Data]:
    """Trains; `held` keeps the watch for signals and the lock for the test too."""
    workdir = pathlib.Path(workdir)
    data = _open(cfg, workdir)
    model = build_model.build(cfg)
    mesh = train_step.make_mesh(cfg)
    clock = held.enter_context(_announce(data, mesh))
    lesions = build_data.find_foreground(cfg, data)

    # Traced and read before anything is written, since a network, a loss or weights that
    # do not fit the config are refused here.
    schedule, fresh, step = _trace(cfg, model, mesh)
    begin = _read_beginning(cfg, workdir, data, fresh.out_info, mesh)
    earlier_steps = run_config.earlier_steps(cfg, workdir)
    watch = held.enter_context(preemption.Watch())
    lock = _claim(cfg, workdir, data, held) if processes.is_first() else None
    keep = cfg.checkpoint
    with (
        checkpoint.Checkpoints(
            workdir, keep_latest=keep.keep_latest, keep_best=keep.keep_best, lock=lock
        ) as checkpoints,
        futures.ThreadPoolExecutor(1) as executor,
    ):
        # The step compiles while the state is initialised or restored.
        compiling = executor.submit(lambda: step.lower().compile())
        state = checkpoints.restore_latest(fresh.out_info, mesh)
        if state is None:
            state = _start(cfg, fresh, checkpoints, begin)
        start = int(state.step)
        _announce_start(cfg, data, state, earlier_steps)

        with run_log.RunLog(
            workdir, step=start, to_tensorboard=cfg.log.tensorboard
        ) as log:
            log.config(start, flat(cfg))
            loop = Loop(
                cfg,
                data,
                mesh,
                schedule=schedule,
                update=compiling.result(),
                others=begin.others,
                validation=validation.Validation(cfg, model, data, mesh),
                checkpoints=checkpoints,
                log=log,
                watch=watch,
                foreground=lesions,
            )
            clock.close()
            with watch.loop(_LAST.format(step=cfg.train.steps)):
                state = loop.run(state, start)
                checkpoints.wait(saved=int(state.step))

        # What is tested is the best checkpoint, not the last state.
        best = checkpoints.best_step()
        if best != int(state.step):
            state = checkpoints.restore(best, state, mesh)
    return Trained(cfg, model, state.ema_variables, best, mesh), data


def _open(cfg, workdir) -> build_data.Data:
    """The run's data, once config and workdir are found to fit each other."""
    extras.need("train", "Training")
    check_config(cfg)
    run_config.check_same_run(cfg, workdir)
    with processes.first_alone("data"):
        data = run_split.open_training(cfg, workdir)
    build_data.check_unannotated(cfg, data.source)
    plan.settle(cfg, data)
    plan.check_grids(cfg, data)
    known_truth.check(cfg, data)
    return data


def _claim(cfg, workdir, data, held) -> Lock:
    """Makes and locks the workdir, until `held` closes; writes config and split there."""
    with files.writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        files.sync_folder(workdir.parent)
    lock = held.enter_context(Lock(workdir))
    # Checked again, since another process could write there until now.
    run_config.check_same_run(cfg, workdir)
    with files.writing(workdir):
        run_split.write(cfg, workdir, data)
        run_config.save(
            evaluations.config_of_run(cfg, workdir), workdir / "config.json"
        )
    return lock


@dataclasses.dataclass(frozen=True)
class _Beginning:
    """What a fresh state gets beside its own draw; nothing by default."""

    # A student's teacher, whose weights it starts with and whose masks it learns.
    teacher: dict | None = None
    weights: start_weights.StartWeights | None = None

    @property
    def others(self) -> tuple:
        """Further inputs of the update."""
        return () if self.teacher is None else ({"teacher": self.teacher},)


def _read_beginning(cfg, workdir, data, like, mesh) -> _Beginning:
    """Reads a student's teacher, or what init.source names until a run has started."""
    if "distill" in cfg:
        return _Beginning(teacher=_restore_teacher(cfg, like, mesh))
    if not cfg.init.source or checkpoint_folder.steps(workdir / "checkpoints"):
        return _Beginning()
    weights = start_weights.read(cfg, like.ema_variables)
    if processes.is_first():
        for line in weights.lines:
            console.tell(line, sys.stdout)
        run_split.warn_seen(pathlib.Path(files.expanded(cfg.init.source)), data)
    return _Beginning(weights=weights)


def _trace(cfg, model, mesh):
    """The learning rate by step, and the traced programs of a fresh state and a step."""
    frozen = _find_frozen(cfg, model)
    optimizer, schedule = build_optimizer.make_optimizer(cfg.train, frozen=frozen)
    fresh = _trace_fresh(cfg, model, optimizer, mesh)
    update = train_step.Update(
        model,
        optimizer,
        ema_decay=cfg.train.ema,
        accumulate=cfg.train.accumulate,
        fixed="distill" in cfg,
        frozen=frozen,
    )
    return schedule, fresh, _trace_step(cfg, update, mesh, fresh.out_info)


def _trace_fresh(cfg, model, optimizer, mesh):
    """The traced program that makes a fresh state, placed on the mesh."""

    def fresh():
        return train_state.create(build_model.init_variables(model, cfg), optimizer)

    sharding = devices.state_sharding(jax.eval_shape(fresh), mesh)
    return jax.jit(fresh, out_shardings=sharding).trace()


def _find_frozen(cfg, model):
    """Booleans like the parameters, true for those of init.freeze; None without any."""
    if not cfg.init.freeze:
        return None
    shapes = jax.eval_shape(lambda: build_model.init_variables(model, cfg))
    return freezing.find_frozen(shapes["params"], cfg.init.freeze)


def _trace_step(cfg, update, mesh, state):
    """The traced training step, for a state of these shapes."""
    step = train_step.make_train_step(
        update, mesh, state_sharding=devices.state_sharding(state, mesh)
    )
    *size, channels = build_data.image_shape(cfg)
    image, mask = (
        jax.ShapeDtypeStruct((cfg.train.batch_size, *size, n), jnp.float32)
        for n in (channels, cfg.data.classes)
    )
    batch = {"image": image, "mask": mask}
    if build_data.has_unknown(cfg):
        batch["known"] = mask
    key = jax.eval_shape(jax.random.key, 0)
    others = ({"teacher": state.ema_variables},) if update.fixed else ()
    return step.trace(state, batch, key, *others)


def _restore_teacher(cfg, like, mesh):
    """The variables of a student's teacher."""
    run_config.check_teacher(cfg)
    variables, step = checkpoint.restore_variables(
        files.expanded(cfg.distill.teacher), like, mesh
    )
    if step != cfg.distill.step:
        raise BadInput(
            f"The teacher {cfg.distill.teacher} has changed: its best step is {step}, "
            f"was {cfg.distill.step}. Distill it into a new --output."
        )
    return variables


def _start(cfg, fresh, checkpoints, begin):
    """A fresh state, with the weights of a teacher or of init.source where there is one."""
    state = fresh.lower().compile(compiler_options=devices.RUN_ONCE)()
    if begin.teacher is not None:
        state = _with_weights(state, begin.teacher)
    if begin.weights is not None:
        state = _with_weights(state, begin.weights.put_into(state.ema_variables))
        # So a run that is stopped early goes on from the same weights, whatever has
        # become of their file.
        checkpoints.save(state, config=cfg.to_dict())
    return state


def _with_weights(state, variables):
    """A fresh state with these weights, placed as its own were."""

    # Copies, twice the parameters: a state is donated, so no two arrays may be one.
    def copies(variables):
        params = variables["params"]
        batch_stats = variables["batch_stats"]
        return jax.tree.map(jnp.copy, (params, params, batch_stats))

    places = jax.tree.map(
        lambda x: x.sharding, (state.params, state.ema_params, state.batch_stats)
    )
    params, ema_params, batch_stats = jax.jit(copies, out_shardings=places)(variables)
    return dataclasses.replace(
        state, params=params, ema_params=ema_params, batch_stats=batch_stats
    )


def _announce(data, mesh):
    """Prints what is trained on, and that compiling comes next.

    This comes before the tracing, so that it shows within seconds of the start. Returns
    the clock that then runs on a terminal, an exit stack.
    """
    clock = contextlib.ExitStack()
    if not processes.is_first():
        return clock
    slices = {split: len(getattr(data, split)) for split in build_data.SPLITS}
    cases = {split: len(data.cases(split)) for split in build_data.SPLITS}
    console.tell(
        f"train {slices['train']} slices of {cases['train']} cases, "
        f"val {slices['val']} of {cases['val']}, test {slices['test']} of {cases['test']}",
        sys.stdout,
    )
    if passed := walk.summary(data.source.facts.passed):
        console.tell(f"{passed}; {walk.RECORD} in the workdir lists them", sys.stdout)
    where = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    if jax.process_count() > 1:
        where += f" of {jax.process_count()} processes"
    if mesh.shape["fsdp"] > 1:
        where += f", fsdp {mesh.shape['fsdp']}"
    console.tell(
        f"compiling the training step for {where}, once; this can take minutes",
        sys.stdout,
    )
    clock.enter_context(progress.clock("compiling"))
    return clock


def _announce_start(cfg, data, state, earlier_steps):
    """Prints the size of the model and where training goes on."""
    if not processes.is_first():
        return
    start = int(state.step)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    console.tell(f"{parameters:,} parameters", sys.stdout)
    if start:
        console.tell(f"going on from step {start}", sys.stdout)
    elif line := few_cases.line(cfg, data):
        console.tell(line, sys.stdout)
    if earlier_steps is not None:
        _announce_more_steps(cfg, earlier_steps, start)
    # With data.verify every file was read before, so a few more cost little.
    if cfg.data.verify:
        names = cfg.data.class_names
        for warning in class_presence.warnings(data, cfg.data.classes, names):
            processes.say(f"warning: {warning}")


def _announce_more_steps(cfg, earlier_steps, start):
    """Prints the schedule of a run that goes on for more steps than it had before."""
    before = cfg.train.copy_and_resolve_references()
    before.steps = earlier_steps
    old, new = (
        float(build_optimizer.make_schedule(train)(start))
        for train in (before, cfg.train)
    )
    console.tell(
        f"train.steps is {cfg.train.steps}, was {earlier_steps}: the learning rate now "
        f"follows the cosine of {cfg.train.steps} steps, and goes from {old:.3g} to "
        f"{new:.3g} at step {start}",
        sys.stdout,
    )
