"""Phantom: the same bits in any order, content of slices, no threshold solves it."""

from itertools import pairwise

import numpy as np
import pytest
from refusals import refused
from scipy import ndimage

from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.transforms import normalise


def test_the_same_index_gives_the_same_bits_in_any_order():
    phantom = Phantom(n_cases=3, slices_per_case=4, size=32)
    forwards = [phantom[i] for i in range(len(phantom))]
    other = Phantom(n_cases=3, slices_per_case=4, size=32)
    for i in (11, 0, 7, 7, 3):
        np.testing.assert_array_equal(other[i]["image"], forwards[i]["image"])
        np.testing.assert_array_equal(other[i]["mask"], forwards[i]["mask"])
    seeded = Phantom(n_cases=3, slices_per_case=4, size=32, seed=1)
    assert np.abs(seeded[5]["image"] - forwards[5]["image"]).mean() > 10
    # A case does not depend on how many there are.
    np.testing.assert_array_equal(
        Phantom(n_cases=1, slices_per_case=4, size=32)[2]["image"], forwards[2]["image"]
    )


@pytest.mark.parametrize("classes", [1, 2])
def test_a_slice_holds_what_a_source_promises(classes):
    phantom = Phantom(n_cases=3, slices_per_case=5, size=48, classes=classes)
    assert len(phantom) == 15
    assert [phantom[i]["case"] for i in range(15)] == phantom.cases
    example = phantom[7]
    assert (
        example["image"].shape == (48, 48, 1) and example["image"].dtype == np.float32
    )
    assert (
        example["mask"].shape == (48, 48, classes) and example["mask"].dtype == np.uint8
    )
    assert (example["case"], example["slice"]) == ("phantom_001", "002")
    row, column = example["spacing"]
    assert 340 <= row * 48 <= 400 and row == column
    with pytest.raises(IndexError):
        phantom[15]


def test_a_body_is_as_wide_and_as_tall_as_a_chest():
    phantom = Phantom(n_cases=8, slices_per_case=5, size=96)
    shapes = []
    for i in range(2, len(phantom), 5):
        solid = ndimage.binary_opening(phantom[i]["image"][..., 0] > -600, iterations=2)
        rows, columns = np.nonzero(ndimage.binary_fill_holes(solid))
        shapes.append(np.ptp(columns) / np.ptp(rows))
    # Half axes 0.86 and 0.63, each times 0.95 to 1.08.
    assert min(shapes) > 1.15 and max(shapes) < 1.6
    assert np.mean(shapes) == pytest.approx(0.86 / 0.63, abs=0.1)


def test_two_classes_split_the_one():
    one, two = Phantom(n_cases=6), Phantom(n_cases=6, classes=2)
    total = np.zeros(2)
    for i in range(0, len(one), 3):
        np.testing.assert_array_equal(one[i]["image"], two[i]["image"])
        np.testing.assert_array_equal(
            two[i]["mask"].sum(axis=-1), one[i]["mask"][..., 0]
        )
        total += two[i]["mask"].sum(axis=(0, 1))
    # Both kinds are common.
    assert total.min() > 0.1 * total.sum()


@pytest.mark.parametrize(("empty_fraction", "empty"), [(0.0, 0), (0.25, 2), (1.0, 8)])
def test_each_case_has_its_share_of_empty_slices_and_no_other(empty_fraction, empty):
    phantom = Phantom(n_cases=5, slices_per_case=8, empty_fraction=empty_fraction)
    area = np.array([phantom[i]["mask"].sum() for i in range(len(phantom))]).reshape(
        5, 8
    )
    np.testing.assert_array_equal((area == 0).sum(axis=1), empty)
    assert (area[area > 0] > 12).all()


def test_neighbouring_slices_share_anatomy_and_lesions():
    phantom = Phantom(n_cases=8, slices_per_case=24)
    near, far = [], []
    for case in range(8):
        masks = [phantom[24 * case + i]["mask"].astype(bool) for i in range(24)]
        near += [dice(a, b) for a, b in pairwise(masks) if a.any() and b.any()]
        far += [dice(a, b) for a, b in zip(masks, masks[12:]) if a.any() and b.any()]
    assert np.mean(near) > 0.6 > 0.3 > np.mean(far)
    middle, neighbour, stranger = (phantom[i]["image"] for i in (12, 13, 24 + 12))
    assert np.abs(middle - neighbour).mean() < 0.7 * np.abs(middle - stranger).mean()


def test_difficulty_takes_contrast_from_both_kinds_of_lesion():
    def contrast(difficulty):
        """Mean grey of ground glass and of consolidation above that of lung."""
        phantom = Phantom(n_cases=6, classes=2, difficulty=difficulty)
        greys = ([], [])
        for i in range(0, len(phantom), 2):
            image, mask = phantom[i]["image"], phantom[i]["mask"]
            for kind in (0, 1):
                if mask[..., kind].any():
                    greys[kind].append(image[mask[..., kind] > 0].mean() + 850)
        return [np.mean(one) for one in greys]

    easy, medium, hard = contrast(0.0), contrast(0.5), contrast(1.0)
    assert all(a > b > c for a, b, c in zip(easy, medium, hard))
    assert hard[0] < 0.5 * easy[0] and hard[1] < 0.7 * easy[1]


@pytest.mark.parametrize(
    "wrong",
    [{"difficulty": 1.5}, {"n_cases": 0}, {"classes": 3}, {"empty_fraction": -0.1}],
)
def test_a_value_out_of_range_is_named(wrong):
    ((name, value),) = wrong.items()
    refused(lambda: Phantom(**wrong), "phantom", name, value)


def test_no_global_threshold_or_band_inside_the_body_finds_the_lesions():
    """Networks reach 0.85 on held-out cases; thresholds chosen on these do not."""
    phantom, edges = Phantom(), np.linspace(0, 1, 51)
    # For each slice, the Dice of every band [edges[i], edges[j]) inside the body.
    scores = []
    for index in range(36 * 12, 40 * 12):
        example = phantom[index]
        truth = example["mask"][..., 0] > 0
        if not truth.any():
            continue
        body = ndimage.binary_fill_holes(example["image"][..., 0] > -300)
        grey = normalise(example["image"], "percentile")[..., 0]
        hit, all_ = (
            np.histogram(grey[where], edges)[0].cumsum()
            for where in (truth & body, body)
        )
        hit, all_ = np.append(0, hit), np.append(0, all_)
        found = hit[None, :] - hit[:, None]
        scores.append(
            2 * found / np.maximum(truth.sum() + all_[None, :] - all_[:, None], 1)
        )
    assert len(scores) >= 36
    mean = np.mean(scores, axis=0)
    # The best threshold, with lesions above it or below it.
    threshold = max(mean[0].max(), mean[:, -1].max())
    assert threshold < 0.35
    # A band does better, and is still at least 0.3 below a network.
    assert 0.3 < mean.max() <= 0.55


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())
