"""Reads masks in picture files: the class of each pixel, or an error that says why not.

What is shown counts: grey levels, not the order of a palette; white, not the number
that stands for it. A file that can be read in two ways that differ is refused. One
further value, or one colour, may mark pixels that were not annotated.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from biedsnet_jax.data.formats.pictures import GREY_SPREAD, Stored, read_stored
from biedsnet_jax.errors import BadInput

# The lowest grey level that stands out of the noise that JPEG adds.
LEAST_LOSSY = 24
# Shares of a lossy mask's upper level. An even area between them is a third level.
_MIDDLE = (0.12, 0.88)
# The most that pixels of an even area differ, as a share of the upper level.
_FLAT = 0.1
# The most even pixels at a third level; JPEG leaves a few along borders.
_MOST_BETWEEN = 16
_COLOUR = re.compile("#[0-9a-fA-F]{6}")


def is_colour(text: str) -> bool:
    """Whether a text is a colour such as "#ff0000"."""
    return bool(_COLOUR.fullmatch(text))


def read_truth(
    path: Path, classes: int, ignore: str
) -> tuple[UInt8[np.ndarray, "h w k"], Bool[np.ndarray, "h w"]]:
    """Reads the maps of `read_mask`, and where they are known.

    Unknown are pixels of the value or colour `ignore`, such as "255" or "#ff0000". They
    count for nothing else: the others must be as `read_mask` expects. Raises BadInput
    as it does, and for a lossy file, whose values are not exact.
    """
    stored = read_stored(path)
    if stored.lossy:
        raise BadInput(
            f"{path} is packed with loss, as JPEG is, so no pixel has the exact value of "
            f"data.ignore, {ignore}. Save the mask as PNG."
        )
    if is_colour(ignore):
        ignored = _has_colour(stored, ignore)
        stored = _without(stored, ignored)
        label = _label(stored, classes, path)
        value = None
    else:
        value = int(ignore)
        label = _label(stored, classes, path, value)
        ignored = label == value
    _check_fits(label, classes, path, value)
    return _masks(np.where(ignored, 0, label), classes), ~ignored


def _has_colour(stored: Stored, colour: str) -> Bool[np.ndarray, "h w"]:
    """Marks the pixels of a colour "#rrggbb", of a palette too; grey has three alike."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    shown = stored.pixels
    if stored.palette is not None:
        shown = stored.palette[stored.pixels[..., 0]]
    colours = shown[..., :3] if shown.shape[-1] > 2 else shown[..., :1]
    return (colours == wanted).all(axis=-1)


def _without(stored: Stored, ignored: Bool[np.ndarray, "h w"]) -> Stored:
    """A picture whose ignored pixels hold what one of the others does."""
    if not ignored.any():
        return stored
    pixels = stored.pixels.copy()
    kept = stored.pixels[~ignored]
    # Where all are ignored, any value will do.
    pixels[ignored] = kept[0] if len(kept) else 0
    return dataclasses.replace(stored, pixels=pixels)


def read_mask(path: Path, classes: int) -> UInt8[np.ndarray, "h w k"]:
    """Reads one upright map of 0 and 1 for each foreground class.

    With one class the file holds 0 and any one other value, with k > 1 the labels 0 to
    k. Raises BadInput for other values, and for a file that can be read in two ways.
    """
    stored = read_stored(path)
    if stored.lossy and classes > 1:
        raise BadInput(
            f"{path} is packed with loss, as JPEG is, which mixes the labels of {classes} classes. "
            "Save the mask as PNG."
        )
    if stored.lossy:
        return _cut_lossy(stored, path)[..., None].astype(np.uint8)
    label = _label(stored, classes, path)
    _check_fits(label, classes, path)
    return _masks(label, classes)


def _masks(label: Shaped[np.ndarray, "h w"], classes: int):
    if classes == 1:
        return (label > 0)[..., None].astype(np.uint8)
    return (label[..., None] == np.arange(1, classes + 1)).astype(np.uint8)


def _check_fits(label, classes, path, ignore=None):
    if not _fits(label, classes, ignore):
        raise _other_values(label, classes, path)


def _fits(
    label: Shaped[np.ndarray, "h w"], classes: int, ignore: int | None = None
) -> bool:
    """Whether a map holds no value but those that a mask may hold, and `ignore`."""
    if ignore is not None:
        label = label[label != ignore]
    expected = range(classes + 1)
    if classes == 1:
        expected = [0, label.max() if label.size else 0]
    return bool(np.isin(label, expected).all())


def _label(
    stored: Stored, classes: int, path: Path, ignore: int | None = None
) -> Shaped[np.ndarray, "h w"]:
    """Finds the channel that says the class of every pixel; it may hold `ignore` too."""
    if stored.palette is not None:
        return _palette_label(stored, stored.palette, classes, path, ignore)
    if stored.alpha:
        colours = stored.pixels[..., :-1]
        alpha = stored.pixels[..., -1]
        one_colour = bool((colours == colours[:1, :1]).all())
        # The mask is in alpha. In a slice without a lesion all of it is transparent.
        if one_colour and (np.ptp(alpha) or not alpha.any()):
            return alpha
    else:
        colours = stored.pixels
        alpha = _transparency(stored)
    if colours.shape[-1] > 1 and (colours != colours[..., :1]).any():
        raise _coloured(colours.shape[-1], path)
    grey = colours[..., 0]
    if stored.inverted and not _fits(grey, classes, ignore):
        as_stored = stored.inverted - grey.astype(np.int64)
        if _fits(as_stored, classes, ignore):
            grey = as_stored
    # An alpha channel is ignored where it says nothing, or the same as the grey levels.
    if alpha is None or not np.ptp(alpha) or np.array_equal(alpha > 0, grey > 0):
        return grey
    raise BadInput(
        f"{path} holds grey values {_listed(grey)} and an alpha channel of {_listed(alpha)} that "
        "mark different pixels. Save the mask as one grey channel."
    )


def _transparency(stored: Stored) -> Shaped[np.ndarray, "h w"] | None:
    """Alpha of a PNG in which one value is transparent; None where none is."""
    if len(stored.transparent) != stored.pixels.shape[-1]:
        return None
    return (stored.pixels != np.array(stored.transparent)).any(axis=-1).astype(np.uint8)


def _palette_label(
    stored: Stored, palette, classes: int, path: Path, ignore: int | None
) -> Shaped[np.ndarray, "h w"]:
    """Reads a mask with a palette by its grey levels, or by its indices.

    Indices are the labels where the palette is coloured, or where its greys rise and are
    no labels themselves.
    """
    index = stored.pixels[..., 0]
    used = np.unique(index)
    if used.max() >= len(palette):
        raise BadInput(
            f"{path} holds index {used.max()} of a palette of {len(palette)} colours. "
            "Save it as grey."
        )
    colours = palette[used, :3].astype(int)
    alpha = palette[used, 3]
    if np.ptp(alpha):
        shown = Stored(palette[index], stored.turn, alpha=True)
        return _label(shown, classes, path, ignore)
    if (colours != colours[:, :1]).any():
        black = used[(colours == 0).all(axis=1)]
        index_is_label = (black == 0).all()
    else:
        grey = palette[index][..., 0]
        if _fits(grey, classes, ignore):
            return grey
        index_is_label = (np.diff(colours[:, 0]) > 0).all()
    if index_is_label:
        return index
    names = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours[:8]]
    raise BadInput(
        f"{path} holds the indices {_listed(index)} of a palette in which they are the colours "
        f"{', '.join(names)}, so that the background is another one by index than by colour. "
        "Save the labels as one grey channel."
    )


def _cut_lossy(stored: Stored, path: Path) -> Bool[np.ndarray, "h w"]:
    """Cuts a lossy mask of 0 and one other level at half of that level."""
    colours = stored.pixels[..., :3].astype(np.int32)
    if np.ptp(colours, axis=-1).max() > GREY_SPREAD:
        raise _coloured(colours.shape[-1], path)
    grey = colours.mean(axis=-1)
    most = grey.max()
    if most == 0:
        return grey > 0
    upper = np.median(grey[grey > most / 2])
    lows = grey[grey <= upper / 2]
    lower = np.median(lows) if lows.size else 0
    low = upper * _MIDDLE[0]
    high = upper * _MIDDLE[1]
    even = _even(grey, upper * _FLAT)
    between = ((grey > low) & (grey < high) & even).sum()
    above = ((grey > 1.35 * upper) & even).sum()
    third_level = max(between, above) > _MOST_BETWEEN
    if upper < LEAST_LOSSY or lower > low or third_level:
        raise BadInput(
            f"{path} was packed with loss, as JPEG is, and holds grey values from "
            f"{grey.min():.0f} to {most:.0f} that are not 0 and one other level, or too close to "
            "be told apart. Save the mask as PNG."
        )
    return grey > upper / 2


def _even(grey, most: float) -> Bool[np.ndarray, "h w"]:
    """Marks pixels that differ by at most `most` among their eight neighbours."""
    padded = np.pad(grey, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return np.ptp(windows, axis=(-2, -1)) <= most


def _listed(values) -> str:
    """Lists the first eight different values."""
    found = np.unique(values)
    more = ", ..." if len(found) > 8 else ""
    return ", ".join(map(str, found[:8])) + more


def _coloured(channels: int, path: Path) -> BadInput:
    return BadInput(
        f"{path} is a mask in colour, of {channels} channels. "
        "Save the labels as one grey channel."
    )


def _other_values(label, classes: int, path: Path) -> BadInput:
    expected = "0 and one other value" if classes == 1 else f"the labels 0 to {classes}"
    return BadInput(
        f"The mask {path} holds the values {_listed(label)}. "
        f"Save it with {expected}, as data.classes={classes} asks, or raise data.classes."
    )
