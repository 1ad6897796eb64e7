"""The pixels that are kept of a validation scan, against a scan worked out by hand."""

import dataclasses

import numpy as np
from made_predictions import predicted

from biedsnet_jax.evaluation.scan_pixels import pixels_of

PROBABILITY = np.zeros((1, 4, 5, 1), np.float32)
PROBABILITY[0, 1, 1] = 0.3
PROBABILITY[0, 2, 3] = 0.2
# Not above it.
PROBABILITY[0, 3, 4] = 0.1
TRUTH = np.zeros(PROBABILITY.shape, bool)
TRUTH[0, 2, 1] = True


def test_the_pixels_above_and_the_true_ones_are_kept_in_their_box():
    scan, made = predicted("a", PROBABILITY, TRUTH)
    kept = pixels_of(scan, made, 0.1)
    assert kept.case == "a"
    # Rows 1 and 2, columns 1 to 3.
    assert kept.shape == (1, 2, 3)
    assert kept.places.tolist() == [0, 3, 5]
    np.testing.assert_array_equal(kept.probability[:, 0], np.float32([0.3, 0, 0.2]))
    assert kept.truth[:, 0].tolist() == [False, True, False]
    box = kept.spread(kept.truth)[..., 0]
    assert box.tolist() == [[[False] * 3, [True, False, False]]]
    assert kept.known_box() is None


def test_where_the_truth_is_known_comes_along_for_the_whole_box():
    scan, made = predicted("a", PROBABILITY, TRUTH)
    known = np.ones(TRUTH.shape, np.uint8)
    known[0, 1, 2:] = 0
    kept = pixels_of(dataclasses.replace(scan, known=known), made, 0.1)
    expected = [[[True, False, False], [True] * 3]]
    assert kept.known_box()[..., 0].tolist() == expected
