"""Which case lies on which side of a run's split, and what its files held: `split.json`
of a workdir.

It is written when a run starts. From then on the split is this one, whatever is added
to the data.
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
# Sides that a model was made with, the one that tells most last.
SEEN = ("val", "train")


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """The cases of each side of SIDES, where their data lay, and a fingerprint of each
    case.
    """

    root: str  # an absolute path; empty for a source that reads no folder
    sides: Mapping[str, Sequence[str]]
    fingerprints: Mapping[str, str]  # empty for a source that reads no files
    left_out: Sequence[str] = ()  # cases that were there and lie on no side

    @property
    def cases(self) -> set[str]:
        """The cases of all sides."""
        return {case for side in SIDES for case in self.sides[side]}

    def changed(self, of_cases: Mapping[str, Sequence[Path]]) -> list[str]:
        """Those of the cases that hold other bytes than were recorded, sorted.

        A case is passed over where either side has no files to compare.
        """
        known = {
            case: paths for case, paths in of_cases.items() if case in self.fingerprints
        }
        now = fingerprints(known)
        return sorted(
            case for case, found in now.items() if found != self.fingerprints[case]
        )

    def seen_by_name(self, cases: Iterable[str]) -> dict[str, str]:
        """Case -> side, of the cases that were trained or validated on."""
        side_of = {case: side for side in SEEN for case in self.sides[side]}
        return {case: side_of[case] for case in sorted(cases) if case in side_of}

    def seen_by_content(
        self, cases: Iterable[str], prints: Mapping[str, str]
    ) -> dict[str, str]:
        """The same by their fingerprints, whatever they are called."""
        side_of = {
            self.fingerprints[case]: side
            for side in SEEN
            for case in self.sides[side]
            if case in self.fingerprints
        }
        found = {case: side_of.get(prints.get(case, "")) for case in sorted(cases)}
        return {case: side for case, side in found.items() if side}


def fingerprints(of_cases: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """A hash of what each case's files hold, whatever the case and its files are
    called.

    Raises BadInput for a file that cannot be read.
    """

    def of_file(path: Path) -> str:
        try:
            return files.fingerprint(path)
        except OSError as error:
            raise BadInput(
                f"Cannot read {path}: {reason(error)}. Replace or remove it."
            ) from error

    paths = [path for of_case in of_cases.values() for path in of_case]
    with ThreadPoolExecutor() as pool:
        known = dict(zip(paths, pool.map(of_file, paths)))
    return {
        case: hashlib.sha256(
            "".join(sorted(known[path] for path in of_case)).encode()
        ).hexdigest()[:32]
        for case, of_case in of_cases.items()
    }


def save(workdir: Path, record: SplitRecord) -> None:
    """Write the record of a run that starts."""
    files.write_json(workdir / NAME, dataclasses.asdict(record))


def load(workdir: Path) -> SplitRecord | None:
    """The record of a run; None where an earlier version started it. Raises BadInput
    for a damaged one.
    """
    path = workdir / NAME
    try:
        fields = {"left_out": (), **json.loads(path.read_text())}
        record = SplitRecord(**fields | {"left_out": tuple(fields["left_out"])})
        names = [name for side in SIDES for name in record.sides[side]]
        sound = all(isinstance(name, str) for name in names) and len(names) == len(
            set(names)
        )
        sound = sound and all(isinstance(name, str) for name in record.left_out)
        sound = (
            sound
            and isinstance(record.root, str)
            and isinstance(record.fingerprints, dict)
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, reason(error)) from error
    if not sound:
        raise _damaged(path, "no lists of cases")
    return record


def _damaged(path: Path, what: str) -> BadInput:
    return BadInput(
        f"{path} is damaged: {what}. Restore it from a copy: it says which cases the run was trained on."
    )
