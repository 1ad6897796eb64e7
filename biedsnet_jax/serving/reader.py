"""The process that reads uploads, each in a copy of itself, so that a hostile file ends
that and not the server.

    python -m biedsnet_jax.serving.reader

Each line on stdin is an order (see `Order`), each line on stdout the exit code of its
copy; an empty line meanwhile ends the copy. A scan or a refusal is handed over in the
job's folder (see handoff.py). All ends with the server, which holds the other end of
stdin. Neither jax nor the model is loaded here, so that there is one thread and a copy
(fork) is safe and takes milliseconds.

A copy ends beyond its limits of memory, time and file size. Memory may grow by SMALL
and the size of the upload while headers are read, then by what the values that these
declare need, up to the limit: few bytes that unpack to many meet a low limit.
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
# Windows
except ImportError:
    resource = None

# bytes
SMALL = 2**28
# exit code of a copy that could not even say what went wrong
FAULT = 70
# a value while it is read: as float64 in the file, scaled, and handed over
_BYTES = 24
# the server's answers come first
_NICE = 5
# seconds between looks at a copy
_LOOK = 0.01
_PR_SET_PDEATHSIG = 1


class Order(TypedDict):
    """What to read."""

    folder: str  # of the job
    like: str
    channels: int
    limits: dict[str, int]


def main(argv: list[str]) -> int:
    """Do orders until the server ends; `argv` names its process."""
    _end_with(int(argv[1]))
    check.only_formats()
    with open(0, "rb", buffering=0, closefd=False) as orders:
        while line := orders.readline():
            # the end of a copy that had ended by itself
            if not line.strip():
                continue
            print(_copy(json.loads(line)), flush=True)
            if not hasattr(os, "fork"):
                break
    return 0


def _copy(order: Order) -> int:
    """The exit code of a copy that does the order; without fork it is done here."""
    if not hasattr(os, "fork"):
        return _do(order)
    server, pid = os.getpid(), os.fork()
    if pid:
        return _wait(pid)
    code = FAULT
    try:
        _end_with(server)
        _silence()
        code = _do(order)
    finally:
        os._exit(code)


def _wait(pid: int) -> int:
    """Until a copy ends; a word of the server's, or its end, ends the copy."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if select.select([0], [], [], _LOOK)[0]:
            ended = not os.read(0, 1)
            os.kill(pid, signal.SIGKILL)
            if ended:
                os._exit(0)


def _silence() -> None:
    """A copy has nothing to say to the server but what it hands over."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _do(order: Order) -> int:
    """Read one upload; 0 where something was handed over."""
    folder, limits = Path(order["folder"]), Limits(**order["limits"])
    allow = _limited(limits, (folder / upload.UPLOAD).stat().st_size)
    try:
        scan = upload.read(
            folder,
            like=order["like"],
            channels=order["channels"],
            limits=limits,
            declared=allow,
        )
        handoff.write(folder, scan)
    except BadInput as error:
        handoff.refuse(folder, _too_large() if _is_memory(error) else str(error))
    except MemoryError:
        handoff.refuse(folder, _too_large())
    except Exception as error:
        if files.is_full(error):
            handoff.refuse(folder, "The server's disk is full. Try again later.")
        else:
            handoff.fail(folder, _where(error))
    upload.forget(folder)
    return 0


def _where(error: Exception) -> str:
    """The kind of an error and its line; what it says may quote the upload."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}, {Path(last.filename).name}:{last.lineno}"


def _too_large() -> str:
    return (
        "The upload needs more memory than one may take, or more than its header declares. "
        "Cut it into parts, or save it again."
    )


def _is_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is that memory came to its limit."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_with(parent: int) -> None:
    """However it ends; where the system is not Linux, the closed pipe says so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # it ended before this was set
        if os.getppid() != parent:
            os._exit(FAULT)


def _limited(limits: Limits, size: int):
    """Set the limits; returns what raises that of memory for so many declared values."""
    if resource is None:
        return lambda values: None
    os.nice(_NICE)
    _first_for_the_out_of_memory_killer()
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


def _limit(name: str, soft: int, hard: int | None = None) -> None:
    """Where a system does not know a limit, the server's own clock remains."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(
            getattr(resource, name), (soft, soft if hard is None else hard)
        )


def _address_space() -> int:
    """Bytes that the process has before it reads, mostly libraries."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 2**30
    return pages * os.sysconf("SC_PAGE_SIZE")


def _first_for_the_out_of_memory_killer() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
