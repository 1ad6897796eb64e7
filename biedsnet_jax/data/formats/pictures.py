"""PNG, JPEG and TIFF files as images: every value in its own depth, turned as a viewer
shows it.

A camera stores a picture as its sensor lay and says in EXIF how to turn it (orientation
1 to 8). Images and masks are read turned; `turn_back` puts a map of the turned picture
onto the stored one.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from biedsnet_jax.data.formats import png, tiff
from biedsnet_jax.data.walk import check_regular
from biedsnet_jax.errors import BadInput, reason, shown

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
# of 255: channels of a grey JPEG saved as colour differ by a few
GREY_SPREAD = 32
# Pixels a byte: a bit a block of 64 gives 512; what a damaged file lacks libjpeg would
# paint grey.
JPEG_MOST = 1000
# of a picture, as 16384x16384
MOST_PIXELS = 2**28

# What a file of one of the extensions may hold in truth; others, such as EPS, would
# start programs. JPEG has MPO in it
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_LOSSY = ("JPEG", "MPO", "WEBP")
_PLAIN_MODES = (
    "1",
    "L",
    "LA",
    "I;16",
    "I",
    "F",
    "RGB",
    "RGBA",
)  # of Pillow: what pixels may stay in
_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = (
    # Pillow's own limit is lower and calls a large picture an attack; MOST_PIXELS is
    # ours
    None
)


@dataclass(frozen=True)
class Stored:
    """What a file holds, turned upright."""

    pixels: Shaped[np.ndarray, "h w n"]  # as shown, but of a palette the indices
    turn: int  # EXIF orientation, 1 to 8
    lossy: bool = False
    alpha: bool = False  # whether the last channel is one
    palette: UInt8[np.ndarray, "colours 4"] | None = (
        None  # red, green, blue and alpha of each index
    )
    # what 2 and 4 bit values are to be multiplied by to become 8 bit ones
    scale: int = 1
    # the stored value of white's opposite; 0: the smallest value is black
    inverted: int = 0
    # the one value of each channel that is not shown; of PNG
    transparent: tuple[int, ...] = ()


def read_picture_turned(
    path: Path, channels: int
) -> tuple[Shaped[np.ndarray, "h w c"], int]:
    """A PNG, JPEG or TIFF with 1 or 3 channels, upright, and the EXIF orientation that
    it was stored in.

    In uint8, uint16 or float32. Grey saved as colour becomes grey again by the luma
    0.299 R + 0.587 G + 0.114 B, an alpha channel is dropped. Raises BadInput for what
    cannot be read or has colours where one channel is wanted.
    """
    stored = read_stored(path)
    pixels = stored.pixels
    if stored.palette is not None:
        if pixels.max() >= len(stored.palette):
            raise _broken(path, "a colour that the palette lacks")
        pixels = stored.palette[pixels[..., 0]][..., :3]
    elif stored.alpha:
        pixels = pixels[..., :-1]
    if stored.scale != 1:
        pixels = pixels * np.uint8(stored.scale)
    return _channels(_depth(pixels, path), channels, path), stored.turn


def turn_upright(
    pixels: Shaped[np.ndarray, "h w *n"], turn: int
) -> Shaped[np.ndarray, "h2 w2 *n"]:
    """Pixels stored in EXIF orientation `turn`, as a viewer shows them."""
    return np.ascontiguousarray(_TURNS.get(turn, _TURNS[1])(pixels))


def turn_back(
    pixels: Shaped[np.ndarray, "h w *n"], turn: int
) -> Shaped[np.ndarray, "h2 w2 *n"]:
    """The inverse of `turn_upright`: a map of the upright picture, on the picture as
    stored.
    """
    return turn_upright(pixels, {6: 8, 8: 6}.get(turn, turn))


def save_turned(path: Path, pixels: Shaped[np.ndarray, "h w *n"], turn: int) -> None:
    """Write a map of an upright picture as a PNG that lies on the stored one and is
    shown alike.
    """
    picture = Image.fromarray(turn_back(pixels, turn))
    exif = Image.Exif()
    if turn != 1:
        exif[_ORIENTATION] = turn
    picture.save(path, format="PNG", exif=exif)


def read_size(path: Path) -> tuple[int, int, int]:
    """Height, width and values a pixel by the header. Raises BadInput where it cannot
    be read.
    """

    def read() -> tuple[int, int, int]:
        if _mark(path) in tiff.MARKS:
            tags = tiff.read_tags(path)
            return *tags.size, tags.samples
        with Image.open(path, formats=_FORMATS) as file:
            return file.height, file.width, len(file.getbands())

    check_regular(path)
    return _guarded(read, path)


def read_stored(path: Path) -> Stored:
    """The pixels of a file. Raises BadInput, naming it, for whatever goes wrong."""
    check_regular(path)
    mark = _guarded(lambda: _mark(path), path)
    read = _read_tiff if mark in tiff.MARKS else _read_other
    return _guarded(lambda: read(path), path)


def _guarded(read: Callable, path: Path):
    """What `read` returns; its errors become a BadInput that names the file."""
    try:
        return read()
    except BadInput:
        raise
    except MemoryError as error:
        raise BadInput(
            f"{path} is too large for the memory. Cut it into parts or make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise _broken(path, "not an image") from error
    # a decoder meets a broken file with anything from SyntaxError to OverflowError
    except Exception as error:
        raise _broken(path, reason(error)) from error


def _broken(path: Path, why: str) -> BadInput:
    return BadInput(
        f"unreadable or truncated file, {why}, {path}; replace or remove it"
    )


def _mark(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _check_size(height: int, width: int, path: Path) -> None:
    if height * width > MOST_PIXELS:
        raise BadInput(
            f"{path} is too large: {width}x{height} pixels where {MOST_PIXELS} may be. "
            "Cut it into parts or make it smaller."
        )


def _check_pages(pages: int, path: Path) -> None:
    if pages > 1:
        raise BadInput(
            f"more than one page, {pages}, {path}; save each slice as a file of its own"
        )


def _read_tiff(path: Path) -> Stored:
    tags = tiff.read_tags(path)
    _check_size(*tags.size, path)
    _check_pages(tags.pages, path)
    inverted = 2**tags.bits - 1 if tags.is_inverted else 0
    if tiff.is_read_here(tags):
        pixels = tiff.read(path, tags)
        _check_bands(pixels.shape[-1], path)
        alpha = pixels.shape[-1] in (2, 4)
        if alpha and tags.many(338)[:1] == (1,):
            pixels = _unmultiplied(pixels)
        turned = turn_upright(pixels, tags.turn)
        return Stored(turned, tags.turn, alpha=alpha, inverted=inverted)
    if tags.bits > 8 and tags.lossless:
        raise _unknown_tiff(tags, path)
    try:
        # Pillow turns a TIFF by itself, and mixes the pixels of an unpacked one whose
        # sides swap
        with Image.open(tiff.unturned(path), formats=("TIFF",)) as file:
            stored = _of_pillow(file, path)
    except UnidentifiedImageError:
        raise _unknown_tiff(tags, path) from None
    if 274 in tags.values:
        stored = replace(stored, pixels=turn_upright(stored.pixels, tags.turn))
    grey = stored.pixels.shape[-1] == 1 and stored.palette is None
    if grey and tags.bits in (2, 4):
        stored = _small(stored, tags.bits)
    return replace(stored, turn=tags.turn, lossy=not tags.lossless, inverted=inverted)


def _check_bands(bands: int, path: Path) -> None:
    """Colour, and at most one channel beside it."""
    if bands > 4:
        raise BadInput(
            f"{path} holds {bands} bands where grey or colour was expected. Save one or three of "
            "them."
        )


def _unknown_tiff(tags: tiff.Tags, path: Path) -> BadInput:
    # A damaged file may have thousands of entries in each.
    bits = shown("-".join(map(str, tags.many(258, 1))))
    return BadInput(
        f"{path} is a TIFF of a kind that is not read: {bits} bits, sample format "
        f"{shown(tags.one(339, 1))}, photometric interpretation {shown(tags.photometric)}, "
        f"compression {shown(tags.one(259, 1))}. Save it as PNG, or as TIFF in grey or RGB of 8, 16 or 32 bits."
    )


def _read_other(path: Path) -> Stored:
    with Image.open(path, formats=_FORMATS) as file:
        _check_size(file.height, file.width, path)
        pages = (
            1 if file.format == "MPO" else getattr(file, "n_frames", 1)
        )  # MPO: further ones are previews
        _check_pages(pages, path)
        if (
            file.format in ("JPEG", "MPO")
            and file.width * file.height > JPEG_MOST * path.stat().st_size
        ):
            raise ValueError(
                f"{file.width}x{file.height} pixels in {path.stat().st_size} bytes"
            )
        header = png.read_header(path) if file.format == "PNG" else None
        if header and header.is_read_here:
            stored = Stored(png.read(path, header), 1, alpha=header.channels in (2, 4))
        else:
            stored = _of_pillow(file, path)
        if header and header.kind == 0 and header.bits in (2, 4):
            stored = _small(stored, header.bits)
        turn = _orientation(file)
        turned = turn_upright(stored.pixels, turn)
        return replace(stored, pixels=turned, turn=turn, lossy=file.format in _LOSSY)


def _of_pillow(file: Image.Image, path: Path) -> Stored:
    """What Pillow decodes; palettes stay indices, CMYK and the like become RGB."""
    hidden = file.info.get("transparency")
    if file.mode == "P":
        return Stored(np.asarray(file)[..., None], 1, palette=_palette(file, hidden))
    if file.mode in ("La", "RGBa", "PA"):
        file = file.convert({"La": "LA"}.get(file.mode, "RGBA"))
    elif file.mode == "LAB":
        raise BadInput(
            f"{path} holds CIE Lab colours, which are not read. Save it as RGB or grey."
        )
    elif file.mode not in _PLAIN_MODES:
        file = file.convert("RGB")
    pixels = np.atleast_3d(np.asarray(file))
    values = hidden if isinstance(hidden, tuple) else (hidden,)
    transparent = tuple(map(int, values)) if isinstance(values[0], int) else ()
    return Stored(pixels, 1, alpha=file.mode in ("LA", "RGBA"), transparent=transparent)


def _palette(
    file: Image.Image, hidden: bytes | int | None
) -> UInt8[np.ndarray, "colours 4"]:
    """Red, green, blue and alpha of each index.

    `hidden` is the alpha of the first ones, or the one index without.
    """
    colours = np.array(file.getpalette("RGB"), np.uint8).reshape(-1, 3)
    alpha = np.full(len(colours), 255, np.uint8)
    if isinstance(hidden, bytes):
        alpha[: len(hidden)] = list(hidden[: len(alpha)])
    elif isinstance(hidden, int) and hidden < len(alpha):
        alpha[hidden] = 0
    return np.column_stack([colours, alpha])


def _small(stored: Stored, bits: int) -> Stored:
    """Grey values of 2 or 4 bits, which Pillow has scaled to 8, as stored."""
    scale = 255 // (2**bits - 1)
    return replace(stored, pixels=stored.pixels // np.uint8(scale), scale=scale)


def _orientation(file: Image.Image) -> int:
    """EXIF orientation; 1 where there is none, or one that viewers ignore because it is
    damaged.
    """
    try:
        turn = file.getexif().get(_ORIENTATION, 1)
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return 1
    return turn if turn in _TURNS else 1


def _unmultiplied(pixels: Shaped[np.ndarray, "h w n"]) -> Shaped[np.ndarray, "h w n"]:
    """Colours that were multiplied by their alpha, as they were before; 0 where nothing
    shows.
    """
    alpha = pixels[..., -1:].astype(np.float64)
    most = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1.0
    colours = np.divide(
        pixels[..., :-1] * float(most),
        alpha,
        out=np.zeros(pixels[..., :-1].shape),
        where=alpha > 0,
    )
    whole = colours.clip(0, most).round() if pixels.dtype.kind in "ui" else colours
    return np.concatenate([whole.astype(pixels.dtype), pixels[..., -1:]], axis=-1)


def _depth(
    pixels: Shaped[np.ndarray, "h w n"], path: Path
) -> Shaped[np.ndarray, "h w n"]:
    """In uint8, uint16 or float32. Raises BadInput for what none of these holds."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if not np.isfinite(pixels).all():
        raise BadInput(
            f"pixels that are not numbers, NaN or infinite, {path}; write finite values"
        )
    with np.errstate(over="ignore"):
        single = pixels.astype(np.float32)
    if pixels.dtype.itemsize >= 4 and pixels.dtype != np.float32:
        exact = pixels.astype(np.float64)
        lost = np.abs(single - exact).max()
        if np.ptp(exact) and not lost <= 1e-3 * np.ptp(exact):
            raise BadInput(
                f"{path} holds {pixels.dtype} values from {exact.min():.6g} to {exact.max():.6g}, "
                "which float32 cannot tell apart. Subtract an offset, or scale them."
            )
    return single


def _channels(
    pixels: Shaped[np.ndarray, "h w n"], channels: int, path: Path
) -> Shaped[np.ndarray, "h w c"]:
    """Grey (1) or colour (3)."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    most = {np.uint8: 255, np.uint16: 65535}.get(pixels.dtype.type)
    spread = np.ptp(pixels.astype(np.float32), axis=-1).max()
    if spread > (GREY_SPREAD / 255 * most if most else 1e-3 * np.abs(pixels).max()):
        of = f" of {most}" if most else ""
        raise BadInput(
            f"a colour image for 1 channel, its channels differ by up to {spread:.6g}{of}, "
            f"{path}; save it as grey, or train with data.channels=3"
        )
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    return (grey.round() if pixels.dtype.kind == "u" else grey).astype(pixels.dtype)[
        ..., None
    ]


# EXIF orientation -> what makes it upright
_TURNS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
