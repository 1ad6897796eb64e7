"""Checks what an upload declares, before anything of it is unpacked: sizes, counts and
compression.

A few bytes can stand for gigabytes or hours. What is refused here is refused at once
and with a reason. What slips through ends at the limits of the process that reads (see
reader).
"""

import gzip
import math
import mmap
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from biedsnet_jax.data.formats import dicom_slice, nifti, pictures
from biedsnet_jax.data.formats.pictures import EXTENSIONS
from biedsnet_jax.data.formats.volumes import Volume
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import scans
from biedsnet_jax.serving.limits import Limits

# Of Pillow's forty formats, those that mode predict takes and those that pydicom has
# Pillow decode. The others are code that nobody needs, and one starts another program.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "JPEG2000")
# Transfer syntaxes of a compressed data set, which pydicom inflates as a whole.
DEFLATED = (
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.95",
    "1.2.840.10008.1.2.4.205",
)
_CHUNK = 2**20
# Pages of a TIFF file. Mode predict refuses fewer and says how many there are.
_PAGES = 64
# Passes of a progressive JPEG; encoders make about ten.
_PASSES = 100
# Bytes of a NIfTI file before its voxels.
_EXTENSIONS = 2**22
_MOST_EXTENSIONS = 256
# Bytes of a .nii.gz beyond the voxels that its header declares.
_SLACK = 2**24
_START_OF_SCAN = b"\xff\xda"


def only_formats() -> None:
    """Removes the formats that are not in FORMATS from this process."""
    # `check_size` refuses what is too large.
    Image.MAX_IMAGE_PIXELS = None
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]


def check_file(path: Path, kind: str, limits: Limits) -> None:
    """Checks the first bytes and the structure of a file.

    `kind` is one of upload.KINDS. Raises BadInput for what declares too much.
    """
    if kind in (".nii", ".nii.gz"):
        _check_extensions(path)
    if kind == ".nii.gz":
        check_unpacked(path, limits)
    if kind == ".dcm":
        check_syntax(path)
    if kind in EXTENSIONS:
        _check_pages(path)
        _check_passes(path)


def check_unpacked(path: Path, limits: Limits) -> None:
    """Counts the unpacked bytes of a .nii.gz file, without keeping any.

    Raises BadInput for more than the limit or the header allows. A damaged file passes:
    reading it says what is wrong.
    """
    try:
        image = nifti.open_header(path)
    except BadInput:
        return
    declared = math.prod(image.shape) * image.get_data_dtype().itemsize
    most = min(limits.unpacked, declared + _SLACK)
    size = 0
    try:
        with gzip.open(path) as file:
            while size <= most and (chunk := file.read(_CHUNK)):
                size += len(chunk)
    except (OSError, EOFError, zlib.error):
        return
    if size > limits.unpacked:
        raise too_large(size, str(path), limits)
    if size > most:
        raise BadInput(
            f"{path} unpacks to more than its header declares, {declared} bytes of "
            "voxels. Save it again."
        )


def too_large(size: int, what: str, limits: Limits) -> BadInput:
    """Makes the error of a file that is too large once it is unpacked."""
    return BadInput(
        f"{what} is too large when unpacked: {size // 2**20} MiB or more, where "
        f"{limits.unpacked // 2**20} are allowed. Cut it into parts."
    )


def check_syntax(path: Path) -> None:
    """Checks that the data set of a DICOM file is not compressed as a whole.

    Raises BadInput where it is.
    """
    syntax = deflated_syntax(path)
    if syntax:
        raise BadInput(
            f"The data set of {path} is compressed as a whole (transfer syntax "
            f"{syntax}). Export it uncompressed."
        )


def deflated_syntax(path: Path) -> str:
    """Returns the transfer syntax of a DICOM file if it is one of DEFLATED, else "".

    pydicom's own reader goes through the meta group, as it does when it reads the file:
    as explicit VR and, where that fails, as implicit. Either of them may say deflated.
    """
    from pydicom.filereader import read_dataset

    for implicit in (False, True):
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            marked = file.read(132)[128:] == b"DICM"
            file.seek(132 if marked else 0)
            try:
                meta = read_dataset(
                    file,
                    is_implicit_VR=implicit,
                    is_little_endian=True,
                    stop_when=lambda tag, vr, length: tag >> 16 not in (0, 2),
                )
                syntax = str(meta.get("TransferSyntaxUID", "")).strip("\0 ")
            # pydicom may raise anything for a broken file, and refuses it later.
            except Exception:
                continue
        if syntax in DEFLATED:
            return syntax
    return ""


def check_size(item: scans.Item, limits: Limits, plane: str = "axial") -> int:
    """Checks the headers of a scan; returns the number of values that they declare.

    Raises BadInput for too large a scan. A damaged one passes: reading it says what is
    wrong.
    """
    values = 0
    for height, width, slices, channels in _shapes(item, plane):
        if max(height, width) > limits.side:
            raise BadInput(
                f"{item.files[0]} has slices of {height}x{width} pixels, where "
                f"{limits.side}x{limits.side} are allowed. Cut it into parts."
            )
        values = max(values, height * width * slices * channels)
        if slices > limits.slices or values > limits.voxels:
            raise BadInput(
                f"{item.files[0]} has {slices} slices of {height}x{width} pixels and "
                f"{channels} values a pixel, where {limits.slices} slices and "
                f"{limits.voxels} values in all are allowed. Cut it into parts."
            )
    return values


def _shapes(item: scans.Item, plane: str) -> list[tuple[int, int, int, int]]:
    """Returns (height, width, slices, values of a pixel), several for unequal slices."""
    if item.kind == "picture":
        try:
            height, width, values = pictures.read_size(item.files[0])
        except BadInput:
            return []
        return [(height, width, 1, values)]
    if item.kind == "nifti":
        image = nifti.open_header(item.files[0])
        shape = nifti.volume_shape(image)
        # Nothing is read: all voxels are one byte, in the grid of the header.
        voxels = np.broadcast_to(np.uint8(0), shape[:3])
        volume = Volume(voxels, image.affine, str(item.files[0]), plane=plane)
        depth, height, width = volume.slices.shape
        return [(height, width, depth, math.prod(shape[3:]))]
    sizes = [found.size for path in item.files for found in dicom_slice.read(path)]
    return [(*size, len(sizes), 1) for size in dict.fromkeys(sizes)]


def _check_extensions(path: Path):
    """Refuses a NIfTI file with large extensions, which nibabel would keep in memory.

    They stand between the header and the voxels. An extension is its size in bytes,
    including 8 for the size and its code, then the code and the content.
    """
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            head = file.read(_EXTENSIONS)
    except (OSError, EOFError, zlib.error):
        return
    if len(head) < 544:
        return
    # A NIfTI header begins with its own size: 348, or 540 for NIfTI-2.
    order = "<" if struct.unpack("<i", head[:4])[0] in (348, 540) else ">"
    size = struct.unpack(f"{order}i", head[:4])[0]
    place, kind = (168, "q") if size == 540 else (108, "f")
    (offset,) = struct.unpack_from(f"{order}{kind}", head, place)
    # Not `offset > ...`: the offset may be NaN.
    if not offset <= _EXTENSIONS:
        raise BadInput(
            f"{path} says that its voxels begin at byte {offset:.0f}, where at most "
            f"{_EXTENSIONS} are allowed. Save it without extensions."
        )
    if size in (348, 540) and head[size]:
        _check_chain(head, size + 4, int(offset), order, path)


def _check_chain(head: bytes, place: int, end: int, order: str, path: Path):
    """Follows the extensions from `place` to where the voxels begin."""
    for _ in range(_MOST_EXTENSIONS):
        if place + 16 > min(end, len(head)):
            return
        (length,) = struct.unpack_from(f"{order}i", head, place)
        if not 8 <= length <= end - place:
            raise BadInput(
                f"{path} has an extension of {length} bytes in its header, with "
                f"{end - place} left before its voxels. Save it without extensions."
            )
        place += length
    raise BadInput(
        f"{path} has more than {_MOST_EXTENSIONS} extensions in its header. "
        "Save it without them."
    )


def _check_pages(path: Path):
    """Refuses a TIFF file of many pages, since Pillow visits each to count them."""
    try:
        with Image.open(path, formats=("TIFF",)) as picture:
            picture.seek(_PAGES)
    # Fewer pages, or a broken file: reading it says so.
    except Exception:
        return
    raise BadInput(
        f"{path} has more than {_PAGES} pages. Save each slice as a file of its own."
    )


def _check_passes(path: Path):
    """Refuses a JPEG file of many passes, each of which goes over all its pixels.

    A pass begins with _START_OF_SCAN. Among compressed pixels these bytes do not occur,
    since 0xff is followed by 0 there.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\xff\xd8":
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            passes = 0
            place = content.find(_START_OF_SCAN)
            while place >= 0 and passes <= _PASSES:
                passes += 1
                place = content.find(_START_OF_SCAN, place + 2)
    if passes > _PASSES:
        raise BadInput(
            f"{path} is painted in more than {_PASSES} passes. Save it again as PNG."
        )
