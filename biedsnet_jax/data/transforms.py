"""Image and mask transforms: pure functions of an image or an example (a dict with
image "h w c" and mask "h w k").

Nothing writes into its argument. The random one takes the numpy generator that grain's
`random_map` hands it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from biedsnet_jax.errors import BadInput

METHODS = ("percentile", "minmax", "zscore", "none")
# of the intensities of a slice, where it is brought to [0, 1] by percentile
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Prepare:
    """What every slice goes through on its way to a network, in training and prediction
    alike.

    `window` (low, high), in the units of the file, is clipped and mapped to [0, 1];
    then the slice is resized, then normalised.
    """

    size: int | tuple[int, int]  # pixels: a side, or height and width
    normalise: str = "percentile"  # of METHODS
    window: tuple[float, float] | None = None

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """A source's example, ready for a batch; image float32."""
        return resize_mask(example, self.size) | {"image": self.image(example["image"])}

    def image(self, image: Shaped[np.ndarray, "h w c"]) -> Float32[np.ndarray, "H W c"]:
        """The same for an image by itself."""
        if self.window:
            image = window(image, *self.window)
        return normalise(resize_image(image, self.size), self.normalise)


def window(
    image: Shaped[np.ndarray, "h w c"], low: float, high: float
) -> Float32[np.ndarray, "h w c"]:
    """Clip to [low, high], in the units of the image such as Hounsfield's, and map that
    to [0, 1].
    """
    return ((np.clip(image, low, high) - low) / (high - low)).astype(np.float32)


def normalise(
    image: Shaped[np.ndarray, "h w c"], method: str
) -> Float32[np.ndarray, "h w c"]:
    """Bring each channel of this one slice to a common scale; a constant channel
    becomes 0.

    percentile: the 0.5 to 99.5 percentiles to [0, 1], clipped (the extremes, where
    these two coincide); minmax: the extremes to [0, 1]; zscore: mean 0 and standard
    deviation 1; none: only the type changes.
    """
    if method not in METHODS:
        raise BadInput(
            f"normalisation, {method}, data.normalise; give one of {', '.join(METHODS)}"
        )
    image = image.astype(np.float32)
    if method == "none":
        return image
    pixels = image.reshape(-1, image.shape[-1])
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    if method == "zscore":
        low, width = (
            pixels.mean(axis=0, dtype=np.float64),
            pixels.std(axis=0, dtype=np.float64) * (high > low),
        )
    elif method == "percentile":
        p_low, p_high = np.percentile(pixels, PERCENTILES, axis=0)
        low, high = np.where(p_high > p_low, (p_low, p_high), (low, high))
        image, width = np.clip(image, low, high), high - low
    else:
        width = high - low
    return ((image - low) / np.where(width > 0, width, np.inf)).astype(np.float32)


def resize_image(
    image: Shaped[np.ndarray, "h w c"], size: int | tuple[int, int]
) -> Shaped[np.ndarray, "H W c"]:
    """The image at `size` (a side, or height and width), bilinear, antialiased where it
    shrinks.
    """
    height, width = _sides(size)
    if image.shape[:2] == (height, width):
        return image
    return _each_channel(
        image.astype(np.float32),
        lambda x: x.resize((width, height), Image.Resampling.BILINEAR),
    )


def resize_mask(example: dict[str, Any], size: int | tuple[int, int]) -> dict[str, Any]:
    """The example with its mask at `size` (a side, or height and width); the spacing
    grows as the pixels do.

    Each mask pixel takes the class that covers most of it, a tie going to the lesion:
    borders stay in place and lesions of half a pixel survive, which picking the nearest
    pixel would lose by chance. Where the mask grows this is the nearest pixel. Classes
    that overlap, as nested regions do, take the pixels they cover half of, each by
    itself.
    """
    height, width = _sides(size)
    mask = example["mask"]
    old_height, old_width = mask.shape[:2]
    if (old_height, old_width) == (height, width):
        return example
    cover = _each_channel(
        mask.astype(np.float32),
        lambda x: x.resize((width, height), Image.Resampling.BOX),
    )
    if (mask.sum(axis=-1) > 1).any():
        mask = (cover > 0.5 - 1e-6).astype(np.uint8)
    else:
        # background's comes last
        shares = np.concatenate(
            [cover, 1.0 - cover.sum(axis=-1, keepdims=True)], axis=-1
        )
        # the first of equals
        label = shares.argmax(axis=-1)
        mask = (label[..., None] == np.arange(mask.shape[-1])).astype(np.uint8)
    spacing = example.get("spacing")
    if spacing is not None:
        spacing = (spacing[0] * old_height / height, spacing[1] * old_width / width)
    return {**example, "mask": mask, "spacing": spacing}


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def augment(
    example: dict[str, Any],
    rng: np.random.Generator,
    *,
    hflip: float = 0.0,
    vflip: float = 0.0,
    rotate_degrees: float = 0.0,
    scale: float = 0.0,
    intensity: float = 0.0,
) -> dict[str, Any]:
    """A random variant of a normalised example; all zero leaves it as it is.

    `hflip` and `vflip` are probabilities (left with right, top with bottom); the angle
    is drawn from +-`rotate_degrees` and the magnification from 1 +- `scale`, about the
    centre, with image bilinear, mask nearest and the slice's minimum outside;
    `intensity` is the half width of random changes of gamma, contrast and brightness.
    """
    image, mask = example["image"], example["mask"]
    mirror, upend = rng.random(2)
    angle, zoom = rng.uniform(-1.0, 1.0, 2) * (rotate_degrees, scale)
    gamma, contrast, brightness = rng.uniform(-intensity, intensity, 3)
    if mirror < hflip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if upend < vflip:
        image, mask = image[::-1], mask[::-1]
    if angle or zoom:
        image, mask = _turn(image, mask, math.radians(angle), 1.0 + zoom)
    if intensity:
        image = _jitter(image, math.exp(gamma), 1.0 + contrast, brightness)
    return {
        **example,
        "image": np.ascontiguousarray(image),
        "mask": np.ascontiguousarray(mask),
    }


def _turn(
    image: Float32[np.ndarray, "h w c"],
    mask: UInt8[np.ndarray, "h w k"],
    angle: float,
    zoom: float,
):
    """Rotate by `angle` (radians, anticlockwise on the screen) and magnify by `zoom`
    about the centre, in one step.
    """
    height, width = mask.shape[:2]
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    # Pillow wants the map from output to input, in (x, y) with the origin at the
    # image's corner
    affine = (
        cos,
        -sin,
        (width - cos * width + sin * height) / 2,
        sin,
        cos,
        (height - sin * width - cos * height) / 2,
    )

    def turned(channel, resample, fill):
        return channel.transform(
            (width, height), Image.Transform.AFFINE, affine, resample, fillcolor=fill
        )

    low = float(image.min())
    image = _each_channel(image, lambda x: turned(x, Image.Resampling.BILINEAR, low))
    return image, _each_channel(mask, lambda x: turned(x, Image.Resampling.NEAREST, 0))


def _jitter(
    image: Float32[np.ndarray, "h w c"],
    gamma: float,
    contrast: float,
    brightness: float,
):
    """Change the grey curve; contrast is about the mean, brightness in units of the
    slice's range.
    """
    low, width = image.min(), np.ptp(image)
    if width == 0:
        return image
    x = ((image - low) / width) ** np.float32(gamma)
    x = (x - x.mean()) * np.float32(contrast) + x.mean() + np.float32(brightness)
    return low + width * x


def _each_channel(array: np.ndarray, change) -> np.ndarray:
    """`change`, a function of a Pillow image, applied to every channel of "h w n"."""
    channels = (
        Image.fromarray(np.ascontiguousarray(array[..., i]))
        for i in range(array.shape[-1])
    )
    return np.stack([np.asarray(change(channel)) for channel in channels], axis=-1)
