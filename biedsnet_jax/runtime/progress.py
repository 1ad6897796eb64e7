"""Progress of a loop: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping

from biedsnet_jax.runtime import console


class Progress:
    """Rate and time to go of `total` units, of which `start` were done before.

    Both count from the first update on, since what comes before it is mostly
    compilation. If `quiet`, only notes and warnings are shown; with --quiet only
    warnings. It must be closed, also after an error.
    """

    def __init__(self, what: str, total: int, *, start: int = 0, quiet: bool = False):
        self.what, self.total, self.start = what, total, start
        self.began, self.updated = time.monotonic(), False
        self.quiet = quiet or console.is_quiet()
        self.shown, self.done, self.values = 0.0, start, {}
        self.bar = None
        if console.is_terminal(sys.stderr) and not self.quiet:
            # Imported here, since rich is of use to terminals alone.
            from biedsnet_jax.runtime import terminal

            self.bar = terminal.Bar(what, total, start)

    def update(
        self, done: int, values: Mapping[str, float], *, plain: bool = False
    ) -> None:
        """Shows `done` units; without a terminal only if `plain` asks for a line."""
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
        """Shows `more` units done; without a terminal a line every five seconds."""
        self.done += more
        due = time.monotonic() - self.shown > 5 or self.done >= self.total
        self.update(self.done, {}, plain=due)
        if due:
            self.shown = time.monotonic()

    def expect(self, more: int) -> None:
        """Changes the total by `more` units, which may be negative."""
        self.total += more
        if self.bar:
            self.bar.resize(self.total)

    def note(self, text: str, values: Mapping[str, float] | None = None) -> None:
        """Prints a line that stays; `values` stand beside the bar from here on."""
        if self.bar and values:
            self.update(self.done, values)
        if not console.is_quiet():
            self.warn(text)

    def warn(self, text: str) -> None:
        """Prints a line that stays, with --quiet too."""
        if not self.bar:
            _write(text + "\n")
            return
        # A terminal that is gone ends no training.
        with contextlib.suppress(OSError):
            self.bar.note(text)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar:
            with contextlib.suppress(OSError):
                self.bar.close()

    def _numbers(self, done, values):
        rate = (done - self.start) / max(time.monotonic() - self.began, 1e-9)
        eta = "?"
        if rate > 0:
            minutes, seconds = divmod(int((self.total - done) / rate), 60)
            eta = f"{minutes}:{seconds:02d}"
        numbers = "".join(f"  {name} {value:.4g}" for name, value in values.items())
        return f"{done}/{self.total}  {rate:.3g}/s  ETA {eta}{numbers}"


@contextlib.contextmanager
def clock(text: str) -> Iterator[None]:
    """Shows a running clock beside `text` on a terminal while the body works."""
    if console.is_quiet() or not console.is_terminal(sys.stderr):
        yield
        return
    from biedsnet_jax.runtime import terminal

    shown = terminal.Clock(text)
    try:
        yield
    finally:
        # A terminal that is gone ends no training.
        with contextlib.suppress(OSError):
            shown.close()


def _write(text):
    """Writes to stderr at once; a terminal that is gone ends no training."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
