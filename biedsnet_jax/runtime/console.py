"""What may be printed, whether a stream is a terminal, and streams that are gone."""

import io
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


def keep_streams() -> None:
    """Lets this process go on, printing nowhere, where its output is closed or not read.

    A stream closed from the start (`>&-`) gets the null device: else the next file that
    is opened takes its number, to which libraries print. A reader that is gone, as after
    `| head -1`, is no error.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest number that is free, so the stream's own. It is never closed.
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nowhere, mode, closefd=False))
    sys.stdout = _kept(sys.stdout)
    sys.stderr = _kept(sys.stderr)


class _Kept(io.FileIO):
    """A file to which nothing more is written once its reader is gone."""

    def write(self, data):
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def _kept(stream):
    raw = _Kept(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        # With python -u every write is for the system.
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
