"""Writes TIFF and PNG files of kinds that no library at hand writes."""

import struct
import zlib
from pathlib import Path

import numpy as np


def packbits(data: bytes) -> bytes:
    """Packs bytes as PackBits of literal runs alone."""
    parts = [data[i : i + 128] for i in range(0, len(data), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def lzw(data: bytes) -> bytes:
    """Packs bytes as LZW with a clear code before each, so that codes stay at 9 bits."""
    bits = "".join(f"{256:09b}{byte:09b}" for byte in data) + f"{257:09b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


PACKERS = {1: bytes, 5: lzw, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}


def tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    order: str = "<",
    photometric: int | None = None,
    compression: int = 1,
    predictor: int = 1,
    planar: int = 1,
    tile: int = 0,
    rows: int = 0,
    extra: tuple[int, ...] = (),
    turn: int = 0,
    bits: int = 0,
    more: dict[int, tuple[int, tuple[int, ...]]] | None = None,
    pages: tuple[int, ...] = (),
) -> Path:
    """Writes "h w" or "h w n" pixels and returns `path`.

    `pages` holds the NewSubfileType of each further page; all pages are equal.
    """
    pixels = np.atleast_3d(pixels)
    height, width, samples = pixels.shape
    size = pixels.dtype.itemsize
    parts = [pixels]
    if planar == 2:
        parts = [pixels[..., i : i + 1] for i in range(samples)]
    down, across = (tile, tile) if tile else (rows or height, width)
    blocks = []
    for part in parts:
        for block in _cut(part, down, across, padded=tile > 0):
            packed = _packed(block, order, predictor, bits)
            blocks.append(PACKERS[compression](packed))
    kind = {"u": 1, "b": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    photometric = photometric if photometric is not None else (2 if samples >= 3 else 1)
    tags = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (bits or 8 * size,) * samples),
        259: (3, (compression,)),
        262: (3, (photometric,)),
        277: (3, (samples,)),
        284: (3, (planar,)),
        317: (3, (predictor,)),
        339: (3, (kind,) * samples),
    }
    tags |= {322: (4, (tile,)), 323: (4, (tile,))} if tile else {278: (4, (down,))}
    tags |= {338: (3, extra)} if extra else {}
    tags |= {274: (3, (turn,))} if turn else {}
    tags |= more or {}
    starts = np.cumsum([8, *map(len, blocks)])
    tags[324 if tile else 273] = (4, tuple(map(int, starts[:-1])))
    tags[325 if tile else 279] = (4, tuple(map(len, blocks)))
    data = b"".join(blocks) + b"\0" * (int(starts[-1]) % 2)
    where = 8 + len(data)
    out = (
        (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, where) + data
    )
    kinds = [None, *pages]
    for number, page in enumerate(kinds):
        own = tags if page is None else {**tags, 254: (4, (page,))}
        out += _directory(own, order, len(out), last=number == len(kinds) - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def _cut(part, down, across, *, padded: bool):
    """Yields the strips or tiles of a picture; tiles are padded to their full size."""
    height, width = part.shape[:2]
    for y in range(0, height, down):
        for x in range(0, width, across):
            block = part[y : y + down, x : x + across]
            if padded:
                below, right = down - block.shape[0], across - block.shape[1]
                block = np.pad(block, ((0, below), (0, right), (0, 0)))
            yield block


def _packed(block, order: str, predictor: int, bits: int) -> bytes:
    size = block.dtype.itemsize
    if bits and bits < 8 * size:
        rows = [
            "".join(f"{int(value):0{bits}b}" for value in row.ravel()) for row in block
        ]
        return b"".join(
            int(row + "0" * (-len(row) % 8), 2).to_bytes((len(row) + 7) // 8, "big")
            for row in rows
        )
    if predictor == 2:
        whole = block.view(f"u{size}")
        block = np.concatenate(
            [whole[:, :1], whole[:, 1:] - whole[:, :-1]], axis=1
        ).view(block.dtype)
    if predictor == 3:
        height, width, samples = block.shape
        heaviest = (
            np.ascontiguousarray(block.astype(f">f{size}"))
            .view(np.uint8)
            .reshape(height, width * samples, size)
        )
        rows = heaviest.swapaxes(1, 2).reshape(height, -1, samples)
        return np.concatenate(
            [rows[:, :1], rows[:, 1:] - rows[:, :-1]], axis=1
        ).tobytes()
    return block.astype(block.dtype.newbyteorder(order)).tobytes()


def _directory(tags, order: str, where: int, *, last: bool) -> bytes:
    forms = {1: "B", 3: "H", 4: "I"}
    after = where + 2 + 12 * len(tags) + 4
    entries, longer = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{forms[kind]}", *values)
        inside = packed.ljust(4, b"\0")
        if len(packed) > 4:
            inside = struct.pack(f"{order}I", after + len(longer))
            longer += packed + b"\0" * (len(packed) % 2)
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + inside
    following = 0 if last else after + len(longer)
    return (
        struct.pack(f"{order}H", len(tags))
        + entries
        + struct.pack(f"{order}I", following)
        + longer
    )


ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def png16(
    path: Path, pixels: np.ndarray, *, filters=(0, 1, 2, 3, 4), interlaced: bool = False
) -> Path:
    """Writes a 16-bit PNG of "h w n" pixels whose rows take these filters in turn."""
    height, width, samples = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    data = b""
    for y, x, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = pixels[y::down, x::right]
        if part.size:
            data += _filtered(part.astype(">u2").tobytes(), part.shape, filters)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))
    return path


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def _filtered(data: bytes, shape, filters) -> bytes:
    height, width, samples = shape
    size, row = 2 * samples, 2 * samples * width
    out = b""
    for y in range(height):
        kind = filters[y % len(filters)]
        out += bytes([kind])
        for i in range(row):
            left = data[y * row + i - size] if i >= size else 0
            above = data[(y - 1) * row + i] if y else 0
            corner = data[(y - 1) * row + i - size] if y and i >= size else 0
            guess = (0, left, above, (left + above) // 2, _paeth(left, above, corner))[
                kind
            ]
            out += bytes([(data[y * row + i] - guess) % 256])
    return out


def _paeth(left, above, corner):
    return min(
        (left, above, corner), key=lambda value: abs(left + above - corner - value)
    )
