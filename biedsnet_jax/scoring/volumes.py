"""Overlap from pixel counts, of a slice or of all slices of a case together.

With tp, fp and fn the pixels that are right, false and missed:

    Dice = 2 tp / (2 tp + fp + fn)      IoU = tp / (tp + fp + fn)
    recall = tp / (tp + fn)             precision = tp / (tp + fp)

A volume is one class of one case. Its counts are the sums over the slices that were
tested, so its Dice is that of the stacked masks.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType

COUNTS = ("tp", "fp", "fn", "tn")
OVERLAPS = ("dice", "iou", "accuracy", "recall", "precision")


def overlap(*, tp: int, fp: int, fn: int, tn: int) -> dict[str, float]:
    """Computes the five overlap measures from pixel counts.

    Without truth all but accuracy are NaN, without any pixel that too. A missed truth
    has Dice, IoU, recall and precision 0, see `metrics.standard`.
    """
    pixels = tp + fp + fn + tn
    accuracy = (tp + tn) / pixels if pixels else math.nan
    if tp + fn == 0:
        return dict.fromkeys(OVERLAPS, math.nan) | {"accuracy": accuracy}
    return {
        "dice": 2 * tp / (2 * tp + fp + fn),
        "iou": tp / (tp + fp + fn),
        "accuracy": accuracy,
        "recall": tp / (tp + fn),
        "precision": tp / max(tp + fp, 1),
    }


def by_volume(rows: Sequence[Mapping]) -> dict[tuple, list[Mapping]]:
    """Groups rows of slices by (case, class), in the order of their first slices."""
    volumes = defaultdict(list)
    for row in rows:
        volumes[row["case"], row["class"]].append(row)
    return dict(volumes)


def is_known(row: Mapping) -> bool:
    """Whether a row counts any pixel; none are counted of a class not annotated there."""
    return any(row[name] for name in COUNTS)


def summed(rows: Sequence[Mapping]) -> dict[str, int]:
    """Adds up the pixel counts of rows."""
    return {name: sum(row[name] for row in rows) for name in COUNTS}


def case_rows(
    rows: Sequence[Mapping],
    lesion_rows: Sequence[Mapping] | None = None,
    pixel_mm2: Mapping[tuple, float] = MappingProxyType({}),
) -> list[dict[str, str | int | float]]:
    """Makes the rows of `cases.csv` from those of `slices.csv`: one a volume.

    Columns: case, class, slices (their number), dice, iou, recall, precision,
    truth_pixels and predicted_pixels. With `lesion_rows`, those of `lesions.csv`, also
    lesions, lesions_missed and lesions_false. Where `pixel_mm2` has the area of a pixel
    of every (case, slice), also truth_mm2 and predicted_mm2: areas summed over the
    slices. Times the distance between slices, which no source tells, they are volumes
    in mm3. Slices of which nothing is known do not count, and a volume of such alone has
    no row.
    """
    rows = [row for row in rows if is_known(row)]
    lesions = by_volume(lesion_rows or ())
    measured = all((row["case"], row["slice"]) in pixel_mm2 for row in rows)
    found = []
    for (case, label), volume in by_volume(rows).items():
        counts = summed(volume)
        scores = overlap(**summed(volume))
        row = {"case": case, "class": label, "slices": len(volume)}
        row |= {name: scores[name] for name in ("dice", "iou", "recall", "precision")}
        row["truth_pixels"] = counts["tp"] + counts["fn"]
        row["predicted_pixels"] = counts["tp"] + counts["fp"]
        if measured:
            row |= _areas(volume, pixel_mm2)
        if lesion_rows is not None:
            row |= _lesion_counts(lesions.get((case, label), ()))
        found.append(row)
    return found


def _areas(volume, pixel_mm2):
    truth = []
    predicted = []
    for row in volume:
        area = pixel_mm2[row["case"], row["slice"]]
        truth.append((row["tp"] + row["fn"]) * area)
        predicted.append((row["tp"] + row["fp"]) * area)
    return {"truth_mm2": math.fsum(truth), "predicted_mm2": math.fsum(predicted)}


def _lesion_counts(lesions):
    true = [row for row in lesions if row["mask"] == "truth"]
    predicted = [row for row in lesions if row["mask"] == "prediction"]
    return {
        "lesions": len(true),
        "lesions_missed": sum(not row["found"] for row in true),
        "lesions_false": sum(not row["found"] for row in predicted),
    }
