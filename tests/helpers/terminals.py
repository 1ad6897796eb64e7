"""Runs a command on a pseudo-terminal, and shows what is left on the screen."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable

from places import ROOT

COLUMNS = 110
# Seconds without output after which a command counts as stuck.
WAIT = 300


class Terminal(io.StringIO):
    """A stream in memory that says it is a terminal."""

    def isatty(self):
        return True


# The terminal becomes the command's own, so that Ctrl-C reaches it; a shell's
# background jobs ignore that.
_OWN = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def screen(written: str) -> str:
    """What is left on a screen of all that was written, without colours.

    A line that goes back to its start is overwritten, also from the line below.
    """
    written = re.sub(r"\r?\n(\x1b\[\?25h)?\r\x1b\[1A", "\r", written)
    text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", written.replace("\x1b[2K", "\r"))
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines)


def run(
    line: list[str], *, answer: Callable[[str], bytes | None] = lambda written: None
) -> tuple[int, str]:
    """Runs a command in a terminal; returns its exit code and all that it wrote.

    The terminal is its stdin, stdout and stderr. `answer(written so far)` returns what
    is typed next, if anything.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "JAX_PLATFORMS": "cpu"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", _OWN, *line],
        cwd=ROOT,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written = b""
    with process, os.fdopen(ours, "rb+", buffering=0) as terminal:
        while more := _read(terminal):
            written += more
            if typed := answer(written.decode(errors="replace")):
                terminal.write(typed)
        return process.wait(WAIT), written.decode()


def _read(terminal):
    assert select.select([terminal], [], [], WAIT)[0], "nothing more is written"
    try:
        return terminal.read(65536)
    except OSError:
        # Linux raises this once the other side is closed.
        return b""
