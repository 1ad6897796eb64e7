"""Mode evaluate: predicts the scans of the test split as mode predict does, scores the
masks that it would write, and writes the files.

These are `results.json`, `slices.csv`, `cases.csv`, of volumes `volumes.csv` and, with
eval.lesions, `lesions.csv`; then what the report shows of a few slices, and the report.
An evaluation that is not the run's own goes into a folder of its own, see `evaluations`.
"""

import collections
import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax

from biedsnet_jax.config import build_data, members, run_config
from biedsnet_jax.data import walk
from biedsnet_jax.data.sources.source import LabelledScan
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.evaluation import (
    evaluations,
    hparams,
    recording,
    scan_scores,
    scored_cases,
)
from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.prediction import ensembles, predictor, read_ahead, trained
from biedsnet_jax.reporting import record, report
from biedsnet_jax.runtime import (
    console,
    csv_text,
    devices,
    extras,
    files,
    lock,
    processes,
    progress,
)
from biedsnet_jax.scoring import calibration, lesions, metrics, volumes
from biedsnet_jax.scoring.class_names import with_names
from biedsnet_jax.scoring.results import (
    CASES,
    EVALUATIONS,
    ON_FILES,
    SLICES,
    VOLUMES,
)
from biedsnet_jax.segmenters import macs

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


@dataclasses.dataclass(frozen=True)
class _Scored:
    """What the pass over the test split gave."""

    scores: scan_scores.Scores
    # Time of the predictions, without compilation.
    seconds: float
    # What the report shows; None on all processes but the first.
    recorded: record.ReportData | None


def _evaluate(made, workdir, data, scope):
    scores, seconds = _score(made, data)
    scored = _Scored(scores, seconds, recording.record(made, data, scores))
    results = None
    if processes.is_first():
        results = _save(made.model, workdir, data, scope, scored)
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


def _results(model, data, scope, scored):
    """The scores in results.json, and what they depend on."""
    cfg = model.config
    scores = scored.scores
    sampler, fusion = trained.sampling(model)
    shape = build_data.image_shape(cfg)
    ensemble = cfg.sampler.ensemble
    results = {
        "row": model.name,
        "network": cfg.network,
        "seed": cfg.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(model.variables["params"])),
        "gmacs_per_image": macs.prediction_gmacs(
            model.segmenter, model.variables, shape, ensemble=ensemble
        ),
        "dataset": scope.dataset or cfg.data.name,
        "split": "test",
        "cases": data.cases("test"),
        "fold": _fold(model),
        "size": cfg.data.size,
        "fit": cfg.data.fit,
        "grid": ON_FILES,
        "train_steps": cfg.train.steps,
        "batch_size": cfg.train.batch_size,
        "checkpoint_step": model.step,
        "dtype": cfg.dtype,
        "sampler": sampler,
        "fusion": fusion,
        "threshold": cfg.threshold,
        "postprocess": model.postprocess.to_json(),
        "nsd_tolerance": cfg.eval.nsd_tolerance,
        "nsd_tolerance_mm": cfg.eval.nsd_tolerance_mm,
        "device": f"{model.mesh.size} x {devices.device_kind(model.mesh)}",
        "calibration_error": _calibration_error(scores.tally.histogram),
        "seconds_per_image": scored.seconds / max(1, len(scores.places)),
    }
    # Only where there are any, so that results without names stay as they were.
    if cfg.data.class_names:
        results["class_names"] = list(cfg.data.class_names)
    results |= trained.together(model) | _summary(scores)
    if scores.volume_rows:
        results["volumes"] = metrics.summarise_volumes(scores.volume_rows)
    if cfg.eval.lesions:
        results["lesions"] = {
            "least_overlap": cfg.eval.lesion_overlap,
            "in_volumes": bool(scores.volume_rows),
        } | lesions.summarise(scores.lesion_rows)
    return results


def _calibration_error(histogram):
    """The expected calibration error; None where the truth of no pixel is known."""
    error = calibration.expected_calibration_error(histogram)
    return None if math.isnan(error) else error


def _fold(model):
    """The fold that a run tests, and of how many; an ensemble is of no fold."""
    split = model.config.split
    return None if model.members or not split.folds else [split.fold, split.folds]


def _summary(scores):
    """Averages the slices: "standard" on the files' grid, beside it "network_grid"."""
    summary = metrics.summarise(scores.rows)
    network = metrics.summarise(scores.network_rows)
    summary["network_grid"] = network["standard"]
    for label, of_class in summary.get("classes", {}).items():
        of_class["network_grid"] = network["classes"][label]["standard"]
    return summary


def _dice_so_far(dice):
    known = [one for one in dice if not math.isnan(one)]
    return {"Dice": sum(known) / len(known)} if known else {}


def _save(model, workdir, data, scope, scored):
    """Writes every file of an evaluation; returns the content of results.json.

    Raises BadInput where they cannot be written.
    """
    cfg = model.config
    differs = dict(scope.differs)
    if (workdir / "config.json").exists():
        saved = run_config.load(workdir)
        differs |= evaluations.differences(saved, cfg, pooled=bool(model.members))
    folder = evaluations.place(workdir, differs, scope.fingerprint)
    _tell_of_same_files(workdir, folder, data, scope)
    passed = data.source.facts.passed
    results = _results(model, data, scope, scored) | {
        "data": data.root or None,
        "fingerprint": scope.fingerprint,
        "evaluation": folder.name if differs else None,
        "differs": differs,
        "trained_on": scope.trained_on,
        "passed_over": walk.summary(passed),
    }
    if not differs:
        results[EVALUATIONS] = evaluations.index(workdir)
    # What is returned is what a reader of the file gets: lists for tuples.
    results = json.loads(json.dumps(results))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        walk.write_record(folder, passed)
        _write(folder, results, scored)
        if differs:
            if evaluations.update_index(workdir):
                _renew_report(workdir)
        # Without tensorboardX, which training alone needs, the scores are still there.
        elif cfg.log.tensorboard and extras.is_installed("train"):
            hparams.record(cfg, workdir, results)
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be written: {reason(error)}. Make room or allow writing there, "
            "then score again with --mode=evaluate."
        ) from error
    return results


def _tell_of_same_files(workdir, folder, data, scope):
    """Prints where the files of other data are known from another place."""
    if scope.fingerprint is None or "data.root" not in scope.differs:
        return
    if evaluations.fingerprint_of(workdir) == scope.fingerprint:
        line = f"{data.root} holds the files of the run's own test"
        console.tell(line, sys.stdout)
    before = evaluations.root_of(folder)
    if before and before != data.root:
        line = f"{data.root} holds the files that were scored from {before}"
        console.tell(f"{line}; {folder} is written anew", sys.stdout)


def _renew_report(workdir):
    """Writes the report of the run's own test again, which lists all evaluations."""
    try:
        report.write(workdir)
    except BadInput as error:
        # The scores of this evaluation are complete whatever became of the others.
        processes.say(f"warning: the report of {workdir} stays as it is: {error}")


def _write(folder, results, scored):
    """Writes the tables, results.json and the report."""
    scores = scored.scores
    slices = [
        row | {"entropy": bits} for row, bits in zip(scores.rows, scores.tally.entropy)
    ]
    lesion_rows = scores.lesion_rows if scores.config.eval.lesions else None
    cases = volumes.case_rows(scores.rows, lesion_rows, scores.pixel_mm2)
    names = scores.config.data.class_names
    _write_rows(folder / SLICES, with_names(slices, names))
    _write_rows(folder / CASES, with_names(cases, names))
    _write_rows(folder / VOLUMES, with_names(scores.volume_rows, names))
    if lesion_rows is not None:
        lesion_rows = with_names(lesion_rows, names)
    _write_rows(folder / "lesions.csv", lesion_rows, lesions.COLUMNS)
    record.save(folder, scored.recorded)
    files.write_json(folder / "results.json", results)
    report.write(folder)


def _write_rows(path, rows, columns=()):
    """Writes a table, of no rows with `columns` alone.

    Where there is no table now, that of an earlier evaluation goes.
    """
    if rows:
        columns = list(rows[0])
    if columns and rows is not None:
        files.write_text(path, csv_text.write(rows, columns))
    else:
        path.unlink(missing_ok=True)
