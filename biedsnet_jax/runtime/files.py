"""Files that a reader, a kill or a power cut never leaves half written.

A file is written under another name, brought to the disk (fsync), then renamed over its
own.
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

from biedsnet_jax.errors import BadInput, reason

# bytes, of most file systems
_LONGEST_NAME = 255
# bytes: a disk with less room is full
_SOME = 2**16
# bytes at each end of a file that a fingerprint reads
_ENDS = 2**20


def expanded(path: str) -> str:
    """A path as a user means it: a leading ~ is the home folder, ~name that of a user.

    Raises BadInput where there is no such home, rather than let a folder called ~ be
    made.
    """
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(found.partition("\0")[0]):
        home = found.partition("/")[0]
        raise BadInput(
            f"{found!r} begins with a home folder, {home}, that is not known on this machine. "
            f"Give the whole path, or ./{home} for a folder of that name."
        )
    return found


def user_cache() -> pathlib.Path:
    """Where this package may keep what it can make again.

    That is $XDG_CACHE_HOME, else ~/.cache, else, for a user without a home, a folder of
    his own in the system's temporary one.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, says the standard that it is of.
    if os.path.isabs(root):
        return pathlib.Path(root) / "biedsnet_jax"
    try:
        return pathlib.Path.home() / ".cache" / "biedsnet_jax"
    except RuntimeError:
        return _temporary_cache()


def _temporary_cache() -> pathlib.Path:
    """A folder that nobody else could have put something into."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = pathlib.Path(tempfile.gettempdir()) / f"biedsnet_jax_{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if (
            status.st_uid == user
            and not status.st_mode & 0o022
            and not folder.is_symlink()
        ):
            return folder
    return pathlib.Path(tempfile.mkdtemp(prefix="biedsnet_jax_"))


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a whole file; names of files that are in no encoding keep their bytes."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Write a whole file."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write strict JSON: a NaN is an error here rather than in whoever reads it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_file(path: pathlib.Path, *, shared: bool = False) -> Iterator[pathlib.Path]:
    """Gives a name to write to, which becomes `path` once all is written and on the
    disk.

    Of what goes wrong nothing is left. A file that several processes may write at once,
    the same content, is `shared`: each then has a name of its own to write to. Raises
    OSError where `path` is a device or a pipe, whose place the file would take.
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
    """Raise OSError where something that is no file has the name of one to be written."""
    if path.exists() and not path.is_file():
        what = "it is a folder" if path.is_dir() else "it is a device or a pipe"
        raise OSError(errno.EEXIST, f"{what}, not a file", str(path))


@contextlib.contextmanager
def writing(path: pathlib.Path, *, another: str = "--workdir") -> Iterator[None]:
    """OSError in its block becomes BadInput that names `path` and the flag that says
    where else to write.
    """
    try:
        yield
    except OSError as error:
        what = "Make room there" if is_full(error) else "Make it writable"
        raise BadInput(
            f"Cannot write to {path}: {reason(error)}. {what}, or give another {another}."
        ) from error


def check_writable(folder: pathlib.Path) -> None:
    """Raise OSError where no file can be written in a folder, which need not be there
    yet.

    For a mode to say at its start what its last line would fail on. Nothing is left.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder", str(folder))
    with tempfile.TemporaryFile(dir=there, buffering=0) as file:
        file.write(bytes(_SOME))


def _partial_name(name: str) -> str:
    """The end stays, since it chooses the format of a picture or a volume."""
    partial = f".partial_{name}"
    if len(os.fsencode(partial)) <= _LONGEST_NAME:
        return partial
    return f".partial_{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}_{name[-8:]}"


def sync(path: pathlib.Path) -> None:
    """Bring the content of a file that was written to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: pathlib.Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append_json_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Append one line in one write; a number that is not finite becomes null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in record.items()
    }
    append_text(path, json.dumps(finite) + "\n")


def append_text(path: pathlib.Path, text: str) -> None:
    """Append in one write, and bring it to the disk.

    A disk that fills up in the middle of it raises OSError and leaves the file as it
    was.
    """
    data = text.encode(errors="surrogateescape")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(descriptor).st_size
        # the next line would go on in the middle of this one
        if os.write(descriptor, data) < len(data):
            os.ftruncate(descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
        # a new file's name too
        if not before:
            sync_folder(path.parent)
    finally:
        os.close(descriptor)


def fingerprint(path: pathlib.Path) -> str:
    """Tells one content from another: a hash of the size and of a mebibyte at each end.

    The checksum at the end of a .nii.gz or .png makes it tell any change of the voxels.
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
    """The same as long as a folder is the same; None where it is gone."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


_FULL = {
    number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
}


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that the disk or a quota is full;
    libraries give that as text.
    """
    while error is not None:
        if getattr(error, "errno", None) in _FULL or any(
            text in str(error) for text in _FULL.values()
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def composed(name: str) -> str:
    """A name by which files are paired (Unicode's NFC): an umlaut may be stored as one
    character or as two.
    """
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> tuple:
    """Sort key that takes digits as numbers."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", name)
    ), name
