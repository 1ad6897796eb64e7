"""Tests which slices an overlay shows, which way up, in what proportions, and where its
colours are.
"""

import numpy as np
import pytest

from biedsnet_jax.prediction.overlay import COLOURS, overlay

GREY = np.linspace(0, 200, 300 * 300).reshape(1, 300, 300, 1)


def block(shape, rows, columns):
    mask = np.zeros((*shape, 1), bool)
    mask[:, rows, columns] = True
    return mask


def coloured(pixels, k=0):
    """Marks the pixels of a picture that have exactly the colour of a class."""
    return (np.asarray(pixels).astype(int) == COLOURS[k]).all(axis=-1)


def test_a_picture_keeps_its_pixels_and_is_outlined_outside_the_mask():
    mask = block((1, 300, 300), slice(10, 20), slice(30, 50))
    sheet = np.asarray(overlay(GREY, mask, None))
    assert sheet.shape == (300, 300, 3)
    # One pixel above, below and beside the block, but none at its corners.
    line = np.zeros((300, 300), bool)
    line[9, 30:50] = line[20, 30:50] = line[10:20, 29] = line[10:20, 50] = True
    np.testing.assert_array_equal(coloured(sheet), line)
    grey = (sheet == sheet[..., :1]).all(axis=-1)
    np.testing.assert_array_equal(~grey, mask[0, ..., 0] | line)
    low, high = np.percentile(GREY, (0.5, 99.5))
    plain = (GREY[0, ..., 0].clip(low, high) - low) / (high - low) * 255
    np.testing.assert_allclose(sheet[grey][:, 0], plain[grey], atol=1.0)
    inside = 0.65 * plain[15, 40] + 0.35 * np.array(COLOURS[0])
    np.testing.assert_allclose(sheet[15, 40], inside, atol=1.0)


def test_what_is_up_and_left_stays_there():
    scan = np.zeros((1, 400, 400, 1), np.int16)
    scan[0, :50, :20] = 1000
    sheet = np.asarray(overlay(scan, np.zeros(scan.shape, bool), None))
    assert sheet[10, 10, 0] == 255
    assert sheet[-10, 10, 0] == sheet[10, -10, 0] == sheet[10, 30, 0] == 0


@pytest.mark.parametrize(
    ("shape", "spacing", "tile"),
    [
        ((40, 40), (1.0, 1.0), (256, 256)),
        ((40, 80), (1.0, 1.0), (128, 256)),
        ((40, 80), (2.0, 1.0), (256, 256)),
        ((300, 300), (0.5, 1.0), (150, 300)),
        ((512, 512), (0.7, 0.7), (512, 512)),
        ((600, 900), (1.0, 1.0), (341, 512)),
        ((1, 50), (1.0, 1.0), (5, 256)),
    ],
)
def test_tiles_of_a_volume_have_the_bodys_proportions(shape, spacing, tile):
    scan = np.random.default_rng(0).random((4, *shape, 1))
    mask = np.ones((4, *shape, 1), bool)
    assert overlay(scan, mask, spacing).size == (2 * tile[1], 2 * tile[0])


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        ([0, 3, 0, 9, 1, 0], [1, 3, 4]),
        ([9, 8, 7, 1, 1, 1, 1, 1, 1, 1, 2, 5], [0, 1, 2, 3, 4, 5, 6, 10, 11]),
        ([0, 0, 0], [0, 1, 2]),
        ([0] * 17, range(0, 17, 2)),
    ],
)
def test_the_slices_with_most_mask_from_the_feet_up(pixels, shown):
    """Reads the numbers of the slices from the grey of their lower halves."""
    scan = np.zeros((len(pixels), 256, 256, 1), np.uint8)
    scan[:, :8] = 255
    mask = np.zeros(scan.shape, bool)
    for z, count in enumerate(pixels):
        scan[z, 128:] = 10 * (z + 1)
        mask[z, 9, :count] = True
    sheet = np.asarray(overlay(scan, mask, (1.0, 1.0)))
    columns = sheet.shape[1] // 256
    numbers = [
        round(sheet[256 * (n // columns) + 200, 256 * (n % columns) + 100, 0] / 10) - 1
        for n in range(len(shown))
    ]
    assert numbers == list(shown)
    assert columns == int(np.ceil(np.sqrt(len(shown))))


@pytest.mark.parametrize(
    "scan",
    [
        np.full((1, 20, 20, 1), 7, np.int16),
        # A single bright pixel, so both percentiles are equal.
        np.where(np.arange(400).reshape(1, 20, 20, 1) == 3, 32767, -32768).astype(
            np.int16
        ),
        np.zeros((1, 20, 20, 1), np.float32),
    ],
)
def test_scans_without_contrast(scan):
    sheet = np.asarray(overlay(scan, np.zeros(scan.shape, bool), None))
    assert sheet.min() == 0
    assert sheet.max() == (255 if scan.min() != scan.max() else 0)


def test_colour_stays_colour_and_further_channels_are_left_out():
    colour = np.random.default_rng(0).integers(0, 256, (1, 50, 50, 3)).astype(np.uint8)
    none = np.zeros((1, 50, 50, 1), bool)
    sheet = np.asarray(overlay(colour, none, None)).astype(int)
    # Values are stretched between percentiles, which changes them a little.
    assert np.abs(sheet - colour[0]).max() <= 4
    four = np.concatenate([colour[..., :1], colour], axis=-1).astype(np.float32)
    grey = np.asarray(overlay(four, none, None))
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0].astype(int) - colour[0, ..., 0]).max() <= 4


def test_classes_have_their_own_colours_and_more_than_there_are_start_again():
    mask = np.zeros((1, 300, 300, 9), bool)
    for k in range(9):
        mask[0, 30 * k + 5 : 30 * k + 20, 5:20, k] = True
    sheet = overlay(GREY, mask, None)
    for k in range(9):
        assert coloured(sheet, k % 7)[30 * k + 4, 5:20].all()
