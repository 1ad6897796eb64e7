"""Predicts the validation scans, and keeps the pixels that the choice of rules reads.

These are few: those that some rule may find, and those that are true. So the scans of a
whole validation stay in memory, and each rule is tried without predicting anew.
"""

import contextlib
import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from biedsnet_jax.config import build_data
from biedsnet_jax.data.sources.source import LabelledScan
from biedsnet_jax.evaluation.evaluate import scan_groups
from biedsnet_jax.prediction import read_ahead
from biedsnet_jax.prediction.predictor import Predictor
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.runtime import processes, progress
from biedsnet_jax.scoring.distances import bounding_box

# Pixels that may be kept for all scans together: about a gibibyte of one class.
MOST_PIXELS = 2**27


@dataclasses.dataclass(frozen=True)
class ScanPixels:
    """A validation scan: the pixels that any rule may find, or that are true."""

    case: str
    # Of the smallest box that holds all of them.
    shape: tuple[int, int, int]
    spacing: tuple[float, ...] | None
    # Places of the pixels in the box, flattened.
    places: Int[np.ndarray, " pixels"]
    probability: Float[np.ndarray, "pixels k"]
    truth: Bool[np.ndarray, "pixels k"]
    # Where the truth of a class is known, "d h w k" of the box in bits; None: everywhere.
    known: UInt8[np.ndarray, " bytes"] | None = None

    def spread(self, values: Bool[np.ndarray, "pixels k"]) -> Bool[np.ndarray, "..."]:
        """Brings the values of the pixels into the box, "d h w k"."""
        classes = values.shape[1]
        box = np.zeros((math.prod(self.shape), classes), bool)
        box[self.places] = values
        return box.reshape(*self.shape, classes)

    def known_box(self) -> Bool[np.ndarray, "d h w k"] | None:
        """Returns where the truth of a class is known; None where it is everywhere."""
        if self.known is None:
            return None
        shape = (*self.shape, self.truth.shape[1])
        bits = np.unpackbits(self.known, count=math.prod(shape))
        return bits.reshape(shape).view(bool)


def predict(
    made: Predictor, data: build_data.Data, above: float
) -> list[ScanPixels] | None:
    """Predicts the validation scans; None where more than MOST_PIXELS would be kept.

    `above` is that of `pixels_of`.
    """
    cfg = made.model.config
    found = []
    pixels = 0
    done = 0
    quiet = not processes.is_first()
    bar = progress.Progress("decide post-processing", len(data.val), quiet=quiet)
    with contextlib.closing(bar):
        for group in read_ahead.ahead(scan_groups(cfg, data, data.val)):
            predictions = made.predict(group, keep_uncertainty=False)
            done += sum(len(scan.slices) for scan in group)
            bar.update(min(done, bar.total), {})
            for scan, prediction in zip(group, predictions):
                if pixels <= MOST_PIXELS:
                    found.append(pixels_of(scan, prediction, above))
                    pixels += found[-1].truth.size
    return found if pixels <= MOST_PIXELS else None


def pixels_of(scan: LabelledScan, prediction: Prediction, above: float) -> ScanPixels:
    """Keeps the pixels of a scan that are true or whose probability exceeds `above`."""
    probabilities = []
    some = np.empty(scan.truth.shape[:-1], bool)
    for z, probability in enumerate(prediction.each_slice("probability")):
        some[z] = (probability > above).any(axis=-1) | scan.truth[z].any(axis=-1)
        probabilities.append(probability[some[z]])
    box = bounding_box(some)
    places = np.flatnonzero(some[box])
    known = None
    if scan.known is not None:
        known = np.packbits(scan.known[box])
    return ScanPixels(
        case=scan.case,
        shape=some[box].shape,
        spacing=scan.spacing,
        places=places.astype(np.int32 if some.size < 2**31 else np.int64),
        probability=np.concatenate(probabilities),
        truth=scan.truth[some].view(bool),
        known=known,
    )
