"""Random inputs and variables for tests of networks.

numpy draws them, since compiling an `init` takes longer than most tests.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def initial(module, *inputs, **static):
    """Shapes of a module's variables; `static`, such as train=False, goes to its call."""
    return jax.eval_shape(
        lambda *xs: module.init(jax.random.key(0), *xs, **static), *inputs
    )


def weights(module, *inputs, **static):
    """Draws variables of a module's shapes.

    No scale, bias or running statistic is left at 0 or 1, where a mistake would not show.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 10
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, initial(module, *inputs, **static))


def squares(count: int = 4, size: int = 32):
    """Draws noisy images of one bright square each; returns them with their masks."""
    rng = np.random.default_rng(0)
    mask = np.zeros((count, size, size, 1), np.float32)
    for i, (top, left) in enumerate(rng.integers(0, size // 2, (count, 2))):
        mask[i, top : top + size // 2, left : left + size // 2] = 1
    image = mask + rng.normal(0, 0.3, mask.shape)
    return jnp.asarray(image, jnp.float32), jnp.asarray(mask)
