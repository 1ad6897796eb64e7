"""Who is shown what: whether --quiet was given, and whether a stream is a terminal that
somebody looks at.
"""

import os
import sys
from typing import Any

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Of the whole process: nothing but errors, warnings and the closing word from here
    on.
    """
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether only errors, warnings and the closing word are wanted."""
    return _quiet


def tell(text: str, stream: Any) -> None:
    """A line about what goes on, unless --quiet was given; at once, so that Ctrl-C does
    not come between.
    """
    if not _quiet:
        print(text, file=stream, flush=True)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that can renew a line."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def on_terminal() -> bool:
    """Whether closing words go to a terminal, as a table, and --quiet was not given."""
    return is_terminal(sys.stdout) and not is_quiet()


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, such as "1:02:03"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
