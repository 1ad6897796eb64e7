"""Files that a kill or a power cut never leaves half written.

A file is written under another name, brought to the disk (fsync), then renamed.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import tempfile
import threading
import unicodedata
from collections.abc import Iterator
from typing import Any

from biedsnet_jax.errors import BadInput, reason, shown

# Of folders in places that programs share.
_NAME = "biedsnet_jax"
# One letter would be a drive of Windows. pathlib leaves one slash of two.
_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]+://|(gs|s3|hdfs|https?):/", re.IGNORECASE
)
# Bytes in a name, on most file systems.
_LONGEST_NAME = 255
# Bytes in a path, on most systems.
_LONGEST_PATH = 4096
# Bytes: a disk with less room counts as full.
_SOME = 2**16
# Bytes at each end of a file that a fingerprint reads.
_ENDS = 2**20


def expanded(path: str) -> str:
    """A path with a leading ~ or ~name replaced by the home folder.

    Raises BadInput where there is no such home, rather than make a folder called ~, and
    for an address such as gs://bucket/folder, rather than make a folder called gs:.
    """
    check_no_address(path, "a path")
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(found.partition("\0")[0]):
        home = found.partition("/")[0]
        raise BadInput(
            f"{found!r} begins with a home folder, {home}, that is not known on this "
            f"machine. Give the whole path, or ./{home} for a folder of that name."
        )
    return found


def folders(text: str) -> list[str]:
    """Splits a list of folders at its commas, and expands each.

    A name may hold commas, so the longest that is a folder counts.
    """
    if os.path.isdir(expanded(text)):
        return [expanded(text)]
    parts = text.split(",")
    found = []
    while parts:
        count = _longest(parts)
        name = ",".join(parts[:count])
        if name:
            found.append(expanded(name))
        parts = parts[count:]
    return found


def _longest(parts):
    """Counts the parts that, joined, name a folder; 1 where none do."""
    name = ""
    longest = 1
    for count, part in enumerate(parts, start=1):
        name += part if count == 1 else f",{part}"
        if len(name) > _LONGEST_PATH:
            break
        # Not pathlib's, which raises for a name that is too long.
        if os.path.isdir(expanded(name)):
            longest = count
    return longest


def check_no_address(path: str, name: str) -> None:
    """Raises BadInput where the flag or field `name` is an address (gs://...)."""
    if _ADDRESS.match(path):
        raise BadInput(
            f"{name} is {shown(repr(path))}, an address. Mount the bucket as a folder, "
            "for example with Cloud Storage FUSE or Mountpoint for Amazon S3, and give "
            "that folder."
        )


def user_cache() -> pathlib.Path:
    """Folder for what the package can make again, such as compiled programs.

    It lies in $XDG_CACHE_HOME, else where the system keeps caches, on Linux in ~/.cache;
    for a user without a home, in the system's temporary folder.
    """
    # Imported here, since few commands need a cache.
    import platformdirs

    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says that a relative path is to be ignored.
    if os.path.isabs(root):
        return pathlib.Path(root) / _NAME
    try:
        earlier = pathlib.Path.home() / ".cache" / _NAME
    except RuntimeError:
        return _temporary_cache()
    own = pathlib.Path(platformdirs.user_cache_dir(_NAME, appauthor=False))
    # Earlier versions had the same place on every system.
    return earlier if earlier.is_dir() or not own.is_absolute() else own


def _temporary_cache() -> pathlib.Path:
    """A temporary folder that nobody else can have written to."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = pathlib.Path(tempfile.gettempdir()) / f"{_NAME}_{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        others_write = status.st_mode & 0o022
        if status.st_uid == user and not others_write and not folder.is_symlink():
            return folder
    return pathlib.Path(tempfile.mkdtemp(prefix=f"{_NAME}_"))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a whole file; file names of no encoding keep their bytes in it."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a whole file."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes strict JSON: a NaN raises ValueError here rather than in a reader."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_file(path: pathlib.Path, *, shared: bool = False) -> Iterator[pathlib.Path]:
    """Yields a name to write to, which becomes `path` once all is on the disk.

    After an error nothing is left. If `shared`, several processes may write the same
    content at once, each to a name of its own. Raises OSError where `path` is a device
    or a pipe, since the file would take its place.
    """
    check_replaceable(path)
    own = f"{os.getpid()}_{threading.get_ident()}_" if shared else ""
    partial = path.with_name(_partial_name(own + path.name))
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_replaceable(path: pathlib.Path) -> None:
    """Raises OSError where `path` is a folder, a device or a pipe."""
    if path.exists() and not path.is_file():
        what = "it is a folder" if path.is_dir() else "it is a device or a pipe"
        raise OSError(errno.EEXIST, f"{what}, not a file", str(path))


@contextlib.contextmanager
def writing(path: pathlib.Path, *, another: str = "--workdir") -> Iterator[None]:
    """Turns an OSError of its block into BadInput.

    The message names `path`, and `another`, the flag that gives another place.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, another) from error


def cannot_write(path: pathlib.Path, error: OSError, another: str) -> BadInput:
    """What to raise where `path` cannot be written; `another` is the flag of the fix."""
    fix = "Make room there" if is_full(error) else "Make it writable"
    return BadInput(
        f"Cannot write to {path}: {reason(error)}. {fix}, or give another {another}."
    )


def check_writable(folder: pathlib.Path) -> None:
    """Raises OSError where no file can be written in a folder, which may not exist yet.

    A mode finds this at its start, where writing would only fail at its end.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder", str(folder))
    with tempfile.TemporaryFile(dir=there, buffering=0) as file:
        file.write(bytes(_SOME))


def _partial_name(name: str) -> str:
    """Name of a file under way; its end stays, which chooses a picture's format."""
    partial = f".partial_{name}"
    if len(os.fsencode(partial)) <= _LONGEST_NAME:
        return partial
    return f".partial_{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}_{name[-8:]}"


def sync(path: pathlib.Path) -> None:
    """Brings the content of a file to the disk."""
    _fsync(path, os.O_RDWR)


def sync_folder(folder: pathlib.Path) -> None:
    """Brings the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        _fsync(folder, os.O_RDONLY)


def _fsync(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_json_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Appends a line of JSON in one write; a number that is not finite becomes null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in record.items()
    }
    append_text(path, json.dumps(finite) + "\n")


def append_text(path: pathlib.Path, text: str) -> None:
    """Appends in one write, and brings it to the disk.

    A disk that fills up meanwhile raises OSError and leaves the file as it was.
    """
    data = text.encode(errors="surrogateescape")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(descriptor).st_size
        # What is left of a line would spoil the next one.
        if os.write(descriptor, data) < len(data):
            os.ftruncate(descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
        # A new file has a new name, too.
        if not before:
            sync_folder(path.parent)
    finally:
        os.close(descriptor)


def fingerprint(path: pathlib.Path) -> str:
    """Hash of a file's size and of a mebibyte at each end.

    It tells any change of the voxels of a .nii.gz or a .png, which end in a checksum.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(str(size).encode())
        file.seek(0)
        digest.update(file.read(_ENDS))
        if size > _ENDS:
            file.seek(max(_ENDS, size - _ENDS))
            digest.update(file.read(_ENDS))
    return digest.hexdigest()[:32]


def identity(folder: pathlib.Path) -> int | None:
    """A number that a folder keeps when renamed; None where the folder is gone."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the disk or a quota is full."""
    while error is not None:
        # Libraries hand the number on as text alone.
        in_text = any(os.strerror(number) in str(error) for number in _FULL)
        if in_text or getattr(error, "errno", None) in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def composed(name: str) -> str:
    """A name in Unicode's NFC, by which files are paired.

    File systems store an umlaut as one character or as two.
    """
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> tuple:
    """Sort key that takes digits as numbers."""

    def key(part):
        return (int(part), "") if part.isdecimal() else (-1, part)

    return tuple(map(key, re.split(r"(\d+)", name))), name
