"""Draws a prediction: the image in grey with each class tinted and outlined."""

import math

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8
from PIL import Image
from scipy.ndimage import binary_dilation

from biedsnet_jax.data.padding import without_padding
from biedsnet_jax.data.transforms import PERCENTILES

# Colours that colour-blind readers tell apart, also on grey (Okabe and Ito 2008).
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
# Share of a class's colour inside its mask; the image keeps the rest.
TINT = 0.35
# Slices of a volume that a picture shows at most.
MOST_TILES = 9
# Least and most pixels of a tile's longer side.
SIDES = (256, 512)


def overlay(
    slices: Num[np.ndarray, "d h w c"],
    mask: Bool[np.ndarray, "d h w k"],
    spacing: tuple[float, float] | None,
) -> Image.Image:
    """Draws the slices with the largest masks in one picture.

    A single slice is drawn at its own size. Slices of a volume run from the feet up, in
    the proportions of `spacing` (row, column, in mm); where no mask is, they are evenly
    spaced.
    """
    tiles = [_paint(slices[z], mask[z]) for z in _choose(mask)]
    if len(slices) > 1:
        tiles = [_scaled(tile, spacing) for tile in tiles]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    height, width, _ = tiles[0].shape
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[: len(tiles)] = tiles
    sheet = sheet.reshape(rows, columns, height, width, 3)
    # "rows height columns width 3"
    lines = sheet.swapaxes(1, 2)
    return Image.fromarray(lines.reshape(rows * height, columns * width, 3))


def _choose(mask):
    pixels = mask.any(axis=-1).sum(axis=(1, 2))
    if not pixels.any():
        spread = np.linspace(0, len(mask) - 1, MOST_TILES)
        return np.unique(spread.round().astype(int))
    most = np.argsort(-pixels, kind="stable")[:MOST_TILES]
    return np.sort(most[pixels[most] > 0])


def _paint(image, mask) -> UInt8[np.ndarray, "h w 3"]:
    """Paints the masks on a slice."""
    painted = in_colours(image)
    for k in range(mask.shape[-1]):
        colour = np.array(COLOURS[k % len(COLOURS)])
        inside = mask[..., k]
        painted[inside] = (1 - TINT) * painted[inside] + TINT * colour
        # It lies outside the mask, so that it hides none of it.
        outline = binary_dilation(inside) & ~inside
        painted[outline] = colour
    return painted.astype(np.uint8)


def in_colours(image: Num[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w 3"]:
    """Shows a colour picture in colour, or the first channel in grey, from 0 to 255.

    Black and white are the 0.5 and 99.5 percentiles.
    """
    coloured = image.shape[-1] == 3 and image.dtype == np.uint8
    if not coloured:
        image = image[..., :1]
    shown = without_padding(image).astype(np.float32)
    low, high = np.percentile(shown, PERCENTILES)
    if low == high:
        low, high = shown.min(), shown.max()
    grey = (shown - low) / max(high - low, 1e-9)
    return np.clip(grey, 0, 1) * 255 * np.ones(3)


def _scaled(tile, spacing):
    """Scales a tile to square pixels (in mm), with its longer side within SIDES."""
    rows, columns = spacing or (1.0, 1.0)
    height = tile.shape[0] * rows
    width = tile.shape[1] * columns
    factor = np.clip(max(tile.shape[:2]), *SIDES) / max(height, width)
    width = max(1, round(width * factor))
    height = max(1, round(height * factor))
    picture = Image.fromarray(tile)
    # Pillow's order.
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(scaled)
