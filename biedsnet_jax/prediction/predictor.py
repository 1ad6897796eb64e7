"""Masks of images in memory: `load(workdir)(array) -> Prediction`.

The network sees every slice as training did (window, resize, normalise).
"""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from biedsnet_jax.config import build_data, build_model, run_config
from biedsnet_jax.data.formats import volumes
from biedsnet_jax.errors import BadInput
from biedsnet_jax.evaluation import evaluate
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.runtime import devices, processes
from biedsnet_jax.segmenters import fusion, segmenter
from biedsnet_jax.types import Image


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained model, ready for arrays. Made by `load`."""

    cfg: object
    variables: dict
    step: int  # of the checkpoint
    mesh: Mesh
    run_batch: Callable  # jitted (variables, image, number, previous) -> maps and samples
    # The same compiled, by size of the batch and whether there is a previous slice.
    programs: dict[tuple[int, bool], Callable] = dataclasses.field(default_factory=dict)

    def __call__(self, array: Shaped[np.ndarray, "..."], *, keep_samples: bool = False) -> Prediction:
        """Segment "h w" or "h w c", which is one slice, or "d h w c"; c is the number the model was trained on.

        Values are in the units of the training files. Raises BadInput for another number of axes or channels, an empty
        array, and values that are not finite numbers.
        """
        channels = self.cfg.data.channels
        array = np.asarray(array)
        slices = array[None, ..., None] if array.ndim == 2 else array[None] if array.ndim == 3 else array
        if slices.ndim != 4 or slices.shape[-1] != channels or not slices.size:
            raise BadInput(
                f"shape of an array, {array.shape}, the argument; give (h, w), (h, w, {channels}) or (d, h, w, "
                f"{channels}): this model was trained on {channels} channel{'s' * (channels > 1)}"
            )
        if slices.dtype.kind not in "buif" or not np.isfinite(slices).all():
            raise BadInput(f"values that are not finite numbers, {array.dtype}, the argument; give finite numbers")
        (prediction,) = self.predict([slices], keep_samples=keep_samples)
        return prediction

    def predict(
        self,
        scans: Sequence[Shaped[np.ndarray, "_d _h _w _c"]],
        *,
        keep_samples: bool = False,
        done: Callable[[int], None] = lambda slices: None,
    ) -> list[Prediction]:
        """Several scans in shared batches; `done` hears of the slices as they are finished.

        A slice's noise follows from the seed and its number in the scan, so its mask does not depend on what shares
        its batch. With sampler.start "slice" a volume is cut into runs of sampler.start_run slices, and a batch holds
        the same place of many runs, those before it being done: here too the batch decides nothing.
        """
        prepared = build_data.make_prepare(self.cfg)
        places = _places([len(scan) for scan in scans], self._run())
        # Compiled here, so that the clock does not count it.
        batch_size, programs = self._programs(len(places[0]), later=len(places) > 1)
        maps: list[dict] = [{} for _ in scans]
        start, waiting = time.perf_counter(), None
        for later, chosen in _batches(places, batch_size):
            images = [prepared.image(volumes.neighbours(scans[n], z, self.cfg.data.context)) for n, z in chosen]
            inputs = self._inputs(images, [z for _, z in chosen], batch_size)
            if waiting and later:  # what this batch starts from may be in there
                waiting = self._collect(maps, *waiting, keep_samples, done)
            previous = self._previous(maps, chosen, batch_size) if later else None
            running = programs[later](self.variables, *inputs, previous)
            if waiting:  # fetched only now, so that the next batch was prepared while this one ran
                self._collect(maps, *waiting, keep_samples, done)
            waiting = running, chosen
        self._collect(maps, *waiting, keep_samples, done)
        seconds = (time.perf_counter() - start) / sum(map(len, places))
        return [self._prediction(scan, parts, seconds * len(scan)) for scan, parts in zip(scans, maps)]

    def weights_digest(self) -> str:
        """A hash of every array by its name: the same for the same weights, whatever checkpoint held them."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()[:32]

    def _follows(self):
        """Whether a slice starts from the one before it."""
        return build_model.is_diffusion(self.cfg) and self.cfg.sampler.start == "slice"

    def first_batch(self, slices: int) -> int:
        """The batch size of a scan of so many slices where nothing is compiled yet."""
        return self._new_batch(len(range(0, slices, self._run())))

    def _run(self):
        """Slices that follow one another."""
        return self.cfg.sampler.start_run if self._follows() else 1

    def _new_batch(self, slices):
        """The least power of two that holds `slices`, but at most eval.batch_size."""
        most, size = self.cfg.eval.batch_size, self.mesh.size
        while size < min(slices, most):
            size *= 2
        return min(size, most)

    def _programs(self, slices, *, later):
        """(batch size, [program, and if `later` that for slices with a previous one]): the smallest compiled that holds
        all `slices`, else one of `_new_batch`."""
        size = next((known for known, _ in sorted(self.programs) if known >= slices), self._new_batch(slices))
        for follows in (False, True)[: 1 + later]:
            if (size, follows) not in self.programs:
                self.programs[size, follows] = self._compile(size, follows)
        return size, [self.programs[size, follows] for follows in (False, True)[: 1 + later]]

    def _compile(self, batch_size, follows):
        height, width, channels = build_data.image_shape(self.cfg)
        image = jax.ShapeDtypeStruct((batch_size, height, width, channels), np.float32)
        number = jax.ShapeDtypeStruct((batch_size,), np.int32)
        previous = jax.ShapeDtypeStruct((batch_size, height, width, self.cfg.data.classes), np.float32)
        return self.run_batch.lower(self.variables, image, number, previous if follows else None).compile()

    def _previous(self, maps, chosen, batch_size):
        """The probability of the slice before each."""
        known = [maps[n]["probability"][z - 1] for n, z in chosen]
        padded = np.zeros((batch_size, *known[0].shape), np.float32)
        padded[: len(known)] = known
        return devices.put_batch({"previous": padded}, self.mesh)["previous"]

    def _inputs(self, images, numbers, batch_size):
        image = np.zeros((batch_size, *images[0].shape), np.float32)
        image[: len(images)] = images
        number = np.zeros(batch_size, np.int32)
        number[: len(numbers)] = numbers
        inputs = devices.put_batch({"image": image, "number": number}, self.mesh)
        return inputs["image"], inputs["number"]

    def _collect(self, maps, running, chosen, keep_samples, done):
        values = {name: np.asarray(value) for name, value in running.items() if name != "samples" or keep_samples}
        for row, (n, z) in enumerate(chosen):
            for name, value in values.items():
                maps[n].setdefault(name, {})[z] = value[:, row] if name == "samples" else value[row]
        done(len(chosen))

    def _prediction(self, scan, parts, seconds):
        parts = {name: [rows[z] for z in range(len(scan))] for name, rows in parts.items()}
        samples = parts.pop("samples", None)
        return Prediction(
            size=scan.shape[1:3],
            maps={name: np.stack(rows) for name, rows in parts.items()},
            samples_kept=None if samples is None else np.stack(samples, axis=1),
            threshold=float(self.cfg.threshold),
            labels=class_labels(self.cfg),
            seconds=seconds,
        )


def load(workdir: str | pathlib.Path, cfg=None) -> Predictor:
    """The best checkpoint of `workdir`, ready to segment arrays; `cfg` may sample otherwise than it was trained with.

    Each of several processes has it on its own devices, and calls it without the others.
    Raises BadInput where the workdir holds no run, or not this config's.
    """
    workdir = pathlib.Path(workdir)
    cfg = cfg or run_config.load(workdir)
    model, variables, step, mesh = evaluate.open_model(cfg, workdir)
    if processes.several():
        variables, mesh = devices.on_this_process(variables)
    return Predictor(cfg, variables, step, mesh, _make_run_batch(cfg, model, mesh))


def class_labels(cfg) -> tuple[tuple[int, ...], ...]:
    """Label values of each class."""
    return tuple(map(tuple, cfg.data.labels)) or tuple((k,) for k in range(1, cfg.data.classes + 1))


def maps(cfg, model, variables: dict, image: Image, keys: segmenter.Keys, **start) -> dict[str, jax.Array]:
    """What `cfg` asks for of prepared images: maps "b h w k", UNCERTAINTIES of diffusion methods only, and samples."""
    samples = model.predict(variables, image, keys, ensemble=cfg.sampler.ensemble, **start)
    found = {"probability": fusion.FUSIONS[cfg.fusion](samples), "samples": samples}
    return found | (fusion.uncertainty(samples) if build_model.is_diffusion(cfg) else {})


def _make_run_batch(cfg, model, mesh):
    """Jitted `(variables, image, number, previous) -> maps "b h w k", and samples "n b h w k"`.

    `previous` is None but for slices that start from another's probability.
    """

    def run_batch(variables, image, number, previous):
        keys, start = evaluate.noise_keys(cfg.seed, number), {} if previous is None else {"previous": previous}
        return maps(cfg, model, variables, image, keys, **start)

    split, everywhere = devices.batch_sharding(mesh), devices.replicated(mesh)
    return jax.jit(run_batch, in_shardings=(everywhere, split, split, split))


def _places(depths: Sequence[int], run: int) -> list[list[tuple[int, int]]]:
    """(scan, slice) of all slices by their place in runs of `run` slices; places that no run is long enough for are
    left out."""
    places = [[(n, z) for n, depth in enumerate(depths) for z in range(place, depth, run)] for place in range(run)]
    return [slices for slices in places if slices]


def _batches(places, size) -> Iterator[tuple[bool, list[tuple[int, int]]]]:
    """Whether they have a previous slice in their run, and (scan, slice) of each; every batch from one place."""
    for place, slices in enumerate(places):
        for first in range(0, len(slices), size):
            yield place > 0, slices[first : first + size]
