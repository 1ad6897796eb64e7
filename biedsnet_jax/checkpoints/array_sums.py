"""CRC-32 of every array of a state, for a checkpoint that lost its checksums.

They are taken in memory before a save. They lie in the checkpoint's metadata, not
beside the sums of its files, so that the two are not lost together.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def of(tree: Any) -> dict[str, int]:
    """Sum of each array by its place in `tree`.

    Arrays that lie in parts on several machines have none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_place(path): _sum(leaf) for path, leaf in leaves if _is_here(leaf)}


def difference(tree: Any, expected: Mapping[str, int]) -> str | None:
    """First array of `tree` that is not as expected, in words; None where all are."""
    found = of(tree)
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        place = _place(path)
        if place not in found or place not in expected:
            return f"{place} cannot be checked"
        if found[place] != expected[place]:
            return f"{place} changed"
    return None


def _place(path) -> str:
    # The same for a field of a class and a key of a dict.
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_here(leaf) -> bool:
    return (
        not isinstance(leaf, jax.Array)
        or leaf.is_fully_addressable
        or leaf.is_fully_replicated
    )


def _sum(leaf) -> int:
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        # From one device, since a view of the array itself would hinder its donation.
        leaf = leaf.addressable_data(0)
    values = np.ascontiguousarray(leaf).reshape(-1)
    return zlib.crc32(values.view(np.uint8))
