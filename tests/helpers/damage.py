"""Strategies that damage bytes, and the checks of whatever reads them."""

import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from biedsnet_jax.errors import BadInput

SECONDS, MIB = 60, 512
_EXTREMES = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\x7f\xff\xff\xff",
    b"\0\0\xc0\x7f",
    b"\0\0\x80\x7f",
]
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Hang(BaseException):
    """Raised where a call takes too long.

    It is no Exception, since readers turn those into BadInput.
    """


def damaged(whole: bytes, *, within: int | None = None) -> st.SearchStrategy[bytes]:
    """Draws damaged copies of a file's bytes, and bytes that never were such a file.

    Up to three runs of the first `within` bytes are overwritten, and the end may be cut.
    """
    places = st.integers(0, max(0, (within or len(whole)) - 1))
    patches = st.binary(min_size=1, max_size=8) | st.sampled_from(_EXTREMES)
    edits = st.lists(st.tuples(places, patches), max_size=3)
    ends = st.just(len(whole)) | st.integers(0, len(whole))
    return st.builds(_edited, st.just(whole), edits, ends) | st.binary(max_size=300)


def tried(call: Callable[[], Any], *, inside: Path, writes: Path | None = None) -> Any:
    """Returns what `call()` does, or None where it refuses in one line.

    Fails at any other exception, at a hang, at half a GiB of memory, and where a file
    comes or goes in the folder `inside`, except below `writes`.
    """
    before, memory = _names(inside, writes), _memory("VmRSS")
    if _RESET.exists():
        # Linux forgets the largest size so far, so that VmHWM is that of the call.
        _RESET.write_text("5")
    result = None
    try:
        with _watched():
            result = call()
    except BadInput as refusal:
        message = str(refusal)
        assert message.isprintable(), repr(message)
        assert len(message) < 1000 + 4 * len(str(inside)), message
    grown = (_memory("VmHWM") - memory) / 1024
    assert grown < MIB, f"took {grown:.0f} MiB"
    assert _names(inside, writes) == before
    return result


@contextmanager
def _watched():
    def stop(*_):
        raise Hang(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _names(folder: Path, leave_out: Path | None) -> set[Path]:
    return {
        p
        for p in folder.rglob("*")
        if leave_out is None or not p.is_relative_to(leave_out)
    }


def _memory(name: str) -> int:
    """A size from /proc/self/status in KiB; 0 where the system has none."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def _edited(whole: bytes, edits: list[tuple[int, bytes]], end: int) -> bytes:
    data = bytearray(whole)
    for place, patch in edits:
        data[place : place + len(patch)] = patch
    return bytes(data[:end])
