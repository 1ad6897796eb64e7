"""Compares the bootstrap with plain loops, scipy and exact enumeration; one mean has one
interval everywhere.
"""

import itertools
import math
import tracemalloc

import evaluated_workdir
import numpy as np
import pytest
from scipy import stats

from biedsnet_jax.scoring import comparison, metrics, results, statistics

NAN = math.nan


def table(count, *, seed=0, slices=4, without=0.3):
    """Makes values of slices and their cases, some NaN; case "healthy" has NaN alone."""
    rng = np.random.default_rng(seed)
    case = [f"p{i}" for i in range(count) for _ in range(1 + int(rng.integers(slices)))]
    values = rng.random(len(case))
    values[rng.random(len(case)) < without] = NAN
    return np.append(values, [NAN, NAN]), [*case, "healthy", "healthy"]


def slow_interval(values, case):
    """Resamples draw by draw and case by case, with the same counts."""
    held = {}
    for name, value in zip(case, values):
        if not math.isnan(value):
            held.setdefault(name, []).append(value)
    names = sorted(held)
    counts = np.random.default_rng(0).multinomial(
        len(names), [1 / len(names)] * len(names), size=50_000
    )
    means = []
    for draw in counts.tolist():
        drawn = [
            value for name, times in zip(names, draw) for value in held[name] * times
        ]
        means.append(math.fsum(drawn) / len(drawn))
    return tuple(np.percentile(means, [2.5, 97.5]))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_it_is_what_a_plain_loop_over_the_draws_finds(count):
    values, case = table(count, seed=count, without=0.2)
    assert statistics.interval(values, case) == pytest.approx(
        slow_interval(values, case), abs=1e-12
    )


# Draws of 300 cases are more than are kept between calls.
@pytest.mark.parametrize("count", [8, 20, 300])
def test_scipy_finds_the_same_up_to_chance(count):
    values = np.random.default_rng(count).beta(4, 2, size=count)
    ours = statistics.interval(values, range(count))
    reference = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        batch=2000,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert ours == pytest.approx(reference, abs=0.05 * (reference.high - reference.low))


def test_every_draw_of_three_cases_by_hand():
    """All 27 draws are equally likely; a draw's mean is over its slices, not its cases."""
    held = {"a": [0.0, 0.0], "b": [0.5], "c": [1.0, 1.0, 1.0]}
    means = [
        np.mean([v for name in draw for v in held[name]])
        for draw in itertools.product("abc", repeat=3)
    ]
    values = np.array([v for name in "abc" for v in held[name]])
    case = [name for name in "abc" for _ in held[name]]
    # 1 of 27 draws holds c alone, and 1 of 27 a alone: more than 2.5 %.
    assert (min(means), max(means)) == (0.0, 1.0)
    assert statistics.interval(values, case) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "case"),
    [
        ([], []),
        ([NAN, NAN], ["a", "b"]),
        ([0.5], ["a"]),
        ([0.5, 0.7, 0.9], ["a", "a", "a"]),
        ([0.5, NAN, NAN], ["a", "b", "c"]),
    ],
    ids=["no row", "no value", "one row", "one case", "one case with a value"],
)
def test_fewer_than_two_cases_with_a_value_have_no_interval(values, case):
    assert all(map(math.isnan, statistics.interval(np.array(values, float), case)))


@pytest.mark.parametrize("count", [5, 60, 300])
def test_a_column_has_the_same_interval_alone_and_among_others_to_the_last_bit(count):
    values, case = table(count, seed=1)
    columns = {
        "a": values,
        "whole": np.nan_to_num(values),
        "b": values**2,
        "none": values * NAN,
        "c": 1 - values,
    }
    together = statistics.intervals(columns, case)
    assert list(together) == list(columns)
    for name, column in columns.items():
        alone = statistics.interval(column, case)
        assert np.array_equal(alone, together[name], equal_nan=True), name


def test_cases_without_a_value_are_never_drawn():
    values, case = table(6)
    more = np.append(values, [NAN] * 9), case + [f"another {i}" for i in range(9)]
    assert statistics.interval(*more) == statistics.interval(values, case)


def test_memory_is_bounded_for_a_thousand_cases():
    """All counts at once would be 400 MB."""
    values = np.random.default_rng(0).random(1000)
    columns = {str(i): values + i for i in range(2)}
    tracemalloc.start()
    try:
        found = statistics.intervals(columns, range(1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 80e6
    # The normal approximation holds for so many.
    spread = 1.96 * values.std() / math.sqrt(1000)
    assert found["0"] == pytest.approx(
        (values.mean() - spread, values.mean() + spread), abs=0.002
    )


@pytest.mark.parametrize(("classes", "count"), [(1, 8), (2, 14), (3, 30)])
def test_the_report_has_the_interval_of_the_results_to_the_last_bit(
    tmp_path, classes, count
):
    evaluated_workdir.write(
        tmp_path / "run", classes=classes, count=count, seed=classes
    )
    run = results.load(tmp_path / "run")
    pooled = comparison.pool([run])
    for column in results.STANDARD:
        low, high = comparison.interval(pooled, column)
        assert [low, high] == run.fields["standard"][column]["ci95"], column
    for column in results.PAPER:
        low, high = comparison.interval(pooled, column)
        assert [low, high] == run.fields["paper_ci95"][column.removeprefix("paper_")], (
            column
        )


def test_healthy_cases_do_not_widen_the_interval_of_the_results():
    """Ten cases, five of them healthy: only the five that have a Dice are drawn."""
    full = np.ones((4, 4), bool)
    part = {f"p{i}": np.arange(16).reshape(4, 4) < 3 * i + 3 for i in range(5)}
    ill = [
        metrics.slice_row(pred=pred, truth=full, case=case, slice="1")
        for case, pred in part.items()
    ]
    healthy = [
        metrics.slice_row(pred=~full, truth=~full, case=f"h{i}", slice="1")
        for i in range(5)
    ]
    alone, both = (metrics.summarise(rows)["standard"] for rows in (ill, ill + healthy))
    assert both["dice"]["ci95"] == alone["dice"]["ci95"]
    dice = [2 * n / (16 + n) for n in (3, 6, 9, 12, 15)]
    reference = stats.bootstrap(
        (dice,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    )
    assert both["dice"]["ci95"] == pytest.approx(
        reference.confidence_interval, abs=0.02
    )
    # Accuracy is defined for healthy cases too.
    assert both["accuracy"]["ci95"] != alone["accuracy"]["ci95"]
