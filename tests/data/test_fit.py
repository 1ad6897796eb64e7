"""Slices on the network's canvas, and maps back on the slice's own grid."""

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.transforms import Prepare


@pytest.mark.parametrize("size", [8, (6, 10), (40, 30)])
def test_squash_is_pillows_resize_there_and_back(size):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(21, 13, 2)).astype(np.float32)
    way = Fit(size).way((21, 13))
    height, width = (size, size) if isinstance(size, int) else size
    canvas = way.place(way.resize(image))
    back = way.back(canvas)
    for c in range(2):
        picture = Image.fromarray(image[..., c])
        there = picture.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(canvas[..., c], np.asarray(there))
        again = there.resize((13, 21), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(back[..., c], np.asarray(again))


def test_a_mask_on_the_canvas_has_the_spacing_of_its_pixels():
    mask = np.zeros((20, 10, 1), np.uint8)
    mask[4:8, 2:4] = 1
    there = Fit(5).way((20, 10)).mask({"mask": mask, "spacing": (0.5, 2.0)})
    # A pixel covers 4 x 2 of the slice's own.
    expected = np.zeros((5, 5), np.uint8)
    expected[1, 1] = 1
    np.testing.assert_array_equal(there["mask"][..., 0], expected)
    assert there["spacing"] == (2.0, 4.0)


def test_padding_keeps_proportions():
    # 20 rows by 10 columns, of which the canvas holds 8 by 4 in its middle.
    rng = np.random.default_rng(0)
    image = rng.random((20, 10, 2)).astype(np.float32)
    way = Fit(8, "pad").way((20, 10))
    resized = way.resize(image)
    assert resized.shape == (8, 4, 2)
    canvas = way.place(resized)
    assert canvas.shape == (8, 8, 2)
    np.testing.assert_array_equal(canvas[:, 2:6], resized)
    for c in range(2):
        assert (canvas[:, [0, 1, 6, 7], c] == resized[..., c].min()).all()
    there = way.mask({"mask": np.ones((20, 10, 1), np.uint8), "spacing": (1.0, 2.0)})
    expected = np.zeros((8, 8))
    expected[:, 2:6] = 1
    np.testing.assert_array_equal(there["mask"][..., 0], expected)
    assert there["spacing"] == (2.5, 5.0)


@pytest.mark.parametrize(
    ("size", "part"),
    [
        ((20, 10), (16, 8)),
        ((9, 30), (7, 24)),
        ((8, 8), (16, 16)),
        ((1, 50), (1, 24)),
        ((16, 24), (16, 24)),
    ],
)
def test_maps_come_back_from_their_part_of_the_canvas(size, part):
    way = Fit((16, 24), "pad").way(size)
    maps = np.random.default_rng(0).random((16, 24, 1)).astype(np.float32)
    top, left = (16 - part[0]) // 2, (24 - part[1]) // 2
    inside = maps[top : top + part[0], left : left + part[1], 0]
    picture = Image.fromarray(np.ascontiguousarray(inside))
    expected = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    back = way.back(maps)
    np.testing.assert_array_equal(back[..., 0], np.asarray(expected))
    # The image stands in the same part.
    image = np.ones((*size, 1), np.float32)
    assert way.resize(image).shape[:2] == part
    mask = way.mask({"mask": np.ones((*size, 1), np.uint8)})["mask"][..., 0]
    assert mask[top : top + part[0], left : left + part[1]].all()
    assert mask.sum() == part[0] * part[1]


@pytest.mark.parametrize("method", ["squash", "pad"])
def test_a_share_is_the_covered_area_of_a_pixel(method):
    rng = np.random.default_rng(0)
    mask = (rng.random((12, 6, 2)) > 0.5).astype(np.uint8)
    example = {"image": np.zeros((12, 6, 1)), "mask": mask, "spacing": (1.0, 1.0)}
    prepare = Prepare(Fit(4, method), "none", target="share")
    found = prepare(example)["mask"]
    # Squashed, a pixel covers 3 x 1.5; padded, 3 x 3, in two columns of the canvas.
    twice = mask.repeat(2, axis=1).reshape(4, 3, 4, 3, 2).mean(axis=(1, 3))
    if method == "pad":
        whole = mask.reshape(4, 3, 2, 3, 2).mean(axis=(1, 3))
        twice = np.pad(whole, ((0, 0), (1, 1), (0, 0)))
    np.testing.assert_allclose(found, twice, atol=1e-6)
    assert found.dtype == np.float32
    way = Fit(4, method).way((12, 6))
    assert prepare(example)["spacing"] == way.mask(example)["spacing"]


def test_prepared_slices_are_normalised_without_their_padding():
    rng = np.random.default_rng(0)
    image = rng.normal(50, 20, (30, 12, 1)).astype(np.float32)
    found = Prepare(Fit(15, "pad"), "zscore").image(image)
    inside = found[:, 4:10]
    assert inside.mean() == pytest.approx(0, abs=1e-5)
    assert inside.std() == pytest.approx(1, abs=1e-5)
    assert (found[:, :4] == inside.min()).all()


@pytest.mark.parametrize(
    ("size", "spacing", "part"),
    [
        # In pixels of 0.5 by 1 mm: 20 x 10 of 1 mm.
        ((20, 10), (1.0, 1.0), (16, 4)),
        ((4, 6), (1.0, 1.0), (8, 6)),
        ((8, 16), (0.5, 1.0), (8, 16)),
        # A spacing that is not known leaves proportions of pixels.
        ((20, 10), None, (16, 8)),
        # Three that stay three, though few.
        ((3, 4), (0.5, 9.0), (1, 16)),
    ],
)
def test_padded_slices_have_pixels_of_one_spacing_unless_they_are_too_large(
    size, spacing, part
):
    way = Fit(16, "pad", (0.5, 1.0)).way(size, spacing)
    assert (way.size, way.part, way.canvas) == (size, part, (16, 16))


@pytest.mark.parametrize(
    ("size", "spacing", "part", "canvas"),
    [
        ((5, 9), None, (5, 9), (16, 16)),
        ((16, 17), None, (16, 17), (16, 24)),
        ((40, 24), None, (40, 24), (40, 24)),
        ((41, 100), None, (41, 100), (48, 104)),
        ((20, 30), (1.0, 2.0), (40, 60), (40, 64)),
        ((20, 30), (0.25, 0.2), (10, 6), (16, 16)),
    ],
)
def test_a_canvas_is_covered_by_tiles_in_steps_of_half_a_tile(
    size, spacing, part, canvas
):
    way = Fit(16, "tile", (0.5, 1.0)).way(size, spacing)
    assert (way.part, way.canvas) == (part, canvas)


@pytest.mark.parametrize(
    ("method", "size", "own", "spacing", "made"),
    [
        # 9 times the side is 81 times the pixels.
        ("tile", (20, 30), (9.0, 9.0), (1.0, 1.0), "180x270"),
        # 64 times as many, but more than 2 ** 26.
        ("tile", (1025, 1025), (8.0, 8.0), (1.0, 1.0), "8200x8200"),
        ("tile", (20, 30), (1.0, 1.0), (1e7, 1e7), "2e-06x3e-06"),
        ("pad", (20, 30), (1.0, 1.0), (1.0, 8.0), "20x3.75"),
    ],
)
def test_a_spacing_that_makes_far_too_many_pixels_or_hardly_any(
    method, size, own, spacing, made
):
    asked = f"{spacing[0]:g},{spacing[1]:g}"
    fit = Fit(16, method, spacing)
    refused(lambda: fit.way(size, own), f"data.spacing is {asked}", made)


def test_spacings_just_within_the_limits():
    # 64 times the pixels; as many as the slice has itself; four of a side.
    assert Fit(16, "tile", (1.0, 1.0)).way((20, 30), (8.0, 8.0)).part == (160, 240)
    large = (2**14, 2**13)
    assert Fit(16, "tile", (1.0, 1.0)).way(large, (1.0, 1.0)).part == large
    assert Fit(16, "pad", (1.0, 8.0)).way((20, 32), (1.0, 1.0)).part == (16, 3)
    # However fine, what is padded fits the canvas.
    assert Fit(16, "pad", (1e-7, 1e-7)).way((20, 20), (1.0, 1.0)).part == (16, 16)


def test_maps_of_a_canvas_come_back_to_the_slice():
    image = np.random.default_rng(0).random((21, 30, 1)).astype(np.float32)
    way = Fit(16, "tile").way((21, 30))
    canvas = way.place(way.resize(image))
    assert canvas.shape == (24, 32, 1)
    np.testing.assert_array_equal(way.back(canvas), image)
    # At another spacing it is what Pillow makes of it, there and back.
    way = Fit(16, "tile", (2.0, 2.0)).way((21, 30), (1.0, 1.0))
    there = Image.fromarray(image[..., 0]).resize((15, 10), Image.Resampling.BILINEAR)
    back = there.resize((30, 21), Image.Resampling.BILINEAR)
    canvas = way.place(way.resize(image))
    np.testing.assert_array_equal(way.back(canvas)[..., 0], np.asarray(back))


# ---- What is not known


def truth_of(mask, known):
    return {
        "mask": np.array(mask, np.uint8),
        "known": np.array(known, np.uint8),
        "spacing": None,
    }


def test_a_pixel_is_decided_on_its_known_part():
    """Four pixels of 2 x 2, their classes 1 and 2 by digit, x where nobody looked."""
    rows = ["1x1x2x10", "0xxx2xx2"]
    cells = np.array([list(row) for row in rows])
    known = np.repeat((cells != "x")[..., None], 2, axis=-1)
    mask = np.stack([cells == "1", cells == "2"], axis=-1)
    there = Fit((1, 4)).way((2, 8)).mask(truth_of(mask, known))
    # Half of the first is lesion; of the second a quarter is known; all that is known of
    # the third; of the last a third each, and the first of equals.
    assert there["known"][0].tolist() == [[1, 1], [0, 0], [1, 1], [1, 1]]
    assert there["mask"][0].tolist() == [[1, 0], [0, 0], [0, 1], [1, 0]]
    shares = Fit((1, 4)).way((2, 8)).shares(truth_of(mask, known))
    assert shares["known"].tolist() == there["known"].tolist()
    third = 1 / 3
    expected = [[0.5, 0], [0, 0], [0, 1], [third, third]]
    np.testing.assert_allclose(shares["mask"][0], expected, rtol=1e-6)


def test_a_class_that_nobody_annotated_does_not_move_the_others():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (13, 17))
    mask = np.stack([label == 1, label == 2], axis=-1).astype(np.uint8)
    known = np.ones_like(mask)
    known[..., 1] = 0
    for method, size in (("squash", 7), ("pad", 8), ("pad", 24)):
        way = Fit(size, method).way((13, 17))
        without = mask * known
        for bring in (way.mask, way.shares):
            there = bring(truth_of(without, known))
            alone = bring({"mask": without, "spacing": None})
            np.testing.assert_allclose(there["mask"], alone["mask"], atol=1e-6)
            # Around the slice it stays unknown too.
            assert there["known"][..., 0].all() and not there["known"][..., 1].any()


def test_around_a_slice_lies_known_background():
    mask = np.ones((4, 2, 1), np.uint8)
    known = np.ones_like(mask)
    known[:, 1] = 0
    there = Fit(4, "pad").way((4, 2)).mask(truth_of(mask * known, known))
    assert there["known"][..., 0].tolist() == [[1, 1, 0, 1]] * 4
    assert there["mask"][..., 0].tolist() == [[0, 1, 0, 0]] * 4
