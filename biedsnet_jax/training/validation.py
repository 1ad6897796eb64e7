"""Validation during training: Dice of the EMA weights, precision by recall, slices."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from biedsnet_jax.config.build_data import Data
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import progress
from biedsnet_jax.scoring import pr_curve


class Validation:
    """Scores the EMA weights on a fixed, evenly spaced subset of the validation slices."""

    def __init__(self, cfg, segmenter, data, mesh):
        self.data = data
        # The same slices each time, so that the scores of different steps compare.
        self.indices = _evenly(data.val, cfg.eval.val_images)
        self._reported_no_lesion = False
        config = cfg.copy_and_resolve_references()
        config.sampler.ensemble = cfg.eval.val_ensemble
        # Each run puts in the variables of its step.
        self.model = Trained(config, segmenter, {}, 0, mesh)

    def run(self, step: int, state, log) -> float | None:
        """The mean Dice after `step` updates; `log` gets it, curves and pictures.

        None where no slice has a lesion, since nothing then tells how good the weights
        are.
        """
        model = dataclasses.replace(
            self.model, variables=state.ema_variables, step=step
        )
        fields = model.config.log
        counts = None
        if fields.tensorboard:
            counts = pr_curve.Counts(model.config.data.classes)
        dice = mean_dice(model, self.data, self.indices, counts=counts)
        if dice is not None:
            log.write(step, {"val_dice": dice})
        if counts:
            log.curves(step, counts)
        if fields.tensorboard and fields.images:
            log.panel(step, *self._panel(model))
        return dice

    def report(self, bar: progress.Progress, step: int, dice: float | None) -> None:
        """Shows what `run` returned; that no slice has a lesion is shown only once."""
        if dice is not None:
            bar.note(f"step {step}  validation Dice {dice:.4f}", {"Dice": dice})
        elif not self._reported_no_lesion:
            self._reported_no_lesion = True
            bar.warn(
                "biedsnet: warning: validation Dice: none of the "
                f"{len(self.indices)} slices has a lesion. "
                "The latest checkpoint counts as the best."
            )

    def _panel(self, model):
        chosen = _evenly(self.indices, model.config.log.images)
        batches = model.predict_split(self.data, chosen)
        parts = [
            (batch["image"], batch["mask"], probability)
            for probability, batch, _ in batches
        ]
        # Those of the first canvas, since a picture has rows of one width.
        canvas = parts[0][0].shape[1:3]
        parts = [part for part in parts if part[0].shape[1:3] == canvas]
        return [np.concatenate(part) for part in zip(*parts)]


def mean_dice(
    model: Trained,
    data: Data,
    indices: Sequence[int],
    *,
    counts: pr_curve.Counts | None = None,
) -> float | None:
    """Mean Dice over those classes of slices that have a lesion; None without any.

    All slices are added to `counts`.
    """
    scores = []
    for probability, batch, _ in model.predict_split(data, indices):
        mask = probability > model.config.threshold
        # It is False where nothing is known.
        truth = batch["mask"] > 0.5
        known = batch.get("known")
        if known is not None:
            mask &= known > 0
        overlap = (mask & truth).sum((1, 2))
        total = mask.sum((1, 2)) + truth.sum((1, 2))
        present = truth.any((1, 2))
        if counts:
            counts.add(probability, truth, known)
        scores += list(2.0 * overlap[present] / total[present])
    return float(np.mean(scores)) if scores else None


def _evenly(indices: Sequence[int], most: int) -> Sequence[int]:
    """At most `most` of the indices, evenly spaced; all of them where `most` is 0."""
    if not most or most >= len(indices):
        return indices
    return [indices[i] for i in np.linspace(0, len(indices) - 1, most).astype(int)]
