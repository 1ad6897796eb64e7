"""What evaluation keeps for the report beside its scores: `report_data.npz`, of bounded size. Imports no jax.

Probabilities p are kept as whole numbers 0 to 200, ceil(200 p), so that "level > 200 t" is "p > t" for every multiple t
of 1/200; at the run's own threshold it is so whatever its value.
"""

import dataclasses
import io
import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from biedsnet_jax.runtime import files
from biedsnet_jax.scoring import results

NAME = "report_data.npz"
LEVELS = 200
BINS = 1000  # of the histogram, over probabilities 0 to 1
LIKELY = 0.05  # mean entropy is over pixels at least so probable: elsewhere it is 0 and there is a lot of elsewhere
GROUPS = ("worst", "median", "best", "other")
MOST_STEPS, MOST_SIDE, GREYS = 20, 128, 15  # of a recorded trajectory: steps, pixels a side of x_t, levels of x_t
_JPEG = 85  # quality


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Rows are those of cases.csv: a row a class of a slice. m of the n slices shown have their t denoising steps."""

    facts: dict  # "versions" by library; "splits": number of slices by split and case
    dice: Float[np.ndarray, " rows"]  # as in cases.csv, to tell another evaluation's data
    entropy: Float[np.ndarray, " rows"]  # bits, mean over pixels that are LIKELY; 0 where none is
    histogram: Int[np.ndarray, "k bins 2 2"]  # pixels by probability, truth and mask
    slices: Int[np.ndarray, " n"]  # their numbers in the order of cases.csv, the most telling first
    groups: Int[np.ndarray, " n"]  # of GROUPS
    images: list[bytes]  # JPEG
    probability: UInt8[np.ndarray, "n h w k"]  # LEVELS
    truth: UInt8[np.ndarray, "n h w k"]  # 0, 1
    mutual_information: UInt8[np.ndarray, "n h w k"] | None  # bits * 255; None without several samples
    times: Int[np.ndarray, " t"]
    x_t: UInt8[np.ndarray, "m t H W k"]  # as probabilities * GREYS, thinned out to MOST_SIDE
    x_0: UInt8[np.ndarray, "m t h w k"]  # LEVELS


class Evaluated(NamedTuple):
    """One run of a report."""

    name: str  # told apart from the others
    colour: int
    run: results.Run
    data: ReportData | None
    missing: str  # why there is no data


class Tally:
    """What is counted over all slices of the test split."""

    def __init__(self, classes: int, threshold: float):
        self.threshold = threshold
        self.dice, self.entropy = [], []
        self.histogram = np.zeros((classes, BINS, 2, 2), np.int64)

    def add(self, probability: Float[np.ndarray, "h w k"], truth: Bool[np.ndarray, "h w k"], dice: list[float]) -> None:
        """One slice, with the Dice of each class."""
        self.dice += dice
        for k in range(len(dice)):
            p = probability[..., k]
            self.entropy.append(mean_entropy(p))
            bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
            cell = (bins * 2 + truth[..., k]) * 2 + (p > self.threshold)
            self.histogram[k] += np.bincount(cell.ravel(), minlength=BINS * 4).reshape(BINS, 2, 2)

    def choose(self, most: int) -> list[tuple[int, int]]:
        """(number, group) of at most `most` slices: a sixth each of the worst, the median and the best by mean Dice of
        their classes, in turns, then others evenly spaced."""
        classes = len(self.histogram)
        dice = np.array(self.dice).reshape(-1, classes)
        known = ~np.isnan(dice)
        score = np.where(known, dice, 0).sum(1) / np.maximum(known.sum(1), 1)
        ranked = [n for n in np.lexsort((np.arange(len(score)), score)).tolist() if known[n].any()]
        each = min(max(1, most // 6), -(-len(ranked) // 3))
        middle = max(0, len(ranked) // 2 - each // 2)
        chosen = {}
        for turn in zip(ranked[:each], ranked[middle : middle + each], ranked[::-1][:each]):
            for group, number in enumerate(turn):
                chosen.setdefault(number, group)
        rest = [n for n in range(len(score)) if n not in chosen]
        room = min(len(rest), max(0, most - len(chosen)))
        others = [rest[i] for i in np.linspace(0, len(rest) - 1, room).round().astype(int)]
        chosen |= dict.fromkeys(others, GROUPS.index("other"))
        return list(chosen.items())[:most]


def mean_entropy(p: Float[np.ndarray, "h w"]) -> float:
    """Of the pixels that are LIKELY, in bits: how unsure a slice's mask is. 0 where none is."""
    p = p[p >= LIKELY].astype(np.float64)
    q = 1 - p
    bits = -(p * np.log2(p) + q * np.log2(np.where(q > 0, q, 1)))
    return float(bits.mean()) if p.size else 0.0


def levels(probability: Float[np.ndarray, "*space"], threshold: float) -> UInt8[np.ndarray, "*space"]:
    """Whole numbers 0 to LEVELS that exceed round(LEVELS * threshold) exactly where the probability exceeds it."""
    border = round(LEVELS * threshold)
    level = np.ceil(np.clip(probability, 0, 1).astype(np.float64) * LEVELS)
    above = probability > threshold
    return np.where(above, np.maximum(level, border + 1), np.minimum(level, border)).astype(np.uint8)


def jpeg(image: Float[np.ndarray, "h w c"]) -> bytes:
    """Its channels' mean, from its least to its largest value, as a grey JPEG file."""
    grey = image.mean(-1, dtype=np.float64)
    grey = (grey - grey.min()) / max(np.ptp(grey), 1e-6)
    file = io.BytesIO()
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(file, "JPEG", quality=_JPEG)
    return file.getvalue()


def thinned(x_t: Float[np.ndarray, "*n h w k"]) -> UInt8[np.ndarray, "*n H W k"]:
    """Every so many pixels of a noisy mask, in GREYS + 1 levels: noise does not compress."""
    stride = -(-max(x_t.shape[-3:-1]) // MOST_SIDE)
    return (np.clip(x_t[..., ::stride, ::stride, :], 0, 1) * GREYS).round().astype(np.uint8)


def evenly(count: int) -> Sequence[int]:
    """Which of `count` steps are kept: all, or MOST_STEPS with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_STEPS)).round().astype(int)).tolist()


def save(workdir: pathlib.Path, data: ReportData) -> None:
    """Write NAME, in the same bytes for the same data."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    fields |= {"facts": np.frombuffer(json.dumps(data.facts).encode(), np.uint8), "truth": np.packbits(data.truth)}
    fields |= {f"image_{i}": np.frombuffer(image, np.uint8) for i, image in enumerate(fields.pop("images"))}
    file = io.BytesIO()
    np.savez_compressed(file, **{name: value for name, value in fields.items() if value is not None})
    files.write_bytes(workdir / NAME, file.getvalue())


def load(workdir: pathlib.Path, dice: Float[np.ndarray, " rows"]) -> ReportData | str:
    """What `save` wrote, or why it is not to be had; `dice` is the column of cases.csv that it must belong to."""
    try:
        with np.load(workdir / NAME, allow_pickle=False) as stored:
            arrays = dict(stored)
        data = _from_arrays(arrays)
    except FileNotFoundError:
        return "none were recorded"
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return f"{NAME} is damaged"
    return data if np.array_equal(data.dice, dice, equal_nan=True) else f"{NAME} is of another evaluation"


def _from_arrays(arrays):
    shape = arrays["probability"].shape
    bits = np.unpackbits(arrays["truth"], count=math.prod(shape))
    images = [arrays[f"image_{i}"].tobytes() for i in range(len(arrays["slices"]))]
    known = {f.name: arrays.get(f.name) for f in dataclasses.fields(ReportData)}
    facts = json.loads(arrays["facts"].tobytes())
    data = ReportData(**known | {"facts": facts, "truth": bits.reshape(shape), "images": images})
    optional = ("mutual_information",)
    if any(getattr(data, f.name) is None for f in dataclasses.fields(data) if f.name not in optional):
        raise KeyError("a field that is missing")
    return data
