"""The temporary folder of a server, which is removed when the server ends.

A server that is killed (kill -9, a power cut) leaves its folder behind, but no longer
holds its lock. The next server of the same user removes the folder.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime.lock import Lock

PREFIX = "biedsnet_serve_"
# Prefix of a folder that is not locked yet.
_NEW = f".{PREFIX}new_"
_LOCK = ".lock"
_DAY = 24 * 3600
_open: set[Path] = set()


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Gives a new folder below the system's temporary one, and removes it at the end."""
    new = Path(tempfile.mkdtemp(prefix=_NEW))
    folder = new.with_name(f"{PREFIX}{secrets.token_hex(8)}")
    # Locked before it gets its name, so that no other server takes it for a stale one.
    with Lock(new, name=_LOCK, another="TMPDIR"):
        new.rename(folder)
        _open.add(folder)
        try:
            yield folder
        finally:
            remove(folder)
            _open.discard(folder)


def remove_open() -> None:
    """Removes the folders of this process, for a server that leaves at once."""
    for folder in list(_open):
        remove(folder)


def remove(folder: Path) -> None:
    """Removes a folder, even while others write into it."""
    # It loses its name first, so that nothing more is written into it.
    gone = folder.with_name(f"{folder.name}_gone")
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def clear_stale() -> int:
    """Removes the folders of killed servers of this user; returns their number."""
    root = Path(tempfile.gettempdir())
    found = [*root.glob(f"{PREFIX}*"), *root.glob(f"{_NEW}*")]
    return sum(_clear(folder) for folder in found if _is_own(folder))


def _is_own(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    if folder.is_symlink() or not folder.is_dir():
        return False
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()


def _clear(folder: Path) -> bool:
    """Removes a folder if it is stale; returns whether it did."""
    if not (folder / _LOCK).exists():
        return _is_abandoned(folder) and _removed(folder)
    try:
        with Lock(folder, name=_LOCK) as lock:
            return lock.held and _removed(folder)
    # Its server lives, or another one is removing it.
    except BadInput:
        return False


def _removed(folder: Path) -> bool:
    remove(folder)
    return not folder.exists()


def _is_abandoned(folder: Path) -> bool:
    """Checks whether nobody touched the content of a folder without a lock for a day.

    An earlier version made folders without a lock. An empty one holds nothing of a
    visitor's, and may belong to a server that is idle.
    """
    try:
        newest = [path.lstat().st_mtime for path in folder.rglob("*")]
    except OSError:
        return False
    return bool(newest) and time.time() - max(newest) > _DAY
