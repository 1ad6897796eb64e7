"""The split of a run, `split.json` of its workdir: each case's side and fingerprint.

It is written when a run starts, and kept from then on, whatever is added to the data.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.runtime import files

NAME = "split.json"
SIDES = ("train", "val", "test")
# Sides that a model has seen. Training comes last, so that it wins in a dict.
SEEN = ("val", "train")


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """The cases of each side, where their data lay, and a fingerprint of each case."""

    # An absolute path; empty for a source that reads no folder.
    root: str
    # By the names in SIDES.
    sides: Mapping[str, Sequence[str]]
    # Empty for a source that reads no files.
    fingerprints: Mapping[str, str]
    # Cases that were there and lie on no side.
    left_out: Sequence[str] = ()

    @property
    def cases(self) -> set[str]:
        """Cases of all sides."""
        return {case for side in SIDES for case in self.sides[side]}

    def changed(self, of_cases: Mapping[str, Sequence[Path]]) -> list[str]:
        """Cases that hold other bytes than were recorded, sorted.

        `of_cases` are the files of each case. A case is passed over where there are no
        files to compare, now or in the record.
        """
        known = sorted(of_cases.keys() & self.fingerprints.keys())
        now = fingerprints({case: of_cases[case] for case in known})
        return [case for case in known if now[case] != self.fingerprints[case]]

    def seen_by_name(self, cases: Iterable[str]) -> dict[str, str]:
        """Side of each of the cases that was trained or validated on, by its name."""
        side_of = {case: side for side in SEEN for case in self.sides[side]}
        return {case: side_of[case] for case in sorted(cases) if case in side_of}

    def seen_by_content(
        self, cases: Iterable[str], prints: Mapping[str, str]
    ) -> dict[str, str]:
        """Side of each of the cases whose content was trained or validated on.

        `prints` are the fingerprints of the cases, whatever they are called.
        """
        side_of = {
            self.fingerprints[case]: side
            for side in SEEN
            for case in self.sides[side]
            if case in self.fingerprints
        }
        found = {case: side_of.get(prints.get(case, "")) for case in sorted(cases)}
        return {case: side for case, side in found.items() if side}


def fingerprints(of_cases: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Hash of what each case's files hold, whatever they are called.

    Raises BadInput for a file that cannot be read.
    """
    paths = [path for of_case in of_cases.values() for path in of_case]
    with ThreadPoolExecutor() as pool:
        known = dict(zip(paths, pool.map(_fingerprint, paths)))
    found = {}
    for case, of_case in of_cases.items():
        together = "".join(sorted(known[path] for path in of_case))
        found[case] = hashlib.sha256(together.encode()).hexdigest()[:32]
    return found


def joined(prints: Iterable[str]) -> str | None:
    """One hash of the fingerprints of several cases, in any order; None of no case."""
    together = "".join(sorted(prints))
    if not together:
        return None
    return hashlib.sha256(together.encode()).hexdigest()[:32]


def _fingerprint(path):
    try:
        return files.fingerprint(path)
    except OSError as error:
        raise BadInput(
            f"Cannot read {path}: {reason(error)}. Replace or remove it."
        ) from error


def save(workdir: Path, record: SplitRecord) -> None:
    """Writes the record of a run that starts."""
    files.write_json(workdir / NAME, dataclasses.asdict(record))


def load(workdir: Path) -> SplitRecord | None:
    """Loads the record of a run; None where an earlier version started it.

    Raises BadInput for a damaged record.
    """
    path = workdir / NAME
    try:
        record = SplitRecord(**json.loads(path.read_text()))
        record = dataclasses.replace(record, left_out=tuple(record.left_out))
        _check_types(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"{path} is damaged: {reason(error)}. Restore it from a copy: it says which "
            "cases the run was trained on."
        ) from error
    return record


def _check_types(record):
    """Raises ValueError where a record read from a file has no lists of cases."""
    names = [name for side in SIDES for name in record.sides[side]]
    if len(names) > len(set(names)):
        raise ValueError("a case lies on two sides")
    texts = [record.root, *names, *record.left_out]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("no lists of cases")
    if not isinstance(record.fingerprints, dict):
        raise ValueError("no fingerprints")
