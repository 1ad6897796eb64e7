"""What an evaluation of a workdir scores: its run's test split, named cases, or other
data.

What of it the run was trained or validated on is found by name on the run's own data,
and by the content of files anywhere.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from biedsnet_jax.config import build_data, run_config, run_split, split_record
from biedsnet_jax.config.build_data import Data
from biedsnet_jax.data import splits
from biedsnet_jax.errors import listed
from biedsnet_jax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Scope:
    """The run's own test split, where `differs` is empty, or other cases."""

    # field -> [run's, here]
    differs: Mapping[str, list] = dataclasses.field(default_factory=dict)
    # Case -> side on which the run had it, of the cases scored. None: not known.
    trained_on: Mapping[str, str] | None = dataclasses.field(default_factory=dict)
    dataset: str = ""  # what results call other data


def open_data(cfg: ConfigDict, workdir: Path) -> tuple[Data, Scope]:
    """What an evaluation of a workdir scores, as the test side of its data.

    That is the recorded test split; the cases that split.test names, where it is not
    the run's; and of another data set all cases, or those named. Raises BadInput where
    there are none, and where the run's own are missing.
    """
    saved, record = run_config.load(workdir), run_split.find_record(cfg, workdir)
    source, root = build_data.open_source(cfg), build_data.data_root(cfg)
    here, there = ([str(name) for name in c.split.test] for c in (cfg, saved))
    names = here if here != there else []
    differs = {"split.test": [there, names]} if names else {}
    if _is_of_run(record, saved, workdir, source, root):
        data, record = _open_own(
            record, saved, workdir, (source, root), named=bool(names)
        )
        if names:
            data = dataclasses.replace(data, test=_chosen(data.source.cases, names))
        run_split.check_any(data.test, "slices of the cases to score", root)
        scope = Scope(differs, _seen_in(record, data, own=True))
    else:
        data = Data(source, [], [], _chosen(source.cases, names or ["*"]), root=root)
        before = record.root if record else build_data.data_root(saved)
        dataset = (
            cfg.data.name
            if cfg.data.name != saved.data.name
            else os.path.basename(root)
        )
        differs = {"data.root": [before, root]} | differs
        scope = Scope(differs, _seen_in(record, data, own=False), dataset)
        _tell_same_names(record, scope, data)
    _tell_seen(scope, data, workdir)
    return data, scope


def _open_own(record, saved, workdir, place, *, named):
    """(the run's own data on its sides, its record as far as it is known); `place` is
    (source, root).
    """
    source, root = place
    if record is None:
        return _open_unrecorded(saved, workdir, source, root, named=named)
    if not named:
        # Elsewhere the test's cases are there, and those of training need not be.
        if _same_folder(record.root, root):
            run_split.check_missing(record, source, workdir, root)
        source = run_split.without_added(record, source, workdir, root)
    return run_split.follow(record, source, workdir, root), record


def _open_unrecorded(saved, workdir, source, root, *, named):
    """The same of a workdir without a record, whose cases are dealt as they were for
    it.

    Where its results.json has the cases that this gives for the test, they are
    recorded.
    """
    data = build_data.deal(saved, source, root)
    tested = run_split.tested_cases(workdir)
    if not named:
        run_split.check_tested(workdir, data)
    if tested != data.cases("test"):
        return data, None
    record = run_split.make(data)
    if processes.is_first():
        run_split.save(workdir, record)
    run_split.warn_unrecorded(
        workdir, "They are those of its results.json, and recorded now."
    )
    return data, record


def of_training(workdir: Path) -> Scope:
    """The scope of the test that training ends with."""
    record = split_record.load(workdir)
    if record is None:
        return Scope()
    return Scope(
        trained_on=record.seen_by_content(record.sides["test"], record.fingerprints)
    )


def _is_of_run(record, saved, workdir, source, root):
    """Whether the data are the run's own, where they were or moved."""
    before = record.root if record else build_data.data_root(saved)
    if _same_folder(before, root):
        return True
    if record is None:
        # Without fingerprints data count as moved where nothing is left behind.
        if before and os.path.isdir(before):
            return False
        tested = run_split.tested_cases(workdir)
        return tested is None or set(tested) <= set(source.cases)
    files, tests = source.facts.files, record.sides["test"]
    there = set(source.cases) | set(files)
    # A larger set that has these cases too is another one: all its cases are to be
    # scored.
    if not set(tests) <= there or not there <= record.cases | set(record.left_out):
        return False
    return not record.changed(run_split.files_of(files, tests))


def _same_folder(one: str, other: str) -> bool:
    return (
        os.path.realpath(one) == os.path.realpath(other)
        if one and other
        else one == other
    )


def _chosen(cases, names):
    """Indices of the cases of these names or patterns. Raises BadInput where one fits
    none.
    """
    known = set(cases)
    chosen = set().union(*(splits.fitting(name, known, "test") for name in names))
    return run_split.indices(cases, chosen)


def _seen_in(record, data, *, own) -> dict[str, str] | None:
    """Case -> side, of the scored cases that the run was trained or validated on."""
    if record is None:
        return None
    # The first process alone reads their files: it writes the results.
    if not processes.is_first():
        return {}
    cases = data.cases("test")
    scored = run_split.files_of(data.source.facts.files, cases)
    seen = record.seen_by_content(cases, split_record.fingerprints(scored))
    return seen | record.seen_by_name(cases) if own else seen


def _tell_same_names(record, scope, data):
    """Say which cases of other data are called as cases of the training and hold other
    bytes.

    They may be the same patients with masks of another reader, or files that were saved
    again.
    """
    if record is None or not processes.is_first():
        return
    cases = data.cases("test")
    alike = [
        case for case in record.seen_by_name(cases) if case not in scope.trained_on
    ]
    if alike:
        build_data.warn(
            f"{len(alike)} of the {len(cases)} cases scored have the name of a case that the model was trained or "
            f"validated on, and other files: {listed(alike)}. Where they are the same patients, "
            "their scores are not those of unseen ones."
        )


def _tell_seen(scope, data, workdir):
    if scope.trained_on is None:
        build_data.warn(
            f"{workdir} has no record of its split. Whether cases of its training are scored here "
            "cannot be told."
        )
    elif scope.trained_on:
        names = [f"{case} ({side})" for case, side in scope.trained_on.items()]
        build_data.warn(
            f"The model was trained or validated on {len(names)} of the {len(data.cases('test'))} "
            f"cases scored: {listed(names)}."
        )
