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
from biedsnet_jax.data import pipeline
from biedsnet_jax.evaluation.scan_scores import Scores
from biedsnet_jax.prediction.predictor import Predictor
from biedsnet_jax.prediction.trained import Trained, noise_keys
from biedsnet_jax.reporting import record as report_data
from biedsnet_jax.runtime import devices, processes

# The worst, the median and the best slice keep their denoising steps.
TRAJECTORIES = 3
# Longer trajectories are left out, because all steps are on the device at once.
MOST_SAMPLING_STEPS = 100

Steps = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]


def record(
    made: Predictor, data: build_data.Data, scores: Scores
) -> report_data.ReportData | None:
    """Predicts the chosen slices of a scored test split again and keeps them.

    Returns None on all processes but the first, which has the scores.
    """
    cfg = made.model.config
    shown = [index is not None for index, _ in scores.places]
    chosen = scores.tally.choose(cfg.eval.pictures, shown)
    chosen = [(*one, *scores.places[one[0]]) for one in chosen]
    # Of each slice: its number among those scored, group, index and number in its scan.
    chosen = processes.gather(chosen)[0]
    names = ("images", "probability", "truth", "mutual_information", "x_t", "x_0")
    kept = {name: [] for name in names}
    steps = make_steps(made.model)
    indices = [index for _, _, index, _ in chosen]
    done = 0
    for batch, examples in pipeline.eval_batches(
        data.source,
        indices,
        prepare=build_data.make_prepare(cfg),
        batch_size=made.model.most_slices,
    ):
        count = len(examples)
        images = batch["image"][:count]
        truth = batch["mask"][:count]
        numbers = [number for *_, number in chosen[done : done + count]]
        done += count
        _keep(kept, made, images, truth, numbers)
        if steps:
            _keep_steps(kept, made.model, steps, images, numbers)
    if not processes.is_first():
        return None
    return _report_data(cfg, data, scores.tally, [one[:2] for one in chosen], kept)


def _keep(kept, made, images, truth, numbers):
    """Adds the maps of some slices to `kept`, drawn from the noise that was scored."""
    cfg = made.model.config
    maps = made.maps(images, numbers)
    levels = report_data.levels(maps["probability"], cfg.threshold)
    truth = (truth > 0.5).astype(np.uint8)
    kept["images"] += [_own_channels(cfg, image) for image in images]
    kept["probability"] += list(levels)
    kept["truth"] += list(truth)
    if "mutual_information" in maps and made.model.sample_count > 1:
        bits = np.clip(maps["mutual_information"], 0, 1)
        grey = (bits * 255).round().astype(np.uint8)
        kept["mutual_information"] += list(grey)


def _report_data(cfg, data, tally, chosen, kept):
    side = cfg.data.size
    maps = np.zeros((0, side, side, cfg.data.classes), np.uint8)
    kept = {name: _on_one_canvas(values) for name, values in kept.items()}
    numbers, groups = np.array(chosen, np.int32).reshape(-1, 2).T
    splits = {split: _counts(data, split) for split in build_data.SPLITS}
    return report_data.ReportData(
        facts={"versions": _versions(), "splits": splits},
        dice=np.array(tally.dice),
        entropy=np.array(tally.entropy),
        histogram=tally.histogram,
        slices=numbers,
        groups=groups,
        images=[report_data.jpeg(image) for image in kept["images"]],
        probability=_stacked(kept["probability"], maps),
        truth=_stacked(kept["truth"], maps),
        mutual_information=_stacked(kept["mutual_information"], None),
        times=_times(cfg) if kept["x_0"] else np.zeros(0, np.int32),
        x_t=_stacked(kept["x_t"], maps[None][:0]),
        x_0=_stacked(kept["x_0"], maps[None][:0]),
    )


def _on_one_canvas(maps):
    """Maps "... h w n" of several canvases, filled up with their least value to one."""
    if not maps:
        return []
    largest = np.max([x.shape for x in maps], axis=0)
    filled = []
    for x in maps:
        canvas = np.full(largest, x.min(), x.dtype)
        *_, height, width, _ = x.shape
        canvas[..., :height, :width, :] = x
        filled.append(canvas)
    return filled


def _stacked(maps, otherwise):
    return np.stack(maps) if maps else otherwise


def make_steps(model: Trained) -> Steps | None:
    """Makes the function that shows how a diffusion denoises a mask.

    It is jitted, from (image, number) to x_t and x_0 "b t h w k". A direct method has
    none, nor has one of too many steps.
    """
    cfg = model.config
    segmenter = model.segmenter
    if not segmenter.draws_samples or cfg.sampler.steps > MOST_SAMPLING_STEPS:
        return None

    def steps(variables, image, number):
        keys = noise_keys(cfg.seed, number)
        trajectory = segmenter.trajectory(variables, image, keys)
        return {
            name: jnp.moveaxis(value, 0, 1)
            for name, value in trajectory._asdict().items()
        }

    jitted = devices.jit_batches(steps, model.mesh)
    return functools.partial(jitted, model.variables)


def _keep_steps(kept, model, steps, images, numbers):
    """Adds the steps of the first few slices to `kept`; those of more would not fit."""
    cfg = model.config
    mesh = model.mesh
    count = min(len(images), TRAJECTORIES - len(kept["x_0"]))
    if count <= 0:
        return
    # A batch of one size, filled up with zeros: another would compile anew.
    rows = mesh.size * math.ceil(TRAJECTORIES / mesh.size)
    image = np.zeros((rows, *images.shape[1:]), np.float32)
    number = np.zeros(rows, np.int32)
    image[:count] = images[:count]
    number[:count] = numbers[:count]
    inputs = devices.put_whole_batch({"image": image, "number": number}, mesh)
    found = steps(inputs["image"], inputs["number"])
    shown = report_data.evenly(cfg.sampler.steps)
    x_t = np.asarray(found["x_t"])[:count, shown]
    x_0 = np.asarray(found["x_0"])[:count, shown]
    kept["x_t"] += list(report_data.thinned(x_t))
    kept["x_0"] += list(report_data.levels(x_0, cfg.threshold))


def _times(cfg):
    """The diffusion times of the steps that are kept."""
    schedule = build_model.make_schedule(cfg)
    times = build_model.make_sampling(cfg).visited(schedule)
    shown = report_data.evenly(len(times))
    return times[shown].astype(np.int32)


def _own_channels(cfg, image):
    """The channels of the slice itself, without those of its neighbours."""
    channels = cfg.data.channels
    first = cfg.data.context * channels
    return image[..., first : first + channels]


def _counts(data, split):
    cases = data.source.cases
    of_slices = [cases[i] for i in getattr(data, split)]
    names, counts = np.unique(of_slices, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts)}


def _versions():
    libraries = ("jax", "flax", "numpy")
    versions = {name: metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), **versions}
