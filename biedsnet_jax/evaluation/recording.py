"""Makes what the report shows of chosen test slices: image, truth, probability, the
disagreement of samples, and the denoising of the first few.

Every process computes; `reporting.record` is the file.
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

# The worst, the median and the best slice keep their denoising steps.
TRAJECTORIES = 3
# Longer trajectories are left out, because all steps are on the device at once.
MOST_SAMPLING_STEPS = 100

Explain = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]


def record(
    model: Trained, data: build_data.Data, tally: Tally
) -> report_data.ReportData | None:
    """Predicts the chosen slices of a scored test split again and keeps them.

    Returns None on all processes but the first, which has the tally.
    """
    cfg = model.config
    chosen = processes.gather(tally.choose(cfg.eval.pictures))[0]
    explain = make_explain(model)
    names = ("images", "probability", "truth", "mutual_information", "x_t", "x_0")
    kept = {name: [] for name in names}
    for probability, batch, examples in model.predict_split(
        data, [data.test[number] for number, _ in chosen]
    ):
        kept["images"] += [
            report_data.jpeg(_own_channels(cfg, image)) for image in batch["image"]
        ]
        kept["probability"] += list(report_data.levels(probability, cfg.threshold))
        kept["truth"] += list((batch["mask"] > 0.5).astype(np.uint8))
        numbers = [example["index"] for example in examples]
        _explain(kept, model, explain, batch["image"], numbers)
    if not processes.is_first():
        return None
    return _report_data(cfg, data, tally, chosen, kept)


def _report_data(cfg, data, tally, chosen, kept):
    maps = np.zeros((0, cfg.data.size, cfg.data.size, cfg.data.classes), np.uint8)
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
        probability=_stacked(kept["probability"], maps),
        truth=_stacked(kept["truth"], maps),
        mutual_information=_stacked(kept["mutual_information"], None),
        times=_times(cfg) if kept["x_0"] else np.zeros(0, np.int32),
        x_t=_stacked(kept["x_t"], maps[None][:0]),
        x_0=_stacked(kept["x_0"], maps[None][:0]),
    )


def _stacked(maps, otherwise):
    return np.stack(maps) if maps else otherwise


def make_explain(model: Trained) -> dict[str, Explain]:
    """Makes the functions that explain a diffusion's masks, by name.

    Each is jitted, from (image, number) to arrays: "disagreement" to mutual_information
    "b h w k", with several samples; "steps" to x_t and x_0 "b t h w k", where there are
    not too many. A direct method has none.
    """
    cfg = model.config
    segmenter = model.segmenter

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

    functions = {}
    diffusion = segmenter.draws_samples
    if diffusion and cfg.sampler.ensemble > 1:
        functions["disagreement"] = disagreement
    if diffusion and cfg.sampler.steps <= MOST_SAMPLING_STEPS:
        functions["steps"] = steps
    return {
        name: functools.partial(devices.jit_batches(one, model.mesh), model.variables)
        for name, one in functions.items()
    }


def _explain(kept, model, explain, images, numbers):
    """Adds the maps of some slices to `kept`, a few at a time: the steps of many would
    not fit on the device.
    """
    cfg = model.config
    mesh = model.mesh
    rows = mesh.size * math.ceil(TRAJECTORIES / mesh.size)
    for first in range(0, len(images), rows):
        some = slice(first, first + rows)
        count = len(images[some])
        # The last batch is filled up with zeros: another shape would compile anew.
        image = np.zeros((rows, *images.shape[1:]), np.float32)
        number = np.zeros(rows, np.int32)
        image[:count], number[:count] = images[some], numbers[some]
        inputs = devices.put_whole_batch({"image": image, "number": number}, mesh)
        if "disagreement" in explain:
            found = explain["disagreement"](inputs["image"], inputs["number"])
            bits = np.clip(np.asarray(found["mutual_information"])[:count], 0, 1)
            kept["mutual_information"] += list((bits * 255).round().astype(np.uint8))
        room = TRAJECTORIES - len(kept["x_0"])
        if "steps" in explain and room > 0:
            found = explain["steps"](inputs["image"], inputs["number"])
            steps = report_data.evenly(cfg.sampler.steps)
            x_t = np.asarray(found["x_t"])[: min(count, room), steps]
            x_0 = np.asarray(found["x_0"])[: min(count, room), steps]
            kept["x_t"] += list(report_data.thinned(x_t))
            kept["x_0"] += list(report_data.levels(x_0, cfg.threshold))


def _times(cfg):
    """The diffusion times of the steps that are kept."""
    times = build_model.make_sampling(cfg).visited(build_model.make_schedule(cfg))
    return times[report_data.evenly(len(times))].astype(np.int32)


def _own_channels(cfg, image):
    """The channels of the slice itself, without those of its neighbours."""
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
