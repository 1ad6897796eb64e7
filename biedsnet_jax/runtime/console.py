"""What may be printed: whether --quiet was given, and whether a stream is a terminal."""

import os
import sys
from typing import Any

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Sets whether only errors, warnings and the closing word are printed from now."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether only errors, warnings and the closing word are printed."""
    return _quiet


def tell(text: str, stream: Any) -> None:
    """Prints a line about what goes on, unless --quiet was given."""
    if not _quiet:
        # Flushed, so that a pipe shows it now and Ctrl-C does not lose it.
        print(text, file=stream, flush=True)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def on_terminal() -> bool:
    """Whether closing words are shown as a table: on a terminal, without --quiet."""
    return is_terminal(sys.stdout) and not is_quiet()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as "1:02:03"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
