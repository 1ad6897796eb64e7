"""The process that reads uploads, each in a copy of itself: a hostile file ends the copy,
not the server.

    python -m biedsnet_jax.serving.reader

Each line on stdin is an order (see `Order`), and each line on stdout is the exit code of
its copy. An empty line ends a copy that still runs. A scan or a refusal is written to
the job's folder (see handoff). The process ends with the server, which holds the other
end of stdin. It loads neither jax nor the model, so it has one thread, and a copy (fork)
is safe and takes milliseconds.

A copy ends beyond its limits of memory, time and file size. While it reads headers, its
memory may grow by SMALL and the size of the upload; then by what the declared values
need, up to the limit. So few bytes that unpack to many meet a low limit.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TypedDict

from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime import files
from biedsnet_jax.serving import check, handoff, upload
from biedsnet_jax.serving.limits import Limits

try:
    import resource
# Windows has none.
except ImportError:
    resource = None

# Bytes.
SMALL = 2**28
# Exit code of a copy that could not even write what went wrong.
FAULT = 70
# Bytes of a value while it is read: as float64 in the file, scaled, and handed over.
_BYTES = 24
# Lower priority than the server, whose answers come first.
_NICE = 5
# Seconds between checks of a copy.
_POLL = 0.01
# Number of Linux's prctl option that sends a signal when the parent ends.
_PR_SET_PDEATHSIG = 1
_TOO_LARGE = (
    "The upload needs more memory than one may take, or more than its header "
    "declares. Cut it into parts, or save it again."
)


class Order(TypedDict):
    """Which upload to read."""

    # Folder of the job.
    folder: str
    like: str
    channels: int
    # Of the slices of a volume.
    plane: str
    limits: dict[str, int]


def main(argv: list[str]) -> int:
    """Carries out orders until the server ends; `argv` has the id of its process."""
    _end_with(int(argv[1]))
    check.only_formats()
    with open(0, "rb", buffering=0, closefd=False) as orders:
        while line := orders.readline():
            # An empty line, for a copy that had already ended.
            if not line.strip():
                continue
            print(_copy(json.loads(line)), flush=True)
            # Without copies this process has the limits of one reading itself.
            if not hasattr(os, "fork"):
                break
    return 0


def _copy(order: Order) -> int:
    """Has a copy carry out an order; returns its exit code.

    Where the system has no fork, this process carries it out.
    """
    if not hasattr(os, "fork"):
        return _read(order)
    server, pid = os.getpid(), os.fork()
    if pid:
        return _wait(pid)
    code = FAULT
    try:
        _end_with(server)
        _silence()
        code = _read(order)
    finally:
        os._exit(code)


def _wait(pid: int) -> int:
    """Waits for a copy to end; a line of the server, or the server's end, ends it."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if select.select([0], [], [], _POLL)[0]:
            ended = not os.read(0, 1)
            os.kill(pid, signal.SIGKILL)
            if ended:
                os._exit(0)


def _silence():
    """Closes the streams of a copy, which answers only through its files."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _read(order: Order) -> int:
    """Reads one upload; returns 0 where a scan or a refusal was written."""
    folder = Path(order["folder"])
    limits = Limits(**order["limits"])
    allow = _limited(limits, (folder / upload.UPLOAD).stat().st_size)
    try:
        scan = upload.read(
            folder,
            like=order["like"],
            channels=order["channels"],
            plane=order["plane"],
            limits=limits,
            declared=allow,
        )
        handoff.write(folder, scan)
    except BadInput as error:
        handoff.refuse(folder, _TOO_LARGE if _is_memory(error) else str(error))
    except MemoryError:
        handoff.refuse(folder, _TOO_LARGE)
    except Exception as error:
        if files.is_full(error):
            handoff.refuse(folder, "The server's disk is full. Try again later.")
        else:
            handoff.fail(folder, _where(error))
    upload.forget(folder)
    return 0


def _where(error: Exception) -> str:
    """Returns the type and line of an error, whose message may quote the upload."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}, {Path(last.filename).name}:{last.lineno}"


def _is_memory(error: BaseException | None) -> bool:
    """Checks whether an error, or one behind it, is a MemoryError."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_with(parent: int):
    """Ends this process with its parent.

    On other systems than Linux it ends only when the parent's pipe closes.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have ended before that.
        if os.getppid() != parent:
            os._exit(FAULT)


def _limited(limits: Limits, size: int):
    """Sets the limits; returns `allow(values)`, which raises the one of memory."""
    if resource is None:
        return lambda values: None
    os.nice(_NICE)
    # Where memory runs out, the system kills this process first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", max(limits.unpacked, limits.voxels * _BYTES) + SMALL)
    _limit("RLIMIT_CPU", limits.read_seconds + round(time.process_time()))
    before = _address_space()
    most = before + limits.memory

    def allow(values: int) -> None:
        needed = before + SMALL + size + values * _BYTES
        _limit("RLIMIT_AS", min(needed, most), most)

    allow(0)
    return allow


def _limit(name: str, soft: int, hard: int | None = None):
    # Where the system does not know a limit, the server's own clock remains.
    with contextlib.suppress(ValueError, OSError):
        if hard is None:
            hard = soft
        resource.setrlimit(getattr(resource, name), (soft, hard))


def _address_space() -> int:
    """Returns the bytes that the process has before it reads, mostly libraries."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 2**30
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
