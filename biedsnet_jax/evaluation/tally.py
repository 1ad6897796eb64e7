"""What a pass over a split counts up beside its scores: calibration, entropy, and the
slices worth showing.
"""

import numpy as np
from jaxtyping import Bool, Float

from biedsnet_jax.reporting.record import GROUPS
from biedsnet_jax.scoring.calibration import BINS, mean_entropy


class Tally:
    """What is counted over all slices of the test split."""

    def __init__(self, classes: int, threshold: float):
        self.threshold = threshold
        self.dice, self.entropy = [], []
        self.histogram = np.zeros((classes, BINS, 2, 2), np.int64)

    def add(
        self,
        probability: Float[np.ndarray, "h w k"],
        truth: Bool[np.ndarray, "h w k"],
        dice: list[float],
    ) -> None:
        """One slice, with the Dice of each class."""
        self.dice += dice
        for k in range(len(dice)):
            p = probability[..., k]
            self.entropy.append(mean_entropy(p))
            bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
            cell = (bins * 2 + truth[..., k]) * 2 + (p > self.threshold)
            self.histogram[k] += np.bincount(cell.ravel(), minlength=BINS * 4).reshape(
                BINS, 2, 2
            )

    def choose(self, most: int) -> list[tuple[int, int]]:
        """(number, group) of at most `most` slices: a sixth each of the worst, the
        median and the best by mean Dice of their classes, in turns, then others evenly
        spaced.
        """
        classes = len(self.histogram)
        dice = np.array(self.dice).reshape(-1, classes)
        known = ~np.isnan(dice)
        score = np.where(known, dice, 0).sum(1) / np.maximum(known.sum(1), 1)
        ranked = [
            n
            for n in np.lexsort((np.arange(len(score)), score)).tolist()
            if known[n].any()
        ]
        each = min(max(1, most // 6), -(-len(ranked) // 3))
        middle = max(0, len(ranked) // 2 - each // 2)
        chosen = {}
        for turn in zip(
            ranked[:each], ranked[middle : middle + each], ranked[::-1][:each]
        ):
            for group, number in enumerate(turn):
                chosen.setdefault(number, group)
        rest = [n for n in range(len(score)) if n not in chosen]
        room = min(len(rest), max(0, most - len(chosen)))
        others = [
            rest[i] for i in np.linspace(0, len(rest) - 1, room).round().astype(int)
        ]
        chosen |= dict.fromkeys(others, GROUPS.index("other"))
        return list(chosen.items())[:most]
