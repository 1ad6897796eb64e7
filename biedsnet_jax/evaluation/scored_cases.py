"""Opens what an evaluation of a workdir scores: the run's test split, named cases, or
other data.

Cases that the run was trained or validated on are recognised by name in the run's own
data, and by the content of their files anywhere.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from biedsnet_jax.config import build_data, run_config, run_split, split_record
from biedsnet_jax.config.build_data import Data
from biedsnet_jax.data import splits
from biedsnet_jax.errors import listed
from biedsnet_jax.evaluation import evaluations
from biedsnet_jax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Scope:
    """Which cases are scored: the run's own test split where `differs` is empty."""

    # Field -> [value of the run, value here].
    differs: Mapping[str, list] = dataclasses.field(default_factory=dict)
    # Scored case -> side on which the run had it. None: not known.
    trained_on: Mapping[str, str] | None = dataclasses.field(default_factory=dict)
    # How results name other data.
    dataset: str = ""
    # One hash of the files of all scored cases, whatever they are called; None where
    # there are none, and on all processes but the first.
    fingerprint: str | None = None


def open_data(cfg: ConfigDict, workdir: Path) -> tuple[Data, Scope]:
    """Opens the data of an evaluation, with the cases to score as their test side.

    These are the cases that split.test names where it differs from the run's; else the
    recorded test split of the run's own data, or all cases of another data set. Raises
    BadInput where there are none, and where cases of the run are missing.
    """
    saved = run_config.load(workdir)
    record = run_split.find_record(cfg, workdir)
    source = build_data.open_source(cfg)
    root = build_data.data_root(cfg)
    here = [str(name) for name in cfg.split.test]
    there = [str(name) for name in saved.split.test]
    names = here if here != there else []
    differs = {"split.test": [there, names]} if names else {}
    if _is_of_run(record, saved, workdir, source, root):
        data, record = _open_own(
            record, saved, workdir, (source, root), named=bool(names)
        )
        if names:
            data = dataclasses.replace(data, test=_chosen(data.source.cases, names))
        run_split.check_any(data.test, "slices of the cases to score", root)
        prints = _prints_of(data)
        seen = _seen_in(record, data, prints, own=True)
        scope = Scope(differs, seen, fingerprint=split_record.joined(prints.values()))
    else:
        chosen = _chosen(source.cases, names or ["*"])
        data = Data(source, train=[], val=[], test=chosen, root=root)
        before = record.root if record else build_data.data_root(saved)
        # Without a name of its own, other data is called by its folder.
        renamed = cfg.data.name != saved.data.name
        dataset = cfg.data.name if renamed else os.path.basename(root)
        differs = {"data.root": [before, root]} | differs
        prints = _prints_of(data)
        seen = _seen_in(record, data, prints, own=False)
        fingerprint = split_record.joined(prints.values())
        scope = Scope(differs, seen, dataset, fingerprint)
        _warn_of_same_names(record, scope, data)
    _warn_of_seen(scope, data, workdir)
    return data, scope


def open_together(cfg: ConfigDict, workdirs: Sequence[Path]) -> tuple[Data, Scope]:
    """Opens the data of an evaluation of several workdirs as one model.

    They are the data and the cases of the first, see `open_data`. Cases that any of the
    models was trained or validated on are recognised. Of one workdir it is `open_data`.
    """
    data, scope = open_data(cfg, workdirs[0])
    others = workdirs[1:]
    if not others:
        return data, scope
    seen = [_seen_by(workdir, data, cfg) for workdir in others]
    for workdir, one in zip(others, seen):
        if one is None:
            _warn_of_seen(Scope(trained_on=None), data, workdir)
    _warn_of_seen(Scope(trained_on=_joined(seen) or {}), data, others[0])
    places = [str(workdir.resolve()) for workdir in workdirs]
    differs = {**scope.differs, evaluations.MEMBERS: [places[:1], places]}
    trained_on = _joined([scope.trained_on, *seen])
    return data, dataclasses.replace(scope, differs=differs, trained_on=trained_on)


def _seen_by(workdir, data, cfg) -> dict[str, str] | None:
    """Maps scored cases that the model of a workdir was trained on to their side there."""
    saved = run_config.load(workdir)
    record = run_split.find_record(saved, workdir)
    own = _is_of_run(record, saved, workdir, data.source, data.root)
    # Cases that are drawn have no folder to tell them by.
    if cfg.data.source == "phantom":
        own = own and cfg.data.phantom == saved.data.phantom
    return _seen_in(record, data, own=own)


def _joined(seen: Sequence[Mapping[str, str] | None]) -> dict[str, str] | None:
    """Joins what several models have seen; training wins over validation.

    None where one of them is not known and the others have seen none.
    """
    sides = {}
    for wanted in split_record.SEEN:
        for one in seen:
            found = (one or {}).items()
            sides |= {case: side for case, side in found if side == wanted}
    return None if None in seen and not sides else dict(sorted(sides.items()))


def _open_own(record, saved, workdir, place, *, named):
    """Opens the run's own data at `place`, (source, root).

    Returns the data on the sides of the run, and its record or None.
    """
    source, root = place
    if record is None:
        return _open_unrecorded(saved, workdir, source, root, named=named)
    if not named:
        # Data that was moved has the cases of the test, and need not have the others.
        if _same_folder(record.root, root):
            run_split.check_missing(record, source, workdir, root)
        source = run_split.without_added(record, source, workdir, root)
    return run_split.follow(record, source, workdir, root), record


def _open_unrecorded(saved, workdir, source, root, *, named):
    """Opens the data of a workdir without a record, dealt as for its training.

    The split is recorded where it gives the test cases that results.json lists.
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
        workdir, "Its results.json has the same cases, so they are recorded now."
    )
    return data, record


def of_training(workdir: Path, data: Data) -> Scope:
    """The scope of the test at the end of a training on `data`."""
    fingerprint = split_record.joined(_prints_of(data).values())
    record = split_record.load(workdir)
    if record is None:
        return Scope(fingerprint=fingerprint)
    seen = record.seen_by_content(record.sides["test"], record.fingerprints)
    return Scope(trained_on=seen, fingerprint=fingerprint)


def _is_of_run(record, saved, workdir, source, root):
    """Whether the data are the run's own, in their place or moved."""
    before = record.root if record else build_data.data_root(saved)
    if _same_folder(before, root):
        return True
    if record is None:
        # Without fingerprints data count as moved only where the old place is empty.
        if before and os.path.isdir(before):
            return False
        tested = run_split.tested_cases(workdir)
        return tested is None or set(tested) <= set(source.cases)
    files = source.facts.files
    tests = record.sides["test"]
    there = set(source.cases) | set(files)
    # A larger set that has the run's cases too is another one: all of it is scored.
    if not set(tests) <= there or not there <= record.cases | set(record.left_out):
        return False
    return not record.changed(run_split.files_of(files, tests))


def _same_folder(one: str, other: str) -> bool:
    # Data that is made up has no folder.
    if not one or not other:
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def _chosen(cases, names):
    """Indices of the slices whose case fits a name or pattern.

    Raises BadInput for a name that fits no case.
    """
    known = set(cases)
    chosen = set()
    for name in names:
        chosen |= splits.fitting(name, known, "split.test")
    return run_split.indices(cases, chosen)


def _prints_of(data) -> dict[str, str]:
    """Fingerprint of each scored case that has files."""
    # The first process writes the results, so it alone need read the files.
    if not processes.is_first():
        return {}
    files = run_split.files_of(data.source.facts.files, data.cases("test"))
    return split_record.fingerprints(files)


def _seen_in(record, data, prints=None, *, own) -> dict[str, str] | None:
    """Maps scored cases that the run was trained or validated on to their side.

    `prints` are their fingerprints, where they are known already.
    """
    if record is None:
        return None
    if not processes.is_first():
        return {}
    cases = data.cases("test")
    known = _prints_of(data) if prints is None else prints
    seen = record.seen_by_content(cases, known)
    return seen | record.seen_by_name(cases) if own else seen


def _warn_of_same_names(record, scope, data):
    """Warns of cases of other data that have the name of a training case but other files.

    They may be the same patients with masks of another reader, or files saved again.
    """
    if record is None or not processes.is_first():
        return
    cases = data.cases("test")
    alike = [
        case for case in record.seen_by_name(cases) if case not in scope.trained_on
    ]
    if alike:
        build_data.warn(
            f"{len(alike)} of the {len(cases)} cases scored have the name of a case that the "
            f"model was trained or validated on, and other files: {listed(alike)}. Where they are "
            "the same patients, their scores are not those of unseen ones."
        )


def _warn_of_seen(scope, data, workdir):
    if scope.trained_on is None:
        build_data.warn(
            f"{workdir} has no record of its split, so cases of its training may be scored here "
            "unnoticed."
        )
    elif scope.trained_on:
        names = [f"{case} ({side})" for case, side in scope.trained_on.items()]
        build_data.warn(
            f"The model was trained or validated on {len(names)} of the {len(data.cases('test'))} "
            f"cases scored: {listed(names)}."
        )
