"""The file that evaluation keeps for the report: levels, counts, the choice of slices."""

import dataclasses
import io

import evaluated_workdir
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from biedsnet_jax.evaluation.tally import Tally
from biedsnet_jax.reporting import record
from biedsnet_jax.reporting.record import GROUPS, LEVELS, levels
from biedsnet_jax.scoring import calibration

NAN = float("nan")


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3337, 0.5, 0.9999, 1.0])
def test_a_level_exceeds_a_threshold_exactly_where_the_probability_does(threshold):
    rng = np.random.default_rng(0)
    near = np.nextafter(np.float32(threshold), np.float32([-1, 2]))
    p = (
        np.concatenate([rng.random(2000), near, [threshold, 0, 1]])
        .astype(np.float32)
        .clip(0, 1)
    )
    level = levels(p, threshold)
    np.testing.assert_array_equal(level > round(LEVELS * threshold), p > threshold)
    assert np.abs(level / LEVELS - p).max() <= 1.5 / LEVELS
    others = [j for j in range(0, LEVELS, 7) if abs(j / LEVELS - threshold) > 0.01]
    # No random value is one of the slider's other thresholds.
    for j in others:
        np.testing.assert_array_equal((level > j)[:2000], (p > j / LEVELS)[:2000])


def test_a_tally_counts_pixel_by_pixel():
    rng = np.random.default_rng(1)
    p = rng.random((5, 4, 2)).astype(np.float32)
    truth = rng.random((5, 4, 2)) < 0.4
    tally = Tally(2, 0.35)
    tally.add(p, truth, [0.5, NAN])
    tally.add(p, truth, [0.5, NAN])
    expected = np.zeros((2, 1000, 2, 2), int)
    for y, x, k in np.ndindex(p.shape):
        expected[
            k, int(p[y, x, k] * 1000), int(truth[y, x, k]), int(p[y, x, k] > 0.35)
        ] += 2
    np.testing.assert_array_equal(tally.histogram, expected)


def test_mean_entropy_is_scipys_over_the_likely_pixels():
    p = np.array([[0.0, 0.04, 0.05, 0.3], [0.5, 0.9, 1.0, 0.0]])
    expected = np.mean(
        [stats.entropy([q, 1 - q], base=2) for q in (0.05, 0.3, 0.5, 0.9, 1.0)]
    )
    assert calibration.mean_entropy(p) == pytest.approx(expected)
    assert calibration.mean_entropy(np.zeros((2, 2))) == 0.0


def chosen(dice, most, classes=1):
    tally = Tally(classes, 0.5)
    tally.dice = dice
    return [(number, GROUPS[group]) for number, group in tally.choose(most)]


def test_the_worst_the_median_and_the_best_come_first_in_turns():
    dice = [0.9, 0.1, NAN, 0.5, 0.7, 0.3, 0.8, 0.2, NAN, 0.6]
    worst = (1, "worst")
    median = (3, "median")
    best = (0, "best")
    assert chosen(dice, 3) in ([worst, median, best], [worst, (9, "median"), best])
    found = chosen(dice, 6)
    assert [group for _, group in found] == ["worst", "median", "best"] + ["other"] * 3
    assert found[0] == worst
    assert found[2] == best
    assert sorted(number for number, _ in chosen(dice, 99)) == list(range(10))
    assert len(chosen(dice, 7)) == 7
    assert chosen(dice, 0) == []


def test_a_slice_without_truth_has_no_rank_and_one_class_is_enough():
    assert chosen([NAN, NAN, NAN], 6) == [(0, "other"), (1, "other"), (2, "other")]
    assert chosen([NAN, 0.9, 0.2, NAN], 1, classes=2) == [(1, "worst")]
    assert chosen([], 6) == []


def test_the_file_gives_back_what_was_saved_in_the_same_bytes(tmp_path):
    for name in "ab":
        evaluated_workdir.write(tmp_path / name, classes=2, size=20)
    contents = [(tmp_path / name / record.NAME).read_bytes() for name in "ab"]
    assert contents[0] == contents[1]
    dice = np.load(io.BytesIO(contents[0]))["dice"]
    loaded = record.load(tmp_path / "a", dice)
    record.save(tmp_path / "b", loaded)
    again = record.load(tmp_path / "b", dice)
    for field in dataclasses.fields(loaded):
        np.testing.assert_equal(getattr(again, field.name), getattr(loaded, field.name))
    assert Image.open(io.BytesIO(loaded.images[0])).size == (20, 20)
    assert (
        record.load(tmp_path / "a", dice + 0.1)
        == "report_data.npz is of another evaluation"
    )
    assert record.load(tmp_path, dice) == "none were recorded"


def test_where_the_truth_is_known_is_kept_where_not_all_is(tmp_path):
    evaluated_workdir.write(tmp_path / "run", classes=2, size=20)
    dice = np.load(tmp_path / "run" / record.NAME)["dice"]
    loaded = record.load(tmp_path / "run", dice)
    assert loaded.known is None
    rng = np.random.default_rng(0)
    known = rng.integers(0, 2, loaded.truth.shape, np.uint8)
    record.save(tmp_path, dataclasses.replace(loaded, known=known))
    again = record.load(tmp_path, dice)
    np.testing.assert_array_equal(again.known, known)
    np.testing.assert_array_equal(again.truth, loaded.truth)


@pytest.mark.parametrize("damage", ["cut", "text", "field", "pickle", "shape"])
def test_a_damaged_file_is_said_to_be(tmp_path, damage):
    evaluated_workdir.write(tmp_path / "run")
    path = tmp_path / "run" / record.NAME
    with np.load(path) as stored:
        arrays = dict(stored)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "text":
        path.write_text("no archive")
    else:
        replaced = {
            "field": {},
            "pickle": {"times": np.array([{}])},
            "shape": {"truth": np.zeros(3, np.uint8)},
        }[damage]
        arrays = {
            name: value for name, value in arrays.items() if name != "times"
        } | replaced
        np.savez(path, **arrays)
    assert record.load(tmp_path / "run", arrays["dice"]) == "report_data.npz is damaged"


def test_noise_is_thinned_and_a_trajectory_too():
    x = np.linspace(-1, 2, 300 * 300).reshape(1, 300, 300, 1)
    small = record.thinned(x)
    assert small.shape == (1, 100, 100, 1)
    assert (small.min(), small.max()) == (
        0,
        record.GREYS,
    )
    assert record.evenly(3) == [0, 1, 2]
    many = record.evenly(100)
    assert len(many) == record.MOST_STEPS
    assert (many[0], many[-1]) == (0, 99)
