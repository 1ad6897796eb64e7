"""What a visitor sent: told by its bytes, not by a name, unpacked within limits and read as mode predict reads a file.

An upload is one file `upload` in the folder of its job. It is given a fixed name there, and so is each file of an
archive: names that a visitor chose make no path.
"""

import dataclasses
import gzip
import math
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from biedsnet_jax import predict_files
from biedsnet_jax.data import dicom, dicom_slice, nifti, pictures, scans
from biedsnet_jax.data.sources import EXTENSIONS
from biedsnet_jax.data.volumes import Volume
from biedsnet_jax.types import BadInput

UPLOAD = "upload"
_SERIES = "series"
# What a file may be taken for where its bytes say nothing, so that it is refused as mode predict refuses it.
KINDS = (*EXTENSIONS, ".nii", ".nii.gz", ".dcm", ".zip")
_HEAD = 1024  # bytes that tell what a file is
_STARTS = {
    ".png": b"\x89PNG\r\n\x1a\n",
    ".jpg": b"\xff\xd8\xff",
    ".tif": (b"II*\0", b"MM\0*"),
    ".zip": b"PK",
    ".nii.gz": b"\x1f\x8b",
}
_CHUNK = 2**20
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # pydicom unpacks such a file as a whole, however large


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one visitor may ask of a server."""

    upload: int = 256 * 2**20  # bytes
    upload_seconds: int = 300
    waiting: int = 16  # uploads that are not segmented yet, of all visitors
    kept: int = 16  # results, of all visitors
    keep_seconds: int = 600  # after they were last looked at
    job_seconds: int = 600
    files: int = 4096  # of an archive
    unpacked: int = 2**31  # bytes of an archive or a .nii.gz
    slices: int = 2048  # of a scan
    side: int = 4096  # pixels
    voxels: int = 2**28  # of a scan, as many as 1024 slices of 512 x 512


def read(folder: Path, *, like: str, channels: int, limits: Limits) -> scans.Scan:
    """The one scan of an upload; `like` is one of KINDS or empty.

    Raises BadInput in the words of mode predict, and for what exceeds the limits.
    """
    source = _named(folder / UPLOAD, like, limits)
    items = scans.find(source, channels=channels)
    if len(items) > 1:
        raise BadInput(f"several scans, {len(items)}, {source}; give one at a time")
    _check_size(items[0], limits)
    (scan,) = predict_files.read(items, channels)
    if isinstance(scan, BadInput):
        raise scan
    return scan


def forget(folder: Path) -> None:
    """Remove what was sent, once it is segmented."""
    shutil.rmtree(folder / _SERIES, ignore_errors=True)
    for path in folder.glob("scan*"):
        path.unlink()


def without_paths(text: str, folder: Path) -> str:
    """A message with the names of files below `folder`, and no path of this machine."""
    inner = text.replace(f"{folder}/", "").replace(str(folder), "the upload")
    return re.sub(r"(?<![\w./])/[^\s,;'\"]+", "the upload", inner)  # a path that was cut short


def kind(head: bytes) -> str:
    """One of KINDS by the first bytes of a file; empty for none."""
    for its, start in _STARTS.items():
        if head.startswith(start):
            return its
    if head[128:132] == b"DICM":
        return ".dcm"
    return ".nii" if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0") else ""


def _named(upload: Path, like: str, limits: Limits) -> Path:
    """The upload under a name that says what it is; of an archive the folder that it was unpacked to."""
    with upload.open("rb") as file:
        head = file.read(_HEAD)
    its = kind(head) or (like if like in KINDS else "")
    if its == ".zip":
        return _unzipped(upload, upload.with_name(_SERIES), limits)
    path = upload.rename(upload.with_name(f"scan{its}"))
    if its == ".nii.gz":
        _check_unpacked(path, limits)
    if its == ".dcm":
        _check_syntax(path)
    return path


def _unzipped(archive: Path, folder: Path, limits: Limits) -> Path:
    """Files `1/1.dcm`, `1/2.dcm`, ... of an archive; a number for each of its folders, the next for each file."""
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [one for one in file.infolist() if not one.is_dir() and not _is_hidden(one)]
            _check_entries(entries, folder, limits)
            folders, left = {}, limits.unpacked
            for number, entry in enumerate(entries, start=1):
                inner = PurePosixPath(entry.filename)
                place = folder / str(folders.setdefault(inner.parent, len(folders) + 1))
                place.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as packed:
                    left -= _copy(packed, place / f"{number}{_extension(inner)}", left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        # what is said may quote a name of the archive
        raise BadInput(f"unreadable or truncated archive, {type(error).__name__}, {folder}; zip it again") from error
    archive.unlink()
    found = [path for path in folder.rglob("*") if path.is_file() and dicom.is_dicom(path)]
    if not found:
        raise BadInput(f"nothing to segment, no DICOM file, {folder}; zip the files of one series")
    for path in found:
        _check_syntax(path)
    return folder


def _check_entries(entries, folder, limits):
    if not entries:
        raise BadInput(f"empty archive, 0 files, {folder}; zip the files of one series")
    if len(entries) > limits.files:
        raise BadInput(f"too many files, {len(entries)} where {limits.files} may be, {folder}; zip one series")
    size = sum(entry.file_size for entry in entries)  # as declared: what is written is counted too
    if size > limits.unpacked:
        raise _too_large(size, folder, limits)
    for entry in entries:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise BadInput(f"a link, not a file, in the archive, {folder}; zip the files themselves")
        if entry.flag_bits & 1:
            raise BadInput(f"encrypted archive, {folder}; zip it without a password")


def _is_hidden(entry) -> bool:
    """As mode predict passes over hidden files; what climbs out of the archive is one too."""
    return any(part.startswith(".") for part in PurePosixPath(entry.filename).parts)


def _extension(path: PurePosixPath) -> str:
    """Of DICOM, for files without its mark; others have none."""
    return path.suffix.lower() if path.suffix.lower() in dicom.EXTENSIONS else ""


def _copy(packed, path: Path, most: int) -> int:
    """Write a file of at most `most` bytes; returns how many it has."""
    size = 0
    with path.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            if size > most:
                raise BadInput(f"too large when unpacked, more than was declared, {path}; zip it again")
            file.write(chunk)
    return size


def _check_unpacked(path: Path, limits: Limits):
    """Of a gzip file: count, and keep nothing. What is damaged is told when it is read."""
    size = 0
    try:
        with gzip.open(path) as file:
            while size <= limits.unpacked and (chunk := file.read(_CHUNK)):
                size += len(chunk)
    except (OSError, EOFError, zlib.error):
        return
    if size > limits.unpacked:
        raise _too_large(size, path, limits)


def _too_large(size, path, limits):
    return BadInput(
        f"too large when unpacked, {size // 2**20} MiB or more where {limits.unpacked // 2**20} may be, {path}; "
        "cut it into parts"
    )


def _check_syntax(path: Path):
    """Of a DICOM file."""
    with path.open("rb") as file:
        if _DEFLATED in file.read(_HEAD):
            raise BadInput(f"compressed data set, deflated, {path}; export it uncompressed")


def _check_size(item: scans.Item, limits: Limits):
    """By its headers, before anything is unpacked. Of what is damaged nothing is said, reading does that."""
    for height, width, slices, values in _shapes(item):
        if max(height, width) > limits.side:
            raise BadInput(
                f"too large a slice, {height}x{width} pixels where {limits.side}x{limits.side} may be, "
                f"{item.files[0]}; cut it into parts"
            )
        if slices > limits.slices or height * width * slices * values > limits.voxels:
            raise BadInput(
                f"too large a scan, {slices} slices of {height}x{width} pixels and {values} values where "
                f"{limits.slices} slices and {limits.voxels} values may be, {item.files[0]}; cut it into parts"
            )


def _shapes(item: scans.Item) -> list[tuple[int, int, int, int]]:
    """(height, width, slices, values of a pixel) of a scan; of several where the slices of a series differ."""
    if item.kind == "picture":
        try:
            height, width, values = pictures.read_size(item.files[0])
        except BadInput:
            return []
        return [(height, width, 1, values)]
    if item.kind == "nifti":
        image = nifti.open_header(item.files[0])
        shape = nifti.volume_shape(image)
        voxels = np.broadcast_to(np.uint8(0), shape[:3])
        depth, height, width = Volume(voxels, image.affine, str(item.files[0])).slices.shape
        return [(height, width, depth, math.prod(shape[3:]))]
    sizes = [one.size for path in item.files for one in dicom_slice.read(path)]
    return [(*size, len(sizes), 1) for size in dict.fromkeys(sizes)]
