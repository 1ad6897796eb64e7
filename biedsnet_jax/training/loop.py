"""The training loop: steps, with logs, validations and checkpoints between them."""

import contextlib
import dataclasses
import time

import jax
import numpy as np

from biedsnet_jax.checkpoints import checkpoint
from biedsnet_jax.config import build_data
from biedsnet_jax.data import foreground, pipeline
from biedsnet_jax.errors import Diverged
from biedsnet_jax.runtime import devices, preemption, processes, progress
from biedsnet_jax.training import run_log, validation

# Metrics that count steps; the others are means over a batch.
_COUNTERS = ("bad_steps", "skipped_steps")


@dataclasses.dataclass(frozen=True)
class Loop:
    """The steps from `start` to train.steps."""

    cfg: object
    data: build_data.Data
    mesh: jax.sharding.Mesh
    update: object
    schedule: object
    checkpoints: checkpoint.Checkpoints
    log: run_log.RunLog
    validation: validation.Validation
    watch: preemption.Watch
    foreground: foreground.Foreground
    # Further inputs of the update, such as the teacher's variables.
    others: tuple = ()

    def run(self, state, start):
        """Returns the state after train.steps.

        Raises Preempted after a signal, Diverged after too many bad steps.
        """
        cfg = self.cfg
        quiet = not processes.is_first()
        key = jax.random.key(cfg.seed)
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
                    values = _wait(pending, step, bar)
                    scalars = self._summary(step, values, time.monotonic() - since)
                    self.log.write(step, scalars)
                    bar.update(step, {"loss": scalars["loss"]}, plain=True)
                    self._check(step, values)
                    pending, since = [], time.monotonic()
                elif step == start + 1:
                    # One early wait shows at once that the run is under way.
                    loss = float(metrics["loss"])
                    bar.update(step, {"loss": loss}, plain=True)
                val_dice = None
                if cfg.eval.every and (step % cfg.eval.every == 0 or last):
                    val_dice = self.validation.run(step, state, self.log)
                    if not quiet:
                        self.validation.report(bar, step, val_dice)
                    # Validation does not count in the steps per second.
                    since = time.monotonic()
                stop = self.watch.reached(step)
                due = last or step % cfg.checkpoint.every == 0
                if due or stop or val_dice is not None:
                    self.checkpoints.save(
                        state, config=cfg.to_dict(), val_dice=val_dice
                    )
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
            prepare=build_data.make_train_prepare(cfg),
            augment=cfg.augment.to_dict(),
            tile=build_data.tile(cfg),
            batch_size=cfg.train.batch_size,
            seed=cfg.seed,
            start_step=start,
            rows=devices.my_rows(cfg.train.batch_size, self.mesh),
            foreground=self.foreground,
        )

    def _summary(self, step, values, seconds):
        """Means since the last log step; of the counters the last value."""
        latest = values[-1]
        counters = {name: int(latest[name]) for name in _COUNTERS}
        means = {
            name: float(np.mean([v[name] for v in values]))
            for name in latest
            if name not in counters
        }
        return {
            **means,
            **counters,
            "learning_rate": self._learning_rate(step, latest),
            "steps_per_second": len(values) / seconds,
        }

    def _learning_rate(self, step, value):
        """The learning rate of a step; the schedule does not count skipped steps."""
        skipped = value["skipped_steps"] - (value["bad_steps"] > 0)
        return float(self.schedule(step - 1 - skipped))

    def _check(self, last, values):
        """Raises Diverged where train.max_bad_steps up to `last` failed in a row."""
        for step, value in enumerate(values, start=last - len(values) + 1):
            if value["bad_steps"] < self.cfg.train.max_bad_steps:
                continue
            self.checkpoints.wait()
            saved = self.checkpoints.latest_step()
            kept = f"The checkpoint of step {saved} is intact."
            if saved is None:
                kept = "No checkpoint was due."
            raise Diverged(
                f"The loss was not finite for {value['bad_steps']} steps in a row, at "
                f"step {step} with learning rate {self._learning_rate(step, value):.3g}. "
                "Lower train.learning_rate or train.clip_norm in a new --workdir. "
                + kept
            )


def _wait(pending, step, bar):
    """The metrics of the pending steps, the last of which is `step`, as numpy.

    Only here the loop waits for the device. It does so step by step, so that the bar
    moves with each.
    """
    values = []
    for done, metrics in enumerate(pending, start=step - len(pending) + 1):
        values.append(jax.device_get(metrics))
        bar.update(done, {})
    return values
