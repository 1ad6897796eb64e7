"""Reads an upload: identified by its bytes, not by a name, unpacked within limits, and
read as mode predict reads a file.

An upload is the file `upload` in the folder of its job. It gets a fixed name there, and
so does each file of an archive: no name that a visitor chose becomes a path.
"""

import lzma
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from biedsnet_jax.data.formats import dicom
from biedsnet_jax.data.formats.pictures import EXTENSIONS
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import scans
from biedsnet_jax.runtime import files
from biedsnet_jax.serving import check
from biedsnet_jax.serving.limits import Limits

UPLOAD = "upload"
_SERIES = "series"
# What a file is taken for where its bytes do not tell, so that the refusal is that of
# mode predict.
KINDS = (*EXTENSIONS, ".nii", ".nii.gz", ".dcm", ".zip")
# Bytes that tell what a file is.
_HEAD = 1024
_STARTS = {
    ".png": b"\x89PNG\r\n\x1a\n",
    ".jpg": b"\xff\xd8\xff",
    ".tif": (b"II*\0", b"MM\0*"),
    ".zip": b"PK",
    ".nii.gz": b"\x1f\x8b",
}
_UNKNOWN = (
    "The upload is in no format that is read. "
    "Give a PNG, JPEG, TIFF, NIfTI or DICOM file, or a ZIP of one DICOM series."
)
_CHUNK = 2**20
# What zipfile raises for a broken archive.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    OSError,
)


def read(
    folder: Path,
    *,
    like: str,
    channels: int,
    plane: str = "axial",
    limits: Limits,
    declared: Callable[[int], None] = lambda values: None,
) -> scans.Scan:
    """Reads the one scan of an upload; `like` is one of KINDS or empty,
    `plane` that of the slices of a volume.

    `declared` is called with the number of values that the headers declare, before any
    is read. Raises BadInput as mode predict does, and for what exceeds the limits.
    """
    source = _named(folder / UPLOAD, like, limits)
    items = scans.search(source, channels=channels).items
    if len(items) > 1:
        raise BadInput(f"{source} holds {len(items)} scans. Give one at a time.")
    declared(check.check_size(items[0], limits, plane))
    return scans.read(items[0], channels=channels, plane=plane)


def forget(folder: Path) -> None:
    """Removes the files of an upload that was read."""
    shutil.rmtree(folder / _SERIES, ignore_errors=True)
    for path in folder.glob("scan*"):
        path.unlink()


def without_paths(text: str, folder: Path) -> str:
    """Removes the paths of this machine from a message.

    Files below `folder` keep their names.
    """
    inner = text.replace(f"{folder}/", "").replace(str(folder), "the upload")
    # What remains are paths that the message cut short.
    return re.sub(r"(?<![\w./])/[^\s,;'\"]+", "the upload", inner)


def kind(head: bytes) -> str:
    """Identifies a file by its first bytes, as one of KINDS; empty for another."""
    for extension, start in _STARTS.items():
        if head.startswith(start):
            return extension
    if head[128:132] == b"DICM":
        return ".dcm"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        return ".nii"
    return ""


def _named(upload: Path, like: str, limits: Limits) -> Path:
    """Renames an upload by what it is; an archive is unpacked to a folder instead."""
    with upload.open("rb") as file:
        extension = kind(file.read(_HEAD))
    if not extension and like in KINDS:
        extension = like
    if extension == ".zip":
        return _unzipped(upload, upload.with_name(_SERIES), limits)
    path = upload.rename(upload.with_name(f"scan{extension}"))
    if not extension and not dicom.is_dicom(path):
        raise BadInput(_UNKNOWN)
    check.check_file(path, extension, limits)
    return path


def _unzipped(archive: Path, folder: Path, limits: Limits) -> Path:
    """Unpacks an archive to `1/1.dcm`, `1/2.dcm`, ... in `folder`.

    The first number is that of the archive's folder, the second that of the file.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [
                entry
                for entry in file.infolist()
                if not entry.is_dir() and not _is_hidden(entry)
            ]
            _check_entries(entries, limits)
            folders, left = {}, limits.unpacked
            folder.mkdir()
            for number, entry in enumerate(entries, start=1):
                path = PurePosixPath(entry.filename)
                place = folder / str(folders.setdefault(path.parent, len(folders) + 1))
                place.mkdir(exist_ok=True)
                with file.open(entry) as packed:
                    left -= _copy(packed, place / f"{number}{_extension(path)}", left)
    except BadInput:
        raise
    except _BROKEN_ZIP as error:
        if files.is_full(error):
            raise
        # Without the library's message, which may quote a name of the archive.
        kind = type(error).__name__
        raise BadInput(
            f"The archive is unreadable or truncated ({kind}). Zip it again."
        ) from error
    archive.unlink()
    found = [
        path for path in folder.rglob("*") if path.is_file() and dicom.is_dicom(path)
    ]
    if not found:
        raise BadInput("The archive holds no DICOM file. Zip the files of one series.")
    for path in found:
        check.check_syntax(path)
    return folder


def _check_entries(entries, limits):
    if not entries:
        raise BadInput("The archive is empty. Zip the files of one series.")
    if len(entries) > limits.files:
        raise BadInput(
            f"The archive holds {len(entries)} files, where {limits.files} are allowed. "
            "Zip the files of one series."
        )
    # As declared; `_copy` counts what is written.
    size = sum(entry.file_size for entry in entries)
    if size > limits.unpacked:
        raise check.too_large(size, "The archive", limits)
    for entry in entries:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise BadInput("The archive holds a link. Zip the files themselves.")
        if entry.flag_bits & 1:
            raise BadInput("The archive is encrypted. Zip it without a password.")


def _is_hidden(entry) -> bool:
    """Checks for a hidden file, which mode predict passes over too.

    A path that climbs out of the archive, with "..", counts as hidden.
    """
    return any(part.startswith(".") for part in PurePosixPath(entry.filename).parts)


def _extension(path: PurePosixPath) -> str:
    """Returns an extension of DICOM, by which files without its mark are known."""
    extension = path.suffix.lower()
    return extension if extension in dicom.EXTENSIONS else ""


def _copy(packed, path: Path, most: int) -> int:
    """Writes a file of at most `most` bytes; returns its size."""
    size = 0
    with path.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            if size > most:
                raise BadInput(
                    "The archive is larger when unpacked than it says. Zip it again."
                )
            file.write(chunk)
    return size
