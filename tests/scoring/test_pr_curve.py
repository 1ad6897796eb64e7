"""Compares precision and recall with a plain loop over thresholds."""

import numpy as np

from biedsnet_jax.scoring import pr_curve


def test_counts_are_those_of_a_loop_over_thresholds_and_pixels():
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=(5, 6, 7, 2)).astype(np.float32)
    # Some probabilities lie exactly on thresholds.
    probability[0, :3] = rng.integers(0, 127, (3, 7, 2)) / 126
    probability[1, 0, :2], probability[2, 0, 0] = 0.0, 1.0
    truth = rng.uniform(size=probability.shape) < probability
    counts = pr_curve.Counts(2)
    counts.add(probability[:2], truth[:2])
    counts.add(probability[2:], truth[2:])
    for k, curve in enumerate(counts.curves()):
        for i in range(127):
            p = probability[..., k].ravel()
            t = truth[..., k].ravel()
            reached = [float(x) * 126 >= i for x in p]
            tp = sum(1 for s, y in zip(reached, t) if s and y)
            fp = sum(1 for s, y in zip(reached, t) if s and not y)
            fn = sum(1 for s, y in zip(reached, t) if not s and y)
            assert [curve[name][i] for name in ("tp", "fp", "fn", "tn")] == [
                tp,
                fp,
                fn,
                len(p) - tp - fp - fn,
            ]
            assert curve["precision"][i] == (tp / (tp + fp) if tp + fp else 0)
            assert curve["recall"][i] == tp / (tp + fn)


def test_no_truth_and_what_is_no_number():
    counts = pr_curve.Counts(1)
    counts.add(
        np.array([np.nan, np.inf, 1.0000001, -1], np.float32).reshape(1, 2, 2, 1),
        np.zeros((1, 2, 2, 1), bool),
    )
    (curve,) = counts.curves()
    assert (curve["fp"][0], curve["fp"][1], curve["fp"][-1]) == (4, 2, 2)
    assert not curve["tp"].any()
    assert not curve["precision"].any()
    assert not curve["recall"].any()


def test_pixels_that_are_not_known_count_at_no_threshold():
    rng = np.random.default_rng(1)
    probability = rng.uniform(size=(3, 4, 5, 2)).astype(np.float32)
    known = rng.random(probability.shape) < 0.6
    known[..., 1] = False
    truth = (rng.uniform(size=probability.shape) < probability) & known
    counts = pr_curve.Counts(2)
    counts.add(probability[:1], truth[:1], known[:1].astype(np.float32))
    counts.add(probability[1:], truth[1:], known[1:].astype(np.float32))
    first, second = counts.curves()
    pixels = [
        (float(p) * 126, t)
        for p, t, is_known in zip(
            probability[..., 0].flat, truth[..., 0].flat, known[..., 0].flat
        )
        if is_known
    ]
    for i in range(127):
        found = [first[name][i] for name in ("tp", "fp", "fn", "tn")]
        tp = sum(1 for score, t in pixels if score >= i and t)
        fp = sum(1 for score, t in pixels if score >= i and not t)
        positive = sum(1 for _, t in pixels if t)
        assert found == [tp, fp, positive - tp, len(pixels) - positive - fp]
    # Of a class that nobody annotated no pixel counts.
    assert not any(second[name].any() for name in second)
