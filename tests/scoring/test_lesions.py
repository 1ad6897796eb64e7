"""Lesions found, missed and false, worked out by hand and against a flood fill."""

import json
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from biedsnet_jax.scoring import lesions


def mask(*rows: str) -> np.ndarray:
    return np.array([[letter == "1" for letter in row] for row in rows])


def rows_of(pred, truth, *, case="a", slice="0", **fields) -> list[dict]:
    return lesions.rows(pred=pred, truth=truth, case=case, slice=slice, **fields)


TRUTH = mask(
    "11000000",
    "11000010",
    # meets the pixel above it by a corner alone: one lesion
    "00000100",
    "00000000",
    "10000001",
)
PRED = mask(
    "01100000",
    "01100000",
    "00000100",
    "00010000",
    "00000000",
)


def test_each_lesion_by_hand():
    rows = rows_of(PRED, TRUTH, spacing=(2.0, 0.5))
    assert all(tuple(row) == lesions.COLUMNS for row in rows)
    assert [list(row.values())[3:] for row in rows] == [
        ["truth", 4, 4.0, 0.5, 2 * 2 / 8, 1],
        ["truth", 2, 2.0, 0.5, 2 * 1 / 3, 1],
        ["truth", 1, 1.0, 0.0, 0.0, 0],
        ["truth", 1, 1.0, 0.0, 0.0, 0],
        ["prediction", 4, 4.0, 0.5, 2 * 2 / 8, 1],
        ["prediction", 1, 1.0, 1.0, 2 * 1 / 3, 1],
        ["prediction", 1, 1.0, 0.0, 0.0, 0],
    ]


def test_two_lesions_under_one_prediction():
    truth = mask("110011", "000000")
    pred = mask("011110", "000000")
    found = [
        (row["overlap"], row["dice"], row["found"]) for row in rows_of(pred, truth)
    ]
    assert found == [(0.5, 2 * 1 / 6, 1), (0.5, 2 * 1 / 6, 1), (0.5, 2 * 2 / 8, 1)]
    # and split in two
    found = [
        (row["overlap"], row["dice"], row["found"]) for row in rows_of(truth, pred)
    ]
    assert found == [(0.5, 2 * 2 / 8, 1), (0.5, 2 * 1 / 6, 1), (0.5, 2 * 1 / 6, 1)]


@pytest.mark.parametrize(("least", "found"), [(0.0, 1), (0.25, 1), (0.26, 0), (1.0, 0)])
def test_least_overlap_is_of_the_true_lesion(least, found):
    """A predicted one that touches truth is not false, however little of the true one
    it covers.
    """
    true, predicted = rows_of(mask("00011"), mask("11110"), least_overlap=least)
    assert (true["overlap"], true["found"], predicted["found"]) == (0.25, found, 1)


def test_empty_masks_have_no_lesions():
    empty = np.zeros((3, 4), bool)
    full = np.ones((3, 4), bool)
    assert rows_of(empty, empty) == []
    (missed,), (false,) = rows_of(empty, full), rows_of(full, empty)
    assert (missed["mask"], missed["found"], false["mask"], false["found"]) == (
        "truth",
        0,
        "prediction",
        0,
    )
    assert math.isnan(missed["mm2"])


@pytest.mark.parametrize("seed", range(3))
def test_lesions_equal_a_flood_fill(seed):
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(30, 37)), 1)
    pred = field + 0.1 * rng.normal(size=field.shape) > 0.3
    truth = field > 0.35
    expected = []
    for ours, theirs in ((truth, pred), (pred, truth)):
        for lesion in flood_fill(ours):
            met = set().union(
                *(other for other in flood_fill(theirs) if other & lesion)
            )
            expected.append(
                (
                    len(lesion),
                    len(lesion & met),
                    2 * len(lesion & met) / (len(lesion) + len(met)),
                )
            )
    rows = rows_of(pred, truth)
    found = [
        (row["pixels"], round(row["overlap"] * row["pixels"]), row["dice"])
        for row in rows
    ]
    assert found == expected
    assert len(rows) > 20
    assert [row["found"] for row in rows] == [
        int(shared > 0) for _, shared, _ in expected
    ]


def flood_fill(mask: np.ndarray) -> list[set]:
    """Finds sets of touching pixels, corners included, in reading order."""
    left = {tuple(map(int, point)) for point in np.argwhere(mask)}
    found = []
    for start in sorted(left):
        lesion = set()
        edge = {start} & left
        while edge:
            lesion |= edge
            left -= edge
            edge = {
                (i + y, j + x) for i, j in edge for y in (-1, 0, 1) for x in (-1, 0, 1)
            } & left
        found += [lesion] if lesion else []
    return found


# ---- Summary


def test_counts_and_rates_by_hand():
    large = np.zeros((40, 40), bool)
    large[:10, :10] = True
    rows = rows_of(PRED, TRUTH) + rows_of(large, large, case="b")
    summary = lesions.summarise(rows)
    by_pixels = summary.pop("by_pixels")
    precision = 3 / 4
    sensitivity = 3 / 5
    assert summary == {
        "true": 5,
        "found": 3,
        "missed": 2,
        "predicted": 4,
        "false": 1,
        "sensitivity": sensitivity,
        "precision": precision,
        "f1": pytest.approx(2 * precision * sensitivity / (precision + sensitivity)),
        "dice_of_found": pytest.approx((1 / 2 + 2 / 3 + 1) / 3),
    }
    assert [(b["from"], b["below"]) for b in by_pixels] == [
        (0, 10),
        (10, 100),
        (100, 1000),
        (1000, None),
    ]
    assert [(b["true"], b["found"], b["predicted"], b["false"]) for b in by_pixels] == [
        (4, 2, 3, 1),
        (0, 0, 0, 0),
        # A component of a hundred pixels.
        (1, 1, 1, 0),
        (0, 0, 0, 0),
    ]
    assert [b["sensitivity"] for b in by_pixels] == [0.5, None, 1.0, None]


def test_millimetres_only_where_all_are_known():
    known = rows_of(TRUTH, TRUTH, spacing=(5.0, 5.0))
    unknown = rows_of(TRUTH, TRUTH, case="b")
    # The sizes are 25, 25, 50 and 100 mm2.
    assert [b["true"] for b in lesions.summarise(known)["by_mm2"]] == [0, 3, 1, 0]
    assert "by_mm2" not in lesions.summarise(known + unknown)


@pytest.mark.parametrize(
    # In order: sensitivity, precision, f1, dice_of_found.
    ("pred", "truth", "rates"),
    [
        ("0000", "0000", [None, None, None, None]),
        # Predicting nothing is not rewarded.
        ("0000", "0110", [0.0, None, 0.0, None]),
        ("0110", "0000", [None, 0.0, 0.0, None]),
        ("1000", "0011", [0.0, 0.0, 0.0, None]),
        ("0110", "0110", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_a_rate_of_nothing_is_none_in_json(pred, truth, rates):
    summary = json.loads(
        json.dumps(lesions.summarise(rows_of(mask(pred), mask(truth))), allow_nan=False)
    )
    assert [
        summary[name] for name in ("sensitivity", "precision", "f1", "dice_of_found")
    ] == rates


def test_classes_stand_alone_too():
    first = rows_of(PRED, TRUTH)
    second = rows_of(TRUTH, TRUTH, label=2)
    summary = lesions.summarise(first + second)
    assert (summary["true"], summary["found"]) == (8, 6)
    assert summary["classes"] == {
        "1": lesions.summarise(first),
        "2": lesions.summarise(second),
    }


def test_a_lesion_of_a_volume_is_one_through_all_its_slices():
    truth = np.zeros((4, 6, 6), bool)
    # Voxels of three slices that touch by a corner alone, and one by itself.
    truth[0, 1, 1] = truth[1, 2, 2] = truth[2, 3, 3] = True
    truth[3, 5, 0] = True
    pred = np.zeros_like(truth)
    pred[1, 2, 2] = True
    rows = rows_of(pred, truth, spacing=(5.0, 2.0, 0.5))
    assert [list(row.values())[3:] for row in rows] == [
        ["truth", 3, 15.0, 1 / 3, 2 * 1 / 4, 1],
        ["truth", 1, 5.0, 0.0, 0.0, 0],
        ["prediction", 1, 5.0, 1.0, 2 * 1 / 4, 1],
    ]
    summary = lesions.summarise(rows)
    assert (summary["true"], summary["found"], summary["predicted"]) == (2, 1, 1)
    # Sizes are in mm3: 5 and 15.
    assert [size["true"] for size in summary["by_mm3"]] == [1, 1, 0, 0]
    assert "by_mm2" not in summary
