"""Segments an upload: writes the mask and summary of mode predict, and what the page
draws.

The page gets one deflated file for each slice. It holds planes of height x width bytes:
the image (grey, or red, green and blue); the probability of each class, in LEVELS; the
uncertainties, each for all classes; the samples, each with the probability of all
classes in LEVELS; and, where the model's masks are more than a probability above the
threshold, the mask of each class, of 0 and 1.
"""

import dataclasses
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from biedsnet_jax.config import build_data
from biedsnet_jax.data.padding import without_padding
from biedsnet_jax.data.transforms import PERCENTILES
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction import outputs
from biedsnet_jax.prediction.predictor import Predictor
from biedsnet_jax.prediction.result import UNCERTAINTIES, Prediction
from biedsnet_jax.prediction.scans import Scan
from biedsnet_jax.reporting.record import LEVELS, levels
from biedsnet_jax.runtime import files
from biedsnet_jax.serving import child, handoff
from biedsnet_jax.serving.limits import Limits

SUMMARY = "summary.csv"
# Values that are 255 in a plane.
MOST = {
    "entropy": 1.0,
    "mutual_information": 1.0,
    "variance": 0.25,
    "within_models": 1.0,
    "between_models": 1.0,
}
# Replaces the server's own names in the summary.
_NEUTRAL = {"name": "scan", "file": ""}


@dataclasses.dataclass(frozen=True)
class Worker:
    """Segments one upload after another."""

    predictor: Predictor
    limits: Limits
    # Compiled batch sizes and canvases, by the size that mode predict would choose for
    # the scan alone: another size rounds otherwise.
    sizes: dict[int, set[tuple[int, tuple[int, int]]]] = dataclasses.field(
        default_factory=dict
    )
    reader: child.Reader = dataclasses.field(default_factory=child.Reader)

    def __call__(
        self, folder: Path, like: str, report: Callable[[int, int], None]
    ) -> dict:
        """Segments the upload in `folder`; returns the facts for the page.

        `report(done, all)` is called with numbers of slices. Raises BadInput for what
        mode predict refuses, and beyond the limits.
        """
        ends = time.monotonic() + self.limits.job_seconds
        scan = self.reader.read(
            folder,
            like=like,
            channels=self.predictor.model.config.data.channels,
            plane=build_data.plane(self.predictor.model.config),
            limits=self.limits,
            look=lambda: report(0, 0),
        )
        count, done = len(scan.slices), 0
        report(0, count)

        def advance(slices):
            nonlocal done
            done += slices
            report(done, count)
            if time.monotonic() > ends:
                raise BadInput(
                    f"Only {done} of {count} slices were segmented within "
                    f"{self.limits.job_seconds} s. Cut the scan into parts."
                )

        prediction = self._predict(scan, advance)
        with files.writing(folder, another="--output"):
            mask = folder / f"mask{'.png' if scan.volume is None else '.nii.gz'}"
            rows = outputs.write_mask(scan, prediction, mask)
            rows = [row | _NEUTRAL for row in rows]
            text = outputs.text_of(rows, named=bool(prediction.class_names))
            files.write_text(folder / SUMMARY, text)
            window = self.predictor.model.config.data.window
            _write_slices(folder, scan, prediction, window)
        shutil.rmtree(folder / handoff.FOLDER, ignore_errors=True)
        return _facts(scan, prediction, mask, rows)

    def _predict(self, scan, advance) -> Prediction:
        canvas = self.predictor.way(scan).canvas
        first = self.predictor.first_batch(len(scan.slices), canvas)
        sizes = self.sizes.setdefault(first, set())
        predictor = dataclasses.replace(self.predictor, sizes=sizes)
        keep = predictor.model.sample_count > 0
        return predictor.predict([scan], keep_samples=keep, done=advance)[0]


def slice_path(folder: Path, z: int) -> Path:
    """Returns the file of a slice's planes."""
    return folder / "slices" / f"{z}.bin"


def planes(
    image: UInt8[np.ndarray, "h w c"],
    scanned: Shaped[np.ndarray, "h w"],
    prediction: Prediction,
    z: int,
    mask: Bool[np.ndarray, "h w k"] | None = None,
) -> list[UInt8[np.ndarray, "h w"]]:
    """Returns the planes of one slice, in the order of this module's docstring.

    `mask` is as it is written, where the page cannot find it by the threshold.
    All but the image are 0 where nothing was scanned.
    """
    maps, samples = prediction.at(z)
    found = [levels(maps["probability"], prediction.threshold)]
    found += [_bytes(maps[name] / MOST[name]) for name in UNCERTAINTIES if name in maps]
    found += [levels(sample, prediction.threshold) for sample in samples]
    if mask is not None:
        found.append(mask.astype(np.uint8))
    drawn = np.concatenate(found, axis=-1) * scanned[..., None]
    return [*np.moveaxis(image, -1, 0), *np.moveaxis(drawn, -1, 0)]


def _write_slices(folder, scan: Scan, prediction: Prediction, window):
    slice_path(folder, 0).parent.mkdir()
    low, high = window or _range(scan.slices)
    coloured = _is_coloured(scan)
    masks = [None] * len(scan.slices)
    if prediction.postprocess.changes_masks:
        masks = outputs.masks_of(prediction.label_map, prediction.labels)
    for z, image in enumerate(scan.slices):
        if not coloured:
            grey = image[..., :1].astype(np.float32)
            image = _bytes((grey - low) / max(high - low, 1e-9))
        scanned = np.ones(image.shape[:2], bool)
        if scan.scanned is not None:
            scanned = scan.scanned[z]
        parts = planes(image, scanned, prediction, z, masks[z])
        content = b"".join(part.tobytes() for part in parts)
        # The fastest level, since the visitor waits.
        slice_path(folder, z).write_bytes(zlib.compress(content, 1))


def _is_coloured(scan) -> bool:
    has_bytes = scan.slices.dtype == np.uint8
    return scan.volume is None and scan.slices.shape[-1] == 3 and has_bytes


def _range(slices) -> tuple[float, float]:
    """Returns the values that are black and white in all slices.

    They are percentiles of about a million pixels of the first channel.
    """
    step = max(1, round((slices[..., 0].size / 1e6) ** (1 / 3)))
    # All slices of a volume with few of them.
    slice_step = step if len(slices) > step else 1
    sample = slices[::slice_step, ::step, ::step, 0]
    # As one picture, since a scan has one padding.
    sample = without_padding(sample.reshape(len(sample), -1, 1))
    low, high = np.percentile(sample, PERCENTILES)
    if low == high:
        low, high = sample.min(), sample.max()
    return float(low), float(high)


def _bytes(values) -> UInt8[np.ndarray, "..."]:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _facts(scan: Scan, prediction: Prediction, mask: Path, rows) -> dict:
    """Collects what the page must know."""
    slices, height, width = scan.slices.shape[:3]
    spacing = scan.volume.spacing[1:] if scan.volume else (1.0, 1.0)
    return {
        "slices": slices,
        "height": height,
        "width": width,
        "aspect": width * spacing[1] / (height * spacing[0]),
        "colours": 3 if _is_coloured(scan) else 1,
        "classes": len(prediction.labels),
        "class_names": list(prediction.class_names),
        "maps": [name for name in UNCERTAINTIES if name in prediction.maps],
        "samples": prediction.sample_count,
        "levels": LEVELS,
        "level": round(LEVELS * prediction.threshold),
        "threshold": prediction.threshold,
        "masks": prediction.postprocess.changes_masks,
        "mask": mask.name,
        "notes": scan.notes,
        "rows": rows,
    }
