"""Runs the process that reads uploads (reader), and ends what takes too long.

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

# Seconds between checks of whether an upload is still wanted.
_POLL = 0.05
# Seconds for a reading to end when told to.
_LAST_WAIT = 5.0
_ROOT = Path(__file__).resolve().parents[2]
# One thread each: more would take address space, which is limited, and the server's cores.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_running: set[subprocess.Popen] = set()


class Reader:
    """Reads one upload after another, in the calling thread."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        # Exit codes of the readings, then None.
        self._codes: queue.SimpleQueue = queue.SimpleQueue()

    def read(
        self,
        folder: Path,
        *,
        like: str,
        channels: int,
        plane: str = "axial",
        limits: Limits,
        look: Callable[[], None] = lambda: None,
    ) -> Scan:
        """Reads the one scan of the upload in `folder`, and leaves its slices on the disk.

        `look` is called every 0.05 s meanwhile; an error that it raises ends the
        reading. Raises BadInput as upload.read does, and beyond the limits of time and
        memory.
        """
        seconds = min(limits.read_seconds, limits.job_seconds)
        (folder / handoff.FOLDER).mkdir()
        order = {
            "folder": str(folder),
            "like": like,
            "channels": channels,
            "plane": plane,
            "limits": dataclasses.asdict(limits) | {"read_seconds": seconds},
        }
        self.start()
        self._send(json.dumps(order))
        code = self._code(seconds, look)
        scan = handoff.load(folder) if code == 0 else None
        if scan is None:
            raise _cut_short(code, seconds)
        return scan

    def start(self) -> None:
        """Starts the process where none runs, so that an upload need not wait for it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._process, self._codes = _start(), queue.SimpleQueue()
        threading.Thread(
            target=_listen,
            args=(self._process, self._codes),
            name="reader",
            daemon=True,
        ).start()

    def close(self) -> None:
        """Ends the process and what it reads."""
        if self._process is not None:
            _kill(self._process)
            self._process.wait()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            _running.discard(self._process)
        self._process = None

    def _send(self, line: str):
        # Where the process has ended, `_code` finds that out.
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def _code(self, seconds: int, look: Callable[[], None]) -> int | None:
        """Waits for the exit code of a reading; None where it takes longer."""
        ends = time.monotonic() + seconds
        try:
            while time.monotonic() < ends:
                with contextlib.suppress(queue.Empty):
                    return self._next_code(_POLL)
                look()
        except BaseException:
            self._end()
            raise
        self._end()
        return None

    def _end(self):
        """Ends what is being read."""
        self._send("")
        try:
            self._next_code(_LAST_WAIT)
        except queue.Empty:
            self.close()

    def _next_code(self, seconds: float) -> int:
        code = self._codes.get(timeout=seconds)
        if code is not None:
            return code
        # The process itself has ended.
        process, self._process = self._process, None
        _running.discard(process)
        return process.wait()


def end_all() -> None:
    """Kills every process that reads, for a server that leaves at once."""
    for process in list(_running):
        _kill(process)


def _start() -> subprocess.Popen:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | dict.fromkeys(_ONE_THREAD, "1")
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MALLOC_ARENA_MAX": "1"}
    process = subprocess.Popen(
        # -P keeps the working folder off the path, so no visitor's file is imported.
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


def _listen(process, codes):
    """Collects the exit codes that a process prints, until it ends."""
    with process.stdout as lines, contextlib.suppress(OSError, ValueError):
        for line in lines:
            codes.put(int(line))
    codes.put(None)


def _kill(process):
    """Kills a process and its copies."""
    # After its end another process may have its number.
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
            f"Reading the upload takes more than {seconds} s. "
            "Cut it into parts, or save it again."
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return BadInput(
        f"The upload ended the process that reads ({how}): it is damaged, or takes too "
        "much memory. Save it again with another program."
    )
