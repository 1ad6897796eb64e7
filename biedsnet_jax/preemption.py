"""SIGTERM, by which preemptible machines and schedulers announce the end: finish a step, write a checkpoint, go."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from biedsnet_jax.errors import Preempted

STOPPED = "stopped by SIGTERM; the same command goes on where it stopped"


class Watch:
    """Hears SIGTERM while open: in the loop `reached` tells, elsewhere it raises Preempted at once.

    Over several processes jax hears it, on whichever it comes to first, and chooses a step that none has passed yet,
    the same on all; outside the loop it then does nothing.
    """

    def __init__(self):
        self._told = self._looping = False
        self._alone = not jax.distributed.is_initialized()
        self._before = None

    def __enter__(self):
        if self._alone and threading.current_thread() is threading.main_thread():  # others may not set signals
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *exception):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def loop(self) -> Iterator[None]:
        """While the loop runs, which asks `reached`."""
        self._looping = True
        try:
            yield
        finally:
            self._looping = False
        if self._told:  # too late for the last step to stop the loop
            raise Preempted(STOPPED)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`, which is done; to be asked after every step."""
        return self._told if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def _hear(self, number, frame):
        self._told = True
        if not self._looping:
            raise Preempted(STOPPED)
