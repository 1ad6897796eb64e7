"""The figures that a verdict on a row of runs rests on. Imports no jax."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from biedsnet_jax.reporting import learning
from biedsnet_jax.reporting.record import Evaluated
from biedsnet_jax.scoring import (
    calibration,
    comparison,
    false_lesions,
    results,
    statistics,
)

# Lesions, and the truth of slices, are small below, in pixels of the network's image.
# It is one of `lesions.BINS`, whose module would import scipy for it.
SMALL = 100


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval by case; NaN where undefined."""

    mean: float
    low: float
    high: float
    count: int  # values in the mean


@dataclasses.dataclass(frozen=True)
class Missed:
    """True lesions, or slices with truth, of which no part was found, by size."""

    kind: str  # "lesion" or "slice with a lesion"
    small: int
    small_missed: int
    large: int
    large_missed: int
    # Whether lesions are those of whole volumes, else of single slices.
    in_volumes: bool = False


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of the runs of one row on one data set; None where it is not."""

    test_cases: int
    # Of all sides, and of the whole data set.
    all_cases: int | None = None
    # Whether the run's own test was scored, with the run's own settings.
    own_test: bool = True
    # Of cross-validation; 0: none.
    folds: int = 0
    folds_here: int = 0
    # Cases that were scored although the run was trained or validated on them.
    trained_on: int = 0
    slices: int = 0
    volume_dice: Score | None = None
    class_dice: dict[str, float] = dataclasses.field(default_factory=dict)
    slice_dice: Score | None = None
    missed: Missed | None = None
    # Slices and cases without a lesion; None where there are none.
    healthy: false_lesions.Counts | None = None
    # Predicted lesions, and those of them that touch no true one, where counted.
    predicted: int = 0
    false: int = 0
    confidence: calibration.Confidence | None = None
    trends: list[learning.Trend] = dataclasses.field(default_factory=list)
    size: int | None = None  # pixels a side
    train_steps: int | None = None


def gather(shown: Sequence[Evaluated]) -> Evidence:
    """Collects the figures of runs of one row, which differ in seed and fold alone."""
    runs = [one.run for one in shown]
    fields = runs[0].fields
    pooled = comparison.pool(runs)
    of_class = _volume_dice(runs)
    folds = [run.fields["fold"] for run in runs if run.fields.get("fold")]
    counted = [run.fields["lesions"] for run in runs if "lesions" in run.fields]
    # All runs of a row were evaluated alike, or lesions are not known of all.
    counted = counted if len(counted) == len(runs) else []
    trained_on = set()
    slices = set()
    for run in runs:
        trained_on |= set(run.fields.get("trained_on") or ())
        known = zip(run.images, run.image_pixels.tolist())
        # Of no pixel is a class that was not annotated there.
        slices |= {(case, number) for (case, number, _), every in known if every != 0}
    lines = [learning.read_metrics(run.workdir) for run in runs]
    trends = [learning.loss_trend(of_run) for of_run in lines]
    return Evidence(
        test_cases=len(pooled.cases()),
        all_cases=_count_cases(shown),
        own_test=not any(run.fields.get("differs") for run in runs),
        folds=folds[0][1] if folds else 0,
        folds_here=len({fold for fold, _ in folds}),
        trained_on=len(trained_on),
        slices=len(slices),
        volume_dice=_volume_score(of_class),
        class_dice={
            runs[0].titled(label): comparison.mean(np.array(list(cases.values())))
            for label, cases in of_class.items()
        },
        slice_dice=_score(pooled.scores["dice"], pooled.case.tolist()),
        missed=_missed_lesions(counted) if counted else _missed_slices(runs),
        healthy=_healthy(runs),
        predicted=sum(of_run["predicted"] for of_run in counted),
        false=sum(of_run["false"] for of_run in counted),
        confidence=_confidence(shown),
        trends=[trend for trend in trends if trend],
        size=fields.get("size"),
        train_steps=fields.get("train_steps"),
    )


def _score(values, case):
    known = int(np.count_nonzero(~np.isnan(values)))
    if not known:
        return None
    return Score(comparison.mean(values), *statistics.interval(values, case), known)


def _volume_dice(runs):
    """Class -> case -> Dice of the volume, the mean over the runs that tested it."""
    values = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for row in run.cases:
            if not math.isnan(row["dice"]):
                values[str(row["class"])][row["case"]].append(row["dice"])
    means = defaultdict(dict)
    for label, cases in sorted(values.items()):
        for case, dice in cases.items():
            means[label][case] = math.fsum(dice) / len(dice)
    return means


def _volume_score(of_class):
    names = []
    dice = []
    for cases in of_class.values():
        names += cases
        dice += cases.values()
    return _score(np.array(dice), names)


def _count_cases(shown):
    if any(one.data is None for one in shown):
        return None
    splits = [one.data.facts["splits"] for one in shown]
    return len({case for sides in splits for cases in sides.values() for case in cases})


def _missed_lesions(counted):
    bins = [size for of_run in counted for size in of_run["by_pixels"]]
    small = [
        size for size in bins if size["below"] is not None and size["below"] <= SMALL
    ]
    large = [size for size in bins if size["from"] >= SMALL]
    return Missed(
        "lesion",
        sum(size["true"] for size in small),
        sum(size["missed"] for size in small),
        sum(size["true"] for size in large),
        sum(size["missed"] for size in large),
        in_volumes=all(of_run.get("in_volumes") for of_run in counted),
    )


def _missed_slices(runs):
    """Slice by slice: a slice is missed where its mask shares no pixel with the truth."""
    size = np.concatenate([run.truth_pixels for run in runs])
    missed = np.concatenate([run.scores["dice"] for run in runs]) == 0
    if np.isnan(size).any():
        return None
    small = (size > 0) & (size < SMALL)
    large = size >= SMALL
    return Missed(
        "slice with a lesion",
        int(small.sum()),
        int((small & missed).sum()),
        int(large.sum()),
        int((large & missed).sum()),
    )


def _healthy(runs: Sequence[results.Run]):
    counts = false_lesions.added(false_lesions.count(run.masks()) for run in runs)
    return counts if counts.slices else None


def _confidence(shown):
    if any(one.data is None for one in shown):
        return None
    # Runs may differ in their classes, which all count alike.
    counts = [one.data.histogram.sum(0, keepdims=True) for one in shown]
    return calibration.confidence(sum(counts))
