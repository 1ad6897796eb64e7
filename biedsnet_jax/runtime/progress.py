"""How far a loop is: a bar that renews itself on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Mapping

from biedsnet_jax.runtime import console


class Progress:
    """Rate and time to go of `total` units, of which `start` were done before.

    Both count from the first update on, since what comes before it is mostly
    compilation. A quiet one only has notes; with --quiet all are, and have only
    warnings. To be closed, whatever happens.
    """

    def __init__(self, what: str, total: int, *, start: int = 0, quiet: bool = False):
        self.what, self.total, self.start = what, total, start
        self.began, self.updated = time.monotonic(), False
        self.quiet = quiet or console.is_quiet()
        self.shown, self.done, self.values = 0.0, start, {}
        self.bar = (
            _bar(what, total, start)
            if console.is_terminal(sys.stderr) and not self.quiet
            else None
        )

    def update(
        self, done: int, values: Mapping[str, float], *, plain: bool = False
    ) -> None:
        """Show `done` units; without a terminal only where `plain` asks for a line."""
        now = time.monotonic()
        self.done = done
        if self.bar:
            self.values |= values
            self.bar.show(done, self._numbers(done, self.values))
        elif plain and not self.quiet:
            _write(f"{self.what} {self._numbers(done, values)}\n")
        if not self.updated:
            self.began, self.start, self.updated = now, done, True

    def advance(self, more: int) -> None:
        """Show `more` units done than before; without a terminal a line every five
        seconds.
        """
        self.done += more
        due = time.monotonic() - self.shown > 5 or self.done >= self.total
        self.update(self.done, {}, plain=due)
        if due:
            self.shown = time.monotonic()

    def note(self, text: str, values: Mapping[str, float] | None = None) -> None:
        """A line that stays; a terminal shows `values` beside the bar from here on."""
        if self.bar and values:
            self.update(self.done, values)
        if not console.is_quiet():
            self.warn(text)

    def warn(self, text: str) -> None:
        """A line that stays, with --quiet too."""
        if self.bar:
            # as in `_write`
            with contextlib.suppress(OSError):
                self.bar.note(text)
            return
        _write(text + "\n")

    def close(self) -> None:
        """End the bar."""
        if self.bar:
            # as in `_write`
            with contextlib.suppress(OSError):
                self.bar.close()

    def _numbers(self, done, values):
        rate = (done - self.start) / max(time.monotonic() - self.began, 1e-9)
        togo = (self.total - done) / rate if rate > 0 else float("inf")
        numbers = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        eta = "?" if togo == float("inf") else f"{int(togo) // 60}:{int(togo) % 60:02d}"
        return f"{done}/{self.total}  {rate:.3g}/s  ETA {eta}{numbers}"


def _write(text):
    """At once: Ctrl-C may come in between. A terminal that is gone ends no training."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _bar(what, total, start):
    # here: rich is of use to terminals alone
    from biedsnet_jax.runtime import terminal

    return terminal.Bar(what, total, start)
