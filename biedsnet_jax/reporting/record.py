"""What evaluation keeps for the report beside its scores: `report_data.npz`, of bounded
size. Imports no jax.

Probabilities p are kept as whole numbers 0 to 200, ceil(200 p), so that "level > 200 t"
is "p > t" for every multiple t of 1/200; at the run's own threshold it is so whatever
its value.
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
# of a recorded trajectory: steps, pixels a side of x_t, levels of x_t
MOST_STEPS = 20
MOST_SIDE = 128
GREYS = 15
# quality
_JPEG = 85


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Rows are those of cases.csv: a row a class of a slice. m of the n slices shown
    have their t denoising steps.
    """

    facts: dict  # "versions" by library; "splits": number of slices by split and case
    # as in cases.csv, to tell another evaluation's data
    dice: Float[np.ndarray, " rows"]
    # bits, mean over pixels that are LIKELY; 0 where none is
    entropy: Float[np.ndarray, " rows"]
    histogram: Int[np.ndarray, "k bins 2 2"]  # pixels by probability, truth and mask
    # their numbers in the order of cases.csv, the most telling first
    slices: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]  # of GROUPS
    images: list[bytes]  # JPEG
    probability: UInt8[np.ndarray, "n h w k"]  # LEVELS
    truth: UInt8[np.ndarray, "n h w k"]  # 0, 1
    # bits * 255; None without several samples
    mutual_information: UInt8[np.ndarray, "n h w k"] | None
    times: Int[np.ndarray, " t"]
    # as probabilities * GREYS, thinned out to MOST_SIDE
    x_t: UInt8[np.ndarray, "m t H W k"]
    x_0: UInt8[np.ndarray, "m t h w k"]  # LEVELS


class Evaluated(NamedTuple):
    """One run of a report."""

    name: str  # told apart from the others
    colour: int
    run: results.Run
    data: ReportData | None
    missing: str  # why there is no data


def levels(
    probability: Float[np.ndarray, "*space"], threshold: float
) -> UInt8[np.ndarray, "*space"]:
    """Whole numbers 0 to LEVELS that exceed round(LEVELS * threshold) exactly where the
    probability exceeds it.
    """
    border = round(LEVELS * threshold)
    level = np.ceil(np.clip(probability, 0, 1).astype(np.float64) * LEVELS)
    above = probability > threshold
    return np.where(
        above, np.maximum(level, border + 1), np.minimum(level, border)
    ).astype(np.uint8)


def jpeg(image: Float[np.ndarray, "h w c"]) -> bytes:
    """Its channels' mean, from its least to its largest value, as a grey JPEG file."""
    grey = image.mean(-1, dtype=np.float64)
    grey = (grey - grey.min()) / max(np.ptp(grey), 1e-6)
    file = io.BytesIO()
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(
        file, "JPEG", quality=_JPEG
    )
    return file.getvalue()


def thinned(x_t: Float[np.ndarray, "*n h w k"]) -> UInt8[np.ndarray, "*n H W k"]:
    """Every so many pixels of a noisy mask, in GREYS + 1 levels: noise does not
    compress.
    """
    stride = -(-max(x_t.shape[-3:-1]) // MOST_SIDE)
    return (
        (np.clip(x_t[..., ::stride, ::stride, :], 0, 1) * GREYS)
        .round()
        .astype(np.uint8)
    )


def evenly(count: int) -> Sequence[int]:
    """Which of `count` steps are kept: all, or MOST_STEPS with the first and the last."""
    return np.unique(
        np.linspace(0, count - 1, min(count, MOST_STEPS)).round().astype(int)
    ).tolist()


def save(workdir: pathlib.Path, data: ReportData) -> None:
    """Write NAME, in the same bytes for the same data."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    fields |= {
        "facts": np.frombuffer(json.dumps(data.facts).encode(), np.uint8),
        "truth": np.packbits(data.truth),
    }
    fields |= {
        f"image_{i}": np.frombuffer(image, np.uint8)
        for i, image in enumerate(fields.pop("images"))
    }
    file = io.BytesIO()
    np.savez_compressed(
        file, **{name: value for name, value in fields.items() if value is not None}
    )
    files.write_bytes(workdir / NAME, file.getvalue())


def load(workdir: pathlib.Path, dice: Float[np.ndarray, " rows"]) -> ReportData | str:
    """What `save` wrote, or why it is not to be had; `dice` is the column of cases.csv
    that it must belong to.
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
    return (
        data
        if np.array_equal(data.dice, dice, equal_nan=True)
        else f"{NAME} is of another evaluation"
    )


def _from_arrays(arrays):
    shape = arrays["probability"].shape
    bits = np.unpackbits(arrays["truth"], count=math.prod(shape))
    images = [arrays[f"image_{i}"].tobytes() for i in range(len(arrays["slices"]))]
    known = {f.name: arrays.get(f.name) for f in dataclasses.fields(ReportData)}
    facts = json.loads(arrays["facts"].tobytes())
    data = ReportData(
        **known | {"facts": facts, "truth": bits.reshape(shape), "images": images}
    )
    optional = ("mutual_information",)
    if any(
        getattr(data, f.name) is None
        for f in dataclasses.fields(data)
        if f.name not in optional
    ):
        raise KeyError("a field that is missing")
    return data
