"""Validation in the midst of training: Dice of the EMA weights, precision by recall, some slices."""

from collections.abc import Sequence

import numpy as np

from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.runtime import progress
from biedsnet_jax.scoring import pr_curve


class Validation:
    """Of the same slices each time."""

    def __init__(self, cfg, model, data, mesh):
        self.cfg, self.data, self.mesh = cfg, data, mesh
        self.indices = _evenly(data.val, cfg.eval.val_images)
        self._told = False
        self.predict = evaluate.make_predict(
            model, mesh, ensemble=cfg.eval.val_ensemble, fusion=cfg.fusion, seed=cfg.seed
        )

    def run(self, step: int, state, log) -> float | None:
        """The mean Dice after `step` updates; `log` gets it with the pictures.

        None where no slice has a lesion: then nothing is known of how good the weights are.
        """
        cfg, variables = self.cfg, state.ema_variables
        counts = pr_curve.Counts(cfg.data.classes) if cfg.log.tensorboard else None
        dice = evaluate.mean_dice(cfg, self.predict, variables, self.data, self.indices, self.mesh, counts=counts)
        if dice is not None:
            log.write(step, {"val_dice": dice})
        if counts:
            log.curves(step, counts)
        if cfg.log.tensorboard and cfg.log.images:
            log.panel(step, *self._panel(variables))
        return dice

    def tell(self, bar: progress.Progress, step: int, dice: float | None) -> None:
        """Show what `run` gave; that there was nothing to find only the first time."""
        if dice is not None:
            bar.note(f"step {step}  validation Dice {dice:.4f}", {"Dice": dice})
        elif not self._told:
            self._told = True
            bar.warn(
                f"biedsnet: warning: validation Dice: none of the {len(self.indices)} slices has a "
                "lesion. The latest checkpoint counts as the best."
            )

    def _panel(self, variables):
        chosen = _evenly(self.indices, self.cfg.log.images)
        batches = evaluate.predict_split(self.cfg, self.predict, variables, self.data, chosen, self.mesh)
        parts = [(batch["image"], batch["mask"], probability) for probability, batch, _ in batches]
        return [np.concatenate(part) for part in zip(*parts)]


def _evenly(indices: Sequence[int], most: int) -> Sequence[int]:
    """At most `most` of `indices`, evenly spaced; all where `most` is 0."""
    if not most or most >= len(indices):
        return indices
    return [indices[i] for i in np.linspace(0, len(indices) - 1, most).astype(int)]
