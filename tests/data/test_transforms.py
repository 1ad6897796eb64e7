"""Transforms against numbers worked out by hand and plain loops."""

import collections
import math

import numpy as np
import pytest
from refusals import refused

from biedsnet_jax.data.fit import Fit, resize_mask
from biedsnet_jax.data.transforms import (
    METHODS,
    Prepare,
    augment,
    change_intensity,
    crop,
    normalise,
    rotate_and_scale,
    window,
)

RAMP = np.arange(12.0).reshape(3, 4)


def rng(seed=0):
    return np.random.default_rng(seed)


def resize(example, size):
    """Resizes image and mask without normalising."""
    return Prepare(Fit(size), "none")(example)


def example(image, mask=None, spacing=None):
    image = np.asarray(image, np.float32)
    mask = (
        np.zeros(image.shape, np.uint8) if mask is None else np.asarray(mask, np.uint8)
    )
    return {
        "image": image[..., None],
        "mask": mask[..., None],
        "case": "a",
        "spacing": spacing,
    }


# --- normalise


def test_percentiles_of_a_ramp():
    """The 0.5 and 99.5 percentiles of 0 to 200 are 1 and 199."""
    ramp = np.arange(201, dtype=np.uint8).reshape(1, 201, 1)
    out = normalise(ramp, "percentile")
    assert out.dtype == np.float32
    np.testing.assert_allclose(
        out[0, :, 0], np.clip((np.arange(201) - 1) / 198, 0, 1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("minmax", [0, 0.25, 0.5, 1.0]),
        ("zscore", np.array([-7, -3, 1, 9]) / math.sqrt(35)),
        ("none", [2, 6, 10, 18]),
    ],
)
def test_the_other_methods_by_hand(method, expected):
    """2, 6, 10, 18 have mean 9 and variance (49 + 9 + 1 + 81) / 4 = 35."""
    image = np.array([2, 6, 10, 18], np.uint16).reshape(2, 2, 1)
    np.testing.assert_allclose(normalise(image, method).ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS[:-1])
def test_each_channel_has_its_own_scale_and_a_constant_one_is_zero(method):
    rng = np.random.default_rng(0)
    grey = rng.normal(size=(40, 50)).astype(np.float32)
    out = normalise(
        np.stack([grey, 1e4 + 300 * grey, np.full_like(grey, 0.1)], axis=-1), method
    )
    np.testing.assert_allclose(out[..., 0], out[..., 1], atol=2e-5)
    np.testing.assert_array_equal(out[..., 2], 0)
    assert np.ptp(out[..., 0]) > 0.9


def test_percentiles_that_coincide_fall_back_on_the_extremes():
    image = np.zeros((100, 100, 1), np.float32)
    image[5, 5:8, 0] = [1, 2, 4]
    np.testing.assert_allclose(
        normalise(image, "percentile")[5, 4:9, 0], [0, 0.25, 0.5, 1, 0]
    )


def test_an_unknown_method_is_named():
    image = np.zeros((2, 2, 1))
    refused(
        lambda: normalise(image, "percentil"),
        "data.normalise",
        "percentil.",
        "percentile, minmax",
    )


# --- resize


def test_halving_blocks_and_doubling_back_is_exact_where_blocks_align():
    blocks = np.kron([[0, 3], [5, 9]], np.ones((8, 8)))
    mask = np.kron([[0, 1], [1, 0]], np.ones((8, 8)))
    before = example(blocks, mask, spacing=(0.5, 2.0))
    half = resize(before, 8)
    np.testing.assert_array_equal(half["mask"][..., 0], mask[::2, ::2])
    np.testing.assert_allclose(
        half["image"][[0, 0, 7, 7], [0, 7, 0, 7], 0], [0, 3, 5, 9], atol=1e-5
    )
    assert half["spacing"] == (1.0, 4.0)
    assert resize(half, 16)["spacing"] == (0.5, 2.0)
    np.testing.assert_array_equal(resize(half, 16)["mask"], before["mask"])
    assert resize_mask(before, 16) is before


def test_height_and_width_are_not_swapped():
    out = resize(example(np.arange(24).reshape(4, 6), spacing=(1.0, 1.0)), (2, 12))
    assert out["image"].shape == out["mask"].shape == (2, 12, 1)
    assert out["spacing"] == (2.0, 0.5)
    # The ramp grows by 12 over the rows and by 1 over the columns.
    assert out["image"][1, 6, 0] > out["image"][0, 6, 0] + 8


def test_shrinking_is_antialiased_and_growing_is_bilinear():
    stripes = np.tile([0.0, 1.0], (64, 32))
    # Picking the nearest pixel would give 0 or 1.
    np.testing.assert_allclose(
        resize(example(stripes), 16)["image"][:, 1:-1], 0.5, atol=0.02
    )
    grown = resize(example([[0.0, 4.0], [8.0, 12.0]]), 4)["image"][..., 0]
    # Pixels are squares, so samples lie at -0.25, 0.25, 0.75 and 1.25.
    np.testing.assert_allclose(grown[0], [0, 1, 3, 4], atol=1e-5)
    np.testing.assert_allclose(grown[:, 0], [0, 2, 6, 8], atol=1e-5)


def test_a_mask_pixel_takes_what_covers_most_of_it_and_ties_go_to_the_lesion():
    mask = np.zeros((4, 4), np.uint8)
    # One pixel of the block's four.
    mask[0, 0] = 1
    # Two of four.
    mask[0:2, 2] = 1
    # Three of four.
    mask[2:4, 0:2] = 1
    mask[3, 1] = 0
    np.testing.assert_array_equal(
        resize(example(mask, mask), 2)["mask"][..., 0], [[0, 1], [1, 0]]
    )


@pytest.mark.parametrize(
    ("factor", "classes"),
    [(2, 1), (6, 1), (10, 1), (3, 2), (6, 2), (9, 2), (12, 2), (14, 1)],
)
def test_a_tie_is_a_tie_however_its_pixels_are_scattered(factor, classes):
    labels = np.arange(factor**2) % (classes + 1)
    blocks = [
        rng(seed).permutation(labels).reshape(factor, factor) for seed in range(64)
    ]
    tied = np.block([blocks[i : i + 8] for i in range(0, 64, 8)])
    mask = (tied[..., None] == np.arange(1, classes + 1)).astype(np.uint8)
    assert resize({"image": mask.astype(np.float32), "mask": mask}, 8)["mask"][
        ..., 0
    ].all()


@pytest.mark.parametrize("shape", [(12, 18), (15, 9)])
def test_a_mask_of_classes_against_a_count_of_labels(shape):
    labels = np.random.default_rng(1).integers(0, 3, shape)
    mask = (labels[..., None] == (1, 2)).astype(np.uint8)
    out = resize(
        {"image": np.zeros((*shape, 1), np.float32), "mask": mask},
        (shape[0] // 3, shape[1] // 3),
    )
    # Classes stay exclusive.
    assert out["mask"].sum(axis=-1).max() == 1
    for row in range(shape[0] // 3):
        for column in range(shape[1] // 3):
            votes = np.bincount(
                labels[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].ravel(),
                minlength=3,
            )
            # Of equals the first wins: 1, 2, then background.
            winner = max((1, 2, 0), key=lambda label: votes[label])
            np.testing.assert_array_equal(
                out["mask"][row, column], [winner == 1, winner == 2]
            )


def test_overlapping_classes_are_resized_each_by_itself():
    whole = np.zeros((4, 4), np.uint8)
    # All of the first block, half of the last.
    whole[:2, :2] = whole[2:, 3] = 1
    core = np.zeros((4, 4), np.uint8)
    # Half of the first, a quarter of the last.
    core[0, :2] = core[2, 3] = 1
    mask = np.stack([whole, core], axis=-1)
    out = resize({"image": mask.astype(np.float32), "mask": mask}, 2)["mask"]
    np.testing.assert_array_equal(out[..., 0], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(out[..., 1], [[1, 0], [0, 0]])


# --- window and the whole way


def test_a_window_clips_and_maps_to_0_1():
    hounsfield = np.array([[-2000, -1250, -500, 0, 250, 3000]], np.int16)[..., None]
    np.testing.assert_allclose(
        window(hounsfield, -1250.0, 250.0)[0, :, 0],
        [0, 0, 0.5, 1250 / 1500, 1, 1],
        rtol=1e-6,
    )


def test_the_window_comes_before_resizing_so_that_metal_does_not_spread():
    image = np.array([[0, 0, 3000, 0]], np.int16)[..., None]
    out = Prepare(Fit((1, 1)), "none", (0.0, 1.0)).image(image)
    # Metal is one of four pixels; unclipped it would bring the mean far above 1.
    assert out.item() <= 0.5


def test_an_image_by_itself_is_prepared_as_with_its_mask():
    full = example(rng(2).normal(100, 30, (20, 30)))
    prepare = Prepare(Fit(16), "percentile", (50.0, 150.0))
    np.testing.assert_array_equal(prepare.image(full["image"]), prepare(full)["image"])


# --- augment


def test_flips_by_hand():
    # The mask is the last row without its first pixel.
    mask = RAMP > 8
    out = augment(example(RAMP, mask), rng(), hflip=1.0)
    np.testing.assert_array_equal(out["image"][0, :, 0], [3, 2, 1, 0])
    np.testing.assert_array_equal(out["mask"][..., 0], [[0] * 4, [0] * 4, [1, 1, 1, 0]])
    out = augment(example(RAMP, mask), rng(), vflip=1.0)
    np.testing.assert_array_equal(out["image"][:, 0, 0], [8, 4, 0])
    np.testing.assert_array_equal(out["mask"][..., 0], [[0, 1, 1, 1], [0] * 4, [0] * 4])
    assert out["case"] == "a"


def test_all_zero_changes_nothing_and_nothing_is_written_in_place():
    before = example(RAMP, RAMP > 7)
    before["image"].flags.writeable = before["mask"].flags.writeable = False
    np.testing.assert_array_equal(augment(before, rng())["image"], before["image"])
    after = augment(
        before,
        rng(),
        hflip=1.0,
        vflip=1.0,
        rotate_degrees=20.0,
        scale=0.2,
        intensity=0.2,
    )
    assert after["image"].shape == (3, 4, 1)


def test_probabilities_and_the_generator_alone_decide():
    flipped = [
        augment(example(RAMP), rng(seed), hflip=0.3)["image"][0, 0, 0] == 3
        for seed in range(400)
    ]
    assert 0.22 < np.mean(flipped) < 0.38

    def drawn(seed):
        before = example(RAMP)
        return augment(
            before, rng(seed), hflip=0.5, rotate_degrees=10.0, intensity=0.1
        )["image"]

    np.testing.assert_array_equal(drawn(5), drawn(5))
    assert np.abs(drawn(5) - drawn(6)).max() > 0.01


def turned(image, mask, *, angle=0.0, zoom=1.0):
    image, mask = rotate_and_scale(
        np.asarray(image, np.float32)[..., None],
        np.asarray(mask, np.uint8)[..., None],
        angle,
        zoom,
    )
    return image[..., 0], mask[..., 0]


def test_a_quarter_turn_is_numpys():
    square = rng().normal(size=(6, 6)) + 5
    image, mask = turned(square, square > 5, angle=math.pi / 2)
    np.testing.assert_allclose(image, np.rot90(square), atol=1e-4)
    np.testing.assert_array_equal(mask, np.rot90(square > 5))


@pytest.mark.parametrize(("angle", "zoom"), [(0.0, 1.2), (0.3, 1.0), (-0.2, 0.85)])
def test_turning_against_the_formula_on_a_plane_and_a_disc(angle, zoom):
    """Bilinear sampling of a plane is exact, and a disc only changes its radius."""
    height, width = 41, 61
    y, x = np.mgrid[:height, :width] - np.array([20.0, 30.0])[:, None, None]
    image, mask = turned(
        3 * x + 2 * y + 200, np.hypot(x, y) < 10, angle=angle, zoom=zoom
    )
    # Anticlockwise on a screen whose y points down: output (x, y) shows the input at
    # R (x, y) / zoom.
    x_in = (math.cos(angle) * x - math.sin(angle) * y) / zoom
    y_in = (math.sin(angle) * x + math.cos(angle) * y) / zoom
    inner = np.hypot(x, y) < 15
    np.testing.assert_allclose(
        image[inner], (3 * x_in + 2 * y_in + 200)[inner], atol=0.02
    )
    assert mask.sum() == pytest.approx(math.pi * (10 * zoom) ** 2, rel=0.03)


def test_outside_is_the_minimum_and_background():
    image, mask = turned(
        np.arange(400.0).reshape(20, 20) + 7, np.ones((20, 20)), zoom=0.5
    )
    np.testing.assert_array_equal(image[:4], 7)
    np.testing.assert_array_equal(mask[:4], 0)
    assert mask[7:13, 7:13].all()


def test_angle_and_scale_stay_within_their_bounds():
    """Direction and size of a bar are measured by its second moments."""
    y, x = np.mgrid[:81, :81] - 40.0
    bar = (np.abs(y) < 3) & (np.abs(x) < 20)
    angles, areas = [], []
    for seed in range(60):
        after = augment(example(bar, bar), rng(seed), rotate_degrees=15.0, scale=0.1)
        mask = after["mask"][..., 0] > 0
        u, v = x[mask], y[mask]
        twice = math.atan2(2 * (u * v).mean(), (u**2).mean() - (v**2).mean())
        angles.append(math.degrees(0.5 * twice))
        areas.append(mask.sum() / bar.sum())
    assert -15.5 < min(angles) < -10 and 10 < max(angles) < 15.5
    assert 0.9**2 - 0.06 < min(areas) < 0.9 and 1.1 < max(areas) < 1.1**2 + 0.06


def test_intensity_changes_the_grey_curve_and_keeps_the_order_and_the_mask():
    before = example(np.linspace(0, 1, 12).reshape(3, 4), RAMP > 7)
    for seed in range(20):
        after = augment(before, rng(seed), intensity=0.2)
        assert (np.diff(after["image"].ravel()) > 0).all()
        assert 0.001 < np.abs(after["image"] - before["image"]).max() < 0.6
        np.testing.assert_array_equal(after["mask"], before["mask"])
    constant = example(np.full((3, 4), 0.5))
    np.testing.assert_array_equal(
        augment(constant, rng(), intensity=0.2)["image"], constant["image"]
    )


def test_the_grey_curve_by_hand():
    """At gamma 2, 0, 1/2, 1 of the range 4 become 0, 1/4, 1, about their mean 5/12."""
    grey = np.array([[[2.0], [4.0], [6.0]]], np.float32)
    out = change_intensity(grey, gamma=2.0, contrast=0.5, brightness=0.1)
    np.testing.assert_allclose(
        out.ravel(), 2 + 4 * (np.array([0, 1 / 4, 1]) * 0.5 + 5 / 24 + 0.1), rtol=1e-6
    )


def test_shares_turn_with_their_image():
    shares = np.random.default_rng(0).random((8, 8, 2)).astype(np.float32)
    example = {"image": shares[..., :1], "mask": shares}
    turned = augment(example, np.random.default_rng(1), hflip=1.0, rotate_degrees=30.0)
    assert turned["mask"].dtype == np.float32
    # The nearest pixel's share, or background.
    assert np.isin(turned["mask"], np.append(shares, 0)).all()
    assert len(np.unique(turned["mask"])) > 40


# ---- Tiles


def corner_of(found, image):
    """Row and column at which a tile was cut out of an image of different values."""
    ((row, column, _),) = np.argwhere(image == found[0, 0, 0])
    height, width = found.shape[:2]
    there = image[row : row + height, column : column + width]
    np.testing.assert_array_equal(found, there)
    return int(row), int(column)


def test_a_tile_is_any_part_of_the_slice():
    image = np.arange(9 * 6, dtype=np.float32).reshape(9, 6, 1)
    mask = (image % 7 == 0).astype(np.uint8)
    corners = set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found, of_mask = crop(image, mask, rng, 4)
        row, column = corner_of(found, image)
        there = mask[row : row + 4, column : column + 4]
        np.testing.assert_array_equal(of_mask, there)
        corners.add((row, column))
    assert corners == {(row, column) for row in range(6) for column in range(3)}


def test_a_tile_that_shows_a_class_holds_any_pixel_of_it_at_any_place():
    image = np.arange(20 * 20, dtype=np.float32).reshape(20, 20, 1)
    mask = np.zeros((20, 20, 2), np.float32)
    mask[3, 10, 1] = mask[17, 19, 1] = 0.8
    # Of the other class, and less than half of a pixel.
    mask[10, 2, 0], mask[0, 0, 1] = 1.0, 0.4
    places = collections.Counter()
    for seed in range(600):
        found, of_mask = crop(image, mask, np.random.default_rng(seed), 4, shown=1)
        ((row, column),) = np.argwhere(of_mask[..., 1] == np.float32(0.8))
        corner = corner_of(found, image)
        places[corner[0] + int(row), int(row), int(column)] += 1
    # The first lies anywhere in its tile, the second at the border of the slice.
    first = {key for key in places if key[0] == 3}
    assert first == {(3, row, column) for row in range(4) for column in range(4)}
    assert {key for key in places if key[0] == 17} == {
        (17, row, 3) for row in (1, 2, 3)
    }
    assert 240 < sum(places[key] for key in first) < 360


def test_a_tile_of_a_class_that_is_gone_is_any_part():
    image = np.arange(36, dtype=np.float32).reshape(6, 6, 1)
    rng = np.random.default_rng(0)
    found, _ = crop(image, np.zeros((6, 6, 1), np.uint8), rng, 3, shown=0)
    corner_of(found, image)


def test_a_variant_is_cut_after_it_moved_and_other_draws_stay():
    rng = np.random.default_rng(5)
    image = rng.random((12, 10, 1)).astype(np.float32)
    mask = (rng.random((12, 10, 1)) > 0.5).astype(np.uint8)
    example = {"image": image, "mask": mask}
    whole, tile = (
        augment(example, np.random.default_rng(1), hflip=0.5, vflip=0.5, tile=side)
        for side in (0, 4)
    )
    assert whole["image"].shape == (12, 10, 1) and tile["image"].shape == (4, 4, 1)
    corner_of(tile["image"], whole["image"])


# --- what is not known


EVERY = {
    "hflip": 0.5,
    "vflip": 0.5,
    "rotate_degrees": 40.0,
    "scale": 0.3,
    "zoom": 0.5,
    "elastic": 0.5,
    "intensity": 0.1,
}


def partly_known(dtype=np.uint8):
    """An example of two classes; of the first a part is known, of the second nothing."""
    draw = rng(3)
    known = np.zeros((24, 30, 2), np.uint8)
    known[..., 0] = draw.random((24, 30)) < 0.7
    mask = ((draw.random(known.shape) < 0.4) * known).astype(dtype)
    return {**example(draw.random((24, 30))), "mask": mask, "known": known}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_known_moves_as_the_mask_does(dtype):
    before = partly_known(dtype)
    for seed in range(20):
        moved = augment(before, rng(seed), **EVERY)
        assert moved["known"].dtype == np.uint8 and moved["mask"].dtype == dtype
        # What a mask becomes whose lesion is all that is not known.
        unknown = {**before, "mask": 1 - before["known"]}
        del unknown["known"]
        found = augment(unknown, rng(seed), **EVERY)
        np.testing.assert_array_equal(moved["known"][..., 0], 1 - found["mask"][..., 0])
        assert not moved["known"][..., 1].any()
        # And image and mask are those of an example of which all is known.
        plain = {name: before[name] for name in ("image", "mask")}
        alone = augment(plain, rng(seed), **EVERY)
        for name in plain:
            np.testing.assert_array_equal(moved[name], alone[name])
        assert not moved["mask"][moved["known"] == 0].any()


def test_what_comes_in_from_outside_is_known_background():
    before = partly_known()
    before["known"][..., 0] = 0
    before["known"][12, 15, 0] = 1
    before["mask"] *= before["known"]
    moved = [augment(before, rng(s), rotate_degrees=80.0) for s in range(5)]
    assert all(one["known"][0, 0, 0] == 1 for one in moved)
    assert all(one["mask"][0, 0, 0] == 0 for one in moved)
