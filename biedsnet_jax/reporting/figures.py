"""Makes the charts of a report: learning curves, Dice by case and by size, calibration
and uncertainty. Imports no jax.
"""

import math
from collections import defaultdict
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

# Points of a line.
_MOST_POINTS = 300
# Dots of slices.
_MOST_SLICES = 600
# Borders between sizes, in pixels.
_SIZES = (1, 10, 100, 1000, 10_000, 100_000)

Named = Sequence[Evaluated]


def learning_curves(named: Named) -> list[Figure]:
    """Loss and validation Dice by step; none where metrics.jsonl has none."""
    lines = [read_metrics(one.run.workdir) for one in named]
    loss = Axis("loss", log=True)
    dice = Axis("mean Dice", 0, 1)
    titled = (
        ("Training loss", "Mean since the last log step.", loss, "loss"),
        ("Validation Dice", "EMA weights, slices with truth.", dice, "val_dice"),
    )
    figures = [
        Figure(title, caption, Axis("step", low=0), y, _curves(named, lines, key))
        for title, caption, y, key in titled
    ]
    return [figure for figure in figures if figure.series]


def _curves(named, lines, key):
    series = []
    for one, of_run in zip(named, lines):
        points = [(line["step"], line[key]) for line in of_run if key in line]
        if points:
            # A line of one point would not show.
            only = len(points) == 1
            xy = zip(*_thin(points))
            series.append(Series(one.name, *xy, one.colour, dots=only))
    return series


def by_case(named: Named) -> list[Figure]:
    """Mean Dice of each case, in the order of the first run's; of one run its slices too."""
    means = [_case_means(run) for _, _, run, *_ in named]
    cases = sorted(
        set().union(*means), key=lambda case: (means[0].get(case, math.inf), case)
    )
    if not cases:
        return []
    place = {case: i for i, case in enumerate(cases)}
    series = []
    if len(named) == 1:
        run = named[0].run
        chosen = _spread(len(run.images))
        # Cases without truth have no place.
        at = [place.get(run.images[i][0], math.nan) for i in chosen]
        tips = [_tip(run, i) for i in chosen]
        series.append(_slices(at, run.scores["dice"][chosen], tips))
    for (name, colour, *_), mean in zip(named, means):
        tips = [f"{name}, {case}: {value:.4f}" for case, value in mean.items()]
        at = [place[case] for case in mean]
        label = "mean of a case" if len(named) == 1 else name
        if mean:
            series.append(
                Series(label, at, list(mean.values()), colour, dots=True, tips=tips)
            )
    caption = (
        "Standard convention: the mean over a case's slices with truth. Cases run from the worst "
        "to the best."
    )
    x = Axis("case", -0.5, len(cases) - 0.5, names=cases)
    return [Figure("Dice by case", caption, x, Axis("Dice", 0, 1), series)]


def by_size(named: Named) -> list[Figure]:
    """Dice of slices by the number of their true pixels, and the mean of each size."""
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
        points = []
        # Group 0 is of slices without truth.
        for number in range(1, len(_SIZES) + 1):
            chosen = known & (group == number)
            if chosen.any():
                middle = np.exp(np.log(size[chosen]).mean())
                points.append((float(middle), float(dice[chosen].mean())))
        if points:
            label = "mean of a size" if len(named) == 1 else name
            series.append(Series(label, *zip(*points), colour))
            series.append(Series("", *zip(*points), colour, dots=True))
    if not series:
        return []
    caption = (
        "Size is the number of true pixels of a slice, on the grid of its scores. Means are over "
        "slices under 10 pixels, from 10, from 100 and so on, at their geometric mean size."
    )
    x = Axis("true pixels", log=True)
    return [Figure("Dice by lesion size", caption, x, Axis("Dice", 0, 1), series)]


def reliability(named: Named) -> list[Figure]:
    """Share of pixels that are truly foreground, by the probability they were given."""
    series = [Series("ideal", [0, 1], [0, 1], GREY, dashed=True)]
    for name, colour, _, data, _ in named:
        # A test of which nothing is known has no pixels.
        if data is not None and data.histogram.any():
            predicted, observed, count = calibration(data.histogram)
            tips = [
                f"{name}: {p:.3f} predicted, {o:.3f} true, {n:,} pixels"
                for p, o, n in zip(predicted, observed, count)
            ]
            label = f"{name}, ECE {expected_calibration_error(data.histogram):.4f}"
            series.append(Series(label, predicted, observed, colour))
            series.append(Series("", predicted, observed, colour, dots=True, tips=tips))
    if len(series) == 1:
        return []
    caption = (
        "All test pixels and classes in 20 bins of probability. The model is too sure where a "
        "point lies below the dashed line right of 0.5, or above it left of 0.5. ECE is the mean "
        "distance from the line, weighed by pixels, most of which are sure background."
    )
    x = Axis("mean probability", 0, 1)
    y = Axis("share truly foreground", 0, 1)
    return [Figure("Is the probability right?", caption, x, y, series)]


def risk_coverage(named: Named) -> list[Figure]:
    """Error that is left when only the surest pixels, or slices, are kept."""
    pixels = []
    slices = []
    for name, colour, run, data, _ in named:
        if data is None:
            continue
        points = list(zip(*pixel_risk_coverage(data.histogram)))
        # A test of which nothing is known has no pixels.
        if points:
            pixels.append(Series(name, *zip(*_thin(points)), colour))
        dice = run.scores["dice"]
        points = list(zip(*slice_risk_coverage(dice, data.entropy)))
        # Without truth a slice has no Dice, and a test may have none that has.
        if points:
            slices.append(Series(name, *zip(*_thin(points)), colour))
    figures = [
        Figure(
            "Does high uncertainty mean error? Pixels",
            "Pixels are kept from the lowest entropy of their probability on; error is the share "
            "of them that are wrong. A curve that stays low until the end says that errors lie "
            "where the model is unsure.",
            Axis("share of pixels kept", 0, 1),
            Axis("error", 0),
            pixels,
        ),
        Figure(
            "Does high uncertainty mean error? Slices",
            "Slices with truth are kept from the lowest mean entropy on, over pixels of "
            "probability 0.05 or more. A rising mean of 1 - Dice says that entropy finds the "
            "slices to look at by hand.",
            Axis("share of slices kept", 0, 1),
            Axis("1 - Dice", 0, 1),
            slices,
        ),
    ]
    return [figure for figure in figures if figure.series]


def _case_means(run):
    dice = defaultdict(list)
    for (case, *_), value in zip(run.images, run.scores["dice"].tolist()):
        if not math.isnan(value):
            dice[case].append(value)
    return {case: math.fsum(values) / len(values) for case, values in dice.items()}


def _slices(x, dice, tips):
    return Series("a slice", x, dice.tolist(), GREY, dots=True, faint=True, tips=tips)


def _tip(run, i):
    case, number, label = run.images[i]
    dice = run.scores["dice"][i]
    return f"{case}, slice {number}, class {run.titled(label)}: {dice:.4f}"


def _spread(count):
    """Evenly spaced numbers below `count`, at most _MOST_SLICES."""
    if not count:
        return []
    spread = np.linspace(0, count - 1, min(count, _MOST_SLICES))
    return np.unique(spread.round().astype(int))


def _thin(points: Sequence):
    """At most _MOST_POINTS of the points, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return points
    spread = np.linspace(0, len(points) - 1, _MOST_POINTS)
    return [points[i] for i in spread.round().astype(int)]
