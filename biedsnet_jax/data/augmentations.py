"""The augmentations of nnU-Net's 2D networks, one function each.

Each takes an image "h w c" and a strength drawn evenly from [0, 1]; all channels change
alike. Ranges are those of nnU-Net (Isensee et al. 2021, supplement 4). Where nnU-Net
relies on a mean of 0 and a deviation of 1, the slice's own stand in, so that any
normalisation will do.
"""

import math

import numpy as np
import scipy.ndimage
from jaxtyping import Float32, Shaped
from PIL import Image

Slice = Float32[np.ndarray, "h w c"]
# 0 and 1, or shares of a pixel.
Masks = Shaped[np.ndarray, "h w k"]

_ZOOM = (0.7, 1.4)  # magnification
_NOISE_VARIANCE = 0.1  # largest, of a slice with variance 1
_BLUR = (0.5, 1.0)  # pixels, deviation of the Gaussian
_FACTORS = (0.75, 1.25)  # of brightness and of contrast
_RESOLUTION = (0.5, 1.0)  # share of the pixels of a side
_GAMMA = (0.7, 1.5)
# Elastic deformation (Simard et al. 2003): deviation of the Gaussian that smooths the
# displacements, and the largest of these, as shares of the longer side.
_SMOOTHNESS = 1 / 16
_DISPLACEMENT = 1 / 20


def zoom_factor(strength: float) -> float:
    """Magnification from 0.7 to 1.4, as often below 1 as above."""
    return _factor(strength, *_ZOOM)


def deform(
    image: Slice, mask: Masks, strength: float, rng: np.random.Generator
) -> tuple[Slice, Masks]:
    """Moves pixels along a smooth random field, by at most `strength` / 20 of a side.

    The image is bilinear, the mask takes the nearest pixel; outside lie the image's
    minimum and background.
    """
    height, width = mask.shape[:2]
    side = max(height, width)
    field = rng.uniform(-1.0, 1.0, (2, height, width))
    sigma = side * _SMOOTHNESS
    field = scipy.ndimage.gaussian_filter(field, (0, sigma, sigma))
    field *= strength * _DISPLACEMENT * side / np.abs(field).max()
    places = field + np.indices((height, width))

    def moved(array, order, outside):
        channels = [
            scipy.ndimage.map_coordinates(channel, places, order=order, cval=outside)
            for channel in np.moveaxis(array, -1, 0)
        ]
        return np.stack(channels, axis=-1)

    return moved(image, 1, float(image.min())), moved(mask, 0, 0)


def add_noise(image: Slice, strength: float, rng: np.random.Generator) -> Slice:
    """Adds Gaussian noise, whose variance is up to a tenth of the slice's."""
    deviation = math.sqrt(strength * _NOISE_VARIANCE) * image.std()
    noise = rng.standard_normal(image.shape, np.float32)
    return image + np.float32(deviation) * noise


def blur(image: Slice, strength: float) -> Slice:
    """Smooths with a Gaussian of 0.5 to 1 pixel."""
    sigma = float(np.interp(strength, (0, 1), _BLUR))
    return scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0))


def change_brightness(image: Slice, strength: float) -> Slice:
    """Multiplies what lies above the slice's minimum by 0.75 to 1.25."""
    low = image.min()
    return low + (image - low) * np.float32(_factor(strength, *_FACTORS))


def change_contrast(image: Slice, strength: float) -> Slice:
    """Multiplies the distance from the mean by 0.75 to 1.25, within the old range."""
    mean = image.mean()
    changed = mean + (image - mean) * np.float32(_factor(strength, *_FACTORS))
    return np.clip(changed, image.min(), image.max())


def lower_resolution(image: Slice, strength: float) -> Slice:
    """Keeps the nearest of 0.5 to 1 times the pixels, and resizes back by cubics."""
    height, width = image.shape[:2]
    share = float(np.interp(strength, (0, 1), _RESOLUTION))
    small = max(1, round(width * share)), max(1, round(height * share))
    channels = []
    for channel in np.moveaxis(image, -1, 0):
        picture = Image.fromarray(np.ascontiguousarray(channel))
        picture = picture.resize(small, Image.Resampling.NEAREST)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        channels.append(np.asarray(picture))
    return np.stack(channels, axis=-1)


def change_gamma(image: Slice, strength: float, *, inverted: bool) -> Slice:
    """Bends the grey curve by a power of 0.7 to 1.5; mean and deviation stay.

    With `inverted` that is done to the negative.
    """
    if inverted:
        return -change_gamma(-image, strength, inverted=False)
    low, width = image.min(), np.ptp(image)
    if width == 0:
        return image
    bent = ((image - low) / width) ** np.float32(_factor(strength, *_GAMMA))
    return image.mean() + (bent - bent.mean()) * (image.std() / bent.std())


def _factor(strength, low, high) -> float:
    """A factor from `low` to `high`, as often below 1 as above, as in nnU-Net."""
    return float(np.interp(strength, (0, 0.5, 1), (low, 1, high)))
