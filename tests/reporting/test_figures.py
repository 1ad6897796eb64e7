"""Compares the report's charts with slow loops, and reads them back as XML."""

import math
import xml.etree.ElementTree as ET

import evaluated_workdir
import numpy as np
import pytest

from biedsnet_jax.reporting import figures, learning, run_tables, svg
from biedsnet_jax.reporting.svg import Axis, Figure, Series
from biedsnet_jax.scoring import calibration, results


def pixels(count=3000):
    """Makes pixels: (probability at the middle of a bin, truth, mask, histogram)."""
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 1000, count)
    p = (bins + 0.5) / 1000
    truth = rng.random(count) < p**1.5
    mask = p > 0.4
    histogram = np.zeros((1, 1000, 2, 2), int)
    np.add.at(histogram, (0, bins, truth.astype(int), mask.astype(int)), 1)
    return p, truth, mask, histogram


def test_calibration_is_that_of_pixels_binned_one_by_one():
    p, truth, _, histogram = pixels()
    predicted, observed, count = calibration.calibration(histogram)
    error = 0.0
    for b in range(20):
        inside = (p >= b / 20) & (p < (b + 1) / 20)
        assert count[b] == inside.sum()
        assert predicted[b] == pytest.approx(p[inside].mean())
        assert observed[b] == pytest.approx(truth[inside].mean())
        error += inside.mean() * abs(p[inside].mean() - truth[inside].mean())
    assert calibration.expected_calibration_error(histogram) == pytest.approx(error)


def test_pixel_risk_coverage_keeps_the_surest_first():
    p, truth, mask, histogram = pixels()
    coverage, risk = calibration.pixel_risk_coverage(histogram)
    # Bins of the same entropy go together, two by two.
    assert len(coverage) == 500
    for at in (0, 10, 250, 499):
        kept = np.abs(p - 0.5) >= 0.4995 - at / 1000 - 1e-9
        assert coverage[at] == pytest.approx(kept.mean())
        assert risk[at] == pytest.approx((truth != mask)[kept].mean())
    assert coverage[-1] == 1.0


def test_slice_risk_coverage_worked_by_hand():
    dice = np.array([0.5, math.nan, 0.9, 0.7])
    entropy = np.array([0.8, 0.0, 0.1, 0.3])
    coverage, risk = calibration.slice_risk_coverage(dice, entropy)
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
    assert risk == pytest.approx([0.1, 0.2, 0.3])
    assert calibration.slice_risk_coverage(np.array([math.nan]), np.array([0.0])) == (
        [],
        [],
    )


def parse(figure):
    return ET.fromstring(f"<div>{svg.svg(figure)}</div>")


def test_a_chart_puts_points_where_its_axes_say_and_leaves_out_what_cannot_be():
    series = [
        Series(
            "a <b>",
            [0, 5, math.nan, 10],
            [0, 0.5, 0.5, 1],
            dots=True,
            tips=["1", "2", "3", "<4>"],
        ),
        Series("line", [0, 10], [1, 0], 3, dashed=True),
    ]
    root = parse(Figure("T & t", "c", Axis("x", 0, 10), Axis("y", 0, 1), series))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    assert len(dots) == 3
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    # A larger y lies higher.
    assert x2 > x0
    assert y2 < y0
    (line,) = root.iter("polyline")
    assert line.get("points") == f"{x0:.1f},{y2:.1f} {x2:.1f},{y0:.1f}"
    assert line.get("class") == "c3 dashed"
    assert [title.text for title in root.iter("title")] == ["1", "2", "<4>"]
    assert ["".join(li.itertext()) for li in root.iter("li")] == ["a <b>", "line"]


def test_a_logarithmic_axis_spaces_powers_evenly_and_drops_zeros():
    series = Series("", [0, 1, 10, 100], [1, 1, 2, 3], dots=True)
    root = parse(Figure("t", "c", Axis("x", log=True), Axis("y"), [series]))
    at = [float(c.get("cx")) for c in root.iter("circle")]
    assert len(at) == 3
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.11)
    assert {"1", "10", "100"} <= {text.text for text in root.iter("text")}


@pytest.mark.parametrize(
    "values", [[], [0.25], [3, 3], [-2, 5], [1e-7, 2e-7], [0, 123456]]
)
def test_any_values_make_a_chart_with_few_ticks(values):
    root = parse(Figure("t", "c", Axis("x"), Axis("y"), [Series("s", values, values)]))
    assert 4 <= len([g for g in root.iter("line")]) <= 16
    assert "nan" not in ET.tostring(root, encoding="unicode")


def test_damaged_lines_of_metrics_are_left_out(tmp_path):
    lines = [
        '{"step": 1, "loss": 2.0}',
        "[]",
        '{"step": "x"}',
        '{"step": 2, "loss": null}',
        '{"st',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert learning.read_metrics(tmp_path) == [
        {"step": 1, "loss": 2.0},
        {"step": 2},
    ]
    assert learning.read_metrics(tmp_path / "gone") == []


# ---- Nothing to draw


@pytest.mark.parametrize(
    "runs",
    [
        [{"absent": (1,)}],
        [{"absent": (1,), "count": 1}],
        [{"classes": 2, "absent": (1, 2)}],
        [{"absent": (1,)}, {}],
        [{}, {"absent": (1,)}],
        [{"threshold": 0.99999999}],
        [{"classes": 2, "absent": (2,)}],
    ],
    ids=[
        "no truth",
        "one slice",
        "two classes",
        "then a run with",
        "a run with before",
        "no prediction",
        "a class",
    ],
)
def test_columns_without_a_value_make_charts_of_what_there_is(tmp_path, runs):
    for seed, fields in enumerate(runs):
        folder = tmp_path / f"{seed}"
        evaluated_workdir.write(folder, seed=seed, pictures=2, steps=0, **fields)
    loaded = [results.load(tmp_path / f"{seed}") for seed in range(len(runs))]
    shown = run_tables.evaluated(loaded)
    scored = [one.name for one in shown if not np.isnan(one.run.scores["dice"]).all()]
    for make in (
        figures.by_case,
        figures.by_size,
        figures.risk_coverage,
        figures.reliability,
    ):
        made = make(shown)
        of_dice = [figure for figure in made if "Dice" in figure.y.label]
        assert bool(of_dice) == (bool(scored) and make is not figures.reliability), make
        for figure in made:
            text = svg.svg(figure)
            ET.fromstring(f"<div>{text}</div>")
            assert "nan" not in text.lower() and "inf" not in text.lower(), make
        if len(shown) > 1 and make is not figures.reliability:
            assert all(
                {one.name for one in figure.series if one.name} == set(scored)
                for figure in of_dice
            ), make
