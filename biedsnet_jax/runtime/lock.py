"""One writer a folder: a lock that its process holds as long as it lives, so that a
kill frees it.

The file stays; that somebody holds it is known to the system alone (flock), and to a
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

from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files

try:
    import fcntl
# Windows
except ImportError:
    fcntl = None

# seconds between looks at a lock that another process holds
_LOOK = 0.5
# What a file system says that has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class InUse(BadInput):
    """Another process holds the lock."""

    def __init__(self, folder: Path, holder: str, another: str):
        super().__init__(
            f"{folder} is in use by {holder}. Wait for it, end it, or give another {another}."
        )
        self.holder = holder


class Lock:
    """Holds `folder`, which must exist, until `close`; a context manager does that by
    itself.

    `name` tells locks for different kinds of work in one folder apart, `another` is the
    flag that gives another folder. Raises BadInput that names host and process of the
    holder, and where the folder cannot be written. `held` is False where the file
    system has no locks.
    """

    def __init__(
        self, folder: Path, *, name: str = ".lock", another: str = "--workdir"
    ):
        self.path, self.held = folder / name, False
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            what = "Make room there" if files.is_full(error) else "Make it writable"
            raise BadInput(
                f"Cannot write to {folder}: {reason(error)}. {what} or give another {another}."
            ) from error
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
        """Let the next one in; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self.held = None, False

    def _take(self) -> bool:
        if fcntl is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        return True

    def _sign(self) -> None:
        """Say who holds it; on a full disk nobody knows, and the lock holds all the
        same.
        """
        who = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "program": Path(sys.argv[0]).name,
        }
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(who).encode(), 0)


def wait(folder: Path, *, name: str, say: Callable[[str], None]) -> Lock:
    """The lock of a folder as soon as nobody else holds it; `say` is told once who
    does.

    Raises BadInput where the folder cannot be written.
    """
    waiting = False
    while True:
        try:
            return Lock(folder, name=name)
        except InUse as error:
            if not waiting:
                say(f"Waiting for {error.holder}, which is in {folder} too.")
            waiting = True
            time.sleep(_LOOK)


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text(errors="replace"))
        return shown(
            f"process {who['process']} on host {who['host']}, since {who['since']}",
            most=120,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
