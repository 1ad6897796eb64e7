"""The steps of a training, with logs, validations and checkpoints on their way."""

import contextlib
import dataclasses
import time

import jax
import numpy as np

from biedsnet_jax.checkpoints import checkpoint
from biedsnet_jax.config import build_data
from biedsnet_jax.data import pipeline
from biedsnet_jax.errors import Diverged
from biedsnet_jax.runtime import devices, preemption, processes, progress
from biedsnet_jax.training import run_log, validation


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
    others: tuple = ()  # what the update takes beside

    def run(self, state, start):
        cfg, key, quiet = (
            self.cfg,
            jax.random.key(self.cfg.seed),
            not processes.is_first(),
        )
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
                    # the only place where the loop waits for the device
                    values = jax.device_get(pending)
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
                if (
                    val_dice is not None
                    or step % cfg.checkpoint.every == 0
                    or last
                    or stop
                ):
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
            prepare=build_data.make_prepare(cfg),
            augment=cfg.augment.to_dict(),
            batch_size=cfg.train.batch_size,
            seed=cfg.seed,
            start_step=start,
            rows=devices.my_rows(cfg.train.batch_size, self.mesh),
        )

    def _summary(self, step, values, seconds):
        """Means over the steps since the last log step."""
        counters = {
            name: int(values[-1][name]) for name in ("bad_steps", "skipped_steps")
        }
        means = {
            name: float(np.mean([v[name] for v in values]))
            for name in values[-1]
            if name not in counters
        }
        rate = self._learning_rate(step, values[-1])
        return {
            **means,
            **counters,
            "learning_rate": rate,
            "steps_per_second": len(values) / seconds,
        }

    def _learning_rate(self, step, value):
        """Of step `step`; skipped ones before it do not count in the schedule."""
        skipped = value["skipped_steps"] - (value["bad_steps"] > 0)
        return float(self.schedule(step - 1 - skipped))

    def _check(self, last, values):
        """Raise Diverged at the first of the steps up to `last` that is one bad step
        too many.
        """
        for step, value in enumerate(values, start=last - len(values) + 1):
            if value["bad_steps"] >= self.cfg.train.max_bad_steps:
                self.checkpoints.wait()
                saved = self.checkpoints.latest_step()
                raise Diverged(
                    f"loss not finite for {value['bad_steps']} steps in a row, at step {step}, learning rate "
                    f"{self._learning_rate(step, value):.3g}; lower train.learning_rate or "
                    "train.clip_norm in a new --workdir, "
                    + (
                        "no checkpoint was due"
                        if saved is None
                        else f"the checkpoint of step {saved} is intact"
                    )
                )
