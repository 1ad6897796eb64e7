"""Parameters that training leaves as they are, named by patterns of their paths."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax

from biedsnet_jax.errors import BadInput, listed, shown


def find_frozen(params: Any, patterns: Sequence[str]) -> Any:
    """A tree of booleans like `params`: true where a pattern names the parameter.

    A path is such as "condition/level_1/conv_1/kernel". A pattern names a path or all
    below one; * stands for any text. Returns None without patterns. Raises BadInput for
    a pattern that names nothing, and where nothing is left to train.
    """
    if not patterns:
        return None
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    for pattern in patterns:
        if not any(_names(pattern, path) for path in paths):
            parts = sorted({"/".join(path.split("/")[:2]) for path in paths})
            raise BadInput(
                f"init.freeze has {shown(repr(pattern))}, which names no parameter. Name "
                f"parts of the network, such as {listed(parts)}."
            )
    frozen = [any(_names(pattern, path) for pattern in patterns) for path in paths]
    if all(frozen):
        raise BadInput(
            f"init.freeze is {shown(patterns)}, which leaves no parameter to train. Name "
            "fewer parts."
        )
    return jax.tree.unflatten(structure, frozen)


def _names(pattern, path) -> bool:
    whole = fnmatch.fnmatchcase(path, pattern)
    return whole or fnmatch.fnmatchcase(path, f"{pattern}/*")
