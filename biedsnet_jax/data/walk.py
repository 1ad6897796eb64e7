"""Every file below a folder, links followed, and what is passed over on the way, so
that it can be said.

A folder is entered once, by its own path before any link to it: the same patient under
two names would lie on both sides of a split, and a link back to a folder above would
never end.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.runtime import csv_text, files

# a row a file that was not read, and why
RECORD = "passed_over.csv"


class PassedOver(NamedTuple):
    """A file or folder that is not read."""

    path: Path
    why: str  # the same words for the same reason, so that they can be counted


def below(
    folder: Path,
    readable: Callable[[Path], bool],
    *,
    leave_out: Callable[[Path], bool] | None = None,
) -> tuple[list[Path], list[PassedOver]]:
    """(files that are `readable` by their name, everything else), each in order of the
    path.

    Hidden files and folders are passed over. A link to nothing counts as a file, for
    whoever reads it to refuse. Folders for which `leave_out` holds are passed over
    without a word.
    """
    found, passed, links, entered = [], [], [], set()

    def enter(top: Path) -> None:
        real = os.path.realpath(top)
        if real in entered:
            passed.append(PassedOver(top, "a folder that is read under another name"))
            return
        entered.add(real)
        try:
            entries = sorted(os.scandir(top), key=lambda entry: entry.name)
        except OSError as error:
            passed.append(
                PassedOver(top, f"a folder that cannot be listed ({reason(error)})")
            )
            return
        for entry in entries:
            path = top / entry.name
            if entry.name.startswith("."):
                passed.append(PassedOver(path, "hidden"))
            elif entry.is_dir():
                if leave_out and leave_out(path):
                    continue
                if entry.is_symlink():
                    links.append(path)
                else:
                    enter(path)
            elif readable(path):
                found.append(path)
            else:
                passed.append(unread(path))

    enter(folder)
    while links:
        enter(links.pop(0))
    return sorted(found), sorted(passed)


def unread(path: Path) -> PassedOver:
    """A file in a format that is not read, or what is no file."""
    kind = _irregular(path)
    if kind:
        return PassedOver(path, f"not a file ({kind})")
    kind = path.suffix.lower() if path.suffix else "a name without extension"
    return PassedOver(path, f"not a format that is read ({kind})")


def check_regular(path: Path) -> None:
    """Raises BadInput for what only looks like a file: reading a named pipe may never
    end.
    """
    kind = _irregular(path)
    if kind:
        raise BadInput(f"{path} is {kind}, not a file. Replace or remove it.")


def is_regular(path: Path) -> bool:
    """Whether it can be opened without waiting; what is not there is told by whoever
    opens it.
    """
    return not _irregular(path)


def _irregular(path: Path) -> str:
    """What it is instead of a file; empty for a file and for what is not there."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode):
        return ""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def summary(passed: Sequence[PassedOver]) -> str:
    """How many were passed over and why, most frequent first; empty where none was."""
    if not passed:
        return ""
    reasons = Counter(one.why for one in passed).most_common()
    each = ", ".join(f"{count} {why}" for why, count in reasons)
    return f"{len(passed)} file{'s' * (len(passed) > 1)} passed over: {each}"


def write_record(folder: Path, passed: Sequence[PassedOver]) -> None:
    """Write RECORD into a folder; where nothing was passed over, remove an earlier one."""
    path = folder / RECORD
    if not passed:
        path.unlink(missing_ok=True)
        return
    # A name need not be text.
    names = [str(one.path).encode(errors="backslashreplace").decode() for one in passed]
    rows = [{"file": name, "why": one.why} for name, one in zip(names, passed)]
    files.write_text(path, csv_text.write(rows, ("file", "why")))
