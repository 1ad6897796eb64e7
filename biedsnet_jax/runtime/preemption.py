"""Signals that announce the end: finish the step, write a checkpoint, go.

SIGTERM comes from preemptible machines and schedulers, SIGINT from Ctrl-C, SIGHUP from
a terminal that is gone. All three do the same; the exit code tells them apart. A second
Ctrl-C quits at once.
"""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from biedsnet_jax.errors import Preempted

# What they are called, and the exit code: a scheduler's SIGTERM was obeyed, the others
# were not asked for by whoever waits for the end.
_SIGNALS = {
    "SIGTERM": ("SIGTERM", 0),
    "SIGINT": ("Ctrl-C", 130),
    "SIGHUP": ("SIGHUP", 129),
}
_BEFORE = "before its first step. The same command begins where this one did."
_WAIT = (
    b"\nStopping as soon as the work under way allows. Ctrl-C again quits at once.\n"
)
_AT_ONCE = (
    b"\nbiedsnet: Stopped at once by a second Ctrl-C. "
    b"The same command goes on from the last complete checkpoint, where there is one.\n"
)


class Watch:
    """Hears the signals while open: in the loop `reached` tells, elsewhere it raises
    Preempted.

    Over several processes jax hears SIGTERM, on whichever it comes to first, and
    chooses a step that none has passed yet, the same on all; SIGINT and SIGHUP become a
    SIGTERM there until the loop is over. A signal that is ignored when the watch
    begins, as by nohup, stays ignored.
    """

    def __init__(self):
        self._heard: str | None = None
        self._looping = self._over = False
        self._alone = not jax.distributed.is_initialized()
        self._where = _BEFORE
        self._before = {}

    def __enter__(self):
        # others may not set signals
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in _SIGNALS:
            # Windows has no SIGHUP
            number = getattr(signal, name, None)
            mine = self._alone or name != "SIGTERM"
            if number and mine and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def loop(self, after: str) -> Iterator[None]:
        """While the loop runs, which asks `reached`; `after` says how the run stands
        then.
        """
        self._looping = True
        try:
            yield
        finally:
            self._looping, self._over, self._where = False, True, after
        # too late for the last step to stop the loop
        if self._heard:
            raise self.stopped(after)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`, which is done; to be asked after every step."""
        if self._alone:
            return self._heard is not None
        return multihost_utils.reached_preemption_sync_point(step)

    def stopped(self, where: str) -> Preempted:
        """What to raise where a signal stopped the run; `where` says at what and how to
        go on.
        """
        name, code = _SIGNALS[self._heard or "SIGTERM"]
        return Preempted(f"Stopped by {name} {where}", code)

    def _hear(self, number, frame):
        name = signal.Signals(number).name
        if name == "SIGHUP":
            _leave_terminal()
        if name == self._heard == "SIGINT":
            _tell(_AT_ONCE)
            os._exit(_SIGNALS[name][1])
        self._heard = self._heard or name
        if name == "SIGINT" and sys.stderr.isatty():
            _tell(_WAIT)
        if not self._alone and not self._over:
            # for jax, which tells the other processes
            signal.raise_signal(signal.SIGTERM)
        elif not self._looping:
            raise self.stopped(self._where)


def _tell(text: bytes) -> None:
    """Write past Python's streams, in which the signal may have come."""
    with contextlib.suppress(OSError):
        os.write(2, text)


def _leave_terminal() -> None:
    """Write to nowhere from here on where the terminal is gone: to write there is an
    error.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
