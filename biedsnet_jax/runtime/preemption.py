"""Signals that end a training: it finishes the step, writes a checkpoint and exits.

SIGTERM comes from preemptible machines and schedulers, SIGINT from Ctrl-C, SIGHUP from
a terminal that is gone. All three do the same; only the exit codes differ. A second
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

# Name and exit code. SIGTERM is 0, since a scheduler takes another code for a failure;
# the others are 128 and the signal's number, as in a shell.
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
    b"\nbiedsnet: Stopped at once by a second Ctrl-C. The same command goes on from the "
    b"last complete checkpoint, if there is one.\n"
)


class Watch:
    """Handles the signals while open.

    In the training loop a signal makes `reached` true. Outside the loop a single
    process raises Preempted. Over several processes jax handles SIGTERM, on whichever
    process it comes to first, and chooses a step that none has passed yet; SIGINT and
    SIGHUP become a SIGTERM there until the loop is over. A signal that is ignored when
    the watch begins, as by nohup, stays ignored.
    """

    def __init__(self):
        self._received: str | None = None
        self._looping = self._over = False
        self._alone = not jax.distributed.is_initialized()
        self._where = _BEFORE
        self._handlers = {}

    def __enter__(self):
        # Python lets only the main thread set handlers.
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in _SIGNALS:
            # Windows has no SIGHUP.
            number = getattr(signal, name, None)
            of_jax = name == "SIGTERM" and not self._alone
            if number and not of_jax and signal.getsignal(number) != signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def loop(self, after: str) -> Iterator[None]:
        """Surrounds the loop, which asks `reached`.

        `after` says how the run stands after it. Raises Preempted at the end where a
        signal came too late for the last step.
        """
        self._looping = True
        try:
            yield
        finally:
            self._looping, self._over, self._where = False, True, after
        if self._received:
            raise self.stopped(after)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`, which is done; it is asked after every step."""
        if self._alone:
            return self._received is not None
        return multihost_utils.reached_preemption_sync_point(step)

    def stopped(self, where: str) -> Preempted:
        """What to raise for the signal; `where` says where the run stopped and the fix."""
        name, code = _SIGNALS[self._received or "SIGTERM"]
        return Preempted(f"Stopped by {name} {where}", code)

    def _handle(self, number, frame):
        name = signal.Signals(number).name
        if name == "SIGHUP":
            _leave_terminal()
        if name == self._received == "SIGINT":
            _write(_AT_ONCE)
            os._exit(_SIGNALS[name][1])
        self._received = self._received or name
        if name == "SIGINT" and sys.stderr.isatty():
            _write(_WAIT)
        if not self._alone and not self._over:
            # jax handles this one, and tells the other processes.
            signal.raise_signal(signal.SIGTERM)
        elif not self._looping:
            raise self.stopped(self._where)


def _write(text: bytes) -> None:
    """Writes to stderr past Python's stream, which the signal may have interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, text)


def _leave_terminal() -> None:
    """Sends stdout and stderr to nowhere where their terminal is gone.

    To write to such a terminal is an error.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
