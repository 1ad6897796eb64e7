"""Masks of images in memory: `load(workdir)(array) -> Prediction`.

The network sees every slice as training did (window, resize, normalise).
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Shaped

from biedsnet_jax.config import build_data, run_config
from biedsnet_jax.data.formats import volumes
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import trained
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices, processes


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained model, ready for arrays. Made by `load`."""

    model: Trained
    run_batch: Callable  # jitted (variables, image, number) -> maps and samples
    # of batches that are compiled
    sizes: set[int] = dataclasses.field(default_factory=set)

    def __call__(
        self, array: Shaped[np.ndarray, "..."], *, keep_samples: bool = False
    ) -> Prediction:
        """Segment "h w" or "h w c", which is one slice, or "d h w c"; c is the number
        the model was trained on.

        Values are in the units of the training files. Raises BadInput for another
        number of axes or channels, an empty array, and values that are not finite
        numbers.
        """
        channels = self.model.config.data.channels
        array = np.asarray(array)
        slices = (
            array[None, ..., None]
            if array.ndim == 2
            else array[None]
            if array.ndim == 3
            else array
        )
        if slices.ndim != 4 or slices.shape[-1] != channels or not slices.size:
            raise BadInput(
                f"shape of an array, {array.shape}, the argument; give (h, w), (h, w, {channels}) or (d, h, w, "
                f"{channels}): this model was trained on {channels} channel{'s' * (channels > 1)}"
            )
        if slices.dtype.kind not in "buif" or not np.isfinite(slices).all():
            raise BadInput(
                f"values that are not finite numbers, {array.dtype}, the argument; give finite numbers"
            )
        (prediction,) = self.predict([slices], keep_samples=keep_samples)
        return prediction

    def predict(
        self,
        scans: Sequence[Shaped[np.ndarray, "_d _h _w _c"]],
        *,
        keep_samples: bool = False,
        done: Callable[[int], None] = lambda slices: None,
    ) -> list[Prediction]:
        """Several scans in shared batches; `done` hears of the slices as they are
        finished.

        A slice's noise follows from the seed and its number in the scan, so its mask
        does not depend on what shares its batch.
        """
        prepared = build_data.make_prepare(self.model.config)
        chosen = [(n, z) for n, scan in enumerate(scans) for z in range(len(scan))]
        batch_size = self._batch_size(len(chosen))
        maps: list[dict] = [{} for _ in scans]
        start, waiting = time.perf_counter(), None
        for first in range(0, len(chosen), batch_size):
            batch = chosen[first : first + batch_size]
            images = [
                prepared.image(
                    volumes.neighbours(scans[n], z, self.model.config.data.context)
                )
                for n, z in batch
            ]
            running = self.run_batch(
                self.model.variables,
                *self._inputs(images, [z for _, z in batch], batch_size),
            )
            # fetched only now, so that the next batch was prepared while this one ran
            if waiting:
                self._collect(maps, *waiting, keep_samples, done)
            waiting = running, batch
        self._collect(maps, *waiting, keep_samples, done)
        seconds = (time.perf_counter() - start) / len(chosen)
        return [
            self._prediction(scan, parts, seconds * len(scan))
            for scan, parts in zip(scans, maps)
        ]

    def first_batch(self, slices: int) -> int:
        """The batch size of a scan of so many slices where nothing is compiled yet.

        It is the devices times a power of two that holds `slices`, but at most
        eval.batch_size, raised to the next that divides over the devices.
        """
        size = self.model.mesh.size
        most = devices.divisible(self.model.config.eval.batch_size, self.model.mesh)
        while size < min(slices, most):
            size *= 2
        return min(size, most)

    def _batch_size(self, slices):
        """The smallest compiled that holds all `slices`, else a new one, compiled here
        so that no clock counts it.
        """
        known = [size for size in self.sizes if size >= slices]
        if known:
            return min(known)
        size = self.first_batch(slices)
        if size not in self.sizes:
            image = np.zeros(build_data.image_shape(self.model.config), np.float32)
            self.run_batch.lower(
                self.model.variables, *self._inputs([image], [0], size)
            ).compile()
            self.sizes.add(size)
        return size

    def _inputs(self, images, numbers, batch_size):
        image = np.zeros((batch_size, *images[0].shape), np.float32)
        image[: len(images)] = images
        number = np.zeros(batch_size, np.int32)
        number[: len(numbers)] = numbers
        inputs = devices.put_batch({"image": image, "number": number}, self.model.mesh)
        return inputs["image"], inputs["number"]

    def _collect(self, maps, running, chosen, keep_samples, done):
        values = {
            name: np.asarray(value)
            for name, value in running.items()
            if name != "samples" or keep_samples
        }
        for row, (n, z) in enumerate(chosen):
            for name, value in values.items():
                maps[n].setdefault(name, {})[z] = (
                    value[:, row] if name == "samples" else value[row]
                )
        done(len(chosen))

    def _prediction(self, scan, parts, seconds):
        parts = {
            name: [rows[z] for z in range(len(scan))] for name, rows in parts.items()
        }
        samples = parts.pop("samples", None)
        return Prediction(
            size=scan.shape[1:3],
            maps={name: np.stack(rows) for name, rows in parts.items()},
            samples_kept=None if samples is None else np.stack(samples, axis=1),
            threshold=float(self.model.config.threshold),
            labels=build_data.class_labels(self.model.config),
            seconds=seconds,
        )


def load(workdir: str | pathlib.Path, cfg=None) -> Predictor:
    """The best checkpoint of `workdir`, ready to segment arrays; `cfg` may sample
    otherwise than it was trained with.

    Each of several processes has it on its own devices, and calls it without the
    others. Raises BadInput where the workdir holds no run, or not this config's.
    """
    workdir = pathlib.Path(workdir)
    model = trained.load(workdir, cfg or run_config.load(workdir))
    if processes.several():
        variables, mesh = devices.on_this_process(model.variables)
        model = dataclasses.replace(
            model, variables=variables, mesh=mesh, predict_batch=None
        )
    return Predictor(model, _make_run_batch(model))


def _make_run_batch(model):
    """Jitted `(variables, image, number) -> maps "b h w k", and samples "n b h w k"`."""

    def run_batch(variables, image, number):
        return model.maps(
            variables, image, trained.noise_keys(model.config.seed, number)
        )

    split, everywhere = (
        devices.batch_sharding(model.mesh),
        devices.replicated(model.mesh),
    )
    return jax.jit(run_batch, in_shardings=(everywhere, split, split))
