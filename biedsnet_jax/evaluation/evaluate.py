"""One pass over a split: probabilities, masks, scores; `results.json`, `cases.csv` and, if asked for, `lesions.csv`.

After it the pictures of a few slices, and the report of all that. An evaluation that is not the run's own goes into a
folder of its own, see `evaluations`.
"""

import contextlib
import functools
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_data, build_model, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.data import pipeline, walk
from biedsnet_jax.errors import BadInput, reason
from biedsnet_jax.evaluation import evaluations, hparams, recording, scored_cases
from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.reporting import record, report
from biedsnet_jax.runtime import console, csv_text, devices, files, lock, processes, progress
from biedsnet_jax.scoring import calibration, lesions, metrics, pr_curve
from biedsnet_jax.scoring.results import EVALUATIONS
from biedsnet_jax.segmenters import macs, segmenter
from biedsnet_jax.segmenters.fusion import FUSIONS

Predict = Callable[[dict, jax.Array, jax.Array], jax.Array]
# Fields of a run that an evaluation may change, beside those that anyone may.
FREE = ("split.test", "data.name")


def run(cfg, workdir: str) -> dict | None:
    """Mode evaluate: score the best checkpoint of `workdir`; returns what results.json holds.

    On the run's own data that is the test split, or the cases that split.test names; on others all cases, or those.
    """
    workdir = pathlib.Path(workdir)
    model, variables, step, mesh = open_model(cfg, workdir, free=FREE)
    with _alone(workdir):
        with processes.first_alone("data"):
            data, scope = scored_cases.open_data(cfg, workdir)
        passed = walk.summary(data.source.facts.passed)
        if passed and processes.is_first():
            console.tell(passed, sys.stdout)
        return _evaluate(cfg, workdir, model, variables, data, mesh, step=step, scope=scope)


def evaluate(
    cfg,
    workdir: pathlib.Path,
    model,
    variables,
    data,
    mesh: Mesh,
    *,
    step: int,
    scope: scored_cases.Scope | None = None,
) -> dict | None:
    """Score `variables` on the test side of `data`, by default the run's own, and write the files.

    Of several processes all predict; the first scores and writes, the others wait and return None.
    """
    # A training that is done waits for a mode evaluate that looks at it meanwhile.
    held = lock.wait(workdir, name=evaluations.LOCK, say=processes.say) if processes.is_first() else None
    with held or contextlib.nullcontext():
        return _evaluate(cfg, workdir, model, variables, data, mesh, step=step, scope=scope or scored_cases.Scope())


def _alone(workdir):
    """Held while the first process evaluates, so that no two write the same files."""
    return lock.Lock(workdir, name=evaluations.LOCK) if processes.is_first() else contextlib.nullcontext()


def _evaluate(cfg, workdir, model, variables, data, mesh, *, step, scope):
    predict = make_predict(model, mesh, ensemble=cfg.sampler.ensemble, fusion=cfg.fusion, seed=cfg.seed)
    clock = Clock()
    rows, lesion_rows, tally = [], [], Tally(cfg.data.classes, cfg.threshold)
    first = processes.is_first()
    with contextlib.closing(progress.Progress("test", len(data.test), quiet=not first)) as bar:
        for probability, batch, examples in predict_split(cfg, predict, variables, data, data.test, mesh, clock=clock):
            if not first:
                continue
            for p, y, example in zip(probability, batch["mask"], examples):
                scored = slice_rows(p > cfg.threshold, y > 0.5, example, cfg.eval)
                rows += scored
                tally.add(p, y > 0.5, [row["dice"] for row in scored])
                lesion_rows += _lesion_rows(p > cfg.threshold, y > 0.5, example, cfg.eval)
            bar.update(len(rows) // cfg.data.classes, _dice_so_far(tally.dice))
    rows = [row | {"entropy": bits} for row, bits in zip(rows, tally.entropy)]
    show = functools.partial(predict_split, cfg, predict, variables, data, mesh=mesh)
    keys_of = functools.partial(noise_keys, cfg.seed)
    recorded = recording.record(cfg, model, variables, data, mesh, tally, show, keys_of)
    if not first:
        processes.barrier("evaluated")
        return None
    results = _results(cfg, model, variables, data, mesh, scope, tally, rows, lesion_rows, clock, step=step)
    results = _save(cfg, workdir, scope, data, results, rows, lesion_rows, recorded)
    processes.barrier("evaluated")
    return results


def _results(cfg, model, variables, data, mesh, scope, tally, rows, lesion_rows, clock, *, step):
    """What results.json says of the scores."""
    results = {
        "row": cfg.row or cfg.network,
        "network": cfg.network,
        "seed": cfg.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "gmacs_per_image": macs.prediction_gmacs(
            model, variables, build_data.image_shape(cfg), ensemble=cfg.sampler.ensemble
        ),
        "dataset": scope.dataset or cfg.data.name,
        "split": "test",
        "cases": data.cases("test"),
        "fold": [cfg.split.fold, cfg.split.folds] if cfg.split.folds else None,
        "size": cfg.data.size,
        "train_steps": cfg.train.steps,
        "batch_size": cfg.train.batch_size,
        "checkpoint_step": step,
        "dtype": cfg.dtype,
        "sampler": dict(cfg.sampler) if build_model.is_diffusion(cfg) else None,
        "fusion": cfg.fusion if build_model.is_diffusion(cfg) else None,
        "threshold": cfg.threshold,
        "nsd_tolerance": cfg.eval.nsd_tolerance,
        "nsd_tolerance_mm": cfg.eval.nsd_tolerance_mm,
        "device": f"{mesh.size} x {devices.device_kind(mesh)}",
        "calibration_error": calibration.expected_calibration_error(tally.histogram),
        "seconds_per_image": clock.seconds / max(1, clock.images),
        **metrics.summarise(rows),
    }
    if cfg.eval.lesions:
        results["lesions"] = {"least_overlap": cfg.eval.lesion_overlap} | lesions.summarise(lesion_rows)
    return results


def _dice_so_far(dice):
    known = [one for one in dice if not math.isnan(one)]
    return {"Dice": sum(known) / len(known)} if known else {}


def _save(cfg, workdir, scope, data, results, rows, lesion_rows, recorded):
    """Write all that an evaluation leaves; returns what results.json holds.

    Raises BadInput where it cannot be written.
    """
    differs = dict(scope.differs)
    if (workdir / "config.json").exists():
        differs |= evaluations.differences(run_config.load(workdir), cfg)
    folder, passed = evaluations.place(workdir, differs), data.source.facts.passed
    results |= {
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
        _write(folder, results, rows, lesion_rows, recorded)
        if differs:
            evaluations.update_index(workdir)
        elif cfg.log.tensorboard:
            hparams.record(cfg, workdir, results)
    except OSError as error:
        raise BadInput(
            f"cannot write, {reason(error)}, {folder}; make room or let it be written, --mode=evaluate scores again"
        ) from error
    return results


def _write(folder, results, rows, lesion_rows, recorded):
    """The files of an evaluation, and the report of them."""
    files.write_text(folder / "cases.csv", csv_text.write(rows, list(rows[0])))
    if "lesions" in results:
        files.write_text(folder / "lesions.csv", csv_text.write(lesion_rows, lesions.COLUMNS))
    else:
        (folder / "lesions.csv").unlink(missing_ok=True)  # of an earlier evaluation
    record.save(folder, recorded)
    files.write_json(folder / "results.json", results)
    report.write(folder)


def open_model(
    cfg, workdir: pathlib.Path, *, free: tuple[str, ...] = ()
) -> tuple[segmenter.Segmenter, dict, int, Mesh]:
    """What `workdir` has learnt: segmenter, EMA variables of the best checkpoint, its step, and the mesh they lie on.

    `free` are fields that may differ from the run's, beside those that always may.

    Raises BadInput where the config cannot be, or the workdir holds no run, or not this config's.
    """
    check_config(cfg)
    run_config.check_trained(cfg, workdir, free=free)
    mesh = devices.make_mesh(fsdp=cfg.parallel.fsdp)
    devices.check_divisible(cfg.eval.batch_size, mesh.size, field="eval.batch_size", what="devices")
    model = build_model.build(cfg)
    like = jax.eval_shape(lambda: train_state.create(init_variables(model, cfg), optax.identity()))
    variables, step = checkpoint.restore_variables(workdir, like, mesh)
    return model, variables, step, mesh


def noise_keys(seed: int | jax.Array, number: jax.Array) -> jax.Array:
    """A key for each image, by its number alone: neither batch size nor devices change its mask."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(number)


def make_predict(model, mesh: Mesh, *, ensemble: int, fusion: str, seed: int) -> Predict:
    """Jitted `(variables, image, index) -> probability "b h w k"`, the samples fused.

    An image's noise follows from `seed` and its index in the source alone, so neither batch size nor the number of
    devices changes its mask.
    """

    fuse = FUSIONS[fusion]

    def predict(variables, image, index):
        return fuse(model.predict(variables, image, noise_keys(seed, index), ensemble=ensemble))

    return devices.jit_batches(predict, mesh)


def predict_split(
    cfg, predict: Predict, variables: dict, data, indices: list[int], mesh: Mesh, clock: "Clock | None" = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], list[dict]]]:
    """(probability, image and mask, examples) for each batch of the slices `indices`, padding removed.

    On every process the same: each reads the whole batch, and its devices predict their rows.
    """
    prepare = build_data.make_prepare(cfg)
    batches = pipeline.eval_batches(data.source, indices, prepare=prepare, batch_size=cfg.eval.batch_size)
    for batch, examples in batches:
        number = np.zeros(cfg.eval.batch_size, np.int32)
        number[: len(examples)] = [example["index"] for example in examples]
        inputs = devices.put_whole_batch({"image": batch["image"], "index": number}, mesh)
        if clock and not clock.images:
            jax.block_until_ready(predict(variables, inputs["image"], inputs["index"]))  # compiles, outside the clock
        start = time.perf_counter()
        probability = np.asarray(predict(variables, inputs["image"], inputs["index"]))
        if clock:
            clock.add(time.perf_counter() - start, len(examples))
        yield probability[: len(examples)], {k: batch[k][: len(examples)] for k in ("image", "mask")}, examples


def mean_dice(
    cfg,
    predict: Predict,
    variables: dict,
    data,
    indices: list[int],
    mesh: Mesh,
    *,
    counts: pr_curve.Counts | None = None,
) -> float | None:
    """Mean Dice per image and class over slices with truth, for validation; None without any.

    All slices are added to `counts`.
    """
    scores = []
    for probability, batch, _ in predict_split(cfg, predict, variables, data, indices, mesh):
        mask, truth = probability > cfg.threshold, batch["mask"] > 0.5
        overlap, total = (mask & truth).sum((1, 2)), mask.sum((1, 2)) + truth.sum((1, 2))
        present = truth.any((1, 2))
        if counts:
            counts.add(probability, truth)
        scores += list(2.0 * overlap[present] / total[present])
    return float(np.mean(scores)) if scores else None


def init_variables(model, cfg) -> dict:
    """Fresh variables, the same for the same seed. Raises BadInput where the fields of the network do not fit."""
    try:
        return model.init(jax.random.key(cfg.seed), build_data.image_shape(cfg))
    except BadInput:
        raise
    except Exception as error:  # layers refuse widths, heads and depths with anything
        raise BadInput(
            f"network that cannot be, {reason(error)}, in networks.{cfg.network}; see configs/default.py"
        ) from error


class Clock:
    """Seconds spent predicting, and images predicted."""

    def __init__(self):
        self.seconds, self.images = 0.0, 0

    def add(self, seconds: float, images: int) -> None:
        self.seconds, self.images = self.seconds + seconds, self.images + images


def slice_rows(mask, truth, example, fields):
    """One row of scores a class of one slice; `fields` are those of eval, as in the next."""
    tolerances = {name: fields[name] for name in ("nsd_tolerance", "nsd_tolerance_mm")}
    return [metrics.slice_row(**one, **tolerances) for one in _classes(mask, truth, example)]


def _lesion_rows(mask, truth, example, fields):
    """One row a lesion of one slice, if asked for."""
    each = _classes(mask, truth, example) if fields.lesions else []
    return [row for one in each for row in lesions.slice_rows(**one, least_overlap=fields.lesion_overlap)]


def _classes(mask, truth, example):
    """What scores one class of one slice, class by class."""
    names = {name: example[name] for name in ("case", "slice", "spacing")}
    return [{"pred": mask[..., k], "truth": truth[..., k], "label": k + 1} | names for k in range(truth.shape[-1])]
