"""Tests the queue: one job at a time, in order, within limits.

Expired and removed jobs leave no files.
"""

import dataclasses
import threading
import time

import pytest

from biedsnet_jax.errors import BadInput
from biedsnet_jax.serving.jobs import Full, Jobs
from biedsnet_jax.serving.limits import Limits

LIMITS = Limits(waiting=3, kept=2, keep_seconds=60)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Work:
    """Made-up work, which releases `begun` and then waits for `go`, once for each job."""

    def __init__(self):
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.at_once, self.most_at_once = 0, 0
        self.done, self.error = [], None

    def __call__(self, folder, like, report):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.begun.release()
            assert self.go.acquire(timeout=60)
            report(1, 2)
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
    jobs = Jobs(tmp_path, work, LIMITS, clock)
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
    assert work.done == ["a", "b", "c"]
    assert work.most_at_once == 1
    assert others[-1].facts == {"notes": ["of scan.png"], "like": "c"}
    assert others[-1].progress == (1, 2)


def test_ids_are_long_and_different_and_nobody_finds_another(jobs):
    names = {jobs.new(like).id for like in "abc"}
    assert len(names) == 3
    assert all(len(name) >= 32 for name in names)
    assert jobs.get("") is None
    assert jobs.get("../x") is None


def test_more_than_may_wait_are_turned_away(jobs, work):
    submitted(jobs, "a")
    # It runs, so it no longer waits.
    assert work.begun.acquire(timeout=60)
    kept = [submitted(jobs, "b"), submitted(jobs, "c"), jobs.new("d")]
    with pytest.raises(Full):
        jobs.new("e")
    jobs.remove(kept[-1])
    jobs.new("e")


def test_results_go_when_nobody_looks(jobs, work, clock):
    job = submitted(jobs, "a")
    work.go.release()
    until(lambda: job.state == "done")
    for clock.now in (50.0, 100.0):
        assert jobs.get(job.id) is job
        assert (job.folder / "result").exists()
    clock.now = 161.0
    assert jobs.get(job.id) is None
    assert not job.folder.exists()


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
    # "a" was removed too, and ended at its next batch.
    assert work.done == ["c"]
    assert not left.folder.exists()


def test_one_that_is_removed_while_it_runs_stops(jobs, work):
    job = submitted(jobs, "a")
    assert work.begun.acquire(timeout=60)
    jobs.remove(job)
    work.go.release()
    until(lambda: not job.folder.exists())
    assert jobs.get(job.id) is None
    assert work.done == []


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (BadInput("FOLDER/scan.png is bad."), "refused", "scan.png is bad."),
        (ValueError("secret words of the file"), "failed", "ValueError"),
    ],
)
def test_a_failure_ends_one_job_and_reveals_nothing_of_it(
    jobs, work, capsys, error, state, text
):
    job = jobs.new("a")
    work.error = type(error)(str(error).replace("FOLDER", str(job.folder)))
    jobs.submit(job)
    work.go.release()
    until(lambda: job.state == state)
    assert text in job.text
    assert "secret" not in job.text
    assert not job.folder.exists()
    err = capsys.readouterr().err
    assert "secret" not in err
    assert str(job.folder) not in err
    assert job.id not in err
    assert ("ValueError, jobs.py:" in err) == (state == "failed")
    work.error = None
    following = submitted(jobs, "b")
    work.go.release()
    until(lambda: following.state == "done")


def test_closing_forgets_what_waits_and_what_runs(tmp_path, work):
    jobs = Jobs(tmp_path, work, dataclasses.replace(LIMITS, waiting=9))
    for like in "abc":
        submitted(jobs, like)
    assert work.begun.acquire(timeout=60)
    closing = threading.Thread(target=jobs.close)
    closing.start()
    work.go.release()
    closing.join(60)
    assert not closing.is_alive()
    assert list(tmp_path.iterdir()) == []
    assert work.done == []


# --- room for another ---


def sending(jobs, received, address=""):
    """Adds a job that is being uploaded; `gave_up` lists the calls of `give_up`."""
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
    # They have only begun.
    with pytest.raises(Full):
        jobs.new("at once")
    clock.now = 6.0
    jobs.new("later")
    assert [bool(job.gave_up) for job in every] == [n == slowest for n in range(3)]
    assert [job.folder.exists() for job in every] == [n != slowest for n in range(3)]


def test_the_slowest_upload_is_the_one_of_the_lowest_rate(jobs, clock):
    sending(jobs, 600)
    clock.now = 100.0
    later = sending(jobs, 300)
    # Now 6 bytes/s against 30.
    clock.now = 110.0
    sending(jobs, 9999)
    last = jobs.new("last")
    assert not later.gave_up
    assert last.folder.exists()


def test_an_upload_that_is_complete_keeps_its_place(jobs, work, clock):
    submitted(jobs, "running")
    assert work.begun.acquire(timeout=60)
    for like in "abc":
        submitted(jobs, like)
    clock.now = 50.0
    with pytest.raises(Full) as full:
        jobs.new("later")
    assert not full.value.own


@pytest.mark.parametrize(("waiting", "share"), [(16, 8), (4, 2), (3, 1), (1, 1)])
def test_one_address_has_half_of_the_places(tmp_path, work, waiting, share):
    jobs = Jobs(tmp_path, work, Limits(waiting=waiting), Clock())
    for _ in range(share):
        jobs.new("", "192.0.2.1")
    with pytest.raises(Full) as full:
        jobs.new("", "192.0.2.1")
    assert full.value.own
    for _ in range(min(share, waiting - share)):
        jobs.new("", "192.0.2.2")
    for _ in range(waiting - share - min(share, waiting - share)):
        # From this machine, where one address stands for all.
        jobs.new("")
    with pytest.raises(Full) as full:
        jobs.new("")
    assert not full.value.own
    jobs.close()


def test_an_address_takes_the_place_of_its_own_slow_upload(tmp_path, work, clock):
    jobs = Jobs(tmp_path, work, Limits(waiting=4), clock)
    addresses = ("192.0.2.9", "192.0.2.1", "192.0.2.1")
    every = [sending(jobs, n, address) for n, address in zip((0, 5, 9), addresses)]
    clock.now = 6.0
    jobs.new("", "192.0.2.1")
    assert [bool(job.gave_up) for job in every] == [False, True, False]
    jobs.close()


@pytest.mark.slow
def test_a_server_that_ends_does_not_wait_for_what_cannot_be_ended(tmp_path, work):
    jobs = Jobs(tmp_path, work, LIMITS)
    submitted(jobs, "compiles")
    assert work.begun.acquire(timeout=60)
    began = time.monotonic()
    jobs.close()
    assert time.monotonic() - began < 30
    work.go.release()
