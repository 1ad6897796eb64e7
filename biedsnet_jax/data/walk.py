"""Finds every file below a folder, links followed, and records what it passes over.

A folder is entered once, and by its own path before any link to it. Otherwise a patient
under two names could lie on both sides of a split, and a link back to a folder above
would never end.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.runtime import csv_text, files

# The file has a row for each file that was not read, with the reason.
RECORD = "passed_over.csv"


class PassedOver(NamedTuple):
    """A file or folder that is not read."""

    path: Path
    # The same reason has the same words, so that `summary` can count them.
    why: str


def below(
    folder: Path,
    readable: Callable[[Path], bool],
    *,
    leave_out: Callable[[Path], bool] | None = None,
) -> tuple[list[Path], list[PassedOver]]:
    """Lists the files whose name is `readable`, and everything else, in path order.

    Hidden files and folders are passed over. A link to nothing counts as a file: whoever
    reads it refuses it. Folders for which `leave_out` holds appear in neither list.
    """
    found, passed, entered = [], [], set()
    # Links wait until all folders are entered by their own paths.
    links: list[Path] = []

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
    """Names why a file is not read: its format, or that it is no file."""
    kind = _irregular(path)
    if kind:
        return PassedOver(path, f"not a file ({kind})")
    kind = path.suffix.lower() if path.suffix else "a name without extension"
    return PassedOver(path, f"not a format that is read ({kind})")


def check_regular(path: Path) -> None:
    """Raises BadInput for a pipe, device or folder: reading a pipe may never end."""
    kind = _irregular(path)
    if kind:
        raise BadInput(f"{path} is {kind}, not a file. Replace or remove it.")


def is_regular(path: Path) -> bool:
    """Whether opening a path cannot wait: it is a file, or missing."""
    return not _irregular(path)


def _irregular(path: Path) -> str:
    """Kind of a path that is no file, such as "a socket"; empty where it is missing."""
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
    """Counts what was passed over by reason, most frequent first; empty for nothing."""
    if not passed:
        return ""
    reasons = Counter(one.why for one in passed).most_common()
    each = ", ".join(f"{count} {why}" for why, count in reasons)
    noun = "file" if len(passed) == 1 else "files"
    return f"{len(passed)} {noun} passed over: {each}"


def write_record(folder: Path, passed: Sequence[PassedOver]) -> None:
    """Writes RECORD into a folder, or removes it where nothing was passed over."""
    path = folder / RECORD
    if not passed:
        path.unlink(missing_ok=True)
        return
    rows = []
    for one in passed:
        # File names are bytes, which need not be valid text.
        name = str(one.path).encode(errors="backslashreplace").decode()
        rows.append({"file": name, "why": one.why})
    files.write_text(path, csv_text.write(rows, ("file", "why")))
