"""Scores lesion by lesion: which true ones were found, which predicted ones are false,
and how large they are.

A lesion is a connected component of one class: in a volume of voxels that touch by a
face, an edge or a corner (26), in a picture of pixels that do (8). Pictures of a case are
not stacked, because slices may be missing; there a lesion that spans five slices counts
five times.

A true lesion is found where any of its pixels is predicted (the rule of the WMH
challenge, Kuijf et al. 2019, doi:10.1109/TMI.2019.2905770), or a share of its pixels
that the caller sets (a tenth in Commowick et al. 2018, doi:10.1038/s41598-018-31911-7).
A predicted one is false where it touches no true pixel:

    sensitivity = found / true
    precision = (predicted - false) / predicted
    F1 = the harmonic mean of the two
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

from biedsnet_jax.scoring.distances import bounding_box

# Borders between sizes, in pixels, mm2 or mm3.
BINS = (10, 100, 1000)

# Columns of a table of lesions in slices; of those in volumes, mm3 stands for mm2.
COLUMNS = (
    "case",
    "slice",
    "class",
    "mask",
    "pixels",
    "mm2",
    "overlap",
    "dice",
    "found",
)
# Name of a lesion's size in mm, by the number of axes.
_SIZES = {2: "mm2", 3: "mm3"}


def rows(
    *,
    pred: Bool[np.ndarray, "*space"],
    truth: Bool[np.ndarray, "*space"],
    case: str,
    slice: str,
    label: int = 1,
    spacing: Sequence[float] | Float[np.ndarray, " axes"] | None = None,  # mm
    least_overlap: float = 0.0,
) -> list[dict[str, str | int | float]]:
    """Makes the rows of `lesions.csv` for one class of a slice or of a volume.

    Each is a component; `slice` names the slice, or the volume where a case has several.
    mask: "truth" or "prediction", where the component comes from. pixels (voxels), and
    mm2 or mm3 (NaN without `spacing`): its size. overlap: share of its pixels that the
    other mask has too. dice: of the component and all those of the other mask that it meets, taken
    together. found, 0 or 1: it meets the other mask; a true one in `least_overlap` of
    its pixels.
    """
    area = math.nan if spacing is None else float(np.prod(spacing))
    size = _SIZES[truth.ndim]
    # A volume is mostly background, and its components are numbered in int32.
    box = bounding_box(pred, truth)
    true = components(truth[box])
    predicted = components(pred[box])
    found = []
    for mask, ours, theirs, least in (
        ("truth", true, predicted, least_overlap),
        ("prediction", predicted, true, 0.0),
    ):
        for pixels, shared, met in _meetings(ours, theirs):
            overlap = shared / pixels
            row = {
                "case": case,
                "slice": slice,
                "class": label,
                "mask": mask,
                "pixels": pixels,
                size: pixels * area,
                "overlap": overlap,
                "dice": 2 * shared / (pixels + met),
                "found": int(shared > 0 and overlap >= least),
            }
            found.append(row)
    return found


def components(mask: Bool[np.ndarray, "*space"]) -> Integer[np.ndarray, "*space"]:
    """Numbers the connected components of a mask from 1; 0 is the background."""
    return ndimage.label(mask, np.ones((3,) * mask.ndim, bool))[0]


def _meetings(ours: np.ndarray, theirs: np.ndarray) -> list[tuple[int, int, int]]:
    """Lists the components of `ours`: (size, pixels shared with `theirs`, summed size
    of the components of `theirs` that it meets).
    """
    sizes = np.bincount(ours.ravel())
    their_sizes = np.bincount(theirs.ravel())
    shared = np.bincount(ours[theirs > 0], minlength=len(sizes))
    both = (ours > 0) & (theirs > 0)
    # A number for each pair of components; runs of one pair are cut to one before sorting.
    pair = ours[both].astype(np.int64) * len(their_sizes) + theirs[both]
    pair = np.unique(pair[np.append(True, pair[1:] != pair[:-1])[: len(pair)]])
    own, other = np.divmod(pair, len(their_sizes))
    met = np.bincount(own, weights=their_sizes[other], minlength=len(sizes))
    # Component 0 is the background.
    every = zip(sizes[1:], shared[1:], met[1:])
    return [(int(size), int(common), int(other)) for size, common, other in every]


def summarise(rows: Sequence[dict]) -> dict:
    """Counts the lesions of `rows` for JSON; a rate with nothing to count is None.

    true, found, missed, predicted, false; sensitivity, precision, f1; dice_of_found,
    the mean over found true lesions. "by_pixels" has the same for sizes under 10, from
    10, from 100 and from 1000, "by_mm2" or "by_mm3" where every size is known; true and
    predicted lesions each count by their own size. With several classes, "classes" has all of it
    for each class that occurs.
    """
    labels = sorted({row["class"] for row in rows})
    summary = _summary(rows)
    if len(labels) > 1:
        summary["classes"] = {
            str(label): _summary([row for row in rows if row["class"] == label])
            for label in labels
        }
    return summary


def _summary(rows):
    summary = _rates(rows) | {"by_pixels": _by_size(rows, "pixels")}
    for name in _SIZES.values():
        if rows and not any(math.isnan(row.get(name, math.nan)) for row in rows):
            summary[f"by_{name}"] = _by_size(rows, name)
    return summary


def _by_size(rows, unit):
    found = []
    for low, high in itertools.pairwise((0, *BINS, math.inf)):
        of_size = [row for row in rows if low <= row[unit] < high]
        border = None if high == math.inf else high
        found.append({"from": low, "below": border} | _rates(of_size))
    return found


def _rates(rows):
    true = [row for row in rows if row["mask"] == "truth"]
    dice = [row["dice"] for row in true if row["found"]]
    predicted = len(rows) - len(true)
    false = sum(row["mask"] == "prediction" and not row["found"] for row in rows)
    sensitivity = _share(len(dice), len(true))
    precision = _share(predicted - false, predicted)
    return {
        "true": len(true),
        "found": len(dice),
        "missed": len(true) - len(dice),
        "predicted": predicted,
        "false": false,
        "sensitivity": sensitivity,
        "precision": precision,
        "f1": _harmonic_mean(sensitivity, precision),
        "dice_of_found": _share(math.fsum(dice), len(dice)),
    }


def _share(part, whole):
    return part / whole if whole else None


def _harmonic_mean(a, b):
    # A model that predicts nothing has no precision, and scores 0.
    if a == 0 or b == 0:
        return 0.0
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b)
