"""Which classes are in none of the masks of a split, told before a training and not
after it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from biedsnet_jax.config import build_data
from biedsnet_jax.data.sources.source import Source

# slices of a split that are looked at
MOST = 1000

_MEANS = {
    "train": "it cannot be learnt",
    "val": "its validation Dice is undefined",
    "test": "its test Dice is undefined",
}


def warnings(data: build_data.Data, classes: int) -> Iterator[str]:
    """A sentence for each split that has no slice of some class."""
    for split in build_data.SPLITS:
        indices = getattr(data, split)
        absent, looked = missing(data.source, indices, classes)
        if not absent or not indices:
            continue
        what = (
            "a lesion"
            if classes == 1
            else " or ".join(f"class {k + 1}" for k in absent)
        )
        of = f"{looked}" if looked == len(indices) else f"{looked} (of {len(indices)})"
        yield f"None of the {of} {split} slices has {what}: {_MEANS[split]}."


def missing(
    source: Source, indices: Sequence[int], classes: int, *, most: int = MOST
) -> tuple[list[int], int]:
    """(the classes, from 0, that no slice has, how many slices were looked at).

    They are looked at in random order, the same each time, until every class was seen:
    mostly few.
    """
    absent, order = (
        set(range(classes)),
        np.random.default_rng(0).permutation(len(indices))[:most],
    )
    for looked, position in enumerate(order, start=1):
        mask = source[int(indices[position])]["mask"]
        absent -= set(np.flatnonzero(mask.reshape(-1, classes).any(0)).tolist())
        if not absent:
            return [], looked
    return sorted(absent), len(order)
