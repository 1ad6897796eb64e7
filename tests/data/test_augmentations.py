"""nnU-Net's augmentations against loops by hand, and today's stream bit for bit."""

import math

import numpy as np
import pytest

from biedsnet_jax.data import augmentations
from biedsnet_jax.data.transforms import augment, change_intensity, rotate_and_scale

ALL = {
    "rotate": 0.5,
    "rotate_degrees": 180.0,
    "zoom": 0.5,
    "elastic": 0.5,
    "noise": 0.5,
    "blur": 0.5,
    "brightness": 0.5,
    "contrast": 0.5,
    "low_resolution": 0.5,
    "inverted_gamma": 0.5,
    "gamma": 0.5,
}


def rng(seed=0):
    return np.random.default_rng(seed)


def image(*shape, seed=1):
    return rng(seed).normal(2.0, 3.0, shape or (12, 10, 2)).astype(np.float32)


def example(shape=(32, 24), seed=1):
    mask = np.zeros((*shape, 2), np.uint8)
    mask[8:20, 6:12, 0] = mask[8:20, 12:18, 1] = 1
    return {"image": image(*shape, 1, seed=seed), "mask": mask, "case": "a"}


def of_today(before, rng, hflip, vflip, rotate_degrees, scale, intensity):
    """The augmentation as it was before nnU-Net's came."""
    grey, mask = before["image"], before["mask"]
    draw_hflip, draw_vflip = rng.random(2)
    angle, zoom = rng.uniform(-1.0, 1.0, 2) * (rotate_degrees, scale)
    gamma, contrast, brightness = rng.uniform(-intensity, intensity, 3)
    if draw_hflip < hflip:
        grey, mask = grey[:, ::-1], mask[:, ::-1]
    if draw_vflip < vflip:
        grey, mask = grey[::-1], mask[::-1]
    if angle or zoom:
        grey, mask = rotate_and_scale(grey, mask, math.radians(angle), 1.0 + zoom)
    if intensity:
        grey = change_intensity(grey, math.exp(gamma), 1.0 + contrast, brightness)
    return grey, mask


@pytest.mark.parametrize(
    "fields", [(0.5, 0.5, 10.0, 0.1, 0.1), (0.5, 0.0, 0.0, 0.0, 0.0)]
)
def test_without_the_new_fields_the_stream_is_that_of_before(fields):
    names = ("hflip", "vflip", "rotate_degrees", "scale", "intensity")
    for seed in range(20):
        got = augment(example(), rng(seed), **dict(zip(names, fields)))
        grey, mask = of_today(example(), rng(seed), *fields)
        np.testing.assert_array_equal(got["image"], grey)
        np.testing.assert_array_equal(got["mask"], mask)


def test_all_of_them_follow_from_the_generator_alone():
    images = [augment(example(), rng(seed), **ALL) for seed in range(8)]
    again = [augment(example(), rng(seed), **ALL) for seed in range(8)]
    for a, b in zip(images, again, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["mask"], b["mask"])
        assert a["image"].dtype == np.float32 and a["image"].shape == (32, 24, 1)
        assert a["mask"].dtype == np.uint8 and set(np.unique(a["mask"])) <= {0, 1}
        assert np.isfinite(a["image"]).all()
    assert len({a["image"].tobytes() for a in images}) == 8


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"rotate", "rotate_degrees"}))
def test_each_happens_with_its_probability(name):
    before = example()
    changed = [
        not np.array_equal(
            augment(before, rng(seed), **{name: 0.3})["image"], before["image"]
        )
        for seed in range(200)
    ]
    assert 0.2 < np.mean(changed) < 0.4
    untouched = augment(before, rng(), **{name: 0.0})
    np.testing.assert_array_equal(untouched["image"], before["image"])


def test_a_rotation_happens_with_its_probability():
    before = example()
    turned = [
        not np.array_equal(
            augment(before, rng(seed), rotate_degrees=90.0, rotate=0.3)["mask"],
            before["mask"],
        )
        for seed in range(200)
    ]
    assert 0.2 < np.mean(turned) < 0.4


@pytest.mark.parametrize(
    ("strength", "factor"),
    [(0.0, 0.7), (0.25, 0.85), (0.5, 1.0), (0.75, 1.2), (1.0, 1.4)],
)
def test_half_of_the_magnifications_are_below_one(strength, factor):
    assert augmentations.zoom_factor(strength) == pytest.approx(factor)


def test_noise_has_the_share_of_the_slices_variance():
    flat = image(100, 100, 1)
    noise = augmentations.add_noise(flat, 0.5, rng()) - flat
    assert noise.std() == pytest.approx(math.sqrt(0.05) * flat.std(), rel=0.03)
    assert noise.mean() == pytest.approx(0.0, abs=0.03)


def test_blur_is_a_gaussian_of_half_a_pixel_to_one():
    point = np.zeros((11, 11, 1), np.float32)
    point[5, 5] = 1.0
    for strength, sigma in ((0.0, 0.5), (1.0, 1.0)):
        weights = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * sigma**2))
        weights /= weights.sum()
        expected = np.outer(weights, weights)
        got = augmentations.blur(point, strength)[..., 0]
        np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize(("strength", "factor"), [(0.0, 0.75), (0.5, 1.0), (1.0, 1.25)])
def test_brightness_and_contrast_by_hand(strength, factor):
    grey = np.array([1.0, 2.0, 3.0, 6.0], np.float32).reshape(2, 2, 1)
    bright = augmentations.change_brightness(grey, strength)
    np.testing.assert_allclose(bright.ravel(), 1 + factor * np.array([0, 1, 2, 5]))
    contrast = augmentations.change_contrast(grey, strength)
    wide = 3 + factor * np.array([-2, -1, 0, 3])
    np.testing.assert_allclose(contrast.ravel(), np.clip(wide, 1, 6))


def test_a_low_resolution_keeps_every_other_pixel_and_the_full_one_all():
    grey = image(16, 16, 2)
    np.testing.assert_allclose(
        augmentations.lower_resolution(grey, 1.0), grey, rtol=1e-6
    )
    halved = grey[1::2, 1::2]
    # What lies between is smooth, so the kept pixels decide the whole.
    other = np.zeros_like(grey)
    other[1::2, 1::2] = halved
    np.testing.assert_allclose(
        augmentations.lower_resolution(grey, 0.0),
        augmentations.lower_resolution(other, 0.0),
        rtol=1e-6,
    )


@pytest.mark.parametrize(("strength", "gamma"), [(0.0, 0.7), (0.5, 1.0), (1.0, 1.5)])
def test_gamma_bends_the_curve_and_keeps_mean_and_deviation(strength, gamma):
    grey = image(20, 20, 1)
    got = augmentations.change_gamma(grey, strength, inverted=False)
    bent = ((grey - grey.min()) / np.ptp(grey)).astype(np.float64) ** gamma
    expected = (bent - bent.mean()) / bent.std() * grey.std() + grey.mean()
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    inverted = augmentations.change_gamma(grey, strength, inverted=True)
    negative = augmentations.change_gamma(-grey, strength, inverted=False)
    np.testing.assert_array_equal(inverted, -negative)
    constant = np.full((4, 4, 1), 2.0, np.float32)
    np.testing.assert_array_equal(
        augmentations.change_gamma(constant, strength, inverted=False), constant
    )


def test_a_deformation_moves_image_and_mask_alike_and_by_no_more_than_a_twentieth():
    rows = np.arange(40, dtype=np.float32)
    ramp = np.broadcast_to(rows[:, None, None], (40, 30, 1)).copy()
    mask = (ramp >= 20).astype(np.uint8)
    moved, moved_mask = augmentations.deform(ramp, mask, 1.0, rng(3))
    inside = moved[4:-4, 4:-4] - ramp[4:-4, 4:-4]
    assert 0.3 < np.abs(inside).max() <= 2.0 + 1e-4
    # The image is bilinear.
    assert (moved % 1 > 0).mean() > 0.5
    # The nearest pixel of the mask is where the ramp is nearest to 20 or above.
    clear = np.abs(moved - 19.5) > 0.01
    clear[[0, 1, 2, -1, -2, -3]] = clear[:, [0, 1, 2, -1, -2, -3]] = False
    np.testing.assert_array_equal(moved_mask[clear], (moved >= 19.5)[clear])
