"""How far a loop is: one line that renews itself on a terminal, plain lines elsewhere."""

import sys
import time


class Progress:
    """Rate and time to go of `total` units, of which `start` were done before.

    Both count from the first update on, since what comes before it is mostly compilation. A quiet one only has notes.
    """

    def __init__(self, what: str, total: int, *, start: int = 0, quiet: bool = False):
        self.what, self.total, self.start = what, total, start
        self.began, self.updated = time.monotonic(), False
        self.quiet, self.terminal = quiet, sys.stderr.isatty() and not quiet
        self.shown, self.done = 0.0, start

    def update(self, done: int, values: dict[str, float], *, plain: bool = False) -> None:
        """Show `done` units; without a terminal only where `plain` asks for a line."""
        now = time.monotonic()
        if self.terminal and (now - self.shown > 0.1 or done == self.total):
            self.shown = now
            sys.stderr.write("\r\x1b[2K" + self._line(done, values))
            sys.stderr.flush()
        elif plain and not self.terminal and not self.quiet:
            sys.stderr.write(self._line(done, values) + "\n")  # at once: Ctrl-C may come between two writes
            sys.stderr.flush()
        if not self.updated:
            self.began, self.start, self.updated = now, done, True

    def advance(self, more: int) -> None:
        """Show `more` units done than before; without a terminal a line every five seconds."""
        self.done += more
        due = time.monotonic() - self.shown > 5 or self.done >= self.total
        self.update(self.done, {}, plain=due)
        if due:
            self.shown = time.monotonic()

    def note(self, text: str) -> None:
        """A line that stays."""
        sys.stderr.write(("\r\x1b[2K" if self.terminal else "") + text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self.terminal and self.shown:
            sys.stderr.write("\n")

    def _line(self, done, values):
        rate = (done - self.start) / max(time.monotonic() - self.began, 1e-9)
        togo = (self.total - done) / rate if rate > 0 else float("inf")
        numbers = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        eta = "?" if togo == float("inf") else f"{int(togo) // 60}:{int(togo) % 60:02d}"
        return f"{self.what} {done}/{self.total}  {rate:.3g}/s  ETA {eta}{numbers}"
