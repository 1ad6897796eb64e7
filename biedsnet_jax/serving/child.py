"""Has uploads read by a process of their own (reader), and ends what takes too long.

The server itself opens nothing that a visitor sent.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction.scans import Scan
from biedsnet_jax.serving import handoff
from biedsnet_jax.serving.limits import Limits

# seconds between looks at whether an upload is still wanted
_LOOK = 0.05
# seconds for a reading to end when told to
_LAST_WAIT = 5.0
_ROOT = Path(__file__).resolve().parents[2]
# One thread each: more take address space, which is limited, and cores from the server.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_running: set[subprocess.Popen] = set()


class Reader:
    """Reads one upload after another, in the thread that asks."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        # exit codes; None at the end
        self._codes: queue.SimpleQueue = queue.SimpleQueue()

    def read(
        self,
        folder: Path,
        *,
        like: str,
        channels: int,
        limits: Limits,
        look: Callable[[], None] = lambda: None,
    ) -> Scan:
        """The one scan of the upload in `folder`, its slices on the disk.

        `look` is called again and again meanwhile; what it raises ends the reading.
        Raises BadInput as upload.read does, and beyond the limits of time and memory.
        """
        seconds = min(limits.read_seconds, limits.job_seconds)
        (folder / handoff.FOLDER).mkdir()
        order = {
            "folder": str(folder),
            "like": like,
            "channels": channels,
            "limits": dataclasses.asdict(
                dataclasses.replace(limits, read_seconds=seconds)
            ),
        }
        self.start()
        self._say(json.dumps(order))
        code = self._code(seconds, look)
        scan = handoff.load(folder) if code == 0 else None
        if scan is None:
            raise _cut_short(code, seconds)
        return scan

    def start(self) -> None:
        """Start the process where none runs, so that the next upload is read at once."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._process, self._codes = _start(), queue.SimpleQueue()
        what = (self._process, self._codes)
        threading.Thread(target=_listen, args=what, name="reader", daemon=True).start()

    def close(self) -> None:
        """End the process, with what it reads."""
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            _running.discard(self._process)
        self._process = None

    def _say(self, line: str) -> None:
        # it ended, which `_code` tells
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def _code(self, seconds: int, look: Callable[[], None]) -> int | None:
        """The exit code of a reading; None where it takes longer."""
        ends = time.monotonic() + seconds
        try:
            while time.monotonic() < ends:
                with contextlib.suppress(queue.Empty):
                    return self._next_code(_LOOK)
                look()
        except BaseException:
            self._end()
            raise
        self._end()
        return None

    def _end(self) -> None:
        """End what is being read."""
        self._say("")
        try:
            self._next_code(_LAST_WAIT)
        except queue.Empty:
            self.close()

    def _next_code(self, seconds: float) -> int:
        code = self._codes.get(timeout=seconds)
        if code is None:
            process, self._process = self._process, None
            _running.discard(process)
            return process.wait()
        return code


def end_all() -> None:
    """End every process that reads, for a server that leaves at once."""
    for process in list(_running):
        _kill(process)


def _start() -> subprocess.Popen:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | dict.fromkeys(_ONE_THREAD, "1")
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MALLOC_ARENA_MAX": "1"}
    process = subprocess.Popen(
        # -P: a visitor's file is never imported.
        [sys.executable, "-P", "-m", "biedsnet_jax.serving.reader", str(os.getpid())],
        cwd=_ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _running.add(process)
    return process


def _listen(process: subprocess.Popen, codes: queue.SimpleQueue) -> None:
    """Take what a process says, until it ends."""
    with process.stdout as lines, contextlib.suppress(OSError, ValueError):
        for line in lines:
            codes.put(int(line))
    codes.put(None)


def _kill(process: subprocess.Popen) -> None:
    """With its copies; one that has ended may have left its number to another."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _cut_short(code: int | None, seconds: int) -> BadInput:
    if code is None or code == -getattr(signal, "SIGXCPU", 0):
        return BadInput(
            f"Reading the upload takes more than {seconds} s. Cut it into parts, or save it again."
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return BadInput(
        f"Reading the upload ended the process that reads ({how}): it is damaged, or takes too much "
        "memory. Save it again with another program."
    )
