"""Records what each scan's masks were made from, in `made_from.jsonl` of an output folder.

A line describes one scan: every input and output file with its size, times and a hash of
its content, the model's weights, and the settings. It is written after those files are on
the disk, so a scan whose writing was cut short has no line. The last line of a scan
holds.
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
# Version of how this program reads scans. A change of it makes all masks again.
READING = 1


@dataclasses.dataclass(frozen=True)
class File:
    """Size, times and content hash of a file at one moment."""

    path: str
    size: int  # bytes
    mtime_ns: int
    # Changes even where another file of the same mtime replaces this one.
    ctime_ns: int
    # Empty where the content was not read.
    sha256: str

    def is_same(self, path: Path) -> bool:
        """Checks whether `path` still holds the same bytes.

        The content is read only where a time differs.
        """
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            same_mtime = status.st_mtime_ns == self.mtime_ns
            if same_mtime and status.st_ctime_ns == self.ctime_ns:
                return True
            return bool(self.sha256) and _sha256(path) == self.sha256
        except OSError:
            return False


@dataclasses.dataclass(frozen=True)
class Made:
    """One line of the record: what the masks of a scan were made from."""

    name: str
    # Reason for which the scan was segmented again; empty for the first time.
    why: str
    # Digest of the model's arrays.
    weights: str
    # Digest of the settings in predict.json.
    settings: str
    reading: int
    # Input files by absolute path.
    inputs: tuple[File, ...]
    # Output files by path in the output folder.
    outputs: tuple[File, ...]

    def again(self, paths: Sequence[Path], *, dicom: bool, weights: str) -> str:
        """Returns the reason to segment a scan again for its input or model.

        The reason is empty where the files `paths` and the model's `weights` are those
        that the masks were made from. Each reason has fixed words, to be counted by.
        """
        before = {file.path: file for file in self.inputs}
        now = {absolute(path) for path in paths}
        if now > before.keys() and dicom:
            return "slices were added"
        if now < before.keys() and dicom:
            return "slices were removed"
        if now != before.keys():
            return "the scan is another one of that name"
        if not all(file.is_same(Path(path)) for path, file in before.items()):
            return "the scan changed"
        if self.reading != READING:
            return "an earlier version read it"
        if self.weights != weights:
            return "the model or its post-processing changed"
        return ""

    def damage(self, folder: Path, paths: Iterable[Path]) -> str:
        """Returns the reason to segment a scan again for its output files `paths`.

        The reason is empty where they are as written.
        """
        known = {file.path for file in self.outputs}
        for path in paths:
            if path.relative_to(folder).as_posix() not in known or not path.exists():
                return "an output file was missing"
        if self.edited(folder):
            return "an output file was changed"
        return ""

    def edited(self, folder: Path) -> list[Path]:
        """Lists the output files that exist but changed after they were written."""
        found = [(file, folder / file.path) for file in self.outputs]
        return [
            path for file, path in found if path.exists() and not file.is_same(path)
        ]


def absolute(path: Path) -> str:
    """Returns the path by which the record knows an input file."""
    return os.path.abspath(path)


def describe(
    paths: Iterable[Path], *, folder: Path | None = None, content: bool = True
) -> list[File]:
    """Describes each file as it is now, by its absolute path or its path in `folder`.

    Without `content` no file is read and the hashes stay empty. Raises BadInput for what
    is not a regular file, OSError for what cannot be read.
    """
    found = []
    for path in paths:
        check_regular(path)
        # Taken before the content is read, so that a change in between is noticed.
        status = path.stat()
        found.append(
            File(
                path=path.relative_to(folder).as_posix() if folder else absolute(path),
                size=status.st_size,
                mtime_ns=status.st_mtime_ns,
                ctime_ns=status.st_ctime_ns,
                sha256=_sha256(path) if content else "",
            )
        )
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


class Record:
    """The lines of an output folder, by the name of the scan.

    Each of several processes writes a part of its own; `merge_parts` joins them.
    """

    def __init__(self, folder: Path, *, part: int | None = None):
        self.path = folder / (NAME if part is None else f"made_from.part_{part}.jsonl")
        self.made: dict[str, Made] = {}
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.decode(errors="replace").splitlines():
            self._take(line)
        # A line that was cut short is removed, or the next one would continue it.
        whole = "".join(map(_line, self.made.values()))
        if content != whole.encode():
            files.write_text(self.path, whole)

    def add(self, made: Made) -> None:
        """Appends a line and flushes it to the disk."""
        files.append_text(self.path, _line(made))
        self.made[made.name] = made

    def forget(self, names: Iterable[str]) -> None:
        """Withdraws the lines of scans, before their files change."""
        known = [name for name in names if self.made.pop(name, None)]
        if known:
            # A line with only a name withdraws the earlier lines of that scan.
            text = "".join(json.dumps({"name": name}) + "\n" for name in known)
            files.append_text(self.path, text)

    def merge_parts(self) -> None:
        """Takes over the lines of all parts, and removes the parts."""
        for path in sorted(self.path.parent.glob("made_from.part_*.jsonl")):
            part = Record(self.path.parent, part=int(path.stem.rpartition("_")[2]))
            if part.made:
                files.append_text(self.path, "".join(map(_line, part.made.values())))
                self.made |= part.made
            path.unlink()

    def _take(self, line: str):
        """Takes over a line; a damaged one is ignored."""
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
    inputs = tuple(map(_file, fields["inputs"]))
    outputs = tuple(map(_file, fields["outputs"]))
    made = Made(**(fields | {"inputs": inputs, "outputs": outputs}))
    texts = [made.name, *(file.path for file in made.inputs + made.outputs)]
    if not made.inputs or not all(isinstance(text, str) for text in texts):
        raise TypeError("not a line of this record")
    return made


def _file(fields: Mapping) -> File:
    return File(**fields)
