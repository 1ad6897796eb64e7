"""One pass over a split: probabilities, masks, scores; `results.json`, `cases.csv` and,
if asked for, `lesions.csv`.

After it the pictures of a few slices, and the report of all that. An evaluation that is
not the run's own goes into a folder of its own, see `evaluations`.
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
    files,
    lock,
    processes,
    progress,
)
from biedsnet_jax.scoring import calibration, lesions, metrics, volumes
from biedsnet_jax.scoring.results import CASES, EVALUATIONS, SLICES
from biedsnet_jax.segmenters import macs

# Fields of a run that an evaluation may change, beside those that anyone may.
FREE = ("split.test", "data.name")


def run(cfg, workdir: str) -> dict | None:
    """Mode evaluate: score the best checkpoint of `workdir`; returns what results.json
    holds.

    On the run's own data that is the test split, or the cases that split.test names; on
    others all cases, or those.
    """
    workdir = pathlib.Path(workdir)
    model = trained.load(workdir, cfg, free=FREE)
    with _alone(workdir):
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
    """Score a model on the test side of `data`, by default the run's own, and write the
    files.

    Of several processes all predict; the first scores and writes, the others wait and
    return None.
    """
    # A training that is done waits for a mode evaluate that looks at it meanwhile.
    held = (
        lock.wait(workdir, name=evaluations.LOCK, say=processes.say)
        if processes.is_first()
        else None
    )
    with held or contextlib.nullcontext():
        return _evaluate(model, workdir, data, scope or scored_cases.Scope())


def _alone(workdir):
    """Held while the first process evaluates, so that no two write the same files."""
    return (
        lock.Lock(workdir, name=evaluations.LOCK)
        if processes.is_first()
        else contextlib.nullcontext()
    )


@dataclasses.dataclass
class _Scored:
    """What the pass over the test split has found."""

    tally: Tally
    rows: list[dict] = dataclasses.field(default_factory=list)  # of slices.csv
    # Area of a pixel by (case, slice), where its spacing is known.
    pixel_mm2: dict[tuple, float] = dataclasses.field(default_factory=dict)
    lesion_rows: list[dict] = dataclasses.field(default_factory=list)
    clock: trained.Clock = dataclasses.field(default_factory=trained.Clock)
    # for the report; None on all processes but the first
    recorded: record.ReportData | None = None


def _evaluate(model, workdir, data, scope):
    scored = _score(model, data)
    scored.recorded = recording.record(model, data, scored.tally)
    results = (
        _save(model, workdir, data, scope, scored) if processes.is_first() else None
    )
    processes.barrier("evaluated")
    return results


def _score(model, data) -> _Scored:
    """Predict the test side of `data`; the first process scores it."""
    cfg, first = model.config, processes.is_first()
    scored = _Scored(Tally(cfg.data.classes, cfg.threshold))
    with contextlib.closing(
        progress.Progress("test", len(data.test), quiet=not first)
    ) as bar:
        for probability, batch, examples in model.predict_split(
            data, data.test, scored.clock
        ):
            if not first:
                continue
            for p, y, example in zip(probability, batch["mask"], examples):
                of_slice = slice_rows(p > cfg.threshold, y > 0.5, example, cfg.eval)
                scored.rows += of_slice
                if example["spacing"] is not None:
                    place = example["case"], example["slice"]
                    scored.pixel_mm2[place] = math.prod(example["spacing"])
                scored.tally.add(p, y > 0.5, [row["dice"] for row in of_slice])
                scored.lesion_rows += _lesion_rows(
                    p > cfg.threshold, y > 0.5, example, cfg.eval
                )
            bar.update(
                len(scored.rows) // cfg.data.classes, _dice_so_far(scored.tally.dice)
            )
    scored.rows = [
        row | {"entropy": bits} for row, bits in zip(scored.rows, scored.tally.entropy)
    ]
    return scored


def _results(model, data, scope, scored):
    """What results.json says of the scores."""
    cfg, diffusion = model.config, model.segmenter.draws_samples
    shape, ensemble = build_data.image_shape(cfg), cfg.sampler.ensemble
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
    """Write all that an evaluation leaves; returns what results.json holds.

    Raises BadInput where it cannot be written.
    """
    cfg, differs = model.config, dict(scope.differs)
    if (workdir / "config.json").exists():
        differs |= evaluations.differences(run_config.load(workdir), cfg)
    folder, passed = evaluations.place(workdir, differs), data.source.facts.passed
    results = _results(model, data, scope, scored) | {
        "data": data.root or None,
        "evaluation": folder.name if differs else None,
        "differs": differs,
        "trained_on": scope.trained_on,
        "passed_over": walk.summary(passed),
    }
    if not differs:
        results[EVALUATIONS] = evaluations.index(workdir)
    # Tuples are lists in the file.
    results = json.loads(json.dumps(results))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        walk.write_record(folder, passed)
        _write(folder, results, scored)
        if differs:
            evaluations.update_index(workdir)
        elif cfg.log.tensorboard:
            hparams.record(cfg, workdir, results)
    except OSError as error:
        raise BadInput(
            f"cannot write, {reason(error)}, {folder}; make room or let it be written, --mode=evaluate scores again"
        ) from error
    return results


def _write(folder, results, scored):
    """The files of an evaluation, and the report of them."""
    _write_rows(folder / SLICES, scored.rows)
    lesion_rows = scored.lesion_rows if "lesions" in results else None
    # Areas are comparable only where every slice has one.
    measured = {(row["case"], row["slice"]) for row in scored.rows} == set(
        scored.pixel_mm2
    )
    pixel_mm2 = scored.pixel_mm2 if measured else None
    cases = volumes.case_rows(scored.rows, lesion_rows=lesion_rows, pixel_mm2=pixel_mm2)
    _write_rows(folder / CASES, cases)
    if "lesions" in results:
        files.write_text(
            folder / "lesions.csv", csv_text.write(scored.lesion_rows, lesions.COLUMNS)
        )
    else:
        # of an earlier evaluation
        (folder / "lesions.csv").unlink(missing_ok=True)
    record.save(folder, scored.recorded)
    files.write_json(folder / "results.json", results)
    report.write(folder)


def _write_rows(path, rows):
    files.write_text(path, csv_text.write(rows, list(rows[0])))


def slice_rows(mask, truth, example, fields):
    """One row of scores a class of one slice; `fields` are those of eval, as in the
    next.
    """
    tolerances = {name: fields[name] for name in ("nsd_tolerance", "nsd_tolerance_mm")}
    return [
        metrics.slice_row(**one, **tolerances) for one in _classes(mask, truth, example)
    ]


def _lesion_rows(mask, truth, example, fields):
    """One row a lesion of one slice, if asked for."""
    each = _classes(mask, truth, example) if fields.lesions else []
    return [
        row
        for one in each
        for row in lesions.slice_rows(**one, least_overlap=fields.lesion_overlap)
    ]


def _classes(mask, truth, example):
    """What scores one class of one slice, class by class."""
    names = {name: example[name] for name in ("case", "slice", "spacing")}
    return [
        {"pred": mask[..., k], "truth": truth[..., k], "label": k + 1} | names
        for k in range(truth.shape[-1])
    ]
