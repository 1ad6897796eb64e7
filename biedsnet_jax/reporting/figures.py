"""The charts of a report: learning curves, Dice by case and by size, calibration,
uncertainty. Imports no jax.
"""

import math
from collections.abc import Sequence

import numpy as np

from biedsnet_jax.reporting.learning import read_metrics
from biedsnet_jax.reporting.record import Evaluated
from biedsnet_jax.reporting.svg import GREY, Axis, Figure, Series
from biedsnet_jax.scoring.calibration import (
    calibration,
    expected_calibration_error,
    pixel_risk_coverage,
    slice_risk_coverage,
)

# of a line
_MOST_POINTS = 300
# dots of slices, of all runs together
_MOST_SLICES = 600
# borders between sizes, pixels
_SIZES = (1, 10, 100, 1000, 10_000, 100_000)

Named = Sequence[Evaluated]


def learning_curves(named: Named) -> list[Figure]:
    """Loss and validation Dice by step, of metrics.jsonl; none where there is no such
    file.
    """
    lines = {name: read_metrics(run.workdir) for name, _, run, *_ in named}
    figures = []
    for key, title, y in (
        ("loss", "Training loss", Axis("loss", log=True)),
        ("val_dice", "Validation Dice", Axis("mean Dice", 0, 1)),
    ):
        series = []
        for name, colour, *_ in named:
            points = [
                (line["step"], line[key])
                for line in lines[name]
                if line.get(key) is not None
            ]
            if points:
                series += [
                    Series(name, *zip(*_thin(points)), colour, dots=len(points) == 1)
                ]
        if series:
            caption = (
                "Mean since the last log step."
                if key == "loss"
                else "EMA weights, slices with truth."
            )
            figures.append(Figure(title, caption, Axis("step", low=0), y, series))
    return figures


def by_case(named: Named) -> list[Figure]:
    """Mean Dice of each case, cases in the order of the first run's; of one run its
    slices too.
    """
    means = [_case_means(run) for _, _, run, *_ in named]
    cases = sorted(
        set().union(*means), key=lambda case: (means[0].get(case, math.inf), case)
    )
    place = {case: i for i, case in enumerate(cases)}
    series = []
    if len(named) == 1:
        run = named[0][2]
        chosen = _spread(len(run.images))
        at = [place.get(run.images[i][0], math.nan) for i in chosen]
        tips = [_tip(run, i) for i in chosen]
        series.append(_slices(at, run.scores["dice"][chosen], tips))
    for (name, colour, *_), mean in zip(named, means):
        if not mean:
            continue
        tips = [f"{name}, {case}: {value:.4f}" for case, value in mean.items()]
        at = [place[case] for case in mean]
        label = "mean of a case" if len(named) == 1 else name
        series.append(
            Series(label, at, list(mean.values()), colour, dots=True, tips=tips)
        )
    caption = "Standard convention, mean over the case's slices with truth; cases from the worst to the best."
    x = Axis("case", -0.5, len(cases) - 0.5, names=cases)
    return (
        [Figure("Dice by case", caption, x, Axis("Dice", 0, 1), series)]
        if cases
        else []
    )


def by_size(named: Named) -> list[Figure]:
    """Dice of a slice by the number of its true pixels, and the mean of each size."""
    series = []
    for name, colour, run, *_ in named:
        size = run.truth_pixels
        dice = run.scores["dice"]
        known = (size > 0) & ~np.isnan(dice)
        if len(named) == 1 and known.any():
            some = np.flatnonzero(known)[_spread(np.count_nonzero(known))]
            tips = [_tip(run, i) for i in some]
            series.append(_slices(size[some].tolist(), dice[some], tips))
        group = np.digitize(size, _SIZES)
        points = [
            (float(np.exp(np.log(size[chosen]).mean())), float(dice[chosen].mean()))
            for chosen in (known & (group == g) for g in range(1, len(_SIZES) + 1))
            if chosen.any()
        ]
        if points:
            label = "mean of a size" if len(named) == 1 else name
            series.append(Series(label, *zip(*points), colour))
            series.append(Series("", *zip(*points), colour, dots=True))
    if not series:
        return []
    caption = (
        "Size is the true pixels of a slice at the size the network sees; means over slices under 10 pixels, from 10, "
        "from 100 and so on, at their geometric mean size."
    )
    return [
        Figure(
            "Dice by lesion size",
            caption,
            Axis("true pixels", log=True),
            Axis("Dice", 0, 1),
            series,
        )
    ]


def reliability(named: Named) -> list[Figure]:
    """How often a pixel is truly foreground, by the probability it was given."""
    series = [Series("ideal", [0, 1], [0, 1], GREY, dashed=True)]
    for name, colour, _, data, _ in named:
        if data is not None:
            predicted, observed, count = calibration(data.histogram)
            tips = [
                f"{name}: {p:.3f} said, {o:.3f} true, {n:,} pixels"
                for p, o, n in zip(predicted, observed, count)
            ]
            label = f"{name}, ECE {expected_calibration_error(data.histogram):.4f}"
            series.append(Series(label, predicted, observed, colour))
            series.append(Series("", predicted, observed, colour, dots=True, tips=tips))
    if len(series) == 1:
        return []
    caption = (
        "All test pixels and classes in 20 bins of probability. The model is too sure where a point lies below the "
        "dashed line right of 0.5, or above it left of 0.5. ECE is the mean distance from the line, weighed by pixels, "
        "most of which are sure background."
    )
    x = Axis("mean probability", 0, 1)
    y = Axis("share truly foreground", 0, 1)
    return [Figure("Is the probability right?", caption, x, y, series)]


def risk_coverage(named: Named) -> list[Figure]:
    """What error is left when only the surest pixels, or slices, are kept."""
    pixels = []
    slices = []
    for name, colour, run, data, _ in named:
        if data is None:
            continue
        coverage, risk = pixel_risk_coverage(data.histogram)
        pixels.append(Series(name, *zip(*_thin(list(zip(coverage, risk)))), colour))
        coverage, risk = slice_risk_coverage(run.scores["dice"], data.entropy)
        # Without truth a slice has no Dice, and a test may have none that has.
        if coverage:
            slices.append(Series(name, *zip(*_thin(list(zip(coverage, risk)))), colour))
    figures = []
    if pixels:
        caption = (
            "Pixels kept from the lowest entropy of their probability on, and the share of them that are wrong. A "
            "curve that stays low until the end says that errors lie where the model is unsure."
        )
        x = Axis("share of pixels kept", 0, 1)
        figures.append(
            Figure(
                "Does high uncertainty mean error? Pixels",
                caption,
                x,
                Axis("error", 0),
                pixels,
            )
        )
    if slices:
        caption = (
            "Slices with truth kept from the lowest mean entropy on (over pixels of probability 0.05 or more), and the "
            "mean of 1 - Dice of those kept: a rising curve says that the slices to look at by hand can be told."
        )
        x = Axis("share of slices kept", 0, 1)
        figures.append(
            Figure(
                "Does high uncertainty mean error? Slices",
                caption,
                x,
                Axis("1 - Dice", 0, 1),
                slices,
            )
        )
    return figures


def _case_means(run):
    dice = {}
    for (case, _, _), value in zip(run.images, run.scores["dice"].tolist()):
        if not math.isnan(value):
            dice.setdefault(case, []).append(value)
    return {case: math.fsum(values) / len(values) for case, values in dice.items()}


def _slices(x, dice, tips):
    return Series("a slice", x, dice.tolist(), GREY, dots=True, faint=True, tips=tips)


def _tip(run, i):
    case, number, label = run.images[i]
    return f"{case}, slice {number}, class {label}: {run.scores['dice'][i]:.4f}"


def _spread(count):
    return (
        np.unique(
            np.linspace(0, count - 1, min(count, _MOST_SLICES)).round().astype(int)
        )
        if count
        else []
    )


def _thin(points: Sequence):
    """At most _MOST_POINTS of them, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return points
    return [
        points[i]
        for i in np.linspace(0, len(points) - 1, _MOST_POINTS).round().astype(int)
    ]
