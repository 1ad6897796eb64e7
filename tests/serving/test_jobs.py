"""The queue: one at a time, in order, within limits; what is old or unwanted goes, with
its files.
"""

import dataclasses
import threading
import time

import pytest

from biedsnet_jax.errors import BadInput
from biedsnet_jax.serving import jobs as serve_jobs
from biedsnet_jax.serving.limits import Limits

LIMITS = Limits(waiting=3, kept=2, keep_seconds=60)


class Clock:
    """Stands still."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Work:
    """Does a job when told to: `begun` and `go` are released once for each."""

    def __init__(self):
        self.begun, self.go, self.at_once, self.most_at_once = (
            threading.Semaphore(0),
            threading.Semaphore(0),
            0,
            0,
        )
        self.done, self.error = [], None

    def __call__(self, folder, like, tell):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.begun.release()
            assert self.go.acquire(timeout=60)
            tell(1, 2)
            (folder / "result").write_text(like)
            self.done.append(like)
            if self.error:
                raise self.error
            return {"notes": [f"of {folder}/scan.png"], "like": like}
        finally:
            self.at_once -= 1


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def jobs(tmp_path, work, clock):
    jobs = serve_jobs.Jobs(tmp_path, work, LIMITS, clock)
    yield jobs
    for _ in range(10):
        work.go.release()
    jobs.close()
    assert list(tmp_path.iterdir()) == []


def submitted(jobs, like):
    job = jobs.new(like)
    jobs.submit(job)
    return job


def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_one_at_a_time_in_order_and_each_knows_its_place(jobs, work):
    first = submitted(jobs, "a")
    assert work.begun.acquire(timeout=60)
    others = [submitted(jobs, like) for like in "bc"]
    assert [jobs.place(job) for job in (first, *others)] == [0, 1, 2]
    assert [job.state for job in (first, *others)] == ["running", "waiting", "waiting"]
    for _ in range(3):
        work.go.release()
    until(lambda: others[-1].state == "done")
    assert work.done == ["a", "b", "c"] and work.most_at_once == 1
    assert others[-1].facts == {"notes": ["of scan.png"], "like": "c"} and others[
        -1
    ].progress == (1, 2)


def test_ids_are_long_and_different_and_nobody_finds_another(jobs):
    names = {jobs.new(like).id for like in "abc"}
    assert len(names) == 3 and all(len(name) >= 32 for name in names)
    assert jobs.get("") is None and jobs.get("../x") is None


def test_more_than_may_wait_are_turned_away(jobs, work):
    submitted(jobs, "a")
    # it waits no longer
    assert work.begun.acquire(timeout=60)
    kept = [submitted(jobs, "b"), submitted(jobs, "c"), jobs.new("d")]
    with pytest.raises(serve_jobs.Full):
        jobs.new("e")
    jobs.remove(kept[-1])
    jobs.new("e")


def test_results_go_when_nobody_looks(jobs, work, clock):
    job = submitted(jobs, "a")
    work.go.release()
    until(lambda: job.state == "done")
    for clock.now in (50.0, 100.0):
        assert jobs.get(job.id) is job and (job.folder / "result").exists()
    clock.now = 161.0
    assert jobs.get(job.id) is None and not job.folder.exists()


def test_of_more_results_than_are_kept_the_one_looked_at_longest_ago_goes(
    jobs, work, clock
):
    done = []
    for like in "ab":
        clock.now += 1
        done.append(submitted(jobs, like))
        work.go.release()
        until(lambda: done[-1].state == "done")
    clock.now += 1
    assert jobs.get(done[0].id) is done[0]
    third = submitted(jobs, "c")
    work.go.release()
    until(lambda: third.state == "done")
    assert [job.folder.exists() for job in (*done, third)] == [True, False, True]


def test_one_that_nobody_waits_for_is_not_done(jobs, work, clock):
    submitted(jobs, "a")
    assert work.begun.acquire(timeout=60)
    left = submitted(jobs, "b")
    clock.now = 61.0
    last = submitted(jobs, "c")
    work.go.release(2)
    until(lambda: last.state == "done")
    # "a" was stopped at its next batch, too
    assert work.done == ["c"] and not left.folder.exists()


def test_one_that_is_removed_while_it_runs_stops(jobs, work):
    job = submitted(jobs, "a")
    assert work.begun.acquire(timeout=60)
    jobs.remove(job)
    work.go.release()
    until(lambda: not job.folder.exists())
    assert jobs.get(job.id) is None and work.done == []


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (
            BadInput("bad, 3, FOLDER/scan.png; fix it"),
            "refused",
            "bad, 3, scan.png; fix it",
        ),
        (
            ValueError("secret words of the file"),
            "failed",
            "an error of the program, ValueError; try another file",
        ),
    ],
)
def test_what_goes_wrong_stops_one_job_and_tells_nothing_of_it(
    jobs, work, capsys, error, state, text
):
    job = jobs.new("a")
    work.error = type(error)(str(error).replace("FOLDER", str(job.folder)))
    jobs.submit(job)
    work.go.release()
    until(lambda: job.state == state)
    assert job.text == text and not job.folder.exists()
    err = capsys.readouterr().err
    assert "secret" not in err and str(job.folder) not in err and job.id not in err
    assert ("ValueError, jobs.py:" in err) == (state == "failed")
    work.error = None
    following = submitted(jobs, "b")
    work.go.release()
    until(lambda: following.state == "done")


def test_closing_forgets_what_waits_and_what_runs(tmp_path, work):
    jobs = serve_jobs.Jobs(tmp_path, work, dataclasses.replace(LIMITS, waiting=9))
    for like in "abc":
        submitted(jobs, like)
    assert work.begun.acquire(timeout=60)
    closing = threading.Thread(target=jobs.close)
    closing.start()
    work.go.release()
    closing.join(60)
    assert not closing.is_alive() and list(tmp_path.iterdir()) == [] and work.done == []


# --- room for another ------------------------------------------------------------------------------------------------


def sending(jobs, received, address=""):
    """A job that is being uploaded; `gave_up` is whether it was told to."""
    job = jobs.new("slow", address)
    job.received, job.gave_up = received, []
    job.give_up = lambda: job.gave_up.append(True)
    return job


@pytest.mark.parametrize(
    ("received", "slowest"),
    [((10, 999, 999), 0), ((999, 0, 999), 1), ((70, 60, 50), 2)],
)
def test_the_slowest_upload_gives_up_its_place(jobs, clock, received, slowest):
    every = [sending(jobs, size) for size in received]
    with pytest.raises(serve_jobs.Full):
        # they have only begun
        jobs.new("at once")
    clock.now = 6.0
    jobs.new("later")
    assert [bool(job.gave_up) for job in every] == [n == slowest for n in range(3)]
    assert [job.folder.exists() for job in every] == [n != slowest for n in range(3)]


def test_the_slowest_is_told_by_what_it_sends_in_its_time(jobs, clock):
    sending(jobs, 600)
    clock.now = 100.0
    later = sending(jobs, 300)
    # 6 bytes/s against 30
    clock.now = 110.0
    sending(jobs, 9999)
    last = jobs.new("last")
    assert not later.gave_up and last.folder.exists()


def test_an_upload_that_is_complete_keeps_its_place(jobs, work, clock):
    submitted(jobs, "running")
    assert work.begun.acquire(timeout=60)
    for like in "abc":
        submitted(jobs, like)
    clock.now = 50.0
    with pytest.raises(serve_jobs.Full) as full:
        jobs.new("later")
    assert not full.value.own


@pytest.mark.parametrize(("waiting", "share"), [(16, 8), (4, 2), (3, 1), (1, 1)])
def test_one_address_has_half_of_the_places(tmp_path, work, waiting, share):
    jobs = serve_jobs.Jobs(tmp_path, work, Limits(waiting=waiting), Clock())
    for _ in range(share):
        jobs.new("", "192.0.2.1")
    with pytest.raises(serve_jobs.Full) as full:
        jobs.new("", "192.0.2.1")
    assert full.value.own
    for _ in range(min(share, waiting - share)):
        jobs.new("", "192.0.2.2")
    for _ in range(waiting - share - min(share, waiting - share)):
        # of this machine, where one address stands for all
        jobs.new("")
    with pytest.raises(serve_jobs.Full) as full:
        jobs.new("")
    assert not full.value.own
    jobs.close()


def test_an_address_takes_the_place_of_its_own_slow_upload(tmp_path, work, clock):
    jobs = serve_jobs.Jobs(tmp_path, work, Limits(waiting=4), clock)
    others, own = (
        sending(jobs, 0, "192.0.2.9"),
        [sending(jobs, n, "192.0.2.1") for n in (5, 9)],
    )
    clock.now = 6.0
    jobs.new("", "192.0.2.1")
    assert [bool(job.gave_up) for job in (others, *own)] == [False, True, False]
    jobs.close()


def test_a_server_that_ends_does_not_wait_for_what_cannot_be_ended(tmp_path, work):
    jobs = serve_jobs.Jobs(tmp_path, work, LIMITS)
    submitted(jobs, "compiles")
    assert work.begun.acquire(timeout=60)
    began = time.monotonic()
    jobs.close()
    assert time.monotonic() - began < 30
    work.go.release()
