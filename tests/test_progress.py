"""Progress on a clock and a terminal made up here."""

import io

import pytest

from biedsnet_jax import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be set."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_line_where_asked_with_a_rate_that_leaves_out_the_compilation(monkeypatch, clock):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    bar = progress.Progress("train", 100, start=10)
    for now, done in ((50.0, 20), (51.0, 21), (55.0, 40)):
        clock[0] = now
        bar.update(done, {"loss": 0.123456}, plain=done % 20 == 0)
    bar.note("a note")
    bar.close()
    assert progress.sys.stderr.getvalue().splitlines() == [
        "train 20/100  0.2/s  ETA 6:40  loss 0.1235",  # 10 in 50 s, 80 to go
        "train 40/100  4/s  ETA 0:15  loss 0.1235",  # 20 in 5 s, 60 to go
        "a note",
    ]


def test_one_line_that_renews_itself_on_a_terminal(monkeypatch, clock):
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    bar = progress.Progress("test", 4)
    for now, done in ((1.0, 1), (1.05, 2), (2.0, 3), (2.01, 4)):  # the second comes too soon, the last never does
        clock[0] = now
        bar.update(done, {}, plain=True)
    bar.close()
    clear, *lines = progress.sys.stderr.getvalue().split("\r\x1b[2K")
    assert clear == "" and [line.split("  ")[0] for line in lines] == ["test 1/4", "test 3/4", "test 4/4"]
    assert lines[-1].endswith("\n") and "\n" not in "".join(lines[:-1])


def test_nothing_done_has_no_time_to_go(monkeypatch, clock):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    progress.Progress("train", 9, start=3).update(3, {}, plain=True)
    assert progress.sys.stderr.getvalue() == "train 3/9  0/s  ETA ?\n"
