"""The queue of a server: uploads wait, one at a time is segmented, and results are kept
for a while.

Only the id of a job gives access to it. The id cannot be guessed, and nothing lists
jobs. Each job has a folder of its own, which is removed with it.
"""

import collections
import dataclasses
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from biedsnet_jax.errors import BadInput
from biedsnet_jax.serving import upload
from biedsnet_jax.serving.handoff import Failed
from biedsnet_jax.serving.limits import Limits

ENDED = ("done", "refused", "failed")
# Seconds between searches for expired jobs.
_POLL = 5
# Seconds that an upload has before another may take its place.
_GRACE = 5
# Seconds for the running job to end with the server.
_LAST_WAIT = 3


@dataclasses.dataclass
class Job:
    """One upload and what becomes of it."""

    id: str
    folder: Path
    # See upload.read.
    like: str
    # Time of the last request for it.
    touched: float
    # Of the sender; empty on this machine, whose visitors share one address.
    address: str = ""
    began: float = 0.0
    received: int = 0  # bytes
    # Ends the upload where another needs its place.
    give_up: Callable[[], None] | None = None
    # "uploading", "waiting", "running", then one of ENDED.
    state: str = "uploading"
    # Reason of the end of a job that is not "done".
    text: str = ""
    # Slices that are done, and all.
    progress: tuple[int, int] = (0, 0)
    facts: dict = dataclasses.field(default_factory=dict)
    removed: bool = False


class Full(Exception):
    """As many uploads wait as may; `own` where one address sent all that it may."""

    def __init__(self, *, own: bool):
        super().__init__()
        self.own = own


class _Removed(Exception):
    """The running job was removed."""


class Jobs:
    """All jobs, in folders below `root`, and the thread that does them.

    The thread calls `work(folder, like, report) -> facts` for one job after another;
    `report(done, all)` counts slices. Every method may be called from any thread.
    """

    def __init__(
        self,
        root: Path,
        work: Callable[..., dict],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._root, self._work = root.resolve(), work
        self._limits, self._clock = limits, clock
        self._jobs: dict[str, Job] = {}
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="segment", daemon=True)
        self._thread.start()

    def new(self, like: str, address: str = "") -> Job:
        """Adds a job for an upload.

        An address has at most half of the places. Where all are taken, the slowest
        upload that is not complete after a while loses its place, so that slow uploads
        keep nobody out. Raises Full where none is free, and OSError where the disk is
        full.
        """
        with self._changed:
            self._expire()
            self._make_room(address)
            name = secrets.token_urlsafe(24)
            now = self._clock()
            job = Job(name, self._root / name, like, now, address, now)
            job.folder.mkdir(mode=0o700)
            self._jobs[name] = job
            return job

    def _make_room(self, address):
        most = self._limits.waiting
        own = [job for job in self._taken() if address and job.address == address]
        if len(own) >= max(1, most // 2) and not self._end_slowest(own):
            raise Full(own=True)
        # Listed anew, since an upload may just have lost its place.
        taken = self._taken()
        if len(taken) >= most and not self._end_slowest(taken):
            raise Full(own=False)

    def _taken(self) -> list[Job]:
        jobs = self._jobs.values()
        return [job for job in jobs if job.state in ("uploading", "waiting")]

    def _end_slowest(self, jobs) -> bool:
        """Ends the slowest upload; returns False where none is slow."""
        now = self._clock()
        slow = [
            job
            for job in jobs
            if job.state == "uploading" and job.give_up and now - job.began > _GRACE
        ]
        if not slow:
            return False
        slowest = min(slow, key=lambda job: job.received / (now - job.began))
        slowest.give_up()
        self.remove(slowest)
        return True

    def submit(self, job: Job) -> None:
        """Queues a job whose upload is complete."""
        with self._changed:
            job.state, job.touched = "waiting", self._clock()
            self._waiting.append(job)
            self._changed.notify_all()

    def get(self, name: str) -> Job | None:
        """Returns a job by its id; None for one that never was or is removed."""
        with self._changed:
            self._expire()
            job = self._jobs.get(name)
            if job:
                job.touched = self._clock()
            return job

    def place(self, job: Job) -> int:
        """Counts the jobs before a waiting one, with the one that is running."""
        with self._changed:
            if job not in self._waiting:
                return 0
            running = sum(other.state == "running" for other in self._jobs.values())
            return running + self._waiting.index(job)

    def remove(self, job: Job) -> None:
        """Removes a job and its files; a running one ends at its next batch."""
        with self._changed:
            job.removed = True
            self._jobs.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)
            if job.state != "running":
                shutil.rmtree(job.folder, ignore_errors=True)

    def close(self) -> None:
        """Removes all jobs, and waits a little for the thread.

        A program that is being compiled is not waited for.
        """
        with self._changed:
            self._closed = True
            for job in list(self._jobs.values()):
                self.remove(job)
            self._changed.notify_all()
        self._thread.join(_LAST_WAIT)

    def _loop(self):
        while job := self._next():
            self._do(job)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._closed:
                self._expire()
                if self._waiting:
                    job = self._waiting.popleft()
                    job.state = "running"
                    return job
                self._changed.wait(_POLL)

    def _do(self, job):
        state, text = "done", ""
        try:
            job.facts = self._work(
                job.folder, job.like, lambda *progress: self._report(job, progress)
            )
            notes = job.facts["notes"]
            job.facts["notes"] = [
                upload.without_paths(note, job.folder) for note in notes
            ]
        except BadInput as error:
            state = "refused"
            text = upload.without_paths(str(error), job.folder)
        except _Removed:
            pass
        except Failed as error:
            state, text = "failed", "The program failed. Try another file."
            print(f"biedsnet: an upload failed, {error}", file=sys.stderr, flush=True)
        except Exception as error:
            # A server that closes removes the folder, which ends in any error.
            if self._closed:
                return
            kind = type(error).__name__
            state = "failed"
            text = f"The program failed ({kind}). Try another file."
            where = f"{kind}, {_where(error)}"
            print(f"biedsnet: an upload failed, {where}", file=sys.stderr, flush=True)
        with self._changed:
            job.state, job.text, job.touched = state, text, self._clock()
            if state != "done":
                shutil.rmtree(job.folder, ignore_errors=True)
            if job.removed:
                self.remove(job)
            self._expire()

    def _report(self, job, progress):
        job.progress = progress
        with self._changed:
            self._expire()
        if job.removed:
            raise _Removed

    def _expire(self):
        """Removes jobs that nobody asked for, and the oldest of too many results."""
        now = self._clock()
        jobs = self._jobs.values()
        # An upload has a time limit of its own.
        old = [
            job
            for job in jobs
            if job.state != "uploading"
            and now - job.touched > self._limits.keep_seconds
        ]
        ended = [job for job in jobs if job.state in ENDED and job not in old]
        ended.sort(key=lambda job: job.touched)
        surplus = max(0, len(ended) - self._limits.kept)
        for job in old + ended[:surplus]:
            self.remove(job)


def _where(error) -> str:
    """Returns the line of this package at which an error happened.

    The error's own message may quote the upload.
    """
    package = Path(__file__).parents[1].as_posix()
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if package in frame.filename][-1]
    return f"{Path(last.filename).name}:{last.lineno}"
