"""The whole prediction as one function of arrays, lowered to StableHLO.

It windows, normalises, samples and fuses. Weights are its arguments, since constants took
longer to compile and to run, and more memory; so it is as fast as `predict`. `predict`
prepares slices in numpy and float64, this program in float32.
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

# Arrays by path, such as "params/stem/kernel".
Weights = dict[str, Any]


def lower(model: Trained, weights: Weights, *, keep_samples: bool) -> export.Exported:
    """Lowers the program of `make` for all of PLATFORMS and batches of any size.

    Of the weights only shapes and types matter.
    """
    height, width, channels = build_data.image_shape(model.config)
    # A symbol, so that the program takes batches of any size.
    (b,) = export.symbolic_shape("b")
    inputs = (
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()},
        jax.ShapeDtypeStruct((b, height, width, channels), np.float32),
        jax.ShapeDtypeStruct((b,), np.int32),
        jax.ShapeDtypeStruct((), np.uint32),
    )
    program = jax.jit(make(model, keep_samples=keep_samples))
    with _without_source_lines():
        return export.export(program, platforms=PLATFORMS)(*inputs)


@contextlib.contextmanager
def _without_source_lines():
    """Keeps names of source files out of the program."""
    # They are paths of this machine, and differ from call to call.
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def make(model: Trained, *, keep_samples: bool) -> Callable[..., dict[str, Array]]:
    """Makes the function `(weights, image, number, seed) -> maps`.

    `image` "b h w c" is in the units of the training files and has the network's size.
    `number` of each slice in its scan and `seed` choose the noise, as in `predict`. Maps
    are "b h w k"; with `keep_samples` there are samples "n b h w k" too.
    """
    data = model.config.data
    low_high = tuple(map(float, data.window))
    method = data.normalise

    def biedsnet_predict(weights, image, number, seed):
        if low_high:
            image = window(image, *low_high)
        prepared = normalise(image, method)
        keys = noise_keys(seed, number)
        maps = dict(model.maps(unflatten(weights), prepared, keys))
        if not keep_samples:
            maps.pop("samples", None)
        return maps

    return biedsnet_predict


def flatten(variables: dict) -> Weights:
    """Variables by path instead of nested."""
    return traverse_util.flatten_dict(variables, sep="/")


def unflatten(weights: Weights) -> dict:
    """Nested variables from those by path; missing collections are empty."""
    nested = traverse_util.unflatten_dict(weights, sep="/")
    return {"params": {}, "batch_stats": {}} | nested


def window(image: Image, low: float, high: float) -> Image:
    """`data.transforms.window` in jax."""
    return (jnp.clip(image, low, high) - low) / (high - low)


def normalise(image: Image, method: str) -> Image:
    """`data.transforms.normalise` of each slice and channel, in jax and float32."""
    if method == "none":
        return image
    low = jnp.min(image, axis=(1, 2), keepdims=True)
    high = jnp.max(image, axis=(1, 2), keepdims=True)
    if method == "zscore":
        # Subtracted first, since the mean of large numbers would lose digits.
        image = image - low
        low, constant = _mean(image), high <= low
        width = jnp.where(constant, 0.0, jnp.sqrt(_mean(jnp.square(image - low))))
    elif method == "percentile":
        p_low, p_high = _percentiles(image)
        # Where the percentiles coincide, the extremes take their place.
        differ = p_high > p_low
        low, high = jnp.where(differ, p_low, low), jnp.where(differ, p_high, high)
        image, width = jnp.clip(image, low, high), high - low
    else:
        width = high - low
    return (image - low) / jnp.where(width > 0, width, jnp.inf)


def _mean(image: Image) -> Float[Array, "b 1 1 c"]:
    """Mean of each slice and channel."""
    # Of rows, then of their means: one long sum in float32 loses digits.
    return jnp.mean(jnp.mean(image, axis=2, keepdims=True), axis=1, keepdims=True)


def _percentiles(image: Image) -> list[Float[Array, "b 1 1 c"]]:
    """PERCENTILES of each slice and channel, linear between neighbours as numpy's."""
    # Not `jnp.percentile`, which rounds the neighbours' places to float32.
    b, height, width, channels = image.shape
    pixels = jnp.sort(image.reshape(b, height * width, channels), axis=1)
    found = []
    for percent in PERCENTILES:
        last = height * width - 1
        place = percent / 100 * last
        below = math.floor(place)
        first = pixels[:, below]
        second = pixels[:, min(below + 1, last)]
        found.append((first + (second - first) * (place - below))[:, None, None])
    return found
