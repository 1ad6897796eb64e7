"""The whole prediction as one function of arrays, lowered to StableHLO: window,
normalise, sample, fuse.

Its weights are arguments, not constants: of the same speed as `predict`, where
constants took longer to compile and to run, and more memory. Before the network,
`predict` works in numpy and float64; the same is done here in float32.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export
from jaxtyping import Array, Float

from biedsnet_jax.config import build_data
from biedsnet_jax.data.transforms import PERCENTILES
from biedsnet_jax.prediction.trained import Trained, noise_keys
from biedsnet_jax.types import Image

PLATFORMS = ("cpu", "cuda", "tpu")

# arrays by path, such as "params/stem/kernel"
Weights = dict[str, Any]


def lower(model: Trained, weights: Weights, *, keep_samples: bool) -> export.Exported:
    """The program of `make` for all of PLATFORMS, its batch of any size; of the weights
    only shapes matter.
    """
    height, width, channels = build_data.image_shape(model.config)
    (b,) = export.symbolic_shape("b")
    inputs = (
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()},
        jax.ShapeDtypeStruct((b, height, width, channels), np.float32),
        jax.ShapeDtypeStruct((b,), np.int32),
        jax.ShapeDtypeStruct((), np.uint32),
    )
    with _without_source_lines():
        return export.export(
            jax.jit(make(model, keep_samples=keep_samples)), platforms=PLATFORMS
        )(*inputs)


@contextlib.contextmanager
def _without_source_lines():
    """Else the program names the files of this machine, and differs from call to call."""
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def make(model: Trained, *, keep_samples: bool) -> Callable[..., dict[str, Array]]:
    """`(weights, image, number, seed) -> maps`, and samples "n b h w k" if kept.

    `image` is in the units of the training files and of the network's size. `number`,
    of each slice in its scan, and `seed` choose the noise, as in `predict`.
    """
    data = model.config.data
    low_high, method = tuple(map(float, data.window)), data.normalise

    def biedsnet_predict(weights, image, number, seed):
        prepared = normalise(window(image, *low_high) if low_high else image, method)
        keys = noise_keys(seed, number)
        maps = model.maps(unflatten(weights), prepared, keys)
        return {
            name: value
            for name, value in maps.items()
            if name != "samples" or keep_samples
        }

    return biedsnet_predict


def flatten(variables: dict) -> Weights:
    """Nested variables by path."""
    return traverse_util.flatten_dict(variables, sep="/")


def unflatten(weights: Weights) -> dict:
    """The inverse; a network without batch statistics has them empty."""
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(
        weights, sep="/"
    )


def window(image: Image, low: float, high: float) -> Image:
    """`data.transforms.window`."""
    return (jnp.clip(image, low, high) - low) / (high - low)


def normalise(image: Image, method: str) -> Image:
    """`data.transforms.normalise` of each slice and channel."""
    if method == "none":
        return image
    low, high = (find(image, axis=(1, 2), keepdims=True) for find in (jnp.min, jnp.max))
    if method == "zscore":
        # first: a mean of large numbers would lose digits
        image = image - low
        low, constant = _mean(image), high <= low
        width = jnp.where(constant, 0.0, jnp.sqrt(_mean(jnp.square(image - low))))
    elif method == "percentile":
        p_low, p_high = _percentiles(image)
        low, high = (
            jnp.where(p_high > p_low, p, extreme)
            for p, extreme in ((p_low, low), (p_high, high))
        )
        image, width = jnp.clip(image, low, high), high - low
    else:
        width = high - low
    return (image - low) / jnp.where(width > 0, width, jnp.inf)


def _mean(image: Image) -> Float[Array, "b 1 1 c"]:
    """Of rows, then of these: one long sum in float32 loses digits."""
    return jnp.mean(jnp.mean(image, axis=2, keepdims=True), axis=1, keepdims=True)


def _percentiles(image: Image) -> list[Float[Array, "b 1 1 c"]]:
    """As numpy's, linear between neighbours; `jnp.percentile` rounds their places to
    float32.
    """
    b, height, width, channels = image.shape
    pixels = jnp.sort(image.reshape(b, height * width, channels), axis=1)
    found = []
    for percent in PERCENTILES:
        place = percent / 100 * (height * width - 1)
        below = math.floor(place)
        first, second = (
            pixels[:, min(i, height * width - 1)] for i in (below, below + 1)
        )
        found.append((first + (second - first) * (place - below))[:, None, None])
    return found
