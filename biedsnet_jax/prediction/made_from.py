"""What each scan's masks were made from: `made_from.jsonl` of an output folder, a line
a scan.

A line names every input file and every output file with size, times and a hash of the
content, the model's weights and the settings. It is written when all that it speaks of
is on the disk, so that a scan whose writing was cut short has none. Of several lines of
one scan the last holds.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from biedsnet_jax.data.walk import check_regular
from biedsnet_jax.runtime import files

NAME = "made_from.jsonl"
# Raised when this program reads scans otherwise than before, so that old masks are made
# again.
READING = 1

# Why a scan is done again. The same words for the same reason, so that they can be
# counted.
CHANGED = "the scan changed"
ADDED = "slices were added"
REMOVED = "slices were removed"
ELSEWHERE = "the scan is another one of that name"
RETRAINED = "the model was trained further"
READ_OTHERWISE = "an earlier version read it"
LOST = "an output file was missing"
EDITED = "an output file was changed"
NO_FIGURES = "summary.csv had no figures for it"
UNKNOWN = "nothing said what it was made from"


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was."""

    path: str
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int  # changes too where a file is replaced by one of the same mtime
    sha256: str  # empty where the content was not read

    def is_same(self, path: Path) -> bool:
        """Whether `path` still holds the same bytes; it is read only where its times
        changed.
        """
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            if (status.st_mtime_ns, status.st_ctime_ns) == (
                self.mtime_ns,
                self.ctime_ns,
            ):
                return True
            return bool(self.sha256) and _sha256(path) == self.sha256
        except OSError:
            return False


@dataclasses.dataclass(frozen=True)
class Made:
    """A line of the record."""

    name: str
    why: str  # it was done again; empty where it was done for the first time
    weights: str  # digest of the model's arrays
    settings: str  # digest of the settings in predict.json
    reading: int
    inputs: tuple[File, ...]  # absolute paths
    outputs: tuple[File, ...]  # paths in the output folder

    def again(self, paths: Sequence[Path], *, dicom: bool, weights: str) -> str:
        """Why the scan in `paths` is not what this was made from; empty where it is."""
        before, now = {one.path: one for one in self.inputs}, set(map(absolute, paths))
        if now > before.keys() and dicom:
            return ADDED
        if now < before.keys() and dicom:
            return REMOVED
        if now != before.keys():
            return ELSEWHERE
        if not all(one.is_same(Path(path)) for path, one in before.items()):
            return CHANGED
        if self.reading != READING:
            return READ_OTHERWISE
        return RETRAINED if self.weights != weights else ""

    def damage(self, folder: Path, paths: Iterable[Path]) -> str:
        """What is wrong with the output files `paths`; empty where they are as written."""
        known = {one.path for one in self.outputs}
        for path in paths:
            if path.relative_to(folder).as_posix() not in known or not path.exists():
                return LOST
        return EDITED if self.edited(folder) else ""

    def edited(self, folder: Path) -> list[Path]:
        """The output files that are there but not as they were written."""
        there = [(one, folder / one.path) for one in self.outputs]
        return [path for one, path in there if path.exists() and not one.is_same(path)]


def absolute(path: Path) -> str:
    """The name of an input file in the record."""
    return os.path.abspath(path)


def describe(
    paths: Iterable[Path], *, folder: Path | None = None, content: bool = True
) -> list[File]:
    """Each file as it is now, by its absolute path or by the one in `folder`.

    Raises BadInput for what is no file, OSError for what cannot be read.
    """
    return [_describe(path, folder, content) for path in paths]


def _describe(path: Path, folder: Path | None, content: bool) -> File:
    check_regular(path)
    # Before the content, so that a change in between is noticed.
    status = path.stat()
    return File(
        path=path.relative_to(folder).as_posix() if folder else absolute(path),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        sha256=_sha256(path) if content else "",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


class Record:
    """The lines of a folder, by the scan's name.

    Of several processes each writes a part of its own; `merge_parts` puts them
    together.
    """

    def __init__(self, folder: Path, *, part: int | None = None):
        self.path = folder / (NAME if part is None else f"made_from.part_{part}.jsonl")
        self.made: dict[str, Made] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.decode(errors="replace").splitlines():
            self._take(line)
        # The next line must not go on in the middle of one that was cut short.
        whole = "".join(_line(made) for made in self.made.values())
        if content != whole.encode():
            files.write_text(self.path, whole)

    def add(self, made: Made) -> None:
        """Append a line and bring it to the disk."""
        files.append_text(self.path, _line(made))
        self.made[made.name] = made

    def forget(self, names: Iterable[str]) -> None:
        """Say of scans that are about to be done again that nothing is known of their
        files.
        """
        known = [name for name in names if self.made.pop(name, None)]
        if known:
            text = "".join(json.dumps({"name": name}) + "\n" for name in known)
            files.append_text(self.path, text)

    def merge_parts(self) -> None:
        """Take over the lines of the parts, and remove these."""
        for path in sorted(self.path.parent.glob("made_from.part_*.jsonl")):
            part = Record(self.path.parent, part=int(path.stem.rpartition("_")[2]))
            if part.made:
                files.append_text(self.path, "".join(map(_line, part.made.values())))
                self.made |= part.made
            path.unlink()

    def _take(self, line: str) -> None:
        """Take over a line; one that is damaged says nothing."""
        try:
            fields = json.loads(line)
            if fields.keys() == {"name"}:
                self.made.pop(fields["name"], None)
            else:
                made = _made(fields)
                self.made[made.name] = made
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return


def _line(made: Made) -> str:
    return json.dumps(dataclasses.asdict(made)) + "\n"


def _made(fields: Mapping) -> Made:
    lists = {
        name: tuple(File(**one) for one in fields[name])
        for name in ("inputs", "outputs")
    }
    made = Made(**{**fields, **lists})
    texts = [made.name, *(one.path for one in made.inputs + made.outputs)]
    if not made.inputs or not all(isinstance(text, str) for text in texts):
        raise TypeError("a line of another kind")
    return made
