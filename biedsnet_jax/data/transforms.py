"""Image and mask transforms: pure functions of an image or of an example.

An example is a dict with image "h w c" and mask "h w k". No function writes into its
argument. `augment`, the random one, takes the numpy generator of grain's `random_map`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from biedsnet_jax.data import augmentations
from biedsnet_jax.data.fit import Fit, Way, each_channel
from biedsnet_jax.data.padding import without_padding
from biedsnet_jax.errors import BadInput

METHODS = ("percentile", "minmax", "zscore", "none")
# What a mask is where a network trains on it: values of data.target.
TARGETS = ("hard", "share")
# Normalisation by percentile maps the range between these two onto [0, 1].
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Prepare:
    """The way of every slice to a network, in training and prediction alike.

    `window` (low, high), in the units of the file, is clipped and mapped to [0, 1];
    without it padding is replaced, see `padding`. Then the slice is resized for the
    canvas of `fit`, normalised, and placed there.
    """

    fit: Fit
    normalise: str = "percentile"  # one of METHODS
    window: tuple[float, float] | None = None  # units of the file
    target: str = "hard"  # one of TARGETS

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Prepares a source's example for a batch; its image becomes float32.

        Its mask has 0 and 1, or with the target "share" the share of each pixel that a
        class covers.
        """
        image = example["image"]
        way = self.fit.way(image.shape[:2], example.get("spacing"))
        brought = way.mask if self.target == "hard" else way.shares
        return brought(example) | {"image": self._on_canvas(image, way)}

    def image(
        self,
        image: Shaped[np.ndarray, "h w c"],
        spacing: tuple[float, float] | None = None,
    ) -> Float32[np.ndarray, "H W c"]:
        """Prepares an image that has no mask; `spacing` (row, column) is in mm."""
        way = self.fit.way(image.shape[:2], spacing)
        return self._on_canvas(image, way)

    def _on_canvas(self, image, way: Way):
        image = window(image, *self.window) if self.window else without_padding(image)
        resized = normalise(way.resize(image), self.normalise)
        return way.place(resized)


def window(
    image: Shaped[np.ndarray, "h w c"], low: float, high: float
) -> Float32[np.ndarray, "h w c"]:
    """Clips to [low, high], such as Hounsfield units, and maps that onto [0, 1]."""
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)


def normalise(
    image: Shaped[np.ndarray, "h w c"], method: str
) -> Float32[np.ndarray, "h w c"]:
    """Brings each channel of a slice to a common scale; a constant channel becomes 0.

    percentile: the 0.5 to 99.5 percentiles go to [0, 1], clipped (the extremes do where
    these two coincide); minmax: the extremes go to [0, 1]; zscore: mean 0 and standard
    deviation 1; none: only the type changes. Raises BadInput for another `method`.
    """
    if method not in METHODS:
        raise BadInput(f"data.normalise is {method}. Give one of {', '.join(METHODS)}.")
    image = image.astype(np.float32)
    if method == "none":
        return image
    pixels = image.reshape(-1, image.shape[-1])
    low = pixels.min(axis=0)
    high = pixels.max(axis=0)
    if method == "zscore":
        # Rounding can leave a constant channel with a deviation just above 0.
        width = np.where(high > low, pixels.std(axis=0, dtype=np.float64), 0)
        low = pixels.mean(axis=0, dtype=np.float64)
    else:
        if method == "percentile":
            p_low, p_high = np.percentile(pixels, PERCENTILES, axis=0)
            low, high = np.where(p_high > p_low, (p_low, p_high), (low, high))
            image = np.clip(image, low, high)
        width = high - low
    return ((image - low) / np.where(width > 0, width, np.inf)).astype(np.float32)


def augment(
    example: dict[str, Any],
    rng: np.random.Generator,
    *,
    hflip: float = 0.0,
    vflip: float = 0.0,
    rotate_degrees: float = 0.0,
    rotate: float = 1.0,
    scale: float = 0.0,
    intensity: float = 0.0,
    zoom: float = 0.0,
    elastic: float = 0.0,
    tile: int = 0,
    **grey: float,
) -> dict[str, Any]:
    """Draws a random variant of a normalised example; all zero leaves it as it is.

    With `tile` a square of that side is cut out of it, see `crop`.

    `hflip` and `vflip` are the probabilities of swapping left with right and top with
    bottom, `rotate` that of an angle within +-`rotate_degrees`. The magnification is
    drawn from 1 +- `scale`, see `rotate_and_scale`. `intensity` is the half width of
    random changes of gamma, contrast and brightness, see `change_intensity`. `zoom`,
    `elastic` and `grey`, see `change_grey`, are the probabilities of nnU-Net's.
    """
    image, mask = example["image"], with_unknown(example)
    # All numbers are drawn, whatever is switched on, so that switching one transform on
    # leaves the others' draws as they were.
    draw_hflip, draw_vflip = rng.random(2)
    angle, magnified = rng.uniform(-1.0, 1.0, 2) * (rotate_degrees, scale)
    gamma, contrast, brightness = rng.uniform(-intensity, intensity, 3)
    draw_rotate, draw_zoom, draw_elastic = rng.random(3)
    zoom_strength, elastic_strength = rng.random(2)
    rng_field, rng_grey = (
        np.random.default_rng(seed) for seed in rng.integers(2**63, size=2)
    )
    rng_crop = np.random.default_rng(rng.integers(2**63))
    rows = slice(None, None, -1 if draw_vflip < vflip else 1)
    columns = slice(None, None, -1 if draw_hflip < hflip else 1)
    image, mask = image[rows, columns], mask[rows, columns]
    if draw_rotate >= rotate:
        angle = 0.0
    magnification = 1.0 + magnified
    if draw_zoom < zoom:
        magnification *= augmentations.zoom_factor(zoom_strength)
    if angle or magnification != 1.0:
        image, mask = rotate_and_scale(image, mask, math.radians(angle), magnification)
    if draw_elastic < elastic:
        image, mask = augmentations.deform(image, mask, elastic_strength, rng_field)
    if tile:
        image, mask = crop(image, mask, rng_crop, tile, example.get("shown"))
    if intensity:
        image = change_intensity(image, math.exp(gamma), 1.0 + contrast, brightness)
    if any(grey.values()):
        image = change_grey(image, rng_grey, **grey)
    return {**without_unknown(example, mask), "image": np.ascontiguousarray(image)}


def with_unknown(example: dict[str, Any]) -> Shaped[np.ndarray, "h w n"]:
    """The mask and, as further channels, what is not known, to be moved alike.

    So what comes in from outside the slice is known background.
    """
    mask = example["mask"]
    if "known" not in example:
        return mask
    return np.concatenate([mask, 1 - example["known"]], axis=-1, dtype=mask.dtype)


def without_unknown(
    example: dict[str, Any], moved: Shaped[np.ndarray, "h w n"]
) -> dict[str, Any]:
    """An example with mask and known as `with_unknown` put them together.

    A class of which nothing was known stays so, outside the slice too.
    """
    if "known" not in example:
        return {**example, "mask": np.ascontiguousarray(moved)}
    mask, unknown = np.split(moved, 2, axis=-1)
    known = example["known"].any(axis=(0, 1)) & (unknown < 0.5)
    return {
        **example,
        "mask": np.ascontiguousarray(mask),
        "known": known.astype(np.uint8),
    }


def crop(
    image: Float32[np.ndarray, "h w c"],
    mask: Shaped[np.ndarray, "h w k"],
    rng: np.random.Generator,
    side: int,
    shown: int | None = None,
):
    """Cuts a square of `side` pixels out of image and mask, anywhere within them.

    With `shown` it holds a pixel of that class, drawn from all of them, if there are.
    """
    size = mask.shape[:2]
    first = np.zeros(2, int)
    last = np.subtract(size, side)
    lesion = () if shown is None else np.argwhere(mask[..., shown] > 0.5)
    if len(lesion):
        pixel = lesion[rng.integers(len(lesion))]
        first = np.maximum(first, pixel - side + 1)
        last = np.minimum(last, pixel)
    top, left = rng.integers(first, last, endpoint=True)
    inside = slice(top, top + side), slice(left, left + side)
    return image[inside], mask[inside]


def change_grey(
    image: Float32[np.ndarray, "h w c"],
    rng: np.random.Generator,
    *,
    noise: float = 0.0,
    blur: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    low_resolution: float = 0.0,
    inverted_gamma: float = 0.0,
    gamma: float = 0.0,
):
    """Changes the grey values as nnU-Net does, in its order, each by a probability."""
    draws = rng.random(7)
    strengths = rng.random(7)
    if draws[0] < noise:
        image = augmentations.add_noise(image, strengths[0], rng)
    if draws[1] < blur:
        image = augmentations.blur(image, strengths[1])
    if draws[2] < brightness:
        image = augmentations.change_brightness(image, strengths[2])
    if draws[3] < contrast:
        image = augmentations.change_contrast(image, strengths[3])
    if draws[4] < low_resolution:
        image = augmentations.lower_resolution(image, strengths[4])
    if draws[5] < inverted_gamma:
        image = augmentations.change_gamma(image, strengths[5], inverted=True)
    if draws[6] < gamma:
        image = augmentations.change_gamma(image, strengths[6], inverted=False)
    return image


def rotate_and_scale(
    image: Float32[np.ndarray, "h w c"],
    mask: Shaped[np.ndarray, "h w k"],
    angle: float,
    zoom: float,
):
    """Rotates and magnifies image and mask about the centre, in one resampling.

    `angle` is in radians, anticlockwise on the screen. The image is bilinear, the mask
    takes the nearest pixel; outside lie the image's minimum and background.
    """
    height, width = mask.shape[:2]
    cos = math.cos(angle) / zoom
    sin = math.sin(angle) / zoom
    # Pillow takes the map from output to input, in (x, y) from the image's corner.
    affine = (
        cos,
        -sin,
        (width - cos * width + sin * height) / 2,
        sin,
        cos,
        (height - sin * width - cos * height) / 2,
    )

    def transform(channel, resample, fill):
        return channel.transform(
            (width, height), Image.Transform.AFFINE, affine, resample, fillcolor=fill
        )

    low = float(image.min())
    image = each_channel(image, lambda x: transform(x, Image.Resampling.BILINEAR, low))
    mask = each_channel(mask, lambda x: transform(x, Image.Resampling.NEAREST, 0))
    return image, mask


def change_intensity(
    image: Float32[np.ndarray, "h w c"],
    gamma: float,
    contrast: float,
    brightness: float,
):
    """Changes the grey curve of a slice.

    Contrast is about the mean, brightness in units of the slice's range.
    """
    low, width = image.min(), np.ptp(image)
    if width == 0:
        return image
    x = ((image - low) / width) ** np.float32(gamma)
    x = (x - x.mean()) * np.float32(contrast) + x.mean() + np.float32(brightness)
    return low + width * x
