"""One pass over a split: probabilities, masks, scores; `results.json` and `cases.csv` in the workdir."""

import csv
import io
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from biedsnet_jax import (
    checkpoint,
    config,
    experiment,
    files,
    macs,
    metrics,
    parallel,
    progress,
    segmenter,
    train_state,
)
from biedsnet_jax.data import pipeline
from biedsnet_jax.fusion import FUSIONS

Predict = Callable[[dict, jax.Array, jax.Array], jax.Array]


def run(cfg, workdir: str) -> dict:
    """Mode evaluate: score the best checkpoint of `workdir` on the test split; returns what results.json holds."""
    config.check(cfg)
    workdir = pathlib.Path(workdir)
    config.check_trained(cfg, workdir)
    mesh = parallel.make_mesh()
    parallel.check_divisible(cfg.eval.batch_size, mesh.size, field="eval.batch_size", what="devices")
    model = segmenter.build(cfg)
    data = experiment.open_data(cfg)
    like = jax.eval_shape(lambda: train_state.create(init_variables(model, cfg), optax.identity()))
    variables, step = checkpoint.restore_variables(workdir, like, mesh)
    return evaluate(cfg, workdir, model, variables, data, mesh, step=step)


def evaluate(cfg, workdir: pathlib.Path, model, variables, data, mesh: Mesh, *, step: int) -> dict:
    """Score `variables` on the test split and write the files."""
    predict = make_predict(model, mesh, ensemble=cfg.sampler.ensemble, fusion=cfg.fusion, seed=cfg.seed)
    clock = _Clock()
    rows = []
    bar = progress.Progress("test", len(data.test))
    for probability, batch, examples in predict_split(cfg, predict, variables, data, data.test, mesh, clock=clock):
        for p, y, example in zip(probability, batch["mask"], examples):
            rows += _slice_rows(p > cfg.threshold, y > 0.5, example)
        bar.update(len(rows) // cfg.data.classes, {})
    bar.close()
    results = {
        "row": cfg.row or cfg.network,
        "network": cfg.network,
        "seed": cfg.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "gmacs_per_image": macs.prediction_gmacs(
            model, variables, experiment.image_shape(cfg), ensemble=cfg.sampler.ensemble
        ),
        "dataset": cfg.data.name,
        "split": "test",
        "cases": data.cases("test"),
        "fold": [cfg.split.fold, cfg.split.folds] if cfg.split.folds else None,
        "size": cfg.data.size,
        "train_steps": cfg.train.steps,
        "batch_size": cfg.train.batch_size,
        "checkpoint_step": step,
        "sampler": dict(cfg.sampler) if segmenter.is_diffusion(cfg) else None,
        "threshold": cfg.threshold,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "seconds_per_image": clock.seconds / max(1, clock.images),
        **metrics.summarise(rows, seed=cfg.seed),
    }
    files.write_text(workdir / "cases.csv", _csv(rows))
    files.write_json(workdir / "results.json", results)
    return results


def make_predict(model, mesh: Mesh, *, ensemble: int, fusion: str, seed: int) -> Predict:
    """Jitted `(variables, image, index) -> probability "b h w k"`, the samples fused.

    An image's noise follows from `seed` and its index in the source alone, so neither batch size nor the number of
    devices changes its mask.
    """

    fuse = FUSIONS[fusion]

    def predict(variables, image, index):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
        return fuse(model.predict(variables, image, keys, ensemble=ensemble))

    split, everywhere = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    return jax.jit(predict, in_shardings=(everywhere, split, split), out_shardings=split)


def predict_split(
    cfg, predict: Predict, variables: dict, data, indices: list[int], mesh: Mesh, clock: "_Clock | None" = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], list[dict]]]:
    """(probability, image and mask, examples) for each batch of the slices `indices`, padding removed."""
    prepare = experiment.make_prepare(cfg)
    batches = pipeline.eval_batches(data.source, indices, prepare=prepare, batch_size=cfg.eval.batch_size)
    for batch, examples in batches:
        number = np.zeros(cfg.eval.batch_size, np.int32)
        number[: len(examples)] = [example["index"] for example in examples]
        inputs = parallel.put_batch({"image": batch["image"], "index": number}, mesh)
        if clock and not clock.images:
            jax.block_until_ready(predict(variables, inputs["image"], inputs["index"]))  # compiles, outside the clock
        start = time.perf_counter()
        probability = np.asarray(predict(variables, inputs["image"], inputs["index"]))
        if clock:
            clock.add(time.perf_counter() - start, len(examples))
        yield probability[: len(examples)], {k: batch[k][: len(examples)] for k in ("image", "mask")}, examples


def mean_dice(cfg, predict: Predict, variables: dict, data, indices: list[int], mesh: Mesh) -> float:
    """Mean Dice per image and class over slices with truth, for validation; 0 where no slice has any."""
    scores = []
    for probability, batch, _ in predict_split(cfg, predict, variables, data, indices, mesh):
        mask, truth = probability > cfg.threshold, batch["mask"] > 0.5
        overlap, total = (mask & truth).sum((1, 2)), mask.sum((1, 2)) + truth.sum((1, 2))
        present = truth.any((1, 2))
        scores += list(2.0 * overlap[present] / total[present])
    return float(np.mean(scores)) if scores else 0.0


def init_variables(model, cfg) -> dict:
    """Fresh variables, the same for the same seed."""
    return model.init(jax.random.key(cfg.seed), experiment.image_shape(cfg))


class _Clock:
    """Seconds spent predicting, and images predicted."""

    def __init__(self):
        self.seconds, self.images = 0.0, 0

    def add(self, seconds: float, images: int) -> None:
        self.seconds, self.images = self.seconds + seconds, self.images + images


def _slice_rows(mask, truth, example):
    """One row of scores a class of one slice."""
    names = {name: example[name] for name in ("case", "slice", "spacing")}
    return [
        metrics.slice_row(pred=mask[..., k], truth=truth[..., k], label=k + 1, **names) for k in range(truth.shape[-1])
    ]


def _csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
