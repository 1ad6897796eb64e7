"""Scores a predicted mask against the true one in two conventions, and averages the
scores over images and cases.

`volumes` has the overlap measures in pixel counts. `standard` is exact and undefined
(NaN) where there is nothing to find; `paper` does what the paper's own numbers point
to, smoothing and all. The two give different values under the same names, so they never
share a table. Everything is numpy and scipy, outside jit.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from biedsnet_jax.errors import BadInput
from biedsnet_jax.scoring import false_lesions, statistics, volumes
from biedsnet_jax.scoring.distances import (
    Spacing,
    borders,
    row_hausdorff,
    surface_distances,
)
from biedsnet_jax.scoring.volumes import OVERLAPS, overlap

SURFACE = ("hd", "hd95", "assd", "nsd")
SURFACE_MM = ("hd_mm", "hd95_mm", "assd_mm", "nsd_mm")
PAPER = ("dice", "hd", "iou", "accuracy", "recall", "precision")


def standard(
    *,
    pred: Bool[np.ndarray, "*space"],
    truth: Bool[np.ndarray, "*space"],
    spacing: Spacing | None = None,
    nsd_tolerance: float = 2.0,  # pixels
    nsd_tolerance_mm: float = 2.0,
    known: Bool[np.ndarray, "*space"] | None = None,
) -> dict[str, float]:
    """Computes exact overlap and surface measures of a class, in 2 or 3 dimensions.

    Returns dice, iou, accuracy, recall, precision in [0, 1]; hd, hd95, assd in pixels;
    nsd in [0, 1], the share of both borders within `nsd_tolerance` of each other; and,
    where the `spacing` of this very grid is known (mm, one number an axis), hd_mm,
    hd95_mm, assd_mm, and nsd_mm within `nsd_tolerance_mm`.

    Empty truth: NaN for all but accuracy, which is a plain count of right pixels and
    stays defined. Truth missed altogether (empty prediction): dice, iou, recall, nsd
    are 0, and so is precision, though 0 / 0; every distance is the image diagonal, the
    largest distance two of its pixels can have. NaN would be left out of the mean and
    so reward a model for predicting nothing.

    Pixels that are not `known`, None for none, are taken out of both masks and counted
    nowhere. A lesion that reaches among them has a border along them, where that of a
    prediction which reaches there too lies in the same place. Nothing known: all NaN.

    Raises BadInput for a spacing that is not one positive number an axis.
    """
    pred, truth = known_part(pred, known), known_part(truth, known)
    values = overlap(**_confusion(pred=pred, truth=truth, known=known))
    found = borders(pred=pred, truth=truth)
    pixels = surface_distances(
        found, spacing=(1.0,) * truth.ndim, tolerance=nsd_tolerance
    )
    values |= dict(zip(SURFACE, pixels))
    if spacing is not None:
        mm = surface_distances(found, spacing=spacing, tolerance=nsd_tolerance_mm)
        values |= dict(zip(SURFACE_MM, mm))
    return values


def known_part(
    mask: Bool[np.ndarray, "*space"], known: Bool[np.ndarray, "*space"] | None
) -> Bool[np.ndarray, "*space"]:
    """A mask without what is not known; itself where all is."""
    return mask if known is None else mask & known


def paper(
    *,
    pred: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"],
    known: Bool[np.ndarray, "h w"] | None = None,
) -> dict[str, float]:
    """Computes the measures that the paper's tables point to, defined on empty masks too.

    Dice is smoothed by 1, IoU by 1e-5; recall, precision and accuracy have 1e-10 in the
    denominator, so the first two are 0 on empty truth where Dice is 1 if the prediction
    is empty as well. HD takes each image *row* as one point (see `row_hausdorff`): the
    root of a pixel count, no distance in the image. Recall and precision are not
    swapped here; the paper's own two columns may be. Pixels that are not `known` are
    taken out; where nothing is known, all are NaN.
    """
    if known is not None and not known.any():
        return dict.fromkeys(PAPER, math.nan)
    pred, truth = known_part(pred, known), known_part(truth, known)
    tp, fp, fn, tn = _confusion(pred=pred, truth=truth, known=known).values()
    return {
        "dice": (2 * tp + 1) / (2 * tp + fp + fn + 1),
        "hd": row_hausdorff(pred=pred, truth=truth),
        "iou": (tp + 1e-5) / (tp + fp + fn + 1e-5),
        "accuracy": (tp + tn) / (tp + fp + fn + tn + 1e-10),
        "recall": tp / (tp + fn + 1e-10),
        "precision": tp / (tp + fp + 1e-10),
    }


def _confusion(
    *, pred: np.ndarray, truth: np.ndarray, known: np.ndarray | None
) -> dict[str, int]:
    """Counts pixels, of masks without what is not known, as `volumes.COUNTS` has them."""
    size = truth.size if known is None else int(np.count_nonzero(known))
    tp = int(np.count_nonzero(pred & truth))
    fp = int(np.count_nonzero(pred)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return {"tp": tp, "fp": fp, "fn": fn, "tn": size - tp - fp - fn}


def slice_row(
    *,
    pred: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"],
    case: str,
    slice: str,
    label: int = 1,
    spacing: Spacing | None = None,
    nsd_tolerance: float = 2.0,
    nsd_tolerance_mm: float = 2.0,
    known: Bool[np.ndarray, "h w"] | None = None,
) -> dict[str, str | int | float]:
    """Makes a row of `slices.csv`: one class, `label`, of one slice.

    Columns: case, slice, class (from 1), pixel counts, and those of `standard`.
    Undefined values are NaN. The *_mm columns are there only where the spacing is known.
    Counts are of the pixels `known`: none where the class was not annotated.
    """
    row = {"case": case, "slice": slice, "class": label}
    pred, truth = known_part(pred, known), known_part(truth, known)
    row |= _confusion(pred=pred, truth=truth, known=known)
    row |= standard(
        pred=pred,
        truth=truth,
        spacing=spacing,
        nsd_tolerance=nsd_tolerance,
        nsd_tolerance_mm=nsd_tolerance_mm,
        known=known,
    )
    return row


def volume_row(
    *,
    pred: Bool[np.ndarray, "d h w"],
    truth: Bool[np.ndarray, "d h w"],
    case: str,
    volume: str,
    label: int,
    spacing: Spacing | None = None,  # mm between slices, rows and columns
    nsd_tolerance: float = 2.0,  # voxels
    nsd_tolerance_mm: float = 2.0,
    known: Bool[np.ndarray, "d h w"] | None = None,
) -> dict[str, str | int | float]:
    """Makes a row of `volumes.csv`: one class, `label`, of one volume.

    Columns: case, volume (its name where a case has several), class, slices, voxel
    counts, overlap, and distances and NSD in three dimensions: in mm, with millilitres
    of truth and prediction, or in voxels without `spacing`. Conventions are those of
    `standard`, of voxels that are not `known` too.
    """
    pred, truth = known_part(pred, known), known_part(truth, known)
    counts = _confusion(pred=pred, truth=truth, known=known)
    row = {"case": case, "volume": volume, "class": label, "slices": len(truth)}
    row |= counts
    row |= overlap(**counts)
    found = borders(pred=pred, truth=truth)
    if spacing is None:
        voxels = surface_distances(
            found, spacing=(1.0, 1.0, 1.0), tolerance=nsd_tolerance
        )
        return row | dict(zip(SURFACE, voxels))
    mm = surface_distances(found, spacing=spacing, tolerance=nsd_tolerance_mm)
    row |= dict(zip(SURFACE_MM, mm))
    voxel_ml = math.prod(spacing) / 1000
    row["truth_ml"] = (counts["tp"] + counts["fn"]) * voxel_ml
    row["predicted_ml"] = (counts["tp"] + counts["fp"]) * voxel_ml
    return row


def paper_columns(
    *,
    pred: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"],
    known: Bool[np.ndarray, "h w"] | None = None,
) -> dict[str, float]:
    """Makes the columns paper_* that `slices.csv` has with eval.paper; see `paper`."""
    smoothed = paper(pred=pred, truth=truth, known=known)
    return {f"paper_{name}": value for name, value in smoothed.items()}


def summarise(rows: Sequence[dict]) -> dict:
    """Averages the rows of `slice_row` for JSON, with None where a value is undefined.

    n_images, n_cases; n_empty (rows with empty truth), n_missed (rows with truth but no
    prediction), and false_positive_slices (rows with empty truth but a prediction,
    which no mean of Dice shows); without_lesion, the `false_lesions.Counts` of slices
    and whole cases. A row of which nothing is known counts in none of these, nor does a
    slice of such rows alone; where there are any, n_masks is the number of the others.
    Then "standard", each metric with

    - mean: over rows, NaN left out; n is how many were left in. Only accuracy keeps
      rows with empty truth.
    - ci95: 95 % percentile bootstrap of that mean, resampling whole cases, see
      `statistics.interval`. [None, None] if fewer than two cases have a value.
    - per_case_mean: overlap of each case's volume (its slices' counts summed), averaged
      over cases. Surface measures have no form in counts: the mean over cases of the
      case's own mean.
    - pooled: overlap of all counts summed; None for surface measures.

    Where rows have `paper_columns`, "paper" has their plain means, over all rows, and
    "paper_ci95" their intervals.

    With several classes, a row is a (slice, class), a volume a (case, class), and the
    headline runs over all of them alike; "classes" then holds the same summary of each
    class by itself.

    Raises BadInput if there is no row.
    """
    if not rows:
        raise BadInput(
            "The split has no image to evaluate. Give a split with at least one."
        )
    summary = _summary(rows)
    labels = sorted({row["class"] for row in rows})
    if len(labels) > 1:
        by_class = {
            label: [row for row in rows if row["class"] == label] for label in labels
        }
        summary["classes"] = {
            str(label): _summary(of_class) for label, of_class in by_class.items()
        }
    return summary


def _summary(rows: Sequence[dict]) -> dict:
    # Slices without a known spacing have no columns in mm.
    in_mm = [name for name in SURFACE_MM if any(name in row for row in rows)]
    names = (*OVERLAPS, *SURFACE, *in_mm)
    paper_names = [f"paper_{name}" for name in PAPER if f"paper_{name}" in rows[0]]
    columns = {name: _column(rows, name) for name in (*names, *paper_names)}
    bounds = statistics.intervals(columns, [row["case"] for row in rows])
    intervals = {name: [_json(bound) for bound in bounds[name]] for name in columns}
    known = [row for row in rows if volumes.is_known(row)]
    empty = [row for row in known if row["tp"] + row["fn"] == 0]
    summary = {
        "n_images": len({(row["case"], row["slice"]) for row in known}),
        "n_cases": len({row["case"] for row in known}),
        "n_empty": len(empty),
        "n_missed": sum(row["fn"] > 0 and row["tp"] + row["fp"] == 0 for row in rows),
        "false_positive_slices": [
            {
                "case": row["case"],
                "slice": row["slice"],
                "class": row["class"],
                "pixels": row["fp"],
            }
            for row in empty
            if row["fp"] > 0
        ],
        "without_lesion": false_lesions.count(map(_mask, known))._asdict(),
        "standard": {
            name: _entry(rows, name, columns[name], intervals[name]) for name in names
        },
    }
    if len(known) < len(rows):
        summary["n_masks"] = len(known)
    if paper_names:
        summary["paper"] = {
            name: _json(_mean(columns[f"paper_{name}"])) for name in PAPER
        }
        summary["paper_ci95"] = {name: intervals[f"paper_{name}"] for name in PAPER}
    return summary


def summarise_volumes(rows: Sequence[dict]) -> dict:
    """Averages the rows of `volume_row` for JSON, each class of a volume alike.

    n, the number of rows, and each metric with its mean, the interval of that mean by
    case ("ci95", see `statistics.interval`) and n, the rows in which it is defined.
    With several classes, "classes" has the same of each.
    """
    summary = _volume_summary(rows)
    labels = sorted({row["class"] for row in rows})
    if len(labels) > 1:
        summary["classes"] = {
            str(label): _volume_summary([row for row in rows if row["class"] == label])
            for label in labels
        }
    return summary


def _volume_summary(rows):
    names = [name for name in (*SURFACE, *SURFACE_MM) if name in rows[0]]
    columns = {name: _column(rows, name) for name in (*OVERLAPS, *names)}
    bounds = statistics.intervals(columns, [row["case"] for row in rows])
    summary = {"n": len(rows)}
    for name, values in columns.items():
        summary[name] = {
            "mean": _json(_mean(values)),
            "ci95": [_json(bound) for bound in bounds[name]],
            "n": int(np.count_nonzero(~np.isnan(values))),
        }
    return summary


def _column(rows, key) -> Float[np.ndarray, " rows"]:
    return np.array([row.get(key, math.nan) for row in rows], dtype=float)


def _entry(rows, key, values, interval) -> dict:
    """What "standard" in results.json holds of one metric."""
    pooled = None
    of_cases = _mean_of_means(rows, key)
    # Overlap measures have a form in counts, which add up.
    if key in OVERLAPS:
        pooled = _json(overlap(**volumes.summed(rows))[key])
        of_cases = _volume_mean(rows, key)
    return {
        "mean": _json(_mean(values)),
        "ci95": interval,
        "per_case_mean": _json(of_cases),
        "pooled": pooled,
        "n": int(np.count_nonzero(~np.isnan(values))),
    }


def _mask(row) -> false_lesions.Mask:
    return false_lesions.Mask(
        case=row["case"],
        slice=row["slice"],
        label=str(row["class"]),
        true=row["tp"] + row["fn"] > 0,
        predicted=row["tp"] + row["fp"] > 0,
    )


def _volume_mean(rows: Sequence[dict], key: str) -> float:
    every = volumes.by_volume(rows).values()
    return _mean(overlap(**volumes.summed(volume))[key] for volume in every)


def _mean_of_means(rows: Sequence[dict], key: str) -> float:
    every = volumes.by_volume(rows).values()
    return _mean(_mean(row.get(key, math.nan) for row in volume) for volume in every)


def _mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
