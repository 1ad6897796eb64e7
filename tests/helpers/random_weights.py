"""Random inputs and variables for tests of networks, from numpy: compiling an `init`
costs more than most tests.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def initial(module, *inputs, **static):
    """Shapes of the module's variables; `static` goes to its `__call__`, such as
    train=False.
    """
    return jax.eval_shape(
        lambda *xs: module.init(jax.random.key(0), *xs, **static), *inputs
    )


def weights(module, *inputs, **static):
    """Random variables of the module's own shapes: no scale, bias or running statistic
    is left at 0 or 1.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 10
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, initial(module, *inputs, **static))


def squares(count: int = 4, size: int = 32):
    """Noisy images of one bright square each, and its mask."""
    rng = np.random.default_rng(0)
    mask = np.zeros((count, size, size, 1), np.float32)
    for i, (top, left) in enumerate(rng.integers(0, size // 2, (count, 2))):
        mask[i, top : top + size // 2, left : left + size // 2] = 1
    return jnp.asarray(mask + rng.normal(0, 0.3, mask.shape), jnp.float32), jnp.asarray(
        mask
    )
