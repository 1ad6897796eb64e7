"""Mode train: `train(config, workdir)` is `fit`, in paragraphs of data, segmenter, state and loop, then the test."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from biedsnet_jax.checkpoints import checkpoint, checkpoint_folder, train_state
from biedsnet_jax.config import build_data, build_model, run_config, run_split
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat
from biedsnet_jax.data import pipeline, walk
from biedsnet_jax.errors import BadInput, Diverged, reason
from biedsnet_jax.evaluation import evaluate, evaluations, scored_cases
from biedsnet_jax.runtime import console, devices, files, preemption, processes, progress
from biedsnet_jax.runtime.lock import Lock
from biedsnet_jax.segmenters import segmenter
from biedsnet_jax.training import class_presence, run_log, train_step, validation
from biedsnet_jax.training.optimizer import make_optimizer


def train(cfg, workdir: str) -> dict | None:
    """Train as `cfg` says, going on where `workdir` stands, then score the test split; returns its results.

    Of several processes the first returns them. Raises Preempted where a signal ended it.
    """
    with contextlib.ExitStack() as held:
        fitted = _fit(cfg, workdir, held)
        variables, scope = fitted.state.ema_variables, scored_cases.of_training(fitted.workdir)
        return evaluate.evaluate(
            cfg, fitted.workdir, fitted.model, variables, fitted.data, fitted.mesh, step=fitted.step, scope=scope
        )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model: the state of the best checkpoint by validation, as any later evaluation would read it."""

    workdir: pathlib.Path
    model: segmenter.Segmenter
    data: build_data.Data
    mesh: jax.sharding.Mesh
    state: train_state.TrainState
    step: int


def fit(cfg, workdir: str) -> Fitted:
    """`train` without the test, which no search for settings should see."""
    with contextlib.ExitStack() as held:
        return _fit(cfg, workdir, held)


def _fit(cfg, workdir: str, held: contextlib.ExitStack) -> Fitted:
    """Train; `held` gets what the test needs too: the watch for signals, the workdir's lock."""
    # Data: everything that can be wrong with it is said here, before anything is written or compiled.
    check_config(cfg)
    workdir = pathlib.Path(workdir)
    run_config.check_same_run(cfg, workdir)
    mesh = _make_mesh(cfg)
    with processes.first_alone("data"):
        data = run_split.open_training(cfg, workdir)

    # Segmenter and update.
    model = build_model.build(cfg)
    optimizer, schedule = make_optimizer(cfg.train)
    fresh = _trace_fresh(cfg, model, optimizer, mesh)
    fields = {"ema_decay": cfg.train.ema, "accumulate": cfg.train.accumulate, "fixed": "distill" in cfg}
    fields["state_sharding"] = devices.state_sharding(fresh.out_info, mesh)
    update = _trace_update(cfg, train_step.make_train_step(model, optimizer, mesh, **fields), fresh.out_info)

    # State: fresh, or the last complete checkpoint's. Traced before anything is written.
    teacher = _restore_teacher(cfg, fresh.out_info, mesh)
    watch, lock = held.enter_context(preemption.Watch()), None
    if processes.is_first():
        lock = held.enter_context(_hold(workdir))
        # Once more, since only now nobody else writes there.
        run_config.check_same_run(cfg, workdir)
        with checkpoint_folder.writing(workdir):
            run_split.write(cfg, workdir, data)
            run_config.save(evaluations.config_of_run(cfg, workdir), workdir / "config.json")
    keep = cfg.checkpoint
    with (
        checkpoint.Checkpoints(
            workdir, keep_latest=keep.keep_latest, keep_best=keep.keep_best, lock=lock
        ) as checkpoints,
        futures.ThreadPoolExecutor(1) as beside,
    ):
        compiling = beside.submit(lambda: update.lower().compile())  # while the state is made or read
        state = _start(fresh, checkpoints, mesh, teacher)
        start = int(state.step)
        if processes.is_first():
            _announce(cfg, data, state, start, mesh)

        # Loop.
        with run_log.RunLog(workdir, step=start, to_tensorboard=cfg.log.tensorboard) as log:
            log.config(start, flat(cfg))
            validated = validation.Validation(cfg, model, data, mesh)
            others = () if teacher is None else ({"teacher": teacher},)
            compiled = _result(compiling)
            loop = _Loop(cfg, data, mesh, compiled, schedule, checkpoints, log, validated, watch, others)
            last = f"after step {cfg.train.steps}; its checkpoint is written."
            with watch.loop(f"{last} The same command tests it."):
                state = loop.run(state, start)
                checkpoints.wait(saved=int(state.step))

        best = checkpoints.best_step()
        if best != int(state.step):
            state = checkpoints.restore(best, state, mesh)
    return Fitted(workdir, model, data, mesh, state, best)


def _make_mesh(cfg):
    """The mesh, over whose devices the batches of training and evaluation divide."""
    mesh = devices.make_mesh(fsdp=cfg.parallel.fsdp)
    devices.check_divisible(
        cfg.train.batch_size, mesh.size * cfg.train.accumulate, field="train.batch_size", what="devices and parts"
    )
    devices.check_divisible(cfg.eval.batch_size, mesh.size, field="eval.batch_size", what="devices")
    return mesh


def _trace_fresh(cfg, model, optimizer, mesh):
    """The program that makes a fresh state, uncompiled."""

    def fresh():
        return train_state.create(evaluate.init_variables(model, cfg), optimizer)

    sharding = devices.state_sharding(jax.eval_shape(fresh), mesh)
    return jax.jit(fresh, out_shardings=sharding).trace()


def _trace_update(cfg, update, state):
    """The update for such a state, uncompiled; a network or a loss that refuses the config does so here."""
    *size, channels = build_data.image_shape(cfg)
    image, mask = (
        jax.ShapeDtypeStruct((cfg.train.batch_size, *size, n), jnp.float32) for n in (channels, cfg.data.classes)
    )
    others = ({"teacher": state.ema_variables},) if "distill" in cfg else ()
    return update.trace(state, {"image": image, "mask": mask}, jax.eval_shape(jax.random.key, 0), *others)


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
    variables, step = checkpoint.restore_variables(files.expanded(cfg.distill.teacher), like, mesh)
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
    """A fresh state with these weights, in copies where its own lie: a state is donated."""

    def copies(variables):
        return jax.tree.map(jnp.copy, (variables["params"], variables["params"], variables["batch_stats"]))

    places = jax.tree.map(lambda x: x.sharding, (state.params, state.ema_params, state.batch_stats))
    params, ema_params, batch_stats = jax.jit(copies, out_shardings=places)(variables)
    return dataclasses.replace(state, params=params, ema_params=ema_params, batch_stats=batch_stats)


def _result(compiling):
    """The compiled step; a terminal is told where it takes longer than the state did."""
    if not compiling.done() and processes.is_first() and console.is_terminal(sys.stderr):
        console.tell("compiling the training step", sys.stderr)
    return compiling.result()


def _announce(cfg, data, state, start, mesh):
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    counts = ", ".join(f"{s} {len(getattr(data, s))} slices of {len(data.cases(s))} cases" for s in build_data.SPLITS)
    hosts = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    hosts += f", fsdp {mesh.shape['fsdp']}" if mesh.shape["fsdp"] > 1 else ""
    device = mesh.devices.flat[0].device_kind
    console.tell(f"{parameters:,} parameters, {mesh.size} x {device}{hosts}; {counts}", sys.stdout)
    if passed := walk.summary(data.source.facts.passed):
        console.tell(f"{passed}; {walk.RECORD} in the workdir lists them", sys.stdout)
    if start:
        console.tell(f"going on from step {start}", sys.stdout)
    if cfg.data.verify:  # every file was read before, so that a few more are no burden
        for warning in class_presence.warnings(data, cfg.data.classes):
            processes.say(f"warning: {warning}")


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The steps from `start` to train.steps, with logs, validations and checkpoints on their way."""

    cfg: object
    data: build_data.Data
    mesh: jax.sharding.Mesh
    update: object
    schedule: object
    checkpoints: checkpoint.Checkpoints
    log: run_log.RunLog
    validation: validation.Validation
    watch: preemption.Watch
    others: tuple = ()  # what the update takes beside

    def run(self, state, start):
        cfg, key, quiet = self.cfg, jax.random.key(self.cfg.seed), not processes.is_first()
        pending, since = [], time.monotonic()
        with contextlib.ExitStack() as stack:
            bar = progress.Progress("train", cfg.train.steps, start=start, quiet=quiet)
            stack.enter_context(contextlib.closing(bar))
            batches = stack.enter_context(contextlib.closing(self._batches(start)))
            for step in range(start + 1, cfg.train.steps + 1):
                batch = devices.put_batch(next(batches), self.mesh)
                state, metrics = self.update(state, batch, key, *self.others)
                pending.append(metrics)
                last = step == cfg.train.steps
                if step % cfg.log.every == 0 or last:
                    values = jax.device_get(pending)  # the only place where the loop waits for the device
                    scalars = self._summary(step, values, time.monotonic() - since)
                    self.log.write(step, scalars)
                    bar.update(step, {"loss": scalars["loss"]}, plain=True)
                    self._check(step, values)
                    pending, since = [], time.monotonic()
                val_dice = None
                if cfg.eval.every and (step % cfg.eval.every == 0 or last):
                    val_dice = self.validation.run(step, state, self.log)
                    if not quiet:
                        self.validation.tell(bar, step, val_dice)
                    since = time.monotonic()
                stop = self.watch.reached(step)
                if val_dice is not None or step % cfg.checkpoint.every == 0 or last or stop:
                    self.checkpoints.save(state, config=cfg.to_dict(), val_dice=val_dice)
                if stop:
                    self.checkpoints.wait(saved=step)
                    raise self.watch.stopped(
                        f"at step {step}; its checkpoint is written. "
                        "The same command goes on there."
                    )
        return state

    def _batches(self, start):
        cfg = self.cfg
        return pipeline.train_batches(
            self.data.source,
            self.data.train,
            prepare=build_data.make_prepare(cfg),
            augment=cfg.augment.to_dict(),
            batch_size=cfg.train.batch_size,
            seed=cfg.seed,
            start_step=start,
            rows=devices.my_rows(cfg.train.batch_size, self.mesh),
        )

    def _summary(self, step, values, seconds):
        """Means over the steps since the last log step."""
        counters = {name: int(values[-1][name]) for name in ("bad_steps", "skipped_steps")}
        means = {name: float(np.mean([v[name] for v in values])) for name in values[-1] if name not in counters}
        rate = self._learning_rate(step, values[-1])
        return {**means, **counters, "learning_rate": rate, "steps_per_second": len(values) / seconds}

    def _learning_rate(self, step, value):
        """Of step `step`; skipped ones before it do not count in the schedule."""
        skipped = value["skipped_steps"] - (value["bad_steps"] > 0)
        return float(self.schedule(step - 1 - skipped))

    def _check(self, last, values):
        """Raise Diverged at the first of the steps up to `last` that is one bad step too many."""
        for step, value in enumerate(values, start=last - len(values) + 1):
            if value["bad_steps"] >= self.cfg.train.max_bad_steps:
                self.checkpoints.wait()
                saved = self.checkpoints.latest_step()
                raise Diverged(
                    f"loss not finite for {value['bad_steps']} steps in a row, at step {step}, learning rate "
                    f"{self._learning_rate(step, value):.3g}; lower train.learning_rate or "
                    "train.clip_norm in a new --workdir, "
                    + ("no checkpoint was due" if saved is None else f"the checkpoint of step {saved} is intact")
                )
