"""Reads pixels of TIFF files in the type they are stored in, of 8 to 64 bits.

Pillow reads some of these wrongly (int8 as uint8, uint32 as int32), cuts others to 8
bits (16-bit colour, 16-bit grey with alpha) and does not know the rest. So libtiff,
through Pillow, only unpacks here: it is given the same strips or tiles under other tags,
as an 8-bit picture whose rows are the bytes of the true rows. Predictors, byte order and
planes are undone in numpy.
"""

import io
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from biedsnet_jax.errors import BadInput

# Pages are counted up to here.
MOST_PAGES = 1000
# First bytes of a file; those with "+" are of BigTIFF.
MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Compressions that lose nothing: none, LZW, deflate (two numbers), PackBits, LZMA and
# Zstandard.
_LOSSLESS = (1, 5, 8, 32946, 32773, 34925, 50000)
# The most bytes that LZW, deflate or PackBits make of one.
_MOST_PACKED = 4096
# Those of the other compressions: none, LZMA and Zstandard.
_MOST_PACKED_BY = {1: 1, 34925: math.inf, 50000: math.inf}
# Photometric interpretations; with 0 the smallest value is white.
_GREY, _COLOUR = (0, 1), (2,)
_WHITE = 0
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# Numpy's kind of each sample format.
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
# Bits that each kind may have.
_TYPES = {"u": (8, 16, 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}


@dataclass(frozen=True)
class Tags:
    """Tags of the first page of a file."""

    values: Mapping[int, Any]
    order: str  # "<" or ">"
    pages: int  # without previews and transparency masks

    def many(self, tag: int, default: Any = ()) -> tuple:
        """Returns all values of a tag."""
        value = self.values.get(tag, default)
        return tuple(value) if isinstance(value, tuple | list) else (value,)

    def one(self, tag: int, default: Any = None) -> Any:
        """Returns the first value of a tag, or raises ValueError for none."""
        found = self.many(tag, default)
        if not found or found[0] is None:
            raise ValueError(f"tag {tag} is missing")
        return found[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored, before any turn."""
        return int(self.one(257)), int(self.one(256))

    @property
    def samples(self) -> int:
        """Values a pixel."""
        return int(self.one(277, 1))

    @property
    def bits(self) -> int:
        """Bits a value; 0 where channels differ."""
        bits = set(self.many(258, 1))
        return int(bits.pop()) if len(bits) == 1 else 0

    @property
    def photometric(self) -> int:
        """Photometric interpretation; the usual one where a file does not say."""
        return int(self.one(262, 1 if self.samples < 3 else 2))

    @property
    def turn(self) -> int:
        """Orientation, 1 to 8, of the tag or of XMP."""
        xmp = _XMP_ORIENTATION.search(bytes(self.values.get(700, b"")))
        turn = int(self.one(274, xmp.group(1) if xmp else 1))
        return turn if 1 <= turn <= 8 else 1

    @property
    def is_inverted(self) -> bool:
        """Whether the smallest value is white."""
        return self.photometric == _WHITE

    @property
    def lossless(self) -> bool:
        """Whether pixels are stored exactly."""
        # These are JPEG, old and new, and WebP.
        return self.one(259, 1) not in (6, 7, 50001)


def read_tags(path: Path) -> Tags:
    """Reads the first page's tags. Raises ValueError or struct.error for damage."""
    with path.open("rb") as file:
        head = file.read(8)
        big = head[:4] in MARKS[2:]
        head += file.read(8) if big else b""
        if len(head) < (16 if big else 8):
            raise ValueError("the header is cut short")
        directory = ImageFileDirectory_v2(head)
        first = directory.next
        file.seek(first)
        directory.load(file)
        order = "<" if head[:2] == b"II" else ">"
        pages = _count_pages(file, first, order, big)
        return Tags(dict(directory), order, pages)


def _count_pages(file: BinaryIO, offset: int, order: str, big: bool) -> int:
    """Counts the first page and all that do not say that they are previews or masks."""
    count_format, entry_size, next_format = ("H", 12, "I")
    if big:
        count_format, entry_size, next_format = ("Q", 20, "Q")
    pages = 0
    seen = set()
    while offset and offset not in seen and len(seen) < MOST_PAGES:
        file.seek(offset)
        count = _number(file, order + count_format)
        entries = file.read(min(count, 0xFFFF) * entry_size)
        if not seen or not _is_aside(entries, order, entry_size):
            pages += 1
        seen.add(offset)
        offset = _number(file, order + next_format)
    return pages


def _is_aside(entries: bytes, order: str, size: int) -> bool:
    """Whether a page says that it is a preview or a transparency mask."""
    for start in range(0, len(entries) - size + 1, size):
        if struct.unpack_from(f"{order}H", entries, start)[0] == 254:
            # NewSubfileType has a bit for either.
            place = start + (12 if size == 20 else 8)
            kinds = struct.unpack_from(f"{order}I", entries, place)[0]
            return kinds & 0b101 != 0
    return False


def _number(file: BinaryIO, form: str) -> int:
    """Reads the next number; 0 at the end of the file."""
    size = struct.calcsize(form)
    data = file.read(size)
    return struct.unpack(form, data)[0] if len(data) == size else 0


def unturned(path: Path) -> io.BytesIO:
    """Reads a file and sets its orientation tag, if it has one, to upright."""
    data = bytearray(path.read_bytes())
    order = "<" if data[:2] == b"II" else ">"
    if bytes(data[:4]) in MARKS[2:]:
        where = struct.unpack_from(f"{order}Q", data, 8)[0]
        count = struct.unpack_from(f"{order}Q", data, where)[0]
        start, size, value = where + 8, 20, 12
    else:
        where = struct.unpack_from(f"{order}I", data, 4)[0]
        count = struct.unpack_from(f"{order}H", data, where)[0]
        start, size, value = where + 2, 12, 8
    for entry in range(start, start + size * count, size):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag == 274:
            form = "I" if kind == 4 else "H"
            struct.pack_into(order + form, data, entry + value, 1)
    return io.BytesIO(data)


def is_read_here(tags: Tags) -> bool:
    """Whether `read` takes a file; palettes, JPEG in TIFF and others are for Pillow."""
    if tags.photometric not in (*_GREY, *_COLOUR):
        return False
    if tags.one(259, 1) not in _LOSSLESS:
        return False
    kind = _KINDS.get(tags.one(339, 1))
    if kind is None:
        return False
    packed = kind == "u" and 8 < tags.bits < 16
    return packed or tags.bits in _TYPES[kind]


def read(path: Path, tags: Tags) -> Shaped[np.ndarray, "h w n"]:
    """Reads every value as shown, but not turned.

    Values are inverted where the smallest is white. Raises BadInput for inverted signed
    or float values, which have no largest one.
    """
    data = path.read_bytes()
    if tags.one(284, 1) == 2:
        planes = tags.samples
        each = [_plane(data, tags, 1, number, planes) for number in range(planes)]
        pixels = np.concatenate(each, axis=-1)
    else:
        pixels = _plane(data, tags, tags.samples, 0, 1)
    if not tags.is_inverted:
        return pixels
    if pixels.dtype.kind != "u":
        raise BadInput(
            f"{path} says that its smallest value is white, of values that are not counted from 0 "
            f"({pixels.dtype}). Save it so that its smallest value is black."
        )
    # Alpha is never inverted.
    colours = tags.samples - len(tags.many(338))
    most = pixels.dtype.type(2**tags.bits - 1)
    pixels[..., :colours] = most - pixels[..., :colours]
    return pixels


class _Pieces(NamedTuple):
    """Tiles of a file, or strips of whole rows."""

    tiled: bool
    across: int  # pixels
    down: int  # pixels
    offsets: tuple  # bytes
    sizes: tuple  # bytes


def _pieces(tags: Tags) -> _Pieces:
    height, width = tags.size
    if 322 in tags.values:
        return _Pieces(
            tiled=True,
            across=int(tags.one(322)),
            down=int(tags.one(323)),
            offsets=tags.many(324),
            sizes=tags.many(325),
        )
    return _Pieces(
        tiled=False,
        across=width,
        down=min(int(tags.one(278, height)), height),
        offsets=tags.many(273),
        sizes=tags.many(279),
    )


def _plane(
    data: bytes, tags: Tags, samples: int, number: int, planes: int
) -> Shaped[np.ndarray, "h w n"]:
    """Reads the values of one plane, or of all where they lie side by side."""
    height, width = tags.size
    tiled, across, down, offsets, sizes = _pieces(tags)
    if min(across, down, height, width, samples) < 1:
        raise ValueError("a size of 0")
    # Bytes of a piece's row.
    row = math.ceil(across * samples * tags.bits / 8)
    side_by_side = math.ceil(width / across)
    count = side_by_side * math.ceil(height / down)
    if not sizes and tags.one(259, 1) == 1 and len(offsets) == 1:
        # Some writers leave out the size of a single strip.
        sizes = (row * height,)
    if min(len(offsets), len(sizes)) < count * planes:
        raise ValueError(
            f"{len(offsets)} strips or tiles where {count * planes} belong"
        )
    of_plane = slice(number * count, (number + 1) * count)
    offsets = offsets[of_plane]
    sizes = sizes[of_plane]
    rows = down * count if tiled else height
    _check_packed(len(data), offsets, sizes, row * rows, tags)
    # An 8-bit grey picture whose rows are the bytes of the true rows.
    fields = {
        256: side_by_side * row,
        257: height,
        258: 8,
        259: tags.one(259, 1),
        262: 1,
        266: tags.one(266, 1),
        277: 1,
    }
    if tiled:
        fields |= {322: row, 323: down}
    else:
        fields[278] = down
    blocks = _unpacked(data, fields, offsets, sizes, tiled)
    parts = []
    for first in range(0, side_by_side * row, row):
        block = blocks[:, first : first + row]
        parts.append(_values(block, tags, samples))
    # Strips are as wide as the picture: nothing is copied.
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return np.ascontiguousarray(whole[:, :width])


def _check_packed(length: int, offsets, sizes, needed: int, tags: Tags) -> None:
    """Raises ValueError for strips or tiles too small for the pixels they declare.

    It is called before the pixels get room in memory.
    """
    ends = [start + size for start, size in zip(offsets, sizes)]
    if max(ends) > length:
        raise ValueError("strips or tiles lie beyond the end of the file")
    most = _MOST_PACKED_BY.get(tags.one(259, 1), _MOST_PACKED)
    stored = sum(sizes)
    if needed > most * stored:
        raise ValueError(f"{needed} bytes of pixels in {stored}")


def _unpacked(
    data: bytes, fields: Mapping[int, int], offsets, sizes, tiled: bool
) -> UInt8[np.ndarray, "h bytes"]:
    """Unpacks the bytes of every row by libtiff, under the tags `fields`.

    The new tags, after the old data, still point at the old strips or tiles.
    """
    where = len(data)
    long = struct.Struct("<I")
    entries = {tag: (value,) for tag, value in fields.items()}
    entries[324 if tiled else 273] = offsets
    entries[325 if tiled else 279] = sizes
    after = where + 2 + 12 * len(entries) + 4
    directory = struct.pack("<H", len(entries))
    longer = b""
    for tag, values in sorted(entries.items()):
        count = len(values)
        inside = struct.pack(f"<{count}I", *values)
        # Several values do not fit into the directory, which points at them.
        if count > 1:
            packed = inside
            inside = long.pack(after + len(longer))
            longer += packed
        directory += struct.pack("<HHI", tag, 4, count) + inside
    head = b"II*\0" + long.pack(where)
    # No further directory follows.
    directory += long.pack(0)
    file = head + data[8:] + directory + longer
    with Image.open(io.BytesIO(file), formats=("TIFF",)) as picture:
        return np.asarray(picture)


def _values(
    block: UInt8[np.ndarray, "h bytes"], tags: Tags, samples: int
) -> Shaped[np.ndarray, "h w n"]:
    """Reads the values of a piece's rows, and undoes its predictor."""
    height = len(block)
    bits = tags.bits
    predictor = tags.one(317, 1)
    kind = _KINDS[tags.one(339, 1)]
    if bits % 8:
        if predictor != 1:
            raise ValueError(f"predictor {predictor} with {bits} bits")
        return _unpacked_bits(block, bits, samples)
    if predictor == 3:
        return _undo_float_predictor(block, samples, bits // 8)
    order = tags.order if bits > 8 else "|"
    size = bits // 8
    stored = block.reshape(height, -1).view(f"{order}u{size}")
    pixels = stored.astype(f"u{size}")
    pixels = pixels.reshape(height, -1, samples)
    # Differences are of whole numbers, also of signed and float values.
    if predictor == 2:
        pixels = np.cumsum(pixels, axis=1, dtype=pixels.dtype)
    elif predictor != 1:
        raise ValueError(f"predictor {predictor} is not known")
    return pixels.view(f"{kind}{size}")


def _undo_float_predictor(
    block, samples: int, size: int
) -> Shaped[np.ndarray, "h w n"]:
    """Restores floats whose bytes lie by weight, heaviest first, as differences."""
    height = len(block)
    differences = block.reshape(height, -1, samples)
    summed = np.cumsum(differences, axis=1, dtype=np.uint8)
    by_weight = summed.reshape(height, size, -1)
    by_value = np.ascontiguousarray(by_weight.swapaxes(1, 2))
    floats = by_value.view(f">f{size}")
    return floats.reshape(height, -1, samples).astype(f"f{size}")


def _unpacked_bits(block, bits: int, samples: int) -> Shaped[np.ndarray, "h w n"]:
    """Reads values of 9 to 15 bits, packed without gaps from the left."""
    height = len(block)
    each = np.unpackbits(block, axis=1)
    of_pixel = bits * samples
    # A row is filled up to whole bytes.
    wide = each.shape[1] // of_pixel * of_pixel
    each = each[:, :wide].reshape(height, -1, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.uint16)
    values = each @ weights
    return values.astype(np.uint16).reshape(height, -1, samples)
