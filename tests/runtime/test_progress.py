"""Progress on a clock and a terminal made up here."""

import errno
import io
import sys

import pytest
from terminals import Terminal, screen

from biedsnet_jax.runtime import console, progress


@pytest.fixture
def clock(monkeypatch):
    """A list with the seconds that the clock shows, to be set."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


@pytest.fixture(autouse=True)
def loud():
    yield
    console.set_quiet(False)


def test_a_line_where_asked_with_a_rate_that_leaves_out_the_compilation(
    monkeypatch, clock
):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    bar = progress.Progress("train", 100, start=10)
    for now, done in ((50.0, 20), (51.0, 21), (55.0, 40)):
        clock[0] = now
        bar.update(done, {"loss": 0.123456}, plain=done % 20 == 0)
    bar.note("a note")
    bar.close()
    assert progress.sys.stderr.getvalue().splitlines() == [
        # 10 units took 50 s, 80 are left.
        "train 20/100  0.2/s  ETA 6:40  loss 0.1235",
        # 20 units took 5 s, 60 are left.
        "train 40/100  4/s  ETA 0:15  loss 0.1235",
        "a note",
    ]


def test_a_total_that_changes(monkeypatch, clock):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    bar = progress.Progress("predict", 36)
    bar.advance(6)
    bar.expect(12)
    bar.expect(-30)
    clock[0] = 4.0
    bar.advance(12)
    # The whole of 18 units has a line, though none is due.
    (last,) = progress.sys.stderr.getvalue().splitlines()
    assert last.startswith("predict 18/18 ")


def test_a_bar_with_the_last_of_each_value_on_a_terminal(monkeypatch, clock):
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    bar = progress.Progress("train", 100, start=10)
    for now, done in ((50.0, 20), (51.0, 21), (55.0, 40)):
        clock[0] = now
        bar.update(done, {"loss": 0.123456}, plain=True)
    bar.note("a note", {"Dice": 0.75})
    bar.close()
    written = progress.sys.stderr.getvalue()
    *above, last = screen(written).rstrip().splitlines()
    assert above[-1] == "a note"
    assert last.startswith("train ━")
    assert "40/100  4/s  ETA 0:15  loss 0.1235  Dice 0.75" in last
    # A new line, and the cursor is shown.
    assert written.endswith("\n\x1b[?25h")


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_renew_a_line_gets_plain_ones(monkeypatch, clock, term):
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", term)
    bar = progress.Progress("train", 9)
    bar.update(3, {}, plain=True)
    bar.close()
    # The clock stands still; the rate is over a nanosecond.
    assert progress.sys.stderr.getvalue() == "train 3/9  3e+09/s  ETA 0:00\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_leaves_warnings(monkeypatch, clock, stream):
    monkeypatch.setattr(progress.sys, "stderr", stream())
    console.set_quiet(True)
    bar = progress.Progress("train", 9)
    bar.update(3, {"loss": 1.0}, plain=True)
    bar.advance(3)
    bar.note("a note", {"Dice": 0.5})
    bar.warn("warning: a scan")
    bar.close()
    assert progress.sys.stderr.getvalue() == "warning: a scan\n"


def test_nothing_done_has_no_time_to_go(monkeypatch, clock):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    progress.Progress("train", 9, start=3).update(3, {}, plain=True)
    assert progress.sys.stderr.getvalue() == "train 3/9  0/s  ETA ?\n"


class Gone(io.StringIO):
    """A stream that cannot be written once it is `gone`."""

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal, self.gone = terminal, False

    def isatty(self):
        return self.terminal

    def write(self, text):
        if self.gone:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)

    def flush(self):
        if self.gone:
            raise OSError(errno.EIO, "Input/output error")


# The thread of rich that redraws the bar ends with an error, which nobody would see.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_that_is_gone_ends_nothing(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    stream = Gone(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress.Progress("train", 10)
    bar.update(1, {"loss": 1.0}, plain=True)
    stream.gone = True
    bar.update(2, {"loss": 1.0}, plain=True)
    bar.note("step 2", {"Dice": 0.5})
    bar.warn("a warning")
    bar.close()
    stream.gone = False
    assert "2/10" not in stream.getvalue() or terminal
