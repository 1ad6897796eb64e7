"""PNG of 16 bits in colour or with alpha, which Pillow cuts to 8 (PNG specification,
3rd ed.).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

MARK = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {
    0: 1,
    2: 3,
    3: 1,
    4: 2,
    6: 4,
}  # by colour type: grey, RGB, palette, grey and alpha, RGBA
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
    """What the first chunk says."""

    width: int
    height: int
    bits: int  # a value
    kind: int  # colour type
    interlaced: bool

    @property
    def channels(self) -> int:
        return _CHANNELS[self.kind]

    @property
    def is_read_here(self) -> bool:
        """Whether Pillow would cut it."""
        return self.bits == 16 and self.channels > 1


def read_header(path: Path) -> Header:
    """The header. Raises ValueError or struct.error for a damaged file."""
    with path.open("rb") as file:
        head = file.read(33)
    if head[12:16] != b"IHDR":
        raise ValueError("no header chunk")
    width, height, bits, kind, _, _, interlace = struct.unpack(">IIBBBBB", head[16:29])
    if kind not in _CHANNELS or not width or not height:
        raise ValueError("a header that cannot be")
    return Header(width, height, bits, kind, bool(interlace))


def read(path: Path, header: Header) -> UInt16[np.ndarray, "h w n"]:
    """Every value of a 16-bit file. Raises ValueError or zlib.error for a damaged one."""
    packed = b"".join(
        data for name, data in _chunks(path.read_bytes()) if name == b"IDAT"
    )
    size = header.channels * 2
    parts = _ADAM7 if header.interlaced else ((0, 0, 1, 1),)
    shapes = [
        (len(range(y, header.height, down)), len(range(x, header.width, right)))
        for y, x, down, right in parts
    ]
    needed = sum(h * (1 + w * size) for h, w in shapes if h and w)
    data = np.frombuffer(zlib.decompressobj().decompress(packed, needed), np.uint8)
    if len(data) < needed:
        raise ValueError("pixels are missing")
    out = np.empty((header.height, header.width, size), np.uint8)
    for (y, x, down, right), (h, w) in zip(parts, shapes):
        if h and w:
            rows, data = data[: h * (1 + w * size)], data[h * (1 + w * size) :]
            rows = rows.reshape(h, 1 + w * size)
            out[y::down, x::right] = _unfiltered(
                rows[:, 0], rows[:, 1:].reshape(h, w, size)
            )
    return out.view(">u2").astype(np.uint16)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of every chunk."""
    start = len(MARK)
    while start + 12 <= len(data):
        length = struct.unpack(">I", data[start : start + 4])[0]
        name, content = (
            data[start + 4 : start + 8],
            data[start + 8 : start + 8 + length],
        )
        said = data[start + 8 + length : start + 12 + length]
        if said != struct.pack(">I", zlib.crc32(name + content)):
            raise ValueError(f"chunk {name.decode('latin-1')!a} is damaged")
        yield name, content
        start += 12 + length


def _unfiltered(
    kinds: UInt8[np.ndarray, "h"],
    filtered: UInt8[np.ndarray, "h w n"],
) -> UInt8[np.ndarray, "h w n"]:
    """Bytes of every pixel, from their differences to the pixels left, above and above
    left.

    All three lie on earlier diagonals, so that a diagonal is done at once, whatever its
    rows' filters.
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
        # the next of a diagonal is one row down and one pixel left
        left, above, corner = (
            flat[start - back : start - back + (count - 1) * width + 1 : width].astype(
                np.int16
            )
            for back in (1, row, row + 1)
        )
        predicted = np.choose(
            kinds[top : top + count, None],
            [
                np.zeros_like(left),
                left,
                above,
                (left + above) >> 1,
                _paeth(left, above, corner),
            ],
        )
        flat[start : start + (count - 1) * width + 1 : width] += predicted.astype(
            np.uint8
        )
    return padded[1:, 1:]


def _paeth(left, above, corner):
    """Whichever of the three is nearest to left + above - corner; earlier ones win
    ties.
    """
    to_left, to_above = np.abs(above - corner), np.abs(left - corner)
    to_corner = np.abs(left + above - 2 * corner)
    other = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, other)
