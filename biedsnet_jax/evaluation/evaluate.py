"""Mode evaluate: predicts the scans of the test split as mode predict does, scores the
masks that it would write, and writes the files of `results_folder`.
"""

import collections
import contextlib
import math
import pathlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from biedsnet_jax.config import build_data, members
from biedsnet_jax.data import walk
from biedsnet_jax.data.sources.source import LabelledScan
from biedsnet_jax.errors import BadInput
from biedsnet_jax.evaluation import (
    evaluations,
    recording,
    results_folder,
    scan_scores,
    scored_cases,
)
from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.prediction import ensembles, predictor, read_ahead, trained
from biedsnet_jax.runtime import console, lock, processes, progress

# Fields of a run that an evaluation may change, beside those that every mode may.
FREE = ("split.test", "data.name", "data.ignore", "data.unannotated")


def run(cfg, workdir: members.Workdirs) -> dict | None:
    """Scores the best checkpoint of `workdir`; returns the content of results.json.

    `workdir` may name several, with commas or as a list, whose models predict together.
    The data, and the place of the results, are then those of the first. Of the run's
    own data the test split is scored, of other data all cases; or, of either, the cases
    that split.test names.
    """
    workdirs = members.folders(workdir)
    workdir = workdirs[0]
    model = ensembles.load(workdirs, cfg, free=FREE)
    with _lock(workdir):
        with processes.first_alone("data"):
            data, scope = scored_cases.open_together(cfg, workdirs)
        passed = walk.summary(data.source.facts.passed)
        if passed and processes.is_first():
            console.tell(passed, sys.stdout)
        return _evaluate(predictor.of_model(model), workdir, data, scope)


def evaluate(
    model: trained.Trained,
    workdir: pathlib.Path,
    data: build_data.Data,
    scope: scored_cases.Scope | None = None,
    *,
    made: predictor.Predictor | None = None,
) -> dict | None:
    """Scores a model on the test side of `data`, by default the run's own.

    `made` is a predictor of the model that has compiled its programs.
    Every process predicts; the first scores, writes the files and returns the content
    of results.json, the others wait and return None.
    """
    held = contextlib.nullcontext()
    if processes.is_first():
        # A mode evaluate may be scoring the same workdir: the training waits for it.
        held = lock.wait(workdir, name=evaluations.LOCK, say=processes.say)
    made = made or predictor.of_model(model)
    with held:
        return _evaluate(made, workdir, data, scope or scored_cases.Scope())


def _lock(workdir):
    """A lock of the first process, so that no two evaluations write the same files."""
    if processes.is_first():
        return lock.Lock(workdir, name=evaluations.LOCK)
    return contextlib.nullcontext()


def _evaluate(made, workdir, data, scope):
    scores, seconds = _score(made, data)
    recorded = recording.record(made, data, scores)
    results = None
    if processes.is_first():
        scored = results_folder.Scored(scores, seconds, recorded)
        results = results_folder.save(made.model, workdir, data, scope, scored)
    processes.barrier("evaluated")
    return results


def _score(made, data) -> tuple[scan_scores.Scores, float]:
    """Predicts the scans of the test side of `data`; the first process scores them.

    Returns the scores, and the seconds that the predictions took.
    """
    cfg = made.model.config
    first = processes.is_first()
    scores = scan_scores.Scores(cfg, Tally(cfg.data.classes, cfg.threshold))
    seconds = 0.0
    waiting = collections.deque()
    bar = progress.Progress("test", len(data.test), quiet=not first)
    # One scan is scored while the next are predicted.
    with contextlib.closing(bar), ThreadPoolExecutor(1) as scorer:
        for group in read_ahead.ahead(scan_groups(cfg, data, data.test)):
            _check_grids(made, group)
            predictions = made.predict(group, keep_uncertainty=False)
            seconds += sum(one.seconds for one in predictions)
            if first:
                waiting += [
                    scorer.submit(scores.add, scan, prediction)
                    for scan, prediction in zip(group, predictions)
                ]
            # No more than one group waits, since volumes are large.
            while len(waiting) > len(group):
                waiting.popleft().result()
            _show(bar, scores)
        for one in waiting:
            one.result()
        _show(bar, scores)
    return scores, seconds


def _check_grids(made, group):
    """Raises BadInput for a scan that cannot be resampled as the training's were."""
    for scan in group:
        try:
            made.way(scan)
        except BadInput as error:
            raise BadInput(f"Case {scan.case}: {error}") from None


def scan_groups(
    cfg, data: build_data.Data, indices: list[int]
) -> Iterator[list[LabelledScan]]:
    """Reads the scans of some slices' cases, in the groups that mode predict predicts."""
    cases = dict.fromkeys(data.source.cases[i] for i in indices)
    scans = (scan for case in cases for scan in data.source.scans(case))
    size = cfg.eval.batch_size
    yield from read_ahead.grouped(scans, lambda scan: not scan.is_volume, size)


def _show(bar, scores):
    done = min(len(scores.places), bar.total)
    bar.update(done, _dice_so_far(scores.tally.dice))


def _dice_so_far(dice):
    known = [one for one in dice if not math.isnan(one)]
    return {"Dice": sum(known) / len(known)} if known else {}
