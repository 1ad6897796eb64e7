"""The files of an evaluation: what is in them, and the folder that they go to.

`results.json`, `slices.csv`, `cases.csv`, of volumes `volumes.csv` and, with eval.lesions,
`lesions.csv`; then what the report shows of a few slices, and the report. An evaluation
that is not the run's own goes into a folder of its own, see `evaluations`.
"""

import dataclasses
import json
import pathlib
import sys

import jax

from biedsnet_jax.config import build_data, run_config
from biedsnet_jax.data import walk
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.evaluation import evaluations, hparams, scan_scores, scored_cases
from biedsnet_jax.prediction import trained
from biedsnet_jax.reporting import record, report
from biedsnet_jax.runtime import console, csv_text, devices, extras, files, processes
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


@dataclasses.dataclass(frozen=True)
class Scored:
    """What the pass over the test split gave."""

    scores: scan_scores.Scores
    # Time of the predictions, without compilation.
    seconds: float
    # What the report shows.
    recorded: record.ReportData


def save(
    model: trained.Trained,
    workdir: pathlib.Path,
    data: build_data.Data,
    scope: scored_cases.Scope,
    scored: Scored,
) -> dict:
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
        "calibration_error": calibration.expected_calibration_error(
            scores.tally.histogram
        ),
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
