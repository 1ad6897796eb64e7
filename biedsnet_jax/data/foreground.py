"""A share of each training batch from slices that have a lesion, classes drawn evenly.

Rows are counted from the first step on. Row r is such a row where floor(r share) rises
from r to r + 1, so that every batch holds its share to within one row. The n-th such row
shows class n modulo k of the k classes that there are, on a slice drawn at random from
the seed and n.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from biedsnet_jax.data.sources.source import Source
from biedsnet_jax.errors import BadInput


@dataclass(frozen=True)
class Foreground:
    """Rows that show a lesion, and the slice and the class of each."""

    share: float
    seed: int
    # For each class that any slice has, positions of its slices among those of training.
    by_class: tuple[np.ndarray, ...] = ()
    # Those classes, from 0 to k - 1.
    classes: tuple[int, ...] = ()

    def before(self, row: int) -> int:
        """Number of rows with a lesion among the first `row` rows."""
        return math.floor(row * self.share)

    def has(self, row: int) -> bool:
        """Whether a row shows a lesion."""
        return self.before(row + 1) > self.before(row)

    def position(self, number: int) -> int:
        """Position of the slice that the row with lesion `number` shows."""
        slices = self.by_class[number % len(self.by_class)]
        return int(np.random.default_rng([self.seed, number]).choice(slices))

    def shown(self, number: int) -> int:
        """The class that the row with lesion `number` shows."""
        return self.classes[number % len(self.classes)]


def find_foreground(
    source: Source, indices: Sequence[int], *, share: float, seed: int
) -> Foreground:
    """Looks for each class in the masks of the slices `indices`, all of which it reads.

    Reads nothing where `share` is 0. Raises BadInput where no slice has any class.
    """
    if not share:
        return Foreground(0.0, seed)
    there = [_classes_of(source[int(index)]["mask"]) for index in indices]
    by_class = {
        k: np.flatnonzero(of_class)
        for k, of_class in enumerate(np.transpose(there))
        if of_class.any()
    }
    if not by_class:
        raise BadInput(
            f"data.foreground is {share}, but none of the {len(indices)} slices of "
            "training has a lesion. Set it to 0, or train on other cases."
        )
    return Foreground(share, seed, tuple(by_class.values()), tuple(by_class))


def _classes_of(mask) -> np.ndarray:
    """Whether a mask "h w k" has each class, "k"."""
    return mask.any(axis=(0, 1))
