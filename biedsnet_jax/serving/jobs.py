"""The queue of a server: uploads wait, one at a time is segmented, results are kept for
a while.

A job is known by its id alone, which cannot be guessed; nothing lists jobs. Each has a
folder of its own, which goes with it.
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
# seconds between looks at what is too old
_LOOK = 5
# seconds that an upload has before another may take its place
_GRACE = 5
# seconds for the running job to end with the server
_LAST_WAIT = 3


@dataclasses.dataclass
class Job:
    """One upload; `state` goes from "uploading" over "waiting" and "running" to one of
    ENDED.
    """

    id: str
    folder: Path
    like: str  # see upload.read
    touched: float  # when it was last asked for
    # who sends it; empty on this machine alone, where all have one address
    address: str = ""
    began: float = 0.0
    received: int = 0  # bytes
    # ends an upload, where another needs its place
    give_up: Callable[[], None] | None = None
    state: str = "uploading"
    text: str = ""  # why it ended, where it is not done
    progress: tuple[int, int] = (0, 0)  # slices: done, all
    facts: dict = dataclasses.field(default_factory=dict)
    removed: bool = False


class Full(Exception):
    """As many uploads wait as may; `own` where all of these are of the address that
    sends another.
    """

    def __init__(self, *, own: bool):
        super().__init__()
        self.own = own


class _Removed(Exception):
    """Nobody wants the running job any more."""


class Jobs:
    """All jobs, and the thread that does them with `work(folder, like, tell) -> facts`;
    its folder is `root`.

    Every method may be called from any thread.
    """

    def __init__(
        self,
        root: Path,
        work: Callable[..., dict],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._root, self._work, self._limits, self._clock = (
            root.resolve(),
            work,
            limits,
            clock,
        )
        self._jobs: dict[str, Job] = {}
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="segment", daemon=True)
        self._thread.start()

    def new(self, like: str, address: str = "") -> Job:
        """A job to upload into. Raises Full, and OSError where the disk is.

        One address has half of the places at most. Where all are taken, the slowest
        upload that is not complete after a while gives up its own: many slow ones keep
        nobody out.
        """
        with self._changed:
            self._expire()
            self._make_room(address)
            name = secrets.token_urlsafe(24)
            job = Job(
                name, self._root / name, like, self._clock(), address, self._clock()
            )
            job.folder.mkdir(mode=0o700)
            self._jobs[name] = job
            return job

    def _make_room(self, address):
        """Raises Full where there is none."""
        most, taken = self._limits.waiting, self._taken()
        own = [job for job in taken if address and job.address == address]
        if len(own) >= max(1, most // 2) and not self._end_slowest(own):
            raise Full(own=True)
        if len(self._taken()) >= most and not self._end_slowest(taken):
            raise Full(own=False)

    def _taken(self) -> list[Job]:
        return [
            job for job in self._jobs.values() if job.state in ("uploading", "waiting")
        ]

    def _end_slowest(self, jobs) -> bool:
        """Whether one gave up its place."""
        now = self._clock()
        slow = [
            job for job in jobs if job.state == "uploading" and job.id in self._jobs
        ]
        slow = [job for job in slow if job.give_up and now - job.began > _GRACE]
        if not slow:
            return False
        slowest = min(slow, key=lambda job: job.received / (now - job.began))
        slowest.give_up()
        self.remove(slowest)
        return True

    def submit(self, job: Job) -> None:
        """Its upload is complete."""
        with self._changed:
            job.state, job.touched = "waiting", self._clock()
            self._waiting.append(job)
            self._changed.notify_all()

    def get(self, name: str) -> Job | None:
        """None for one that never was or is gone."""
        with self._changed:
            self._expire()
            job = self._jobs.get(name)
            if job:
                job.touched = self._clock()
            return job

    def place(self, job: Job) -> int:
        """How many come before it: those that wait longer, and the one that is being
        done.
        """
        with self._changed:
            running = sum(one.state == "running" for one in self._jobs.values())
            return running + self._waiting.index(job) if job in self._waiting else 0

    def remove(self, job: Job) -> None:
        """Forget it and its files; one that is being done, at its next batch."""
        with self._changed:
            job.removed = True
            self._jobs.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)
            if job.state != "running":
                shutil.rmtree(job.folder, ignore_errors=True)

    def close(self) -> None:
        """Forget all, and wait a little for the thread; a program that compiles is not
        waited for.
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
                self._changed.wait(_LOOK)

    def _do(self, job):
        state, text = "done", ""
        try:
            job.facts = self._work(
                job.folder, job.like, lambda *progress: self._tell(job, progress)
            )
            job.facts["notes"] = [
                upload.without_paths(note, job.folder) for note in job.facts["notes"]
            ]
        except BadInput as error:
            state, text = "refused", upload.without_paths(str(error), job.folder)
        except _Removed:
            pass
        except Failed as error:
            state, text = "failed", "an error of the program; try another file"
            print(f"biedsnet: an upload failed, {error}", file=sys.stderr, flush=True)
        except Exception as error:
            state, text = (
                "failed",
                f"an error of the program, {type(error).__name__}; try another file",
            )
            # its folder is gone
            if self._closed:
                return
            print(
                f"biedsnet: an upload failed, {type(error).__name__}, {_where(error)}",
                file=sys.stderr,
                flush=True,
            )
        with self._changed:
            job.state, job.text, job.touched = state, text, self._clock()
            if state != "done":
                shutil.rmtree(job.folder, ignore_errors=True)
            if job.removed:
                self.remove(job)
            self._expire()

    def _tell(self, job, progress):
        job.progress = progress
        with self._changed:
            self._expire()
        if job.removed:
            raise _Removed

    def _expire(self):
        """Remove what nobody has asked for, and of more results than are kept the ones
        that were so the longest.
        """
        now = self._clock()
        ended = sorted(
            (job for job in self._jobs.values() if job.state in ENDED),
            key=lambda job: job.touched,
        )
        old = [
            job
            for job in self._jobs.values()
            if now - job.touched > self._limits.keep_seconds
        ]
        # which has a limit of its own
        old = [job for job in old if job.state != "uploading"]
        for job in dict.fromkeys(
            [job.id for job in [*old, *ended[: max(0, len(ended) - self._limits.kept)]]]
        ):
            self.remove(self._jobs[job])


def _where(error) -> str:
    """The line of this package where it happened; what the error says may quote the
    upload.
    """
    inner = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if Path(__file__).parents[1].as_posix() in one.filename
    ]
    last = inner[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
