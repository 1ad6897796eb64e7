"""Packing of many small arrays into one, for elementwise work on them.

A network has hundreds of parameters, and an optimizer does the same few things to each:
hundreds of tiny programs to trace, compile, load and launch. Large arrays stay as they
are, so that nothing large is copied or gathered.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Elements of the largest array that is packed: copying it costs less than a program of
# its own.
SMALL = 65_536


class Packed(NamedTuple):
    """A packed tree: its small arrays in one, and its large ones."""

    small: jax.Array
    large: list[jax.Array]


class Packing:
    """Packs trees that look like `like`, also inside a larger tree.

    Such are the parameters in a training state, and an optimizer's moments. `sharding`
    is that of each array, None where all are whole; arrays cut over devices are not
    packed. With `apart` nothing is, so that an optimizer can tell parameters apart.
    """

    def __init__(self, like: Any, sharding: Any = None, *, apart: bool = False):
        self._apart = apart
        leaves, self._structure = jax.tree.flatten(like)
        whole = [True] * len(leaves)
        if sharding is not None:
            whole = [s.is_fully_replicated for s in jax.tree.leaves(sharding)]
        self._shapes = [leaf.shape for leaf in leaves]
        # One array has one dtype, and nearly all parameters are float32.
        self._is_small = [
            is_whole and leaf.size <= SMALL and leaf.dtype == jnp.float32
            for leaf, is_whole in zip(leaves, whole, strict=True)
        ]

    def pack(self, tree: Any) -> Any:
        """`tree` with `Packed` for every part of it that has `like`'s structure."""
        if self._apart:
            return tree
        return jax.tree.map(
            lambda x: self._pack(x) if self._fits(x) else x, tree, is_leaf=self._fits
        )

    def unpack(self, tree: Any) -> Any:
        """The inverse of `pack`."""
        return jax.tree.map(
            lambda x: self._unpack(x) if isinstance(x, Packed) else x,
            tree,
            is_leaf=_is_packed,
        )

    def _fits(self, node) -> bool:
        return jax.tree.structure(node) == self._structure

    def _pack(self, tree):
        leaves = jax.tree.leaves(tree)
        small = [
            leaf.reshape(-1)
            for leaf, is_small in zip(leaves, self._is_small)
            if is_small
        ]
        large = [leaf for leaf, is_small in zip(leaves, self._is_small) if not is_small]
        return Packed(jnp.concatenate(small) if small else jnp.zeros(0), large)

    def _unpack(self, packed):
        sizes = [
            int(np.prod(shape))
            for shape, is_small in zip(self._shapes, self._is_small)
            if is_small
        ]
        small = iter(jnp.split(packed.small, np.cumsum(sizes)[:-1]))
        large = iter(packed.large)
        leaves = [next(small if is_small else large) for is_small in self._is_small]
        leaves = [leaf.reshape(shape) for leaf, shape in zip(leaves, self._shapes)]
        return jax.tree.unflatten(self._structure, leaves)


def _is_packed(node) -> bool:
    return isinstance(node, Packed)
