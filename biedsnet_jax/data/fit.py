"""The way of a slice to the network's canvas, and the way of the network's maps back.

Training, prediction and evaluation all ask one object, `Fit`, for the `Way` of a slice,
so a mask is drawn back exactly as its image was brought there. The canvas is the grid on
which the network predicts, H by W; h by w is the slice's own.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image

# The ways to the canvas: values of data.fit.
METHODS = ("squash", "pad", "tile")


@dataclass(frozen=True)
class Way:
    """The way of slices of one size to their canvas, and of maps back to the slices.

    A slice is resized to its part of the canvas, in whose middle it stands. Around it
    lie its lowest values and background.
    """

    size: tuple[int, int]  # pixels: h, w
    # Height and width that a slice takes on the canvas.
    part: tuple[int, int]
    canvas: tuple[int, int]  # pixels: H, W

    def resize(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "H W c"]:
        """Resizes an image to its part of the canvas."""
        return resize_image(image, self.part)

    def place(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "H W c"]:
        """Puts a resized image onto the canvas, among its lowest values.

        These are of each channel after normalisation, which sees no padding.
        """
        return self._place(image, image.min(axis=(0, 1)))

    def mask(self, example: dict[str, Any]) -> dict[str, Any]:
        """Brings mask and spacing of an example to the canvas; see `resize_mask`."""
        return self._place_truth(resize_mask(example, self.part))

    def shares(self, example: dict[str, Any]) -> dict[str, Any]:
        """Brings the mask of an example to the canvas as `mask` does, but as shares.

        Each pixel, float32, is the share of its area that the class covers.
        """
        spacing = example.get("spacing")
        resized = {
            **example,
            "mask": cover(example["mask"], self.part),
            "spacing": _resized_spacing(spacing, self.size, self.part),
        }
        if "known" in example:
            known = cover(example["known"], self.part)
            resized |= of_known(resized["mask"], known)
        return self._place_truth(resized)

    def back(self, maps: Float[np.ndarray, "H W k"]) -> Float[np.ndarray, "h w k"]:
        """Brings maps on the canvas back to the slice, bilinearly."""
        height, width = self.part
        top, left = self._corner
        own = maps[top : top + height, left : left + width]
        return resize_image(own, self.size)

    @property
    def _corner(self) -> tuple[int, int]:
        """Row and column on the canvas of the first pixel of its part."""
        height, width = self.part
        rows, columns = self.canvas
        return (rows - height) // 2, (columns - width) // 2

    def _place_truth(self, example):
        """Places mask and known: around a slice lies background, known as its class is."""
        placed = {**example, "mask": self._place(example["mask"], 0)}
        if "known" in example:
            known = example["known"]
            placed["known"] = self._place(known, known.max(axis=(0, 1)))
        return placed

    def _place(self, values, around):
        """Puts "h w n" onto a canvas of the value `around`, one or one for each of n."""
        if values.shape[:2] == self.canvas:
            return values
        height, width, channels = values.shape
        canvas = np.empty((*self.canvas, channels), values.dtype)
        canvas[:] = around
        top, left = self._corner
        canvas[top : top + height, left : left + width] = values
        return canvas


@dataclass(frozen=True)
class Fit:
    """How slices of any size come to a network.

    squash: a slice is resized to the network's input, whatever its proportions. pad: it
    is resized until it touches the input on two sides, and stands in the middle. With a
    `spacing` it is resampled to that, and made smaller only where it is too large. tile:
    it is resampled to `spacing`, if there is one, and stands on a canvas that whole
    tiles of the input's size cover, see `segmenters.tiling`.
    """

    size: int | tuple[int, int]  # pixels: a side of the network's input, or both
    method: str = "squash"  # one of METHODS
    # Row and column, mm; without it, and for slices of unknown spacing, pixels count.
    spacing: tuple[float, float] | None = None

    def way(
        self, size: tuple[int, int], spacing: tuple[float, float] | None = None
    ) -> Way:
        """The way of slices of `size`, (h, w), and `spacing` in mm to their canvas."""
        inputs = _sides(self.size)
        if self.method == "squash":
            return Way(size, inputs, inputs)
        resampled = self.spacing is not None and spacing is not None
        sides = size
        if resampled:
            sides = np.multiply(size, spacing) / self.spacing
        if self.method == "tile":
            part = _whole(sides, 1.0)
            return Way(size, part, tiled_canvas(part, inputs))
        scale = min(inputs[0] / sides[0], inputs[1] / sides[1])
        if resampled:
            # The spacing stays, unless the slice would not fit.
            scale = min(scale, 1.0)
        return Way(size, _whole(sides, scale), inputs)


def tiled_canvas(part: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """The least canvas for a slice of `part` that tiles cover in steps of half a tile.

    The sides of a tile are even.
    """
    height, width = (_tiled_side(side, of_tile) for side, of_tile in zip(part, tile))
    return height, width


def _tiled_side(side: int, tile: int) -> int:
    steps = math.ceil(2 * side / tile)
    return max(2, steps) * tile // 2


def read_spacing(text: str) -> tuple[float, float] | None:
    """Spacing (row, column) in mm of a text such as "0.8" or "0.8,0.7"; None for "".

    Raises ValueError for other texts.
    """
    if not text:
        return None
    lengths = [float(part) for part in text.split(",")]
    row, column = lengths if len(lengths) == 2 else lengths * 2
    return row, column


def _whole(sides, scale: float) -> tuple[int, int]:
    """Sides times `scale`, in whole pixels, at least one."""
    height, width = (max(1, round(side * scale)) for side in sides)
    return height, width


def resize_image(
    image: Shaped[np.ndarray, "h w c"], size: int | tuple[int, int]
) -> Shaped[np.ndarray, "H W c"]:
    """Resizes an image bilinearly, antialiased where it shrinks.

    `size` is a side, or height and width.
    """
    height, width = _sides(size)
    if image.shape[:2] == (height, width):
        return image
    return each_channel(
        image.astype(np.float32),
        lambda x: x.resize((width, height), Image.Resampling.BILINEAR),
    )


def resize_mask(example: dict[str, Any], size: int | tuple[int, int]) -> dict[str, Any]:
    """Resizes the mask of an example; its spacing grows as its pixels do.

    `size` is a side, or height and width. Each mask pixel takes the class that covers
    most of it, and the lesion where two cover the same. So borders stay in place and
    lesions of half a pixel survive, which the nearest pixel would lose by chance. Where
    the mask grows, this is the nearest pixel. Classes that overlap, as nested regions
    do, are resized one by one: each takes the pixels that it covers at least half of.
    Where known is in the example, each pixel is decided on its known part, see `of_known`.
    """
    height, width = _sides(size)
    mask = example["mask"]
    if mask.shape[:2] == (height, width):
        return example

    def shares_of(values):
        return each_channel(
            values.astype(np.float32),
            lambda x: x.resize((width, height), Image.Resampling.BOX),
        )

    shares = shares_of(mask)
    known = {}
    if "known" in example:
        known = of_known(shares, shares_of(example["known"]))
        shares = known.pop("mask")
    # The sum of planes is ten times faster than that along the last axis.
    classes_of_pixel = sum(np.moveaxis(mask, -1, 0))
    overlap = (classes_of_pixel > 1).any()
    resized = _at_least_half(shares) if overlap else _largest_share(shares)
    old = mask.shape[:2]
    spacing = _resized_spacing(example.get("spacing"), old, (height, width))
    return {**example, "mask": resized, "spacing": spacing} | known


def _at_least_half(shares: Float[np.ndarray, "h w k"]) -> UInt8[np.ndarray, "h w k"]:
    """Marks the pixels of which each class covers at least half."""
    return (shares > 0.5 - 1e-6).astype(np.uint8)


def _largest_share(shares: Float[np.ndarray, "h w k"]) -> UInt8[np.ndarray, "h w k"]:
    """Gives each pixel to the class, or the background, that covers most of it."""
    background = 1.0 - shares.sum(axis=-1, keepdims=True)
    # Background comes last, since argmax takes the first of equal shares.
    every = np.concatenate([shares, background], axis=-1)
    label = every.argmax(axis=-1)
    classes = np.arange(shares.shape[-1])
    return (label[..., None] == classes).astype(np.uint8)


def of_known(
    shares: Float[np.ndarray, "h w k"], known: Float[np.ndarray, "h w k"]
) -> dict[str, np.ndarray]:
    """Mask, as shares of the known part of each pixel, and known, uint8.

    A pixel is known where at least half of it is; elsewhere its mask is 0. `shares` are
    of the whole pixel, of which `known` is the share that is known.
    """
    enough = known > 0.5 - 1e-6
    of_part = shares / np.where(enough, known, 1)
    return {
        "mask": np.where(enough, of_part, 0).astype(np.float32),
        "known": enough.astype(np.uint8),
    }


def _resized_spacing(spacing, old: tuple[int, int], new: tuple[int, int]):
    """Spacing (row, column) after a slice of `old` pixels became one of `new`."""
    if spacing is None or old == new:
        return spacing
    row, column = spacing
    return (row * old[0] / new[0], column * old[1] / new[1])


def each_channel(array: np.ndarray, change) -> np.ndarray:
    """Applies `change`, a function of a Pillow image, to every channel of "h w n"."""
    changed = []
    for channel in np.moveaxis(array, -1, 0):
        picture = Image.fromarray(np.ascontiguousarray(channel))
        changed.append(np.asarray(change(picture)))
    return np.stack(changed, axis=-1)


def cover(
    mask: UInt8[np.ndarray, "h w k"], size: tuple[int, int]
) -> Float32[np.ndarray, "H W k"]:
    """Share of each pixel of a grid of `size`, (H, W), that a mask of 0 and 1 covers."""
    height, width, _ = mask.shape
    rows = _overlaps(height, size[0])
    columns = _overlaps(width, size[1])
    planes = np.moveaxis(mask.astype(np.float32), -1, 0)
    covered = rows @ planes @ columns.T
    return np.moveaxis(covered, 0, -1)


def _overlaps(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Share of each of `new` pixels that each of `old` ones covers, along one axis.

    Pillow's box filter takes or leaves whole pixels, which is exact only where the one
    number is a multiple of the other.
    """
    edges = np.arange(new + 1) * old / new
    first = np.arange(old)
    last = np.minimum(edges[1:, None], first + 1)
    shared = last - np.maximum(edges[:-1, None], first)
    return (np.maximum(shared, 0) * new / old).astype(np.float32)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
