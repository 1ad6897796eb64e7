"""The end of a training as metrics.jsonl tells it: a loss that falls, one that is flat,
and noise that is neither.
"""

import json

import numpy as np
import pytest

from biedsnet_jax.reporting import learning
from biedsnet_jax.reporting.learning import loss_trend


def logged(losses, every=10):
    """Log lines as a training writes them, with those of validation between."""
    lines = []
    for place, loss in enumerate(losses, start=1):
        lines.append({"step": place * every, "loss": float(loss)})
        lines.append({"step": place * every, "val_dice": 0.5})
    return lines


def test_a_line_through_the_last_third_is_that_of_numpy():
    loss = np.random.default_rng(0).uniform(0.4, 0.6, 30)
    trend = loss_trend(logged(loss))
    steps = np.arange(210, 301, 10)
    slope, intercept = np.polyfit(steps, loss[-10:], 1)
    assert (trend.lines, trend.first_step, trend.last_step) == (10, 210, 300)
    assert trend.start == pytest.approx(slope * 210 + intercept)
    assert trend.end == pytest.approx(slope * 300 + intercept)
    _, covariance = np.polyfit(steps, loss[-10:], 1, cov=True)
    assert trend.error == pytest.approx(np.sqrt(covariance[0, 0]) * 90)


@pytest.mark.parametrize("count", [12, 40, 400])
def test_a_falling_loss_is_told_through_noise(count):
    noise = np.random.default_rng(count).normal(1, 0.03, count)
    trend = loss_trend(logged(np.linspace(1, 0.25, count) * noise))
    assert trend.falling
    assert trend.share < -0.2


@pytest.mark.parametrize("count", [12, 40, 400])
def test_a_flat_loss_rarely_counts_as_falling(count):
    rng = np.random.default_rng(count)
    flat = [loss_trend(logged(0.5 * rng.normal(1, 0.05, count))) for _ in range(200)]
    # Of as many lines as there are at least, one in thirty falls so far by chance.
    assert sum(trend.falling for trend in flat) <= 10


def test_a_fall_that_ended_or_is_too_small_does_not_count():
    ended = np.concatenate([np.linspace(1, 0.3, 20), np.full(10, 0.3)])
    assert not loss_trend(logged(ended)).falling
    assert not loss_trend(logged(np.linspace(0.5, 0.47, 30))).falling
    assert not loss_trend(logged(np.linspace(0.3, 0.5, 30))).falling


def test_a_short_training_says_nothing():
    assert loss_trend(logged([1, 0.8, 0.6, 0.4, 0.2])) is None
    assert loss_trend([]) is None
    assert loss_trend(logged([1, 0.8, np.nan, 0.6, 0.4, 0.2])) is None
    assert loss_trend(logged([1, 0.8, 0.7, 0.6, 0.4, 0.2])).lines == 6


def test_a_resumed_training_counts_each_step_once(tmp_path):
    lines = logged([9, 9, 9, 0.5, 0.4, 0.3]) + logged([0.8, 0.7, 0.6])
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 70, "lo')
    trend = loss_trend(learning.read_metrics(tmp_path))
    assert (trend.lines, trend.last_step) == (6, 60)
    assert trend.start == pytest.approx(0.8)
    assert trend.end == pytest.approx(0.3)
