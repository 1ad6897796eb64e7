"""Reads PNG of 16 bits in colour or with alpha, which Pillow cuts to 8 bits.

Source: PNG specification, third edition.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

MARK = b"\x89PNG\r\n\x1a\n"
# Channels by colour type: grey, RGB, palette, grey and alpha, RGBA.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First row and column, step down and step right of each pass of an interlaced file.
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


@dataclass(frozen=True)
class Header:
    """Content of the first chunk."""

    width: int
    height: int
    bits: int  # a value
    kind: int  # colour type
    interlaced: bool

    @property
    def channels(self) -> int:
        """Values a pixel."""
        return _CHANNELS[self.kind]

    @property
    def is_read_here(self) -> bool:
        """Whether Pillow would cut the values."""
        return self.bits == 16 and self.channels > 1


def read_header(path: Path) -> Header:
    """Reads the header. Raises ValueError or struct.error for a damaged file."""
    with path.open("rb") as file:
        head = file.read(33)
    if head[12:16] != b"IHDR":
        raise ValueError("no header chunk")
    width, height, bits, kind, _, _, interlace = struct.unpack(">IIBBBBB", head[16:29])
    if kind not in _CHANNELS or not width or not height:
        raise ValueError("a header that cannot be")
    return Header(width, height, bits, kind, bool(interlace))


def read(path: Path, header: Header) -> UInt16[np.ndarray, "h w n"]:
    """Reads every value of a 16-bit file.

    Raises ValueError or zlib.error for a damaged one.
    """
    packed = b"".join(
        data for name, data in _chunks(path.read_bytes()) if name == b"IDAT"
    )
    size = header.channels * 2
    passes = _ADAM7 if header.interlaced else ((0, 0, 1, 1),)
    # Rows and columns of each pass; in a small picture some have none.
    shapes = [
        (len(range(y, header.height, down)), len(range(x, header.width, right)))
        for y, x, down, right in passes
    ]
    # Each row begins with a byte for its filter.
    counts = [h * (1 + w * size) if w else 0 for h, w in shapes]
    needed = sum(counts)
    data = np.frombuffer(zlib.decompressobj().decompress(packed, needed), np.uint8)
    if len(data) < needed:
        raise ValueError("pixels are missing")
    out = np.empty((header.height, header.width, size), np.uint8)
    for (y, x, down, right), (h, w), count in zip(passes, shapes, counts):
        if count:
            rows, data = data[:count].reshape(h, -1), data[count:]
            filtered = rows[:, 1:].reshape(h, w, size)
            out[y::down, x::right] = _unfiltered(rows[:, 0], filtered)
    return out.view(">u2").astype(np.uint16)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields name and content of every chunk. Raises ValueError for a damaged one."""
    start = len(MARK)
    while start + 12 <= len(data):
        length = struct.unpack(">I", data[start : start + 4])[0]
        end = start + 8 + length
        name = data[start + 4 : start + 8]
        content = data[start + 8 : end]
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(name + content)):
            raise ValueError(f"chunk {name.decode('latin-1')!a} is damaged")
        yield name, content
        start = end + 4


def _unfiltered(
    kinds: UInt8[np.ndarray, "h"],
    filtered: UInt8[np.ndarray, "h w n"],
) -> UInt8[np.ndarray, "h w n"]:
    """Adds to the bytes of each pixel what its row's filter predicts.

    The prediction is from the pixels left, above and above left. They lie on earlier
    diagonals, so a whole diagonal is done at once, whatever the filters of its rows.
    """
    if kinds.max() > 4:
        raise ValueError(f"filter {kinds.max()} is not known")
    height, width, size = filtered.shape
    padded = np.zeros((height + 1, width + 1, size), np.uint8)
    padded[1:, 1:] = filtered
    flat = padded.reshape(-1, size)
    row = width + 1
    for diagonal in range(height + width - 1):
        top = max(0, diagonal - width + 1)
        count = min(height, diagonal + 1) - top
        start = (top + 1) * row + diagonal - top + 1
        # The next pixel of a diagonal is one row down and one pixel left.
        end = start + (count - 1) * width + 1
        left, above, corner = (
            flat[start - back : end - back : width].astype(np.int16)
            for back in (1, row, row + 1)
        )
        predictions = [
            np.zeros_like(left),
            left,
            above,
            (left + above) >> 1,
            _paeth(left, above, corner),
        ]
        predicted = np.choose(kinds[top : top + count, None], predictions)
        flat[start:end:width] += predicted.astype(np.uint8)
    return padded[1:, 1:]


def _paeth(left, above, corner):
    """Takes whichever is nearest to left + above - corner; earlier ones win ties."""
    to_left = np.abs(above - corner)
    to_above = np.abs(left - corner)
    to_corner = np.abs(left + above - 2 * corner)
    other = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, other)
