"""Masks in picture files: which pixel is of which class, or one line on why it cannot
be told.

What is shown counts: grey levels, not the order of a palette; white, not the number
that stands for it. Where a file can be read in two ways that differ, it is refused.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from biedsnet_jax.data.formats.pictures import GREY_SPREAD, Stored, read_stored
from biedsnet_jax.errors import BadInput

# the lowest grey level that stands out of what JPEG adds
LEAST_LOSSY = 24
_MIDDLE = (
    0.12,
    0.88,
)  # of a lossy mask's upper level: what lies between is no level of a mask of two
# of the upper level: differences within an even area, at most
_FLAT = 0.1
# even pixels between the levels, at most
_MOST_BETWEEN = 16


def read_mask(path: Path, classes: int) -> UInt8[np.ndarray, "h w k"]:
    """One map of 0 and 1 per foreground class, upright.

    `classes` 1: the file holds 0 and one other value, whichever. `classes` k > 1: the
    labels 0 to k. Raises BadInput where it holds others, or cannot be read in one way
    only.
    """
    stored = read_stored(path)
    if stored.lossy and classes > 1:
        raise BadInput(
            f"labels in a lossy file, {classes} classes, {path}; save the mask as PNG"
        )
    if stored.lossy:
        return _cut_lossy(stored, path)[..., None].astype(np.uint8)
    label = _label(stored, classes, path)
    if not _fits(label, classes):
        raise _other_values(label, classes, path)
    if classes == 1:
        return (label > 0)[..., None].astype(np.uint8)
    return (label[..., None] == np.arange(1, classes + 1)).astype(np.uint8)


def _fits(label: Shaped[np.ndarray, "h w"], classes: int) -> bool:
    """Whether there is no value but those that a mask may hold."""
    expected = [0, label.max()] if classes == 1 else list(range(classes + 1))
    return bool(np.isin(label, expected).all())


def _label(stored: Stored, classes: int, path: Path) -> Shaped[np.ndarray, "h w"]:
    """The value of every pixel that says its class."""
    if stored.palette is not None:
        return _palette_label(stored, stored.palette, classes, path)
    colours = stored.pixels[..., :-1] if stored.alpha else stored.pixels
    alpha = stored.pixels[..., -1] if stored.alpha else _hidden(stored)
    one_colour = bool((colours == colours[:1, :1]).all())
    # the mask is kept in alpha; where a slice has none, nothing shows
    if stored.alpha and one_colour and (np.ptp(alpha) or not alpha.any()):
        return alpha
    if colours.shape[-1] > 1 and (colours != colours[..., :1]).any():
        raise BadInput(
            f"a mask in colour, {colours.shape[-1]} channels, {path}; save labels as one grey "
            "channel"
        )
    grey = colours[..., 0]
    if stored.inverted and not _fits(grey, classes):
        as_stored = stored.inverted - grey.astype(np.int64)
        grey = as_stored if _fits(as_stored, classes) else grey
    return grey if alpha is None else _with_alpha(grey, alpha, path)


def _hidden(stored: Stored) -> Shaped[np.ndarray, "h w"] | None:
    """Alpha of a PNG in which one value is transparent; None where none is."""
    if len(stored.transparent) != stored.pixels.shape[-1]:
        return None
    return (stored.pixels != np.array(stored.transparent)).any(axis=-1).astype(np.uint8)


def _with_alpha(grey, alpha, path: Path) -> Shaped[np.ndarray, "h w"]:
    """The grey levels, where alpha does not say something else."""
    if not np.ptp(alpha) or np.array_equal(alpha > 0, grey > 0):
        return grey
    raise BadInput(
        f"{path} holds grey values {_shown(grey)} and an alpha channel of {_shown(alpha)} that "
        "mark different pixels. Save the mask as one grey channel."
    )


def _palette_label(
    stored: Stored, palette, classes: int, path: Path
) -> Shaped[np.ndarray, "h w"]:
    """Grey levels of a grey palette; indices of a coloured one and of rising greys, no
    labels.
    """
    index = stored.pixels[..., 0]
    used = np.unique(index)
    if used.max() >= len(palette):
        raise BadInput(
            f"{path} holds index {used.max()} of a palette of {len(palette)} colours. Save it as "
            "grey."
        )
    colours, alpha = palette[used, :3].astype(int), palette[used, 3]
    if np.ptp(alpha):
        return _label(Stored(palette[index], stored.turn, alpha=True), classes, path)
    coloured = (colours != colours[:, :1]).any()
    grey = palette[index][..., 0]
    if not coloured and _fits(grey, classes):
        return grey
    rising = (np.diff(colours[:, 0]) > 0).all()
    black = used[(colours == 0).all(axis=1)]
    if (coloured and (black == 0).all()) or (not coloured and rising):
        return index
    raise BadInput(
        f"{path} holds the indices {_shown(index)} of a palette in which they are the colours "
        f"{', '.join(map(_colour, colours[:8].tolist()))}, so that the background is another one "
        "by index than by colour. Save the labels as one grey channel."
    )


def _colour(colour: list[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)


def _cut_lossy(stored: Stored, path: Path) -> Bool[np.ndarray, "h w"]:
    """Where a mask of 0 and one other level, packed with loss, is above half of that
    level.
    """
    colours = stored.pixels[..., :3].astype(np.int32)
    if np.ptp(colours, axis=-1).max() > GREY_SPREAD:
        raise BadInput(
            f"a mask in colour, {colours.shape[-1]} channels, {path}; save labels as one grey "
            "channel"
        )
    grey = colours.mean(axis=-1)
    most = grey.max()
    if most == 0:
        return grey > 0
    upper = np.median(grey[grey > most / 2])
    lower = np.median(grey[grey <= upper / 2]) if (grey <= upper / 2).any() else 0
    low, high = upper * _MIDDLE[0], upper * _MIDDLE[1]
    between = (grey > low) & (grey < high) & _even(grey, upper * _FLAT)
    above = (grey > 1.35 * upper) & _even(grey, upper * _FLAT)
    if (
        upper < LEAST_LOSSY
        or lower > low
        or max(between.sum(), above.sum()) > _MOST_BETWEEN
    ):
        raise BadInput(
            f"{path} was packed with loss, as JPEG is, and holds grey values from "
            f"{grey.min():.0f} to {most:.0f} that are not 0 and one other level, or too close to "
            "be told apart. Save the mask as PNG."
        )
    return grey > upper / 2


def _even(grey, most: float) -> Bool[np.ndarray, "h w"]:
    """Where a pixel and its eight neighbours differ by at most `most`."""
    padded = np.pad(grey, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return np.ptp(windows, axis=(-2, -1)) <= most


def _shown(values) -> str:
    found = np.unique(values)
    return ", ".join(str(value) for value in found[:8]) + (
        ", ..." if len(found) > 8 else ""
    )


def _other_values(label, classes: int, path: Path) -> BadInput:
    expected = "0 and one other value" if classes == 1 else f"the labels 0 to {classes}"
    return BadInput(
        f"mask values, {_shown(label)}, {path}; for {classes} class{'es' * (classes > 1)} give "
        f"{expected}, or raise data.classes"
    )
