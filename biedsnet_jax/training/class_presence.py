"""Classes that no mask of a split has, found before a training and not after it."""

from collections.abc import Iterator, Sequence

import numpy as np

from biedsnet_jax.config import build_data
from biedsnet_jax.data.sources.source import Source
from biedsnet_jax.scoring.class_names import titled

# Slices looked at in a split: enough to find all but the rarest classes, in seconds.
MOST = 1000

_MEANS = {
    "train": "it cannot be learnt",
    "val": "its validation Dice is undefined",
    "test": "its test Dice is undefined",
}


def warnings(
    data: build_data.Data, classes: int, names: Sequence[str] = ()
) -> Iterator[str]:
    """Yields a sentence for each split that lacks a class; `names` are theirs."""
    for split in build_data.SPLITS:
        indices = getattr(data, split)
        absent, looked = missing(data.source, indices, classes)
        if not absent or not indices:
            continue
        what = " or ".join(f"class {titled(k + 1, names)}" for k in absent)
        if classes == 1:
            what = "a lesion"
        count = f"{looked}"
        if looked < len(indices):
            count += f" (of {len(indices)})"
        yield f"None of the {count} {split} slices has {what}: {_MEANS[split]}."


def missing(
    source: Source, indices: Sequence[int], classes: int, *, most: int = MOST
) -> tuple[list[int], int]:
    """(classes that no slice has, counted from 0; number of slices looked at).

    Slices are looked at in a fixed random order until every class was seen, mostly few.
    """
    absent = set(range(classes))
    # In random order, since neighbouring slices of a case have the same classes.
    order = np.random.default_rng(0).permutation(len(indices))[:most]
    for looked, position in enumerate(order, start=1):
        mask = source[int(indices[position])]["mask"]
        absent -= set(np.flatnonzero(mask.reshape(-1, classes).any(0)).tolist())
        if not absent:
            return [], looked
    return sorted(absent), len(order)
