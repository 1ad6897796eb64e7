"""A picture of a prediction: the image in grey with each class tinted and outlined."""

import math

import numpy as np
from jaxtyping import Bool, Num, UInt8
from PIL import Image
from scipy.ndimage import binary_dilation

from biedsnet_jax.data.transforms import PERCENTILES

# Told apart by colour-blind readers too, and on grey (Okabe and Ito 2008).
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
TINT = 0.35
# slices of a volume
MOST_TILES = 9
# least and most pixels of a tile's longer side
SIDES = (256, 512)


def overlay(
    slices: Num[np.ndarray, "d h w c"],
    mask: Bool[np.ndarray, "d h w k"],
    spacing: tuple[float, float] | None,
) -> Image.Image:
    """One slice as it is; of a volume the slices with most mask (evenly spaced ones
    where there is none), from the feet up, in the proportions of `spacing` (row,
    column).
    """
    chosen = _choose(mask)
    tiles = [_paint(slices[z], mask[z]) for z in chosen]
    if len(slices) > 1:
        tiles = [_scaled(tile, spacing) for tile in tiles]
    columns = math.ceil(math.sqrt(len(tiles)))
    height, width = tiles[0].shape[:2]
    sheet = np.zeros(
        (math.ceil(len(tiles) / columns) * height, columns * width, 3), np.uint8
    )
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet[
            row * height : (row + 1) * height, column * width : (column + 1) * width
        ] = tile
    return Image.fromarray(sheet)


def _choose(mask):
    pixels = mask.any(axis=-1).sum(axis=(1, 2))
    if not pixels.any():
        return np.unique(np.linspace(0, len(mask) - 1, MOST_TILES).round().astype(int))
    most = np.argsort(-pixels, kind="stable")[:MOST_TILES]
    return np.sort(most[pixels[most] > 0])


def _paint(image, mask) -> UInt8[np.ndarray, "h w 3"]:
    """The first channel in grey (a colour picture in colour), between its 0.5 and 99.5
    percentiles.
    """
    coloured = image.shape[-1] == 3 and image.dtype == np.uint8
    shown = (image if coloured else image[..., :1]).astype(np.float32)
    low, high = np.percentile(shown, PERCENTILES)
    if low == high:
        low, high = shown.min(), shown.max()
    grey = np.clip((shown - low) / max(high - low, 1e-9), 0, 1) * 255 * np.ones(3)
    for k in range(mask.shape[-1]):
        colour, inside = np.array(COLOURS[k % len(COLOURS)]), mask[..., k]
        grey[inside] = (1 - TINT) * grey[inside] + TINT * colour
        # outside the mask, so that it hides none of it
        grey[binary_dilation(inside) & ~inside] = colour
    return grey.astype(np.uint8)


def _scaled(tile, spacing):
    """The pixels made square in mm; as many on the longer side as before, but 256 to
    512.
    """
    rows, columns = spacing or (1.0, 1.0)
    height, width = tile.shape[0] * rows, tile.shape[1] * columns
    factor = np.clip(max(tile.shape[:2]), *SIDES) / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.BICUBIC))
