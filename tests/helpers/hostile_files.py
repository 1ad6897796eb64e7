"""Files made to take a server's memory, time or disk: few bytes that unpack to many.

Each is small, and harmless while it is only stored. `every()` lists them all; attack.py
sends them, the tests read each.
"""

import dataclasses
import functools
import gzip
import io
import lzma
import struct
import zipfile
import zlib

import nibabel as nib
import numpy as np

MEBI = 2**20
EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
JPEG_2000, JPEG_LS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"
DEFLATED, JPIP_DEFLATED = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95"


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A hostile file, and a part of its refusal.

    Where `says` is empty the file may also be read, if that takes little.
    """

    name: str
    content: bytes
    says: str
    like: str = ""


def every() -> list[Hostile]:
    """All hostile files."""
    return [*dicom_files(), *nifti_files(), *pictures(), *archives()]


def dicom_files() -> list[Hostile]:
    """Deflated data sets, and pixels that differ from the header."""
    late = element(2, 0x0001, b"OB", bytes(3000))
    plain = element(2, 0x0010, b"UI", _uid(EXPLICIT))
    command = element(0, 0x0002, b"UI", _uid("1.2.840.10008.1.1"))
    deflated = functools.partial(dicom, syntax=DEFLATED, bomb=True)
    whole = "compressed as a whole"
    rle = _rle_bomb()
    tall = {"Rows": 60000, "Columns": 60000}
    return [
        Hostile("deflated", deflated(), whole),
        Hostile("deflated, said late", deflated(late), whole),
        Hostile("deflated, said twice", deflated(plain), whole),
        Hostile("deflated, after a command", deflated(command), whole),
        Hostile("deflated, wrong length", deflated(length=4), whole),
        Hostile("deflated, no mark", deflated()[132:], whole, ".dcm"),
        Hostile("deflated, by JPIP", deflated(syntax=JPIP_DEFLATED), whole),
        Hostile("run lengths", dicom(syntax=RLE, pixels=_fragments(rle)), ""),
        Hostile(
            "JPEG 2000 of another size",
            dicom(syntax=JPEG_2000, pixels=_fragments(_j2k())),
            "",
        ),
        Hostile(
            "JPEG-LS", dicom(syntax=JPEG_LS, pixels=_fragments(b"\xff\xd8\xff\xf7")), ""
        ),
        Hostile(
            "many fragments",
            dicom(syntax=RLE, pixels=_fragments(*[b"\0\0"] * 10**5)),
            "",
        ),
        Hostile("huge rows", dicom(fields=tall), "60000x60000"),
        Hostile(
            "many frames", dicom(fields={"NumberOfFrames": 2**31 - 1}), "2147483647"
        ),
        Hostile("deep sequences", dicom(rest=_nested(3000)), ""),
    ]


def nifti_files() -> list[Hostile]:
    """Headers that promise too much, and bad extensions between header and voxels."""
    many = gzip.compress(bytes(16 * MEBI)) * 160
    begins, damaged = "voxels begin at byte", "scan.nii"
    return [
        Hostile("gzip of zeros", gzip.compress(nifti()) + many, "than its header"),
        Hostile(
            "huge shape", gzip.compress(nifti(shape=(30000, 30000, 3000))), damaged
        ),
        Hostile("offset beyond the file", nifti(offset=2.0**20), damaged),
        Hostile("offset of gigabytes", gzip.compress(nifti(offset=2.0**31)), begins),
        Hostile("offset that is no number", nifti(offset=float("nan")), begins),
        Hostile("offset below zero", nifti(offset=-1e9), damaged),
        Hostile(
            "offset of NIfTI-2", nifti(offset=2**62, kind=nib.Nifti2Header), begins
        ),
        Hostile(
            "extension of nothing", nifti(offset=4096.0, extension=(0, 4)), "extension"
        ),
        Hostile(
            "extension below zero",
            nifti(offset=4096.0, extension=(-(2**31), 4)),
            "extension",
        ),
        Hostile(
            "extension of gigabytes",
            nifti(offset=4096.0, extension=(2**31 - 1, 4)),
            "extension",
        ),
        Hostile(
            "extensions without end",
            nifti(offset=2.0**22, extension=(8, 4), copies=2**18),
            "extension",
        ),
    ]


def pictures() -> list[Hostile]:
    """Headers that promise too much, endless pages and passes, and other formats."""
    large = "60000x60000"
    text = b"\x78\xda" + deflated_zeros(128)
    return [
        Hostile("40000 pages", tiff(pages=40_000), "pages"),
        Hostile("pages in a ring", tiff(pages=3, ring=True), "page"),
        Hostile("strips without end", tiff(strips=2**28), "scan.tif"),
        Hostile("many strips", tiff(strips=2**21), ""),
        Hostile("huge TIFF", tiff(side=60000), large),
        Hostile("huge PNG", png(side=60000), large),
        Hostile(
            "interlaced PNG without pixels", png(side=4000, interlaced=1), "scan.png"
        ),
        Hostile("PNG text", png(chunk(b"zTXt", b"a\0\0" + text)), "scan.png"),
        Hostile("PNG profile", png(chunk(b"iCCP", b"a\0\0" + text)), "scan.png"),
        Hostile("JPEG passes", jpeg(passes=10_000), "passes"),
        Hostile("huge JPEG", jpeg(side=60000), large),
        Hostile(
            "PostScript",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "",
            ".png",
        ),
        Hostile("WebP", b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40), "", ".png"),
        Hostile("icon", b"\0\0\1\0\1\0" + bytes(40), "", ".tif"),
    ]


def archives() -> list[Hostile]:
    """Archives in archives, and archives whose entries lie."""
    picture, inner = png(), archive({"0.dcm": bytes(MEBI)})
    nothing, broken = "no DICOM file", "archive"
    return [
        Hostile("zip in zip", archive({"inner.zip": inner}), nothing),
        Hostile(
            "gzip in zip", archive({"scan.nii.gz": gzip.compress(nifti())}), nothing
        ),
        Hostile(
            "names with NUL", archive({"a\0b.png": picture, "..\0/c": picture}), nothing
        ),
        Hostile(
            "climbs out", archive({"../../x.dcm": picture, "/etc/y.dcm": picture}), ""
        ),
        Hostile("all on one", overlapping(2000), broken),
        Hostile("says less than it holds", _lying(), broken),
        Hostile(
            "5000 files", archive({f"{n}.dcm": b"" for n in range(5000)}), "5000 files"
        ),
        Hostile("a dictionary of gigabytes", _lzma_dictionary(), "memory"),
        Hostile(
            "deflated series",
            archive({"1.dcm": dicom(syntax=DEFLATED, bomb=True)}),
            "whole",
        ),
    ]


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """One DICOM element, explicit VR, little endian."""
    # DICOM pads every value to an even length.
    value += b"\0" * (len(value) % 2)
    if kind in (b"OB", b"OW", b"SQ", b"UT"):
        return struct.pack("<HH2sHI", group, number, kind, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def dicom(
    before: bytes = b"",
    *,
    syntax: str = EXPLICIT,
    bomb: bool = False,
    length: int | None = None,
    fields: dict[str, int] | None = None,
    pixels: bytes | None = None,
    rest: bytes = b"",
) -> bytes:
    """A slice of 8 x 8 pixels.

    In the meta group `before` stands before the transfer syntax.
    """
    meta = before + element(2, 0x0010, b"UI", _uid(syntax))
    size = struct.pack("<I", len(meta) if length is None else length)
    # The file begins with 128 free bytes and a mark.
    head = bytes(128) + b"DICM" + element(2, 0, b"UL", size) + meta
    if bomb:
        return head + deflated_zeros(512)
    if pixels is None:
        pixels = element(0x7FE0, 0x10, b"OW", bytes(range(128)))
    return head + _slice(fields or {}) + rest + pixels


def deflated_zeros(mebibytes: int) -> bytes:
    """A deflate stream of so many mebibytes of zeros."""
    # Blocks that are complete in themselves may be repeated, instead of compressed anew.
    deflate = zlib.compressobj(9, wbits=-15)
    block = deflate.compress(bytes(MEBI)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + deflate.flush()


def _uid(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _slice(fields: dict[str, int]) -> bytes:
    frames = str(fields.get("NumberOfFrames", 1)).encode()
    rows, columns = fields.get("Rows", 8), fields.get("Columns", 8)
    parts = [
        (8, 0x16, b"UI", _uid("1.2.840.10008.5.1.4.1.1.2")),
        (8, 0x18, b"UI", b"1.2.3"),
        (8, 0x60, b"CS", b"CT"),
        (0x18, 0x50, b"DS", b"2 "),
        (0x20, 0x0E, b"UI", b"1.2.9"),
        (0x20, 0x32, b"DS", b"0\\0\\0 "),
        (0x20, 0x37, b"DS", b"1\\0\\0\\0\\1\\0 "),
        (0x28, 0x02, b"US", struct.pack("<H", 1)),
        (0x28, 0x04, b"CS", b"MONOCHROME2 "),
        (0x28, 0x08, b"IS", frames + b" " * (len(frames) % 2)),
        (0x28, 0x10, b"US", struct.pack("<H", rows)),
        (0x28, 0x11, b"US", struct.pack("<H", columns)),
        (0x28, 0x30, b"DS", b"1\\1 "),
        (0x28, 0x100, b"US", struct.pack("<H", 16)),
        (0x28, 0x101, b"US", struct.pack("<H", 16)),
        (0x28, 0x102, b"US", struct.pack("<H", 15)),
        (0x28, 0x103, b"US", struct.pack("<H", 0)),
    ]
    return b"".join(element(*part) for part in parts)


def _fragments(*values: bytes) -> bytes:
    """A pixel element with encapsulated fragments."""
    start = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 2**32 - 1)
    items = [b"", *(value + b"\0" * (len(value) % 2) for value in values)]
    parts = [struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items]
    return start + b"".join(parts) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _rle_bomb() -> bytes:
    """Eight mebibytes that unpack to half a gigabyte in each of two segments."""
    # Two bytes that stand for the second one 128 times.
    run = b"\x81\0" * (4 * MEBI)
    return struct.pack("<16I", 2, 64, 64 + len(run), *[0] * 13) + run + run


def _j2k() -> bytes:
    """The head of a JPEG 2000 stream of 60000 x 60000 pixels."""
    size = struct.pack(">HHIIIIIIIIH", 41, 0, 60000, 60000, 0, 0, 60000, 60000, 0, 0, 1)
    return (
        b"\xff\x4f\xff\x51"
        + size
        + b"\x0f\1\1"
        + b"\xff\x52\0\x0c\0\0\0\1\0\5\4\4\0\1"
        + bytes(64)
    )


def _nested(depth: int) -> bytes:
    """Sequences nested so deep."""
    start = struct.pack("<HH2sHI", 0x40, 0xA730, b"SQ", 0, 2**32 - 1)
    return (start + struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1)) * depth


def nifti(
    shape=(8, 8, 4), *, offset=352.0, extension=None, copies=1, kind=nib.Nifti1Header
) -> bytes:
    """A volume of some bytes, with any header."""
    header = kind()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header.set_sform(np.eye(4), 1)
    header.structarr["vox_offset"] = offset
    header["magic"] = b"n+1" if kind is nib.Nifti1Header else b"n+2"
    rest = b"\0" * 4
    if extension:
        rest = b"\1\0\0\0" + struct.pack("<ii", *extension) * copies
    return header.binaryblock + rest + bytes(range(256)) * 20


def png(*chunks: bytes, side: int = 8, interlaced: int = 0) -> bytes:
    """A PNG that ends before its pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, interlaced)
    parts = [
        chunk(b"IHDR", head),
        *chunks,
        chunk(b"IDAT", zlib.compress(b"")),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def tiff(
    *, pages: int = 1, side: int = 8, strips: int = 1, ring: bool = False
) -> bytes:
    """A TIFF whose pages all show the same zeros."""
    tags, each = 8, 2 + 8 * 12 + 4
    pixels = 8 + pages * each
    # Of more strips the file holds no table.
    inside = strips * 4 if 1 < strips <= 2**24 else 0
    records = []
    for page in range(pages):
        following = 8 + (page + 1) * each
        if page == pages - 1:
            following = 8 if ring else 0
        entries = [
            (256, 4, 1, side),
            (257, 4, 1, side),
            (258, 3, 1, 8),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, strips, pixels),
            (278, 4, 1, side),
            (279, 4, strips, pixels if inside else 64),
        ]
        packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        records.append(struct.pack("<H", tags) + packed + struct.pack("<I", following))
    return b"II*\0\x08\0\0\0" + b"".join(records) + bytes(max(64, inside))


def jpeg(*, side: int = 4000, passes: int = 1) -> bytes:
    """A progressive JPEG that is painted in so many passes."""
    table = b"\xff\xdb\0\x43\0" + b"\1" * 64
    frame = b"\xff\xc2\0\x0b\x08" + struct.pack(">HH", side, side) + b"\1\1\x11\0"
    codes = b"\xff\xc4\0\x14\0\1" + bytes(15) + b"\0"
    # Each pass is a scan of nothing, which a decoder paints over the whole picture.
    scan = b"\xff\xda\0\x08\1\1\0\0\0\0" + b"\0"
    return b"\xff\xd8" + table + frame + codes + scan * passes + b"\xff\xd9"


def archive(files: dict[str, bytes]) -> bytes:
    """A zip of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def overlapping(count: int) -> bytes:
    """A zip in which so many names share one compressed mebibyte."""
    made = archive({"0000.dcm": bytes(MEBI)})
    start = made.index(b"PK\1\2")
    end = made.index(b"PK\5\6")
    entry = made[start:end]
    # Every entry of the directory points to the one file.
    names = [entry.replace(b"0000.dcm", b"%04d.dcm" % n) for n in range(count)]
    entries = b"".join(names)
    tail = struct.pack(
        "<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0
    )
    return made[:start] + entries + tail


def _lying() -> bytes:
    """A zip with an entry of 64 MiB that claims to have a hundred bytes."""
    made = bytearray(archive({"a.dcm": bytes(64 * MEBI)}))
    place = made.rindex(b"PK\1\2")
    # Bytes 24 to 27 of an entry are the size of the file unpacked.
    made[place + 24 : place + 28] = struct.pack("<I", 100)
    return bytes(made)


def _lzma_dictionary() -> bytes:
    """A zip with an entry whose decoder asks for four gibibytes at its first byte."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.dcm", bytes(1000))
    made = bytearray(out.getvalue())
    # There stand version, size of the properties, and properties.
    start = 30 + len("a.dcm")
    size = len(lzma._encode_filter_properties({"id": lzma.FILTER_LZMA1}))
    made[start + 4 + 1 : start + 4 + size] = struct.pack("<I", 2**32 - 1)
    return bytes(made)
