"""Reads PNG, JPEG and TIFF files in their own depth, turned as a viewer shows them.

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
# Channels of a grey JPEG saved as colour differ by a few of 255.
GREY_SPREAD = 32
# Pixels a byte: one bit for a block of 64 gives 512. Libjpeg paints grey what a damaged
# file lacks, so only this tells that it is damaged.
JPEG_MOST = 1000
# The most pixels of a picture, as many as 16384x16384 has.
MOST_PIXELS = 2**28

# A file may hold one of these whatever its extension, and no other: some, such as EPS,
# would start programs. JPEG includes MPO.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_LOSSY = ("JPEG", "MPO", "WEBP")
# Pillow's modes whose pixels are used as they are.
_PLAIN_MODES = ("1", "L", "LA", "I;16", "I", "F", "RGB", "RGBA")
_ORIENTATION = 0x0112

# Pillow's own limit is lower than MOST_PIXELS and calls a large picture an attack.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class Stored:
    """Content of a file, turned upright."""

    # As a viewer shows them, except with a palette: then indices.
    pixels: Shaped[np.ndarray, "h w n"]
    # EXIF orientation, 1 to 8.
    turn: int
    lossy: bool = False
    # Whether the last channel is alpha.
    alpha: bool = False
    # Red, green, blue and alpha of each index.
    palette: UInt8[np.ndarray, "colours 4"] | None = None
    # Factor by which values of 2 and 4 bits become values of 8 bits.
    scale: int = 1
    # The stored value of black where the smallest value is white, else 0.
    inverted: int = 0
    # The value, in each channel, of the pixels of a PNG that are not shown.
    transparent: tuple[int, ...] = ()


def read_picture_turned(
    path: Path, channels: int
) -> tuple[Shaped[np.ndarray, "h w c"], int]:
    """Reads a picture upright, with 1 or 3 channels, and its EXIF orientation.

    Values are uint8, uint16 or float32. Grey saved as colour becomes grey again by the
    luma 0.299 R + 0.587 G + 0.114 B, an alpha channel is dropped. Raises BadInput for a
    file that cannot be read, or has colours where one channel is wanted.
    """
    stored = read_stored(path)
    pixels = stored.pixels
    if stored.palette is not None:
        if pixels.max() >= len(stored.palette):
            raise _damaged(path, "it has a colour that the palette lacks")
        pixels = stored.palette[pixels[..., 0]][..., :3]
    elif stored.alpha:
        pixels = pixels[..., :-1]
    if stored.scale != 1:
        pixels = pixels * np.uint8(stored.scale)
    return _channels(_depth(pixels, path), channels, path), stored.turn


def turn_upright(
    pixels: Shaped[np.ndarray, "h w *n"], turn: int
) -> Shaped[np.ndarray, "h2 w2 *n"]:
    """Turns pixels stored in EXIF orientation `turn` as a viewer shows them."""
    return np.ascontiguousarray(_TURNS.get(turn, _TURNS[1])(pixels))


def turn_back(
    pixels: Shaped[np.ndarray, "h w *n"], turn: int
) -> Shaped[np.ndarray, "h2 w2 *n"]:
    """Puts a map of the upright picture onto the stored one: inverts `turn_upright`."""
    return turn_upright(pixels, {6: 8, 8: 6}.get(turn, turn))


def save_turned(path: Path, pixels: Shaped[np.ndarray, "h w *n"], turn: int) -> None:
    """Writes a map as a PNG that lies on the stored picture and is shown like it."""
    picture = Image.fromarray(turn_back(pixels, turn))
    exif = Image.Exif()
    if turn != 1:
        exif[_ORIENTATION] = turn
    picture.save(path, format="PNG", exif=exif)


def read_size(path: Path) -> tuple[int, int, int]:
    """Reads height, width and values a pixel from the header.

    Raises BadInput where it cannot be read.
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
    """Reads the pixels of a file. Raises BadInput for whatever goes wrong."""

    def read() -> Stored:
        return _read_tiff(path) if _mark(path) in tiff.MARKS else _read_other(path)

    check_regular(path)
    return _guarded(read, path)


def _guarded(read: Callable, path: Path):
    """Calls `read`; its errors become a BadInput that names the file."""
    try:
        return read()
    except BadInput:
        raise
    except MemoryError as error:
        raise BadInput(
            f"{path} is too large for the memory. Cut it into parts or make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise _damaged(path, "not an image") from error
    # Decoders raise anything from SyntaxError to OverflowError for a broken file.
    except Exception as error:
        raise _damaged(path, reason(error)) from error


def _damaged(path: Path, why: str) -> BadInput:
    return BadInput(f"{path} is damaged or truncated: {why}. Replace or remove it.")


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
            f"{path} has {pages} pages. Save each slice as a file of its own."
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
        # Pillow would turn the TIFF itself, and mixes up pixels whose sides swap.
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
    """Raises BadInput unless there is grey or colour, and at most alpha beside it."""
    if bands > 4:
        raise BadInput(
            f"{path} holds {bands} bands where grey or colour was expected. "
            "Save one or three of them."
        )


def _unknown_tiff(tags: tiff.Tags, path: Path) -> BadInput:
    # A damaged file may have thousands of entries in each tag.
    bits = shown("-".join(map(str, tags.many(258, 1))))
    return BadInput(
        f"{path} is a TIFF of a kind that is not read: {bits} bits, sample format "
        f"{shown(tags.one(339, 1))}, photometric interpretation {shown(tags.photometric)}, "
        f"compression {shown(tags.one(259, 1))}. "
        "Save it as PNG, or as TIFF in grey or RGB of 8, 16 or 32 bits."
    )


def _read_other(path: Path) -> Stored:
    with Image.open(path, formats=_FORMATS) as file:
        _check_size(file.height, file.width, path)
        # Further frames of an MPO are previews.
        if file.format != "MPO":
            _check_pages(getattr(file, "n_frames", 1), path)
        if file.format in ("JPEG", "MPO"):
            size = path.stat().st_size
            if file.width * file.height > JPEG_MOST * size:
                raise ValueError(f"{file.width}x{file.height} pixels in {size} bytes")
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
    """Decodes a file by Pillow; palettes stay indices, CMYK and the like become RGB."""
    hidden = file.info.get("transparency")
    if file.mode == "P":
        return Stored(np.asarray(file)[..., None], 1, palette=_palette(file, hidden))
    if file.mode == "La":
        file = file.convert("LA")
    elif file.mode in ("RGBa", "PA"):
        file = file.convert("RGBA")
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
    """Reads red, green, blue and alpha of each index.

    `hidden` is the alpha of the first indices, or the one index that is transparent.
    """
    colours = np.array(file.getpalette("RGB"), np.uint8).reshape(-1, 3)
    alpha = np.full(len(colours), 255, np.uint8)
    if isinstance(hidden, bytes):
        alpha[: len(hidden)] = list(hidden[: len(alpha)])
    elif isinstance(hidden, int) and hidden < len(alpha):
        alpha[hidden] = 0
    return np.column_stack([colours, alpha])


def _small(stored: Stored, bits: int) -> Stored:
    """Scales grey values of 2 or 4 bits back, which Pillow has scaled to 8 bits."""
    scale = 255 // (2**bits - 1)
    return replace(stored, pixels=stored.pixels // np.uint8(scale), scale=scale)


def _orientation(file: Image.Image) -> int:
    """EXIF orientation; 1 where it is missing or damaged, as for viewers."""
    try:
        turn = file.getexif().get(_ORIENTATION, 1)
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error):
        return 1
    return turn if turn in _TURNS else 1


def _unmultiplied(pixels: Shaped[np.ndarray, "h w n"]) -> Shaped[np.ndarray, "h w n"]:
    """Divides colours by the alpha that they were multiplied by; 0 where that is 0."""
    colours = pixels[..., :-1]
    alpha = pixels[..., -1:]
    is_whole = pixels.dtype.kind in "ui"
    most = np.iinfo(pixels.dtype).max if is_whole else 1.0
    divided = np.divide(
        colours * float(most),
        alpha.astype(np.float64),
        out=np.zeros(colours.shape),
        where=alpha > 0,
    )
    if is_whole:
        divided = divided.clip(0, most).round()
    return np.concatenate([divided.astype(pixels.dtype), alpha], axis=-1)


def _depth(
    pixels: Shaped[np.ndarray, "h w n"], path: Path
) -> Shaped[np.ndarray, "h w n"]:
    """Converts to uint8, uint16 or float32. Raises BadInput for what none can hold."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if not np.isfinite(pixels).all():
        raise BadInput(
            f"{path} has pixels that are NaN or infinite. Write finite values."
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
    """Converts to grey (1 channel) or colour (3 channels)."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    if pixels.dtype.kind == "u":
        most = np.iinfo(pixels.dtype).max
        allowed = GREY_SPREAD / 255 * most
        of = f" of {most}"
    else:
        allowed = 1e-3 * np.abs(pixels).max()
        of = ""
    spread = np.ptp(pixels.astype(np.float32), axis=-1).max()
    if spread > allowed:
        raise BadInput(
            f"{path} is a colour image, whose channels differ by up to {spread:.6g}{of}, and "
            "data.channels is 1. Save it as grey, or train with data.channels=3."
        )
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    if pixels.dtype.kind == "u":
        grey = grey.round()
    return grey.astype(pixels.dtype)[..., None]


# EXIF orientation -> the function that turns pixels upright.
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
