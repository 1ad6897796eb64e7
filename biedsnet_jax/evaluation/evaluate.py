"""Mode evaluate: predicts the test split once, scores it and writes the files.

These are `results.json`, `slices.csv`, `cases.csv` and, with eval.lesions,
`lesions.csv`; then what the report shows of a few slices, and the report. An evaluation
that is not the run's own goes into a folder of its own, see `evaluations`.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys

import jax

from biedsnet_jax.config import build_data, run_config
from biedsnet_jax.data import walk
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.evaluation import evaluations, hparams, recording, scored_cases
from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.prediction import trained
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
from biedsnet_jax.scoring.results import CASES, EVALUATIONS, SLICES
from biedsnet_jax.segmenters import macs

# Fields of a run that an evaluation may change, beside those that every mode may.
FREE = ("split.test", "data.name")


def run(cfg, workdir: str) -> dict | None:
    """Scores the best checkpoint of `workdir`; returns the content of results.json.

    Of the run's own data the test split is scored, of other data all cases; or, of
    either, the cases that split.test names.
    """
    workdir = pathlib.Path(workdir)
    model = trained.load(workdir, cfg, free=FREE)
    with _lock(workdir):
        with processes.first_alone("data"):
            data, scope = scored_cases.open_data(cfg, workdir)
        passed = walk.summary(data.source.facts.passed)
        if passed and processes.is_first():
            console.tell(passed, sys.stdout)
        return _evaluate(model, workdir, data, scope)


def evaluate(
    model: trained.Trained,
    workdir: pathlib.Path,
    data: build_data.Data,
    scope: scored_cases.Scope | None = None,
) -> dict | None:
    """Scores a model on the test side of `data`, by default the run's own.

    Every process predicts; the first scores, writes the files and returns the content
    of results.json, the others wait and return None.
    """
    held = contextlib.nullcontext()
    if processes.is_first():
        # A mode evaluate may be scoring the same workdir: the training waits for it.
        held = lock.wait(workdir, name=evaluations.LOCK, say=processes.say)
    with held:
        return _evaluate(model, workdir, data, scope or scored_cases.Scope())


def _lock(workdir):
    """A lock of the first process, so that no two evaluations write the same files."""
    if processes.is_first():
        return lock.Lock(workdir, name=evaluations.LOCK)
    return contextlib.nullcontext()


@dataclasses.dataclass
class _Scored:
    """What the pass over the test split collects."""

    tally: Tally
    rows: list[dict] = dataclasses.field(default_factory=list)  # of slices.csv
    # Area of a pixel by (case, slice), where its spacing is known.
    pixel_mm2: dict[tuple, float] = dataclasses.field(default_factory=dict)
    lesion_rows: list[dict] = dataclasses.field(default_factory=list)
    clock: trained.Clock = dataclasses.field(default_factory=trained.Clock)
    # What the report shows; None on all processes but the first.
    recorded: record.ReportData | None = None


def _evaluate(model, workdir, data, scope):
    scored = _score(model, data)
    scored.recorded = recording.record(model, data, scored.tally)
    results = None
    if processes.is_first():
        results = _save(model, workdir, data, scope, scored)
    processes.barrier("evaluated")
    return results


def _score(model, data) -> _Scored:
    """Predicts the test side of `data`; the first process scores it."""
    cfg = model.config
    first = processes.is_first()
    scored = _Scored(Tally(cfg.data.classes, cfg.threshold))
    bar = progress.Progress("test", len(data.test), quiet=not first)
    with contextlib.closing(bar):
        for probability, batch, examples in model.predict_split(
            data, data.test, scored.clock
        ):
            if not first:
                continue
            for p, y, example in zip(probability, batch["mask"], examples):
                _add(scored, p, y > 0.5, example, cfg)
            done = len(scored.rows) // cfg.data.classes
            bar.update(done, _dice_so_far(scored.tally.dice))
    scored.rows = [
        row | {"entropy": bits} for row, bits in zip(scored.rows, scored.tally.entropy)
    ]
    return scored


def _add(scored, probability, truth, example, cfg):
    """Scores one slice and counts it up."""
    mask = probability > cfg.threshold
    rows = slice_rows(mask, truth, example, cfg.eval)
    scored.rows += rows
    scored.lesion_rows += _lesion_rows(mask, truth, example, cfg.eval)
    scored.tally.add(probability, truth, [row["dice"] for row in rows])
    if example["spacing"] is not None:
        place = example["case"], example["slice"]
        scored.pixel_mm2[place] = math.prod(example["spacing"])


def _results(model, data, scope, scored):
    """The scores in results.json, and what they depend on."""
    cfg = model.config
    diffusion = model.segmenter.draws_samples
    shape = build_data.image_shape(cfg)
    ensemble = cfg.sampler.ensemble
    results = {
        "row": cfg.row or cfg.network,
        "network": cfg.network,
        "seed": cfg.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(model.variables["params"])),
        "gmacs_per_image": macs.prediction_gmacs(
            model.segmenter, model.variables, shape, ensemble=ensemble
        ),
        "dataset": scope.dataset or cfg.data.name,
        "split": "test",
        "cases": data.cases("test"),
        "fold": [cfg.split.fold, cfg.split.folds] if cfg.split.folds else None,
        "size": cfg.data.size,
        "train_steps": cfg.train.steps,
        "batch_size": cfg.train.batch_size,
        "checkpoint_step": model.step,
        "dtype": cfg.dtype,
        "sampler": dict(cfg.sampler) if diffusion else None,
        "fusion": cfg.fusion if diffusion else None,
        "threshold": cfg.threshold,
        "nsd_tolerance": cfg.eval.nsd_tolerance,
        "nsd_tolerance_mm": cfg.eval.nsd_tolerance_mm,
        "device": f"{model.mesh.size} x {devices.device_kind(model.mesh)}",
        "calibration_error": calibration.expected_calibration_error(
            scored.tally.histogram
        ),
        "seconds_per_image": scored.clock.seconds / max(1, scored.clock.images),
        **metrics.summarise(scored.rows),
    }
    if cfg.eval.lesions:
        results["lesions"] = {
            "least_overlap": cfg.eval.lesion_overlap
        } | lesions.summarise(scored.lesion_rows)
    return results


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
        differs |= evaluations.differences(run_config.load(workdir), cfg)
    folder = evaluations.place(workdir, differs)
    passed = data.source.facts.passed
    results = _results(model, data, scope, scored) | {
        "data": data.root or None,
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
            evaluations.update_index(workdir)
        # Without tensorboardX, which training alone needs, the scores are still there.
        elif cfg.log.tensorboard and extras.is_installed("train"):
            hparams.record(cfg, workdir, results)
    except OSError as error:
        raise BadInput(
            f"{folder} cannot be written: {reason(error)}. Make room or allow writing there, "
            "then score again with --mode=evaluate."
        ) from error
    return results


def _write(folder, results, scored):
    """Writes the tables, results.json and the report."""
    lesion_rows = scored.lesion_rows if "lesions" in results else None
    case_rows = volumes.case_rows(scored.rows, lesion_rows, scored.pixel_mm2)
    _write_rows(folder / SLICES, scored.rows, list(scored.rows[0]))
    _write_rows(folder / CASES, case_rows, list(case_rows[0]))
    if "lesions" in results:
        _write_rows(folder / "lesions.csv", lesion_rows, lesions.COLUMNS)
    else:
        # One of an earlier evaluation would not belong to these results.
        (folder / "lesions.csv").unlink(missing_ok=True)
    record.save(folder, scored.recorded)
    files.write_json(folder / "results.json", results)
    report.write(folder)


def _write_rows(path, rows, columns):
    files.write_text(path, csv_text.write(rows, columns))


def slice_rows(mask, truth, example, fields):
    """Scores each class of one slice, a row a class; `fields` are those of eval."""
    return [
        metrics.slice_row(
            pred=mask[..., k],
            truth=truth[..., k],
            case=example["case"],
            slice=example["slice"],
            label=k + 1,
            spacing=example["spacing"],
            nsd_tolerance=fields.nsd_tolerance,
            nsd_tolerance_mm=fields.nsd_tolerance_mm,
        )
        for k in range(truth.shape[-1])
    ]


def _lesion_rows(mask, truth, example, fields):
    """Lists the lesions of each class of one slice; none unless asked for."""
    rows = []
    for k in range(truth.shape[-1] if fields.lesions else 0):
        rows += lesions.slice_rows(
            pred=mask[..., k],
            truth=truth[..., k],
            case=example["case"],
            slice=example["slice"],
            label=k + 1,
            spacing=example["spacing"],
            least_overlap=fields.lesion_overlap,
        )
    return rows
