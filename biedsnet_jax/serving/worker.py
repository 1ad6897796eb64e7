"""From an upload to its results: the mask and the summary as mode predict writes them,
and what the page draws.

Of each slice the page gets one deflated file of planes of height x width bytes: the
image (grey, or red, green and blue), then for each class the probability in LEVELS,
then for each class each uncertainty, then of each sample each class's probability in
LEVELS.
"""

import dataclasses
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

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
# The largest value of each, which is 255 in a plane; half a bit of entropy or less is
# all that samples disagree by.
MOST = {"entropy": 1.0, "mutual_information": 1.0, "variance": 0.25}
# the server's own names say nothing
_NEUTRAL = {"name": "scan", "file": ""}


@dataclasses.dataclass(frozen=True)
class Worker:
    """Segments one upload after another."""

    predictor: Predictor
    limits: Limits
    # Compiled sizes by the one that mode predict would choose for the scan alone:
    # another one rounds otherwise.
    sizes: dict[int, set[int]] = dataclasses.field(default_factory=dict)
    reader: child.Reader = dataclasses.field(default_factory=child.Reader)

    def __call__(
        self, folder: Path, like: str, tell: Callable[[int, int], None]
    ) -> dict:
        """Do the upload in `folder`; returns what the page must know. `tell(done, all)`
        hears of the slices.

        Raises BadInput for what mode predict refuses, and beyond the limits.
        """
        ends = time.monotonic() + self.limits.job_seconds
        scan = self.reader.read(
            folder,
            like=like,
            channels=self.predictor.model.config.data.channels,
            limits=self.limits,
            look=lambda: tell(0, 0),
        )
        count, done = len(scan.slices), 0
        tell(0, count)

        def advance(slices):
            nonlocal done
            done += slices
            tell(done, count)
            if time.monotonic() > ends:
                raise BadInput(
                    f"Only {done} of {count} slices were segmented within {self.limits.job_seconds} s. "
                    "Cut the scan into parts."
                )

        prediction = self._predict(scan.slices, advance)
        with files.writing(folder, another="--output"):
            mask = folder / f"mask{'.png' if scan.volume is None else '.nii.gz'}"
            rows = [
                row | _NEUTRAL for row in outputs.write_mask(scan, prediction, mask)
            ]
            files.write_text(folder / SUMMARY, outputs.text_of(rows))
            _write_slices(
                folder, scan, prediction, self.predictor.model.config.data.window
            )
        shutil.rmtree(folder / handoff.FOLDER, ignore_errors=True)
        return _facts(scan, prediction, mask, rows)

    def _predict(self, slices, advance) -> Prediction:
        sizes = self.sizes.setdefault(self.predictor.first_batch(len(slices)), set())
        predictor = dataclasses.replace(self.predictor, sizes=sizes)
        keep = predictor.model.segmenter.draws_samples
        return predictor.predict([slices], keep_samples=keep, done=advance)[0]


def slice_path(folder: Path, z: int) -> Path:
    """Where the planes of a slice are."""
    return folder / "slices" / f"{z}.bin"


def planes(
    image: UInt8[np.ndarray, "h w c"],
    scanned: Shaped[np.ndarray, "h w"],
    prediction: Prediction,
    z: int,
) -> list[UInt8[np.ndarray, "h w"]]:
    """Of one slice, in the order above; all but the image is 0 where nothing was
    scanned.
    """
    maps, samples = prediction.at(z)
    found = [levels(maps["probability"], prediction.threshold)]
    found += [_bytes(maps[name] / MOST[name]) for name in UNCERTAINTIES if name in maps]
    found += [levels(one, prediction.threshold) for one in samples]
    stacked = np.concatenate([one * scanned[..., None] for one in found], axis=-1)
    return [*np.moveaxis(image, -1, 0), *np.moveaxis(stacked, -1, 0)]


def _write_slices(folder, scan: Scan, prediction: Prediction, window):
    slice_path(folder, 0).parent.mkdir()
    low, high = window or _range(scan.slices)
    coloured = _is_coloured(scan)
    for z, one in enumerate(scan.slices):
        image = (
            one
            if coloured
            else _bytes((one[..., :1].astype(np.float32) - low) / max(high - low, 1e-9))
        )
        scanned = (
            np.ones(one.shape[:2], bool) if scan.scanned is None else scan.scanned[z]
        )
        parts = planes(image, scanned, prediction, z)
        slice_path(folder, z).write_bytes(
            zlib.compress(b"".join(part.tobytes() for part in parts), 1)
        )


def _is_coloured(scan) -> bool:
    return (
        scan.volume is None
        and scan.slices.shape[-1] == 3
        and scan.slices.dtype == np.uint8
    )


def _range(slices) -> tuple[float, float]:
    """What is black and white in all slices: percentiles of some of the first channel."""
    step = max(1, round((slices[..., 0].size / 1e6) ** (1 / 3)))
    some = slices[:: step if len(slices) > step else 1, ::step, ::step, 0]
    low, high = np.percentile(some, PERCENTILES)
    return (
        (float(low), float(high))
        if low < high
        else (float(some.min()), float(some.max()))
    )


def _bytes(values) -> UInt8[np.ndarray, "..."]:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _facts(scan: Scan, prediction: Prediction, mask: Path, rows) -> dict:
    """For the page."""
    _, height, width = scan.slices.shape[:3]
    spacing = scan.volume.spacing[1:] if scan.volume else (1.0, 1.0)
    samples = prediction.samples_kept
    return {
        "slices": len(scan.slices),
        "height": height,
        "width": width,
        "aspect": width * spacing[1] / (height * spacing[0]),
        "colours": 3 if _is_coloured(scan) else 1,
        "classes": len(prediction.labels),
        "maps": [name for name in UNCERTAINTIES if name in prediction.maps],
        "samples": 0 if samples is None else len(samples),
        "levels": LEVELS,
        "level": round(LEVELS * prediction.threshold),
        "threshold": prediction.threshold,
        "mask": mask.name,
        "notes": scan.notes,
        "rows": rows,
    }
