"""The split of a run, recorded when it starts and kept from then on.

A case that is added later lies on no side. A missing one stops the modes that need it.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from biedsnet_jax.checkpoints import checkpoint_folder
from biedsnet_jax.config import build_data, split_record
from biedsnet_jax.config.build_data import Data
from biedsnet_jax.config.split_record import SIDES, SplitRecord
from biedsnet_jax.data import walk
from biedsnet_jax.data.sources.source import Example, Facts, LabelledScan, Source
from biedsnet_jax.errors import BadInput, listed
from biedsnet_jax.runtime import files, processes


def open_training(cfg: ConfigDict, workdir: Path) -> Data:
    """Opens the data of a run that starts or goes on, on the split of its start.

    A student has its teacher's split. Raises BadInput where recorded cases are missing.
    """
    record = find_record(cfg, workdir)
    source = build_data.open_source(cfg)
    root = build_data.data_root(cfg)
    if record is not None:
        check_missing(record, source, workdir, root)
        source = without_added(record, source, workdir, root)
        data = follow(record, source, workdir, root)
        for side in SIDES:
            check_any(getattr(data, side), f"slices of the side {side}", root)
        return data
    data = build_data.deal(cfg, source, root)
    folders = [workdir]
    if "distill" in cfg:
        folders.append(Path(cfg.distill.teacher))
    for folder in folders:
        check_tested(folder, data)
        if _is_trained(folder):
            where = "" if folder == workdir else f" in {workdir}"
            warn_unrecorded(folder, f"They are recorded now{where}.")
    return data


def write(cfg: ConfigDict, workdir: Path, data: Data) -> None:
    """Records the split of a run that starts, and what was passed over in its data."""
    if _own_record(workdir) is None:
        record = _teachers_record(cfg) or make(data)
        twins = record.seen_by_content(record.sides["test"], record.fingerprints)
        if twins:
            build_data.warn(
                f"The test has {counted(twins)} with the same content as a case of training "
                "or validation. Keep one of each, or the scores promise too much."
            )
        save(workdir, record)
    with files.writing(workdir):
        walk.write_record(workdir, data.source.facts.passed)


def make(data: Data) -> SplitRecord:
    """Makes the record of a split."""
    sides = {side: data.cases(side) for side in SIDES}
    dealt = {case for names in sides.values() for case in names}
    prints = split_record.fingerprints(files_of(data.source.facts.files, dealt))
    left_out = sorted(set(data.source.cases) - dealt)
    return SplitRecord(data.root, sides, prints, left_out)


def find_record(cfg: ConfigDict, workdir: Path) -> SplitRecord | None:
    """The record of a run that was started, else that of its teacher."""
    return _own_record(workdir) or _teachers_record(cfg)


def _own_record(workdir):
    # A record without a config or a step is of a run that never began.
    if (workdir / "config.json").exists() or _is_trained(workdir):
        return split_record.load(workdir)
    return None


def _teachers_record(cfg):
    if "distill" not in cfg:
        return None
    return split_record.load(Path(cfg.distill.teacher))


def _is_trained(workdir):
    """Whether a step was taken; an imported workdir has a checkpoint of step 0."""
    return any(checkpoint_folder.steps(workdir / "checkpoints"))


def check_missing(
    record: SplitRecord, source: Source, workdir: Path, root: str
) -> None:
    """Raises BadInput where a recorded case of any side is missing."""
    # A case may be there without slices, because of data.min_foreground.
    there = set(source.cases) | set(source.facts.files)
    missing = [
        case for side in SIDES for case in record.sides[side] if case not in there
    ]
    if missing:
        raise BadInput(
            f"Missing from {root or 'the data'}: {counted(missing)} of the "
            f"{len(record.cases)} that the run in {workdir} was split into. Restore the "
            "data, or train anew in another --workdir."
        )


def without_added(
    record: SplitRecord, source: Source, workdir: Path, root: str
) -> Source:
    """The source without cases that were added since, of which a warning tells.

    So a slice keeps its number, and with it its noise.
    """
    known = record.cases | set(record.left_out)
    added = sorted(set(source.cases) - known)
    if not added:
        return source
    build_data.warn(
        f"Left out: {counted(added)}, which {root or 'the data'} did not have when the run "
        f"in {workdir} started."
    )
    return Part(source, [i for i, case in enumerate(source.cases) if case in known])


def follow(record: SplitRecord, source: Source, workdir: Path, root: str) -> Data:
    """Splits a source as recorded; a warning names cases that hold other bytes now."""
    # One process reads the files for all.
    if processes.is_first():
        changed = record.changed(files_of(source.facts.files, record.cases))
        if changed:
            build_data.warn(
                f"Changed since the run in {workdir} started: the files of "
                f"{counted(changed)} in {root}. Restore them, unless they were repaired on "
                "purpose."
            )
    train, val, test = (indices(source.cases, record.sides[side]) for side in SIDES)
    return Data(source, train=train, val=val, test=test, root=root)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a source as a source of its own: the examples `indices`."""

    source: Source
    indices: Sequence[int]

    @functools.cached_property
    def cases(self) -> list[str]:
        """Case of each example."""
        cases = self.source.cases
        return [cases[i] for i in self.indices]

    @property
    def facts(self) -> Facts:
        """Facts of the whole source."""
        return self.source.facts

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[self.indices[index]]

    def scans(self, case: str) -> Iterator[LabelledScan]:
        """Reads the scans of a case, with the numbers that its slices have here."""
        here = {i: number for number, i in enumerate(self.indices)}
        for scan in self.source.scans(case):
            numbers = [here.get(i) for i in scan.indices]
            yield dataclasses.replace(scan, indices=numbers)

    def verify(self) -> None:
        """Verifies the whole source."""
        self.source.verify()


def tested_cases(workdir: Path) -> list[str] | None:
    """Cases of results.json, sorted; None where it is missing or proves nothing."""
    try:
        results = json.loads((workdir / "results.json").read_text())
        # It was scored without knowing what the model was trained on.
        if "trained_on" in results and results["trained_on"] is None:
            return None
        return sorted(map(str, results["cases"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_tested(workdir: Path, data: Data) -> None:
    """Raises BadInput where a workdir without a record was tested on other cases."""
    tested = tested_cases(workdir)
    if tested is not None and tested != data.cases("test"):
        other = sorted(set(tested) ^ set(data.cases("test")))
        raise BadInput(
            f"The data changed since {workdir} was tested, which has no record of its "
            f"split: {counted(other)} would change sides. Restore the data as they were, or "
            "score named cases with --mode=evaluate --config.split.test=\"('NAME',)\"."
        )


def warn_unrecorded(workdir: Path, consequence: str) -> None:
    """Warns that a workdir is of an earlier version, and of what follows from it."""
    build_data.warn(
        f"{workdir} has no record of its split, so its cases are dealt as its config says. "
        f"{consequence}"
    )


def warn_seen(source: Path, data: Data) -> None:
    """Warns of test cases whose content the run in `source` has seen in its training."""
    record = split_record.load(source) if source.is_dir() else None
    if record is None:
        return
    cases = data.cases("test")
    prints = split_record.fingerprints(files_of(data.source.facts.files, cases))
    if seen := record.seen_by_content(cases, prints):
        build_data.warn(
            f"The run in {source}, whose weights this one starts from, was trained or "
            f"validated on {counted(seen)} of the test. Name other cases in split.test, "
            "or the scores promise too much."
        )


def counted(names: Iterable[str]) -> str:
    """Number and names of cases, such as "2 cases (a, b)"."""
    names = list(names)
    noun = "case" if len(names) == 1 else "cases"
    return f"{len(names)} {noun} ({listed(names)})"


def files_of(files: Mapping[str, Any], cases: Iterable[str]) -> dict[str, Any]:
    """Files of the given cases, for those that have any."""
    chosen = set(cases)
    return {case: paths for case, paths in files.items() if case in chosen}


def indices(cases: Sequence[str], chosen: Iterable[str]) -> list[int]:
    """Indices of the slices of the chosen cases."""
    chosen = set(chosen)
    return [i for i, case in enumerate(cases) if case in chosen]


def check_any(chosen, what, root):
    """Raises BadInput where no slice is chosen; `what` names the slices."""
    if not chosen:
        raise BadInput(
            f"{root or 'The source'} has no {what}. Restore the files of its cases."
        )


def save(workdir: Path, record: SplitRecord) -> None:
    """Writes a record. Raises BadInput where it cannot be written."""
    with files.writing(workdir):
        split_record.save(workdir, record)
