"""Segments arrays and files: `load(workdir)(array) -> Prediction`.

Every slice is prepared as in training (window, resize, normalise).
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float, Shaped

from biedsnet_jax.config import build_data, run_config
from biedsnet_jax.data.formats import volumes
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import plots, scan_prediction, scans, trained
from biedsnet_jax.prediction.fields_text import fields_text
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.prediction.scan_prediction import ScanPrediction
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices, files, processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A trained model that segments arrays and files. Made by `load`."""

    model: Trained
    # Jitted (variables, image, number) -> maps and samples.
    run_batch: Callable
    # Batch sizes for which `run_batch` is compiled.
    sizes: set[int] = dataclasses.field(default_factory=set)

    def __repr__(self) -> str:
        return fields_text("Predictor", self.model.summary())

    def __call__(
        self, array: Shaped[np.ndarray, "..."], *, keep_samples: bool = False
    ) -> ScanPrediction:
        """Segments one slice, "h w" or "h w c", or the slices "d h w c".

        Values are in the units of the training files, and c is the number of channels
        of the training. Raises BadInput for another number of axes or channels, an
        empty array, and values that are not finite numbers.
        """
        channels = self.model.config.data.channels
        array = np.asarray(array)
        slices = array[..., None] if array.ndim == 2 else array
        if slices.ndim == 3:
            slices = slices[None]
        if slices.ndim != 4 or slices.shape[-1] != channels or not slices.size:
            raise BadInput(
                f"The array has shape {array.shape}, and the number of channels of this "
                f"model is {channels}. Give (h, w), (h, w, {channels}) or "
                f"(d, h, w, {channels})."
            )
        if slices.dtype.kind not in "buif" or not np.isfinite(slices).all():
            raise BadInput(
                f"The array, of type {array.dtype}, has values that are not finite "
                "numbers. Replace them."
            )
        return self._segment(scan_prediction.array_scan(slices), keep_samples)

    def file(
        self, path: str | pathlib.Path, *, keep_samples: bool = False
    ) -> ScanPrediction:
        """Segments a picture, a NIfTI volume or the folder of one DICOM series.

        The prediction keeps the geometry of the scan, and `save` writes its mask on the
        scan's own grid. Raises BadInput for what cannot be read or is not one scan.
        """
        channels = self.model.config.data.channels
        source = pathlib.Path(files.expanded(str(path)))
        items = scans.search(source, channels=channels).items
        if len(items) > 1:
            raise BadInput(
                f"{source} holds {len(items)} scans. Give one of them, or use "
                "--mode=predict, which segments all."
            )
        scan = scans.read(items[0], channels=channels)
        for note in scan.notes:
            processes.say(f"warning: {note}")
        return self._segment(scan, keep_samples)

    def plot(
        self,
        source: Shaped[np.ndarray, "..."] | str | pathlib.Path,
        z: int | None = None,
    ) -> "Figure":
        """Segments an array or a file and draws a slice; see `ScanPrediction.plot`."""
        # Found missing before the work, not after it.
        plots.check_installed()
        is_path = isinstance(source, str | pathlib.Path)
        prediction = self.file(source) if is_path else self(source)
        return prediction.plot(z)

    def _segment(self, scan, keep_samples) -> ScanPrediction:
        (prediction,) = self.predict([scan.slices], keep_samples=keep_samples)
        return scan_prediction.of_scan(scan, prediction)

    def predict(
        self,
        scans: Sequence[Shaped[np.ndarray, "_d _h _w _c"]],
        *,
        keep_samples: bool = False,
        done: Callable[[int], None] = lambda slices: None,
    ) -> list[Prediction]:
        """Segments several scans in shared batches.

        `done` is called with the number of slices that each batch finished. A slice's
        noise follows from the seed and its number in the scan, so its mask does not
        depend on what shares its batch.
        """
        config = self.model.config
        prepare = build_data.make_prepare(config)
        places = [(n, z) for n, scan in enumerate(scans) for z in range(len(scan))]
        batch_size = self._batch_size(len(places))
        maps: list[dict] = [{} for _ in scans]
        start, running = time.perf_counter(), None
        for first in range(0, len(places), batch_size):
            batch = places[first : first + batch_size]
            images = [
                prepare.image(volumes.neighbours(scans[n], z, config.data.context))
                for n, z in batch
            ]
            inputs = self._inputs(images, [z for _, z in batch], batch_size)
            values = self.run_batch(self.model.variables, *inputs)
            # Fetched a batch later, so that this one was prepared while that one ran.
            if running:
                self._collect(maps, *running, keep_samples, done)
            running = values, batch
        self._collect(maps, *running, keep_samples, done)
        seconds = (time.perf_counter() - start) / len(places)
        return [
            self._prediction(scan, parts, seconds * len(scan))
            for scan, parts in zip(scans, maps)
        ]

    def maps(
        self, images: Float[np.ndarray, "b H W c"], numbers: Sequence[int]
    ) -> dict[str, Float[np.ndarray, "b H W k"]]:
        """Predicts prepared images in one batch, each with its number in its scan."""
        inputs = self._inputs(images, numbers, self._batch_size(len(images)))
        values = self.run_batch(self.model.variables, *inputs)
        return {
            name: np.asarray(value)[: len(images)]
            for name, value in values.items()
            if name != "samples"
        }

    def first_batch(self, slices: int) -> int:
        """Returns the batch size of a scan where nothing is compiled yet.

        It is the devices times a power of two that holds `slices`, but at most
        eval.batch_size, raised to the next that divides over the devices.
        """
        size = self.model.mesh.size
        most = devices.divisible(self.model.config.eval.batch_size, self.model.mesh)
        while size < min(slices, most):
            size *= 2
        return min(size, most)

    def _batch_size(self, slices):
        """Returns the smallest compiled size that holds `slices`, or compiles one.

        It is compiled here so that no clock counts the compilation.
        """
        known = [size for size in self.sizes if size >= slices]
        if known:
            return min(known)
        size = self.first_batch(slices)
        if size not in self.sizes:
            image = np.zeros(build_data.image_shape(self.model.config), np.float32)
            inputs = self._inputs([image], [0], size)
            self.run_batch.lower(self.model.variables, *inputs).compile()
            self.sizes.add(size)
        return size

    def _inputs(self, images, numbers, batch_size):
        image = np.zeros((batch_size, *images[0].shape), np.float32)
        image[: len(images)] = images
        number = np.zeros(batch_size, np.int32)
        number[: len(numbers)] = numbers
        batch = {"image": image, "number": number}
        inputs = devices.put_whole_batch(batch, self.model.mesh)
        return inputs["image"], inputs["number"]

    def _collect(self, maps, values, batch, keep_samples, done):
        """Fetches the values of a batch into `maps`, by scan and name, in slice order."""
        for name, value in values.items():
            if name == "samples" and not keep_samples:
                continue
            value = np.asarray(value)
            if name == "samples":
                # n b h w k -> b n h w k
                value = value.swapaxes(0, 1)
            for (n, _), row in zip(batch, value):
                maps[n].setdefault(name, []).append(row)
        done(len(batch))

    def _prediction(self, scan, parts, seconds):
        samples = parts.pop("samples", None)
        return Prediction(
            way=build_data.make_fit(self.model.config).way(scan.shape[1:3]),
            maps={name: np.stack(rows) for name, rows in parts.items()},
            samples_kept=None if samples is None else np.stack(samples, axis=1),
            threshold=float(self.model.config.threshold),
            labels=build_data.class_labels(self.model.config),
            seconds=seconds,
            class_names=tuple(self.model.config.data.class_names),
        )


def load(workdir: str | pathlib.Path, cfg=None) -> Predictor:
    """Loads the best checkpoint of `workdir`.

    `cfg` may sample otherwise than the training did; without it the run's own config
    holds. Raises BadInput where the workdir holds no run, or not one of this config.
    """
    workdir = pathlib.Path(workdir)
    model = trained.load(workdir, cfg or run_config.load(workdir))
    if processes.several():
        # Each process segments its own scans, on its own devices.
        variables, mesh = devices.on_this_process(model.variables)
        model = dataclasses.replace(
            model, variables=variables, mesh=mesh, predict_batch=None
        )
    return of_model(model)


def of_model(model: Trained) -> Predictor:
    """Makes a predictor of a trained model, on the mesh that the model has."""
    return Predictor(model, _make_run_batch(model))


def _make_run_batch(model):
    """Jits `(variables, image, number) -> maps "b h w k", and samples "n b h w k"`.

    Where the mesh is of several processes, each gets the whole maps.
    """

    def run_batch(variables, image, number):
        keys = trained.noise_keys(model.config.seed, number)
        return model.maps(variables, image, keys)

    split = devices.batch_sharding(model.mesh)
    everywhere = devices.replicated(model.mesh)
    if model.mesh.is_multi_process:
        # The variables stay as they are, whole or cut over "fsdp".
        inputs = (None, split, split)
        return jax.jit(run_batch, in_shardings=inputs, out_shardings=everywhere)
    return jax.jit(run_batch, in_shardings=(None, split, split))
