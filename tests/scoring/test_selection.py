"""Tests the choice among candidates by few cases, against numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from biedsnet_jax.scoring import selection


def test_gains_are_held_out_and_tested():
    # Without case 0 candidate 2 is better (0.08 to 0.07 on average), without case 1
    # candidate 1 (0.095 to 0.055), without case 2 candidate 1 (0.105 to 0.085).
    gains = np.array([[0, 0, 0], [0.12, 0.09, 0.07 - 0.02], [0.06, 0.11, 0.05]])
    scores = 0.5 + gains
    found = selection.select(scores)
    assert found.best == 1
    assert found.before == pytest.approx(0.5)
    assert found.after == pytest.approx(0.5 + 0.26 / 3)
    held_out = [0.06, 0.09, 0.05]
    mean = sum(held_out) / 3
    variance = sum((gain - mean) ** 2 for gain in held_out) / 2
    assert found.gain == pytest.approx(mean)
    # 95 % of Student's t with two degrees of freedom, from a table.
    assert found.needed == pytest.approx(2.91999 * (variance / 3) ** 0.5, rel=1e-5)
    assert found.kept
    test = stats.ttest_1samp(held_out, 0.0, alternative="greater")
    assert test.pvalue < 0.05


@pytest.mark.parametrize("cases", [2, 3, 10])
@pytest.mark.parametrize("gain", [0.01, 0.5])
def test_one_case_alone_is_never_enough(cases, gain):
    scores = np.full((2, cases), 0.4)
    scores[1, 1] += gain
    found = selection.select(scores)
    assert found.best == 1
    assert found.after == pytest.approx(0.4 + gain / cases)
    assert not found.kept


@pytest.mark.parametrize(
    ("gains", "kept"),
    [
        # Of two cases both must gain, and nearly alike.
        ([0.02, 0.016], True),
        ([0.02, 0.012], False),
        ([0.02, 0.0], False),
        ([0.02, -0.001], False),
        # Every case gains, but too little.
        ([0.0009, 0.0009, 0.0009], False),
        ([0.0012, 0.0012, 0.0012], True),
        ([0.03, 0.02, 0.04], True),
        # Half lose.
        ([0.07, 0.07, -0.03, -0.03], False),
        ([0.0, 0.0, 0.0], False),
        ([-0.1, -0.1, -0.1], False),
    ],
)
def test_a_single_candidate(gains, kept):
    scores = np.stack([np.full(len(gains), 0.5), 0.5 + np.array(gains)])
    assert selection.select(scores).kept == kept


def test_of_equal_candidates_the_first_is_the_best():
    scores = np.array([[0.5, 0.5], [0.4, 0.4], [0.7, 0.7], [0.7, 0.7]])
    assert selection.select(scores).best == 2
    assert selection.select(np.full((4, 3), 0.5)).best == 0


def test_chance_is_seldom_taken_for_a_gain():
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        scores = 0.5 + 0.05 * rng.normal(size=(17, 6))
        kept += selection.select(scores).kept
    # The best of 16 candidates of pure noise gains about 0.04 on the cases that chose it.
    assert kept / 300 < 0.15
