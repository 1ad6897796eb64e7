"""Keeps what the report shows beside the scores in `report_data.npz`, of bounded size.

Probabilities p are whole numbers 0 to 200, ceil(200 p), so that "level > 200 t" is
"p > t" for every multiple t of 1/200; at the run's own threshold it is so whatever its
value. Imports no jax.
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
from jaxtyping import Float, Int, UInt8
from PIL import Image

from biedsnet_jax.runtime import files
from biedsnet_jax.scoring import results

NAME = "report_data.npz"
LEVELS = 200
GROUPS = ("worst", "median", "best", "other")
# Of a recorded trajectory: steps, pixels a side of x_t, levels of x_t.
MOST_STEPS = 20
MOST_SIDE = 128
GREYS = 15
# Of 100.
_JPEG = 85
# Maps of 0 and 1.
_OF_BITS = {"truth", "known"}


@dataclasses.dataclass(frozen=True)
class ReportData:
    """What the report shows of an evaluation.

    Rows are those of slices.csv, one a class of a slice. Of the n slices that are
    shown, the first m have their t denoising steps.
    """

    # "versions" by library; "splits": number of slices by split and case.
    facts: dict
    # As in slices.csv, to recognise the data of another evaluation.
    dice: Float[np.ndarray, " rows"]
    # In bits, `calibration.mean_entropy` of the probability.
    entropy: Float[np.ndarray, " rows"]
    histogram: Int[np.ndarray, "k bins 2 2"]  # pixels by probability, truth and mask
    # Their numbers in the order of slices.csv, the most telling first.
    slices: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]  # of GROUPS
    images: list[bytes]  # JPEG
    probability: UInt8[np.ndarray, "n h w k"]  # LEVELS
    truth: UInt8[np.ndarray, "n h w k"]  # 0, 1
    # Bits * 255; None without several samples.
    mutual_information: UInt8[np.ndarray, "n h w k"] | None
    times: Int[np.ndarray, " t"]
    # Probabilities * GREYS, thinned out to MOST_SIDE.
    x_t: UInt8[np.ndarray, "m t H W k"]
    x_0: UInt8[np.ndarray, "m t h w k"]  # LEVELS
    # 0 where the truth is not known; None where all is.
    known: UInt8[np.ndarray, "n h w k"] | None = None  # 0, 1


class Evaluated(NamedTuple):
    """One run of a report, with what was recorded beside its scores."""

    name: str  # no other run of the report has it
    colour: int
    run: results.Run
    data: ReportData | None
    missing: str  # why there is no data


def levels(
    probability: Float[np.ndarray, "*space"], threshold: float
) -> UInt8[np.ndarray, "*space"]:
    """Rounds probabilities up to whole numbers, 0 to LEVELS.

    They exceed round(LEVELS * threshold) exactly where the probability exceeds it.
    """
    border = round(LEVELS * threshold)
    level = np.ceil(np.clip(probability, 0, 1).astype(np.float64) * LEVELS)
    above = probability > threshold
    # Rounding must not carry a probability across the threshold.
    exact = np.where(above, np.maximum(level, border + 1), np.minimum(level, border))
    return exact.astype(np.uint8)


def jpeg(image: Float[np.ndarray, "h w c"]) -> bytes:
    """Encodes the mean of the channels, least to largest value, as a grey JPEG file."""
    grey = image.mean(-1, dtype=np.float64)
    grey = (grey - grey.min()) / max(np.ptp(grey), 1e-6)
    file = io.BytesIO()
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(
        file, "JPEG", quality=_JPEG
    )
    return file.getvalue()


def thinned(x_t: Float[np.ndarray, "*n h w k"]) -> UInt8[np.ndarray, "*n H W k"]:
    """Thins out a noisy mask to MOST_SIDE and GREYS + 1 levels: noise does not compress."""
    stride = math.ceil(max(x_t.shape[-3:-1]) / MOST_SIDE)
    thin = np.clip(x_t[..., ::stride, ::stride, :], 0, 1)
    return (thin * GREYS).round().astype(np.uint8)


def evenly(count: int) -> Sequence[int]:
    """Chooses from `count` steps: all, or MOST_STEPS with the first and the last."""
    spread = np.linspace(0, count - 1, min(count, MOST_STEPS))
    return np.unique(spread.round().astype(int)).tolist()


def save(workdir: pathlib.Path, data: ReportData) -> None:
    """Writes NAME, in the same bytes for the same data."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    fields["facts"] = np.frombuffer(json.dumps(data.facts).encode(), np.uint8)
    for name in ("mutual_information", "known"):
        if fields[name] is None:
            del fields[name]
    # Eight pixels a byte.
    for name in _OF_BITS & fields.keys():
        fields[name] = np.packbits(fields[name])
    for i, image in enumerate(fields.pop("images")):
        fields[f"image_{i}"] = np.frombuffer(image, np.uint8)
    file = io.BytesIO()
    # Each name becomes a file of the archive.
    np.savez_compressed(file, **fields)
    files.write_bytes(workdir / NAME, file.getvalue())


def load(workdir: pathlib.Path, dice: Float[np.ndarray, " rows"]) -> ReportData | str:
    """Reads what `save` wrote, or says why it cannot be had.

    `dice` is the column of slices.csv that the data must belong to.
    """
    try:
        with np.load(workdir / NAME, allow_pickle=False) as stored:
            arrays = dict(stored)
        data = _from_arrays(arrays)
    except FileNotFoundError:
        return "none were recorded"
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return f"{NAME} is damaged"
    if not np.array_equal(data.dice, dice, equal_nan=True):
        return f"{NAME} is of another evaluation"
    return data


def _from_arrays(arrays):
    shape = arrays["probability"].shape
    for name in _OF_BITS & arrays.keys():
        bits = np.unpackbits(arrays[name], count=math.prod(shape))
        arrays[name] = bits.reshape(shape)
    count = len(arrays["slices"])
    return ReportData(
        facts=json.loads(arrays["facts"].tobytes()),
        dice=arrays["dice"],
        entropy=arrays["entropy"],
        histogram=arrays["histogram"],
        slices=arrays["slices"],
        groups=arrays["groups"],
        images=[arrays[f"image_{i}"].tobytes() for i in range(count)],
        probability=arrays["probability"],
        truth=arrays["truth"],
        mutual_information=arrays.get("mutual_information"),
        times=arrays["times"],
        x_t=arrays["x_t"],
        x_0=arrays["x_0"],
        known=arrays.get("known"),
    )
