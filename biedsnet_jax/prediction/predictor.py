"""Segments arrays and files: `load(workdir)(array) -> Prediction`.

Every slice is prepared as in training (window, resize, normalise).
"""

import collections
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, Shaped

from biedsnet_jax.config import build_data, members, run_config
from biedsnet_jax.data.fit import Way
from biedsnet_jax.data.formats import volumes
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import (
    ensembles,
    plots,
    scan_prediction,
    scans,
    trained,
)
from biedsnet_jax.prediction.fields_text import fields_text
from biedsnet_jax.prediction.result import UNCERTAINTIES, Prediction
from biedsnet_jax.prediction.scan_prediction import ScanPrediction
from biedsnet_jax.prediction.trained import Trained
from biedsnet_jax.runtime import devices, files, processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class Slices(Protocol):
    """What a prediction needs of a scan."""

    slices: Shaped[np.ndarray, "d h w c"]
    # mm between rows and columns, of a volume between slices first; None if unknown.
    spacing: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A trained model that segments arrays and files. Made by `load`."""

    model: Trained
    # Jitted (variables, image, number) -> maps and samples.
    run_batch: Callable
    # Batch sizes and canvases for which `run_batch` is compiled.
    sizes: set[tuple[int, tuple[int, int]]] = dataclasses.field(default_factory=set)

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
        plane = build_data.plane(self.model.config)
        scan = scans.read(items[0], channels=channels, plane=plane)
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
        (prediction,) = self.predict([scan], keep_samples=keep_samples)
        return scan_prediction.of_scan(scan, prediction)

    def predict(
        self,
        scans: Sequence[Slices],
        *,
        keep_samples: bool = False,
        keep_uncertainty: bool = True,
        done: Callable[[int], None] = lambda slices: None,
    ) -> list[Prediction]:
        """Segments several scans in shared batches.

        Without `keep_uncertainty` the probability is the only map that is kept: of a
        volume the others take three times its memory.

        `done` is called with the number of slices that each batch finished. A slice's
        noise follows from the seed and its number in the scan, so its mask does not
        depend on what shares its batch.
        """
        ways = [self.way(scan) for scan in scans]
        maps: list[dict] = [{} for _ in scans]
        left_out = () if keep_uncertainty else UNCERTAINTIES
        left_out = left_out if keep_samples else (*left_out, "samples")
        running = None
        batches = self._batches(scans, ways)
        start = time.perf_counter()
        for batch, batch_size in batches:
            images = [self._prepared(scans[n], z) for n, z in batch]
            inputs = self._inputs(images, [z for _, z in batch], batch_size)
            values = self.run_batch(self.model.variables, *inputs)
            # Fetched a batch later, so that this one was prepared while that one ran.
            if running:
                self._collect(maps, *running, left_out, done)
            running = values, batch
        self._collect(maps, *running, left_out, done)
        seconds = time.perf_counter() - start
        seconds /= sum(len(scan.slices) for scan in scans)
        return [
            self._prediction(scan, way, parts, seconds * len(scan.slices))
            for scan, way, parts in zip(scans, ways, maps)
        ]

    def way(self, scan: Slices) -> Way:
        """The way of a scan's slices to the network and back."""
        fit = build_data.make_fit(self.model.config)
        return fit.way(scan.slices.shape[1:3], _in_plane(scan))

    def _batches(self, scans, ways) -> list[tuple[list[tuple[int, int]], int]]:
        """Batches of places (number of the scan, z) of one canvas each, and their sizes.

        The programs of these sizes are compiled here, so that no clock counts it.
        """
        by_canvas = collections.defaultdict(list)
        for n, (scan, way) in enumerate(zip(scans, ways)):
            by_canvas[way.canvas] += [(n, z) for z in range(len(scan.slices))]
        batches = []
        for canvas, places in by_canvas.items():
            size = self._batch_size(len(places), canvas)
            for first in range(0, len(places), size):
                batches.append((places[first : first + size], size))
        return batches

    def _prepared(self, scan, z):
        config = self.model.config
        image = volumes.neighbours(scan.slices, z, config.data.context)
        return build_data.make_prepare(config).image(image, _in_plane(scan))

    def maps(
        self, images: Float[np.ndarray, "b H W c"], numbers: Sequence[int]
    ) -> dict[str, Float[np.ndarray, "b H W k"]]:
        """Predicts prepared images in one batch, each with its number in its scan."""
        size = self._batch_size(len(images), images.shape[1:3])
        inputs = self._inputs(images, numbers, size)
        values = self.run_batch(self.model.variables, *inputs)
        return {
            name: np.asarray(value)[: len(images)]
            for name, value in values.items()
            if name != "samples"
        }

    def first_batch(self, slices: int, canvas: tuple[int, int]) -> int:
        """Returns the batch size of a scan where nothing is compiled yet.

        It is the devices times a power of two that holds `slices`, but no more than
        `Trained.most_slices`.
        """
        size = self.model.mesh.size
        most = self.model.most_slices(canvas)
        while size < min(slices, most):
            size *= 2
        return min(size, most)

    def _batch_size(self, slices, canvas):
        """Returns the smallest compiled size that holds `slices`, or compiles one.

        It is compiled here so that no clock counts the compilation.
        """
        known = [size for size, of in self.sizes if of == canvas and size >= slices]
        if known:
            return min(known)
        size = self.first_batch(slices, canvas)
        if (size, canvas) not in self.sizes:
            channels = build_data.image_shape(self.model.config)[-1]
            image = np.zeros((*canvas, channels), np.float32)
            inputs = self._inputs([image], [0], size)
            self.run_batch.lower(self.model.variables, *inputs).compile()
            self.sizes.add((size, canvas))
        return size

    def _inputs(self, images, numbers, batch_size):
        image = np.zeros((batch_size, *images[0].shape), np.float32)
        image[: len(images)] = images
        number = np.zeros(batch_size, np.int32)
        number[: len(numbers)] = numbers
        batch = {"image": image, "number": number}
        inputs = devices.put_whole_batch(batch, self.model.mesh)
        return inputs["image"], inputs["number"]

    def _collect(self, maps, values, batch, left_out, done):
        """Fetches the values of a batch into `maps`, by scan and name, in slice order."""
        for name, value in values.items():
            if name in left_out:
                continue
            value = np.asarray(value)
            if name == "samples":
                # n b h w k -> b n h w k
                value = value.swapaxes(0, 1)
            for (n, _), row in zip(batch, value):
                maps[n].setdefault(name, []).append(row)
        done(len(batch))

    def _prediction(self, scan, way, parts, seconds):
        samples = parts.pop("samples", None)
        return Prediction(
            way=way,
            # One list goes as its array comes, since those of a volume are large.
            maps={name: np.stack(parts.pop(name)) for name in list(parts)},
            samples_kept=None if samples is None else np.stack(samples, axis=1),
            threshold=float(self.model.config.threshold),
            labels=build_data.class_labels(self.model.config),
            seconds=seconds,
            postprocess=self.model.postprocess,
            spacing=scan.spacing,
            class_names=tuple(self.model.config.data.class_names),
        )


def _in_plane(scan: Slices) -> tuple[float, float] | None:
    """Spacing of rows and columns."""
    return scan.spacing and scan.spacing[-2:]


def load(workdir: members.Workdirs, cfg=None) -> Predictor:
    """Loads the best checkpoint of `workdir`, or of several workdirs as one model.

    `cfg` may sample otherwise than the training did; without it the config of the first
    run holds. Raises BadInput where a workdir holds no run, or not one of this config,
    and where several cannot predict together.
    """
    workdirs = members.folders(workdir)
    model = ensembles.load(workdirs, cfg or run_config.load(workdirs[0]))
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
