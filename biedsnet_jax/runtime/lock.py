"""One writer a folder: a lock that a process holds as long as it lives.

A kill frees it. The file stays; only the system (flock) knows who holds it, and a
network file system as far as it passes this on.
"""

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from biedsnet_jax.errors import BadInput, shown
from biedsnet_jax.runtime import files

try:
    import fcntl
except ImportError:
    # Windows has no flock.
    fcntl = None

# Seconds between two tries to take a lock that another process holds.
_RETRY = 0.5
# Errors of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class InUse(BadInput):
    """Another process holds the lock of a folder."""

    def __init__(self, folder: Path, holder: str, another: str):
        super().__init__(
            f"{folder} is in use by {holder}. "
            f"Wait for it, end it, or give another {another}."
        )
        self.holder = holder


class Lock:
    """Holds `folder`, which must exist, until `close`; as a context manager, too.

    `name` tells locks for different kinds of work in one folder apart, `another` is the
    flag that gives another folder. Raises InUse, which names host and process of the
    holder, and BadInput where the folder cannot be written. `held` is False where the
    file system has no locks.
    """

    def __init__(
        self, folder: Path, *, name: str = ".lock", another: str = "--workdir"
    ):
        self.path, self.held = folder / name, False
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise files.cannot_write(folder, error, another) from error
        try:
            self.held = self._take()
            if self.held:
                self._sign()
        except BlockingIOError:
            holder = _holder(self.path)
            os.close(self._descriptor)
            raise InUse(folder, holder, another) from None
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Frees the folder; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self.held = None, False

    def _take(self) -> bool:
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    def _sign(self) -> None:
        """Writes into the file who holds it."""
        who = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "program": Path(sys.argv[0]).name,
        }
        # On a full disk the lock holds without a name.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(who).encode(), 0)


def wait(folder: Path, *, name: str, say: Callable[[str], None]) -> Lock:
    """The lock of a folder as soon as nobody else holds it.

    `say` is called once with who holds it. Raises BadInput where the folder cannot be
    written.
    """
    reported = False
    while True:
        try:
            return Lock(folder, name=name)
        except InUse as error:
            if not reported:
                say(f"Waiting for {error.holder}, which is in {folder} too.")
            reported = True
            time.sleep(_RETRY)


def _holder(path: Path) -> str:
    """Process and host that a lock's file names, as far as it can be read."""
    try:
        who = json.loads(path.read_text(errors="replace"))
        return shown(
            f"process {who['process']} on host {who['host']}, since {who['since']}",
            most=120,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
