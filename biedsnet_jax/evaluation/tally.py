"""Counts up calibration and entropy over a split, and chooses the slices worth showing."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from biedsnet_jax.reporting.record import GROUPS
from biedsnet_jax.scoring.calibration import BINS, mean_entropy


class Tally:
    """Counts over all slices of the test split."""

    def __init__(self, classes: int, threshold: float):
        self.threshold = threshold
        self.dice = []
        self.entropy = []
        self.histogram = np.zeros((classes, BINS, 2, 2), np.int64)

    def add(
        self,
        probability: Float[np.ndarray, "h w k"],
        truth: Bool[np.ndarray, "h w k"],
        dice: list[float],
        known: Bool[np.ndarray, "h w k"] | None = None,
    ) -> None:
        """Adds one slice, with the Dice of each class.

        Only pixels that are `known`, None for all, count; a class without any has the
        entropy NaN.
        """
        self.dice += dice
        for k in range(len(dice)):
            chosen = ... if known is None else known[..., k]
            p = probability[..., k][chosen]
            y = truth[..., k][chosen]
            self.entropy.append(mean_entropy(p) if p.size else math.nan)
            self.histogram[k] += self._counts(p, y)

    def _counts(self, p, y):
        """Counts "BINS 2 2" of the pixels of one class by bin, truth and mask."""
        # A probability of 1 belongs to the last bin.
        bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
        found = p > self.threshold
        # One number for bin, truth and mask, so that one bincount counts all three.
        cell = (bins * 2 + y) * 2 + found
        counts = np.bincount(cell.ravel(), minlength=BINS * 4)
        return counts.reshape(BINS, 2, 2)

    def choose(
        self, most: int, shown: Sequence[bool] | None = None
    ) -> list[tuple[int, int]]:
        """Chooses at most `most` slices for the report; returns (number, group) of each.

        `shown` says of each slice whether it can be shown; without it all can.
        A sixth each are the worst, the median and the best by mean Dice of their
        classes, in turns; the others are evenly spaced.
        """
        dice = np.array(self.dice).reshape(-1, len(self.histogram))
        fits = np.ones(len(dice), bool)
        if shown is not None:
            fits = np.array(shown, bool)
        chosen = {}
        ranked = [n for n in _by_score(dice) if fits[n]]
        each = min(max(1, most // 6), math.ceil(len(ranked) / 3))
        middle = max(0, len(ranked) // 2 - each // 2)
        worst = ranked[:each]
        median = ranked[middle : middle + each]
        best = ranked[::-1][:each]
        for turn in zip(worst, median, best):
            for group, number in enumerate(turn):
                # A slice of two groups is of the first.
                chosen.setdefault(number, group)
        rest = [n for n in range(len(dice)) if n not in chosen and fits[n]]
        room = min(len(rest), max(0, most - len(chosen)))
        spread = np.linspace(0, len(rest) - 1, room).round().astype(int)
        for i in spread:
            chosen[rest[i]] = GROUPS.index("other")
        return list(chosen.items())[:most]


def _by_score(dice: Float[np.ndarray, "n k"]) -> list[int]:
    """Numbers of the slices that have a Dice, by the mean of their classes."""
    known = ~np.isnan(dice)
    total = np.where(known, dice, 0).sum(axis=1)
    score = total / np.maximum(known.sum(axis=1), 1)
    # Slices of one score stay in their order.
    order = np.argsort(score, kind="stable").tolist()
    return [n for n in order if known[n].any()]
