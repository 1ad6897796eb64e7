"""What a visitor sent: told by its bytes, not by a name, unpacked within limits and
read as mode predict reads a file.

An upload is one file `upload` in the folder of its job. It is given a fixed name there,
and so is each file of an archive: names that a visitor chose make no path.
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
# What a file may be taken for where its bytes say nothing, so that it is refused as
# mode predict refuses it.
KINDS = (*EXTENSIONS, ".nii", ".nii.gz", ".dcm", ".zip")
# bytes that tell what a file is
_HEAD = 1024
_STARTS = {
    ".png": b"\x89PNG\r\n\x1a\n",
    ".jpg": b"\xff\xd8\xff",
    ".tif": (b"II*\0", b"MM\0*"),
    ".zip": b"PK",
    ".nii.gz": b"\x1f\x8b",
}
_UNKNOWN = (
    "The upload is in no format that is read. Give a PNG, JPEG, TIFF, NIfTI or DICOM file, or a ZIP "
    "of one DICOM series."
)
_CHUNK = 2**20
_BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError, OSError,
)  # fmt: skip


def read(
    folder: Path,
    *,
    like: str,
    channels: int,
    limits: Limits,
    declared: Callable[[int], None] = lambda values: None,
) -> scans.Scan:
    """The one scan of an upload; `like` is one of KINDS or empty.

    `declared` hears how many values the headers promise, before these are read. Raises
    BadInput in the words of mode predict, and for what exceeds the limits.
    """
    source = _named(folder / UPLOAD, like, limits)
    items = scans.search(source, channels=channels).items
    if len(items) > 1:
        raise BadInput(f"{source} holds {len(items)} scans. Give one at a time.")
    declared(check.check_size(items[0], limits))
    return scans.read(items[0], channels=channels)


def forget(folder: Path) -> None:
    """Remove what was sent, once it is read."""
    shutil.rmtree(folder / _SERIES, ignore_errors=True)
    for path in folder.glob("scan*"):
        path.unlink()


def without_paths(text: str, folder: Path) -> str:
    """A message with the names of files below `folder`, and no path of this machine."""
    inner = text.replace(f"{folder}/", "").replace(str(folder), "the upload")
    # a path that was cut short
    return re.sub(r"(?<![\w./])/[^\s,;'\"]+", "the upload", inner)


def kind(head: bytes) -> str:
    """One of KINDS by the first bytes of a file; empty for none."""
    for its, start in _STARTS.items():
        if head.startswith(start):
            return its
    if head[128:132] == b"DICM":
        return ".dcm"
    return (
        ".nii"
        if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")
        else ""
    )


def _named(upload: Path, like: str, limits: Limits) -> Path:
    """The upload under a name that says what it is; of an archive the folder that it
    was unpacked to.
    """
    with upload.open("rb") as file:
        head = file.read(_HEAD)
    its = kind(head) or (like if like in KINDS else "")
    if its == ".zip":
        return _unzipped(upload, upload.with_name(_SERIES), limits)
    path = upload.rename(upload.with_name(f"scan{its}"))
    if not its and not dicom.is_dicom(path):
        raise BadInput(_UNKNOWN)
    check.check_file(path, its, limits)
    return path


def _unzipped(archive: Path, folder: Path, limits: Limits) -> Path:
    """Files `1/1.dcm`, `1/2.dcm`, ... of an archive; a number for each of its folders,
    the next for each file.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = [
                one
                for one in file.infolist()
                if not one.is_dir() and not _is_hidden(one)
            ]
            _check_entries(entries, limits)
            folders, left = {}, limits.unpacked
            folder.mkdir()
            for number, entry in enumerate(entries, start=1):
                inner = PurePosixPath(entry.filename)
                place = folder / str(folders.setdefault(inner.parent, len(folders) + 1))
                place.mkdir(exist_ok=True)
                with file.open(entry) as packed:
                    left -= _copy(packed, place / f"{number}{_extension(inner)}", left)
    except BadInput:
        raise
    except _BROKEN_ZIP as error:
        if files.is_full(error):
            raise
        # What the library says may quote a name of the archive.
        raise BadInput(
            f"The archive is unreadable or truncated ({type(error).__name__}). Zip it again."
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
    # as declared: what is written is counted too
    size = sum(entry.file_size for entry in entries)
    if size > limits.unpacked:
        raise check.too_large(size, "The archive", limits)
    for entry in entries:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise BadInput("The archive holds a link. Zip the files themselves.")
        if entry.flag_bits & 1:
            raise BadInput("The archive is encrypted. Zip it without a password.")


def _is_hidden(entry) -> bool:
    """As mode predict passes over hidden files; what climbs out of the archive is one
    too.
    """
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
                raise BadInput(
                    "The archive is larger when unpacked than it says. Zip it again."
                )
            file.write(chunk)
    return size
