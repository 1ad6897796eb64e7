"""Counts precision and recall over thresholds, pixel by pixel as the batches come."""

import numpy as np
from jaxtyping import Bool, Float, Int

# As TensorBoard spaces them: i / 126.
THRESHOLDS = 127


class Counts:
    """Counts the pixels of each class by probability and truth, over all batches added."""

    def __init__(self, classes: int):
        self.pixels: Int[np.ndarray, "k thresholds 2"] = np.zeros(
            (classes, THRESHOLDS, 2), np.int64
        )

    def add(
        self,
        probability: Float[np.ndarray, "b h w k"],
        truth: Bool[np.ndarray, "b h w k"],
        known: Float[np.ndarray, "b h w k"] | None = None,
    ) -> None:
        """Adds the pixels of one batch, where `known` is given those that it marks."""
        # A pixel that is not a number reaches the lowest threshold alone.
        sound = np.clip(np.nan_to_num(probability.astype(np.float64)), 0, 1)
        reached = (sound * (THRESHOLDS - 1)).astype(np.int64)
        for k, pixels in enumerate(self.pixels):
            cell = (reached[..., k] * 2 + truth[..., k]).ravel()
            if known is not None:
                cell = cell[known[..., k].ravel() > 0]
            pixels += np.bincount(cell, minlength=THRESHOLDS * 2).reshape(THRESHOLDS, 2)

    def curves(self) -> list[dict[str, np.ndarray]]:
        """Lists tp, fp, tn, fn, precision and recall of each class, by threshold.

        A pixel is predicted whose probability reaches the threshold. Precision is 0
        where nothing is predicted, recall 0 where there is no truth.
        """
        found = []
        for pixels in self.pixels:
            fp, tp = pixels[::-1].cumsum(0)[::-1].T
            fn = tp[0] - tp
            tn = fp[0] - fp
            ratios = {
                "precision": tp / np.maximum(tp + fp, 1),
                "recall": tp / np.maximum(tp + fn, 1),
            }
            found.append({"tp": tp, "fp": fp, "tn": tn, "fn": fn} | ratios)
        return found
