"""The split of a run: recorded when it starts, kept from then on, whatever is added to
its data.

A case that was added since lies on no side. One that is missing stops whoever needs it.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from biedsnet_jax.checkpoints import checkpoint_folder
from biedsnet_jax.config import build_data, split_record
from biedsnet_jax.config.build_data import Data
from biedsnet_jax.config.split_record import SIDES, SplitRecord
from biedsnet_jax.data import walk
from biedsnet_jax.data.sources.source import Example, Facts, Source
from biedsnet_jax.errors import BadInput, listed
from biedsnet_jax.runtime import files, processes


def open_training(cfg: ConfigDict, workdir: Path) -> Data:
    """The data of a run that starts or goes on, each case on the side that it had at
    the start.

    A student has its teacher's sides. Raises BadInput where recorded cases are missing.
    """
    record = find_record(cfg, workdir)
    source, root = build_data.open_source(cfg), build_data.data_root(cfg)
    if record is not None:
        check_missing(record, source, workdir, root)
        data = follow(
            record, without_added(record, source, workdir, root), workdir, root
        )
        for side in SIDES:
            check_any(getattr(data, side), f"slices of the side {side}", root)
        return data
    data = build_data.deal(cfg, source, root)
    for folder in (workdir, *_teacher(cfg)):
        check_tested(folder, data)
        if _is_trained(folder):
            where = "" if folder == workdir else f" in {workdir}"
            tell_unrecorded(folder, f"They are recorded now{where}.")
    return data


def write(cfg: ConfigDict, workdir: Path, data: Data) -> None:
    """Record the split of a run that starts, and what was passed over in its data."""
    if not _is_begun(workdir) or split_record.load(workdir) is None:
        record = next(
            filter(None, map(split_record.load, _teacher(cfg))), None
        ) or make(data)
        twins = record.seen_by_content(record.sides["test"], record.fingerprints)
        if twins:
            build_data.warn(
                f"The test has {counted(twins)} with the same content as a case of training or "
                "validation. Keep one of each, or the scores promise too much."
            )
        save(workdir, record)
    with files.writing(workdir):
        walk.write_record(workdir, data.source.facts.passed)


def make(data: Data) -> SplitRecord:
    """The record of a split."""
    sides = {side: data.cases(side) for side in SIDES}
    dealt = {case for names in sides.values() for case in names}
    files = {
        case: paths for case, paths in data.source.facts.files.items() if case in dealt
    }
    left_out = sorted(set(data.source.cases) - dealt)
    return SplitRecord(data.root, sides, split_record.fingerprints(files), left_out)


def find_record(cfg: ConfigDict, workdir: Path) -> SplitRecord | None:
    """The record of a run that was started, else of its teacher."""
    record = split_record.load(workdir) if _is_begun(workdir) else None
    if record is None:
        record = next(filter(None, map(split_record.load, _teacher(cfg))), None)
    return record


def _teacher(cfg) -> list[Path]:
    """The workdir of a student's teacher; none of another run."""
    return [Path(cfg.distill.teacher)] if "distill" in cfg else []


def _is_begun(workdir):
    return (workdir / "config.json").exists() or _is_trained(workdir)


def _is_trained(workdir):
    """Whether steps were taken: an imported workdir has a checkpoint of step 0."""
    return any(checkpoint_folder.steps(workdir / "checkpoints"))


def check_missing(
    record: SplitRecord, source: Source, workdir: Path, root: str
) -> None:
    """Raise BadInput where a case of any side is not there."""
    # A case may be there without slices, as by data.min_foreground.
    there = set(source.cases) | set(source.facts.files)
    missing = [
        case for side in SIDES for case in record.sides[side] if case not in there
    ]
    if missing:
        raise BadInput(
            f"Missing from {root or 'the data'}: {counted(missing)} of the {len(record.cases)} that "
            f"the run in {workdir} was split into. Restore the data, or train anew in another "
            "--workdir."
        )


def without_added(
    record: SplitRecord, source: Source, workdir: Path, root: str
) -> Source:
    """The source without cases that came since: a slice keeps its number, and with it
    its noise.
    """
    known = record.cases | set(record.left_out)
    added = sorted(set(source.cases) - known)
    if not added:
        return source
    build_data.warn(
        f"Left out: {counted(added)}, which {root or 'the data'} did not have when the run in "
        f"{workdir} started."
    )
    return Part(source, [i for i, case in enumerate(source.cases) if case in known])


def follow(record: SplitRecord, source: Source, workdir: Path, root: str) -> Data:
    """The source on the recorded sides; cases that hold other bytes now are named."""
    # Reading the files in one process is enough.
    if processes.is_first():
        changed = record.changed(files_of(source.facts.files, record.cases))
        if changed:
            build_data.warn(
                f"Changed since the run in {workdir} started: the files of {counted(changed)} in "
                f"{root}. Restore them, unless they were repaired on purpose."
            )
    sides = {side: indices(source.cases, record.sides[side]) for side in SIDES}
    return Data(source, **sides, root=root)


@dataclasses.dataclass(frozen=True)
class Part:
    """The examples `indices` of a source, as a source."""

    source: Source
    indices: Sequence[int]

    @functools.cached_property
    def cases(self) -> list[str]:
        """The case of every index."""
        of_all = self.source.cases
        return [of_all[i] for i in self.indices]

    @property
    def facts(self) -> Facts:
        return self.source.facts

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.indices[index]]

    def verify(self) -> None:
        self.source.verify()


def tested_cases(workdir: Path) -> list[str] | None:
    """The cases of results.json, sorted; None where it is not there or does not say.

    Nor does it where it was scored without knowing what the model was trained on: it
    proves nothing.
    """
    try:
        results = json.loads((workdir / "results.json").read_text())
        if "trained_on" in results and results["trained_on"] is None:
            return None
        return sorted(map(str, results["cases"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_tested(workdir: Path, data: Data) -> None:
    """Raise BadInput where a workdir without a record was tested on other cases than
    are dealt.
    """
    tested = tested_cases(workdir)
    if tested is not None and tested != data.cases("test"):
        other = sorted(set(tested) ^ set(data.cases("test")))
        raise BadInput(
            f"The data changed since {workdir} was tested, which has no record of its split: "
            f"{counted(other)} would change sides. Restore the data as they were, or score named "
            "cases with --mode=evaluate --config.split.test=\"('NAME',)\"."
        )


def tell_unrecorded(workdir: Path, what: str) -> None:
    """Say that a workdir is of an earlier version, and what follows from it."""
    build_data.warn(
        f"{workdir} has no record of its split, so its cases are dealt as its config says. {what}"
    )


def counted(names: Iterable[str]) -> str:
    """Such as "2 cases (a, b)"."""
    names = list(names)
    return f"{len(names)} case{'s' * (len(names) != 1)} ({listed(names)})"


def files_of(files: Mapping[str, Any], cases: Iterable[str]) -> dict[str, Any]:
    """The files of these cases, of those that have any."""
    chosen = set(cases)
    return {case: paths for case, paths in files.items() if case in chosen}


def indices(cases: Sequence[str], chosen: Iterable[str]) -> list[int]:
    """The numbers of the slices of these cases."""
    chosen = set(chosen)
    return [i for i, case in enumerate(cases) if case in chosen]


def check_any(chosen, what, root):
    """Raise BadInput where no slice is chosen."""
    if not chosen:
        raise BadInput(
            f"{root or 'The source'} has no {what}. Restore the files of its cases."
        )


def save(workdir: Path, record: SplitRecord) -> None:
    """Write a record. Raises BadInput where it cannot be written."""
    with files.writing(workdir):
        split_record.save(workdir, record)
