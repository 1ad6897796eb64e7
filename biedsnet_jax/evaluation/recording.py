"""The pictures that evaluation keeps for a report: chosen test slices with what the
samples disagree about, and the denoising of the first few, step by step. Every process
computes; see `reporting.record` for the file.
"""

import functools
import math
import platform
from collections.abc import Callable
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np

from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.prediction.trained import Trained, noise_keys
from biedsnet_jax.reporting import record as report_data
from biedsnet_jax.runtime import devices, processes
from biedsnet_jax.segmenters import fusion

# slices whose steps are kept: the worst, the median and the best
TRAJECTORIES = 3
# with more, the steps are left out: all of them are on the device at once
MOST_SAMPLING_STEPS = 100

Explain = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]


def record(
    model: Trained, data: build_data.Data, tally: Tally
) -> report_data.ReportData | None:
    """What a report needs of a test split that was scored; None on all processes but
    the first, which has the tally.
    """
    cfg = model.config
    chosen = processes.gather(tally.choose(cfg.eval.pictures))[0]
    explain = make_explain(model)
    kept = {
        name: []
        for name in (
            "images",
            "probability",
            "truth",
            "mutual_information",
            "x_t",
            "x_0",
        )
    }
    for probability, batch, examples in model.predict_split(
        data, [data.test[number] for number, _ in chosen]
    ):
        kept["images"] += [
            report_data.jpeg(_own_channels(cfg, image)) for image in batch["image"]
        ]
        kept["probability"] += list(report_data.levels(probability, cfg.threshold))
        kept["truth"] += list((batch["mask"] > 0.5).astype(np.uint8))
        _explain(
            kept,
            model,
            explain,
            batch["image"],
            [example["index"] for example in examples],
        )
    return (
        _report_data(cfg, data, tally, chosen, kept) if processes.is_first() else None
    )


def _report_data(cfg, data, tally, chosen, kept):
    maps = np.zeros((0, cfg.data.size, cfg.data.size, cfg.data.classes), np.uint8)
    steps = maps[None][:0]
    without = {
        "probability": maps,
        "truth": maps,
        "mutual_information": None,
        "x_t": steps,
        "x_0": steps,
    }
    numbers, groups = np.array(chosen, np.int32).reshape(-1, 2).T
    return report_data.ReportData(
        facts={
            "versions": _versions(),
            "splits": {split: _counts(data, split) for split in build_data.SPLITS},
        },
        dice=np.array(tally.dice),
        entropy=np.array(tally.entropy),
        histogram=tally.histogram,
        slices=numbers,
        groups=groups,
        images=kept["images"],
        times=_times(cfg) if kept["x_0"] else np.zeros(0, np.int32),
        **{
            name: np.stack(kept[name]) if kept[name] else value
            for name, value in without.items()
        },
    )


def make_explain(model: Trained) -> dict[str, Explain]:
    """What there is to tell of a diffusion method, by name, each `(image, number) ->
    arrays`, jitted.

    "disagreement": mutual_information "b h w k", with several samples. "steps": x_t and
    x_0 "b t h w k", where they are not too many.
    """
    cfg, segmenter = model.config, model.segmenter

    def disagreement(variables, image, number):
        keys = noise_keys(cfg.seed, number)
        samples = segmenter.predict(
            variables, image, keys, ensemble=cfg.sampler.ensemble
        )
        return {"mutual_information": fusion.uncertainty(samples)["mutual_information"]}

    def steps(variables, image, number):
        trajectory = segmenter.trajectory(
            variables, image, noise_keys(cfg.seed, number)
        )._asdict()
        return {name: jnp.moveaxis(value, 0, 1) for name, value in trajectory.items()}

    told, diffusion = {}, segmenter.draws_samples
    if diffusion and cfg.sampler.ensemble > 1:
        told["disagreement"] = disagreement
    if diffusion and cfg.sampler.steps <= MOST_SAMPLING_STEPS:
        told["steps"] = steps
    return {
        name: functools.partial(devices.jit_batches(one, model.mesh), model.variables)
        for name, one in told.items()
    }


def _explain(kept, model, explain, images, numbers):
    """Add the maps of some slices to `kept`, a few at a time: the steps of many would
    not fit.
    """
    cfg, mesh = model.config, model.mesh
    rows = mesh.size * math.ceil(TRAJECTORIES / mesh.size)
    for first in range(0, len(images), rows):
        count = len(images[first : first + rows])
        image = np.zeros((rows, *images.shape[1:]), np.float32)
        number = np.zeros(rows, np.int32)
        image[:count], number[:count] = (
            images[first : first + rows],
            numbers[first : first + rows],
        )
        inputs = devices.put_whole_batch({"image": image, "number": number}, mesh)
        if "disagreement" in explain:
            found = explain["disagreement"](inputs["image"], inputs["number"])
            bits = np.clip(np.asarray(found["mutual_information"])[:count], 0, 1)
            kept["mutual_information"] += list((bits * 255).round().astype(np.uint8))
        room = TRAJECTORIES - len(kept["x_0"])
        if "steps" in explain and room > 0:
            found = explain["steps"](inputs["image"], inputs["number"])
            some = report_data.evenly(cfg.sampler.steps)
            x_t, x_0 = (
                np.asarray(found[name])[: min(count, room), some]
                for name in ("x_t", "x_0")
            )
            kept["x_t"] += list(report_data.thinned(x_t))
            kept["x_0"] += list(report_data.levels(x_0, cfg.threshold))


def _times(cfg):
    """The times of the steps that are kept."""
    times = build_model.make_sampling(cfg).visited(build_model.make_schedule(cfg))
    return times[report_data.evenly(len(times))].astype(np.int32)


def _own_channels(cfg, image):
    """Those of the slice itself, where its neighbours are channels too."""
    first = cfg.data.context * cfg.data.channels
    return image[..., first : first + cfg.data.channels]


def _counts(data, split):
    cases = data.source.cases
    names, counts = np.unique(
        [cases[i] for i in getattr(data, split)], return_counts=True
    )
    return {str(name): int(count) for name, count in zip(names, counts)}


def _versions():
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in ("jax", "flax", "numpy")
    }
