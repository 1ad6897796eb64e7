"""Tests the planes that the page draws: their order, and zeros where slices are missing."""

import numpy as np

from biedsnet_jax.data.fit import Fit
from biedsnet_jax.prediction.result import Prediction
from biedsnet_jax.serving import worker


def prediction(samples=None):
    """Makes a prediction of two slices of 2 by 3 pixels and two classes.

    Values are 0.01 (10 z + row + 3 column), and more for each class and map.
    """
    z, row, column, k = np.meshgrid(
        range(2), range(2), range(3), range(2), indexing="ij"
    )
    base = (0.01 * (10 * z + row + 3 * column) + 0.25 * k).astype(np.float32)
    maps = {
        "variance": base / 8,
        "probability": base + np.float32(0.5),
        "entropy": base,
    }
    labels = ((1,), (2,))
    made = Prediction(
        Fit((2, 3)).way((2, 3)),
        maps,
        samples,
        threshold=0.5,
        labels=labels,
        seconds=0.0,
    )
    return made, base


def test_planes_come_class_by_class_map_by_map_sample_by_sample():
    one, base = prediction()
    samples = np.stack(
        [one.maps["probability"] * np.float32(factor) for factor in (0.2, 0.6)]
    )
    one, _ = prediction(samples)
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    planes = worker.planes(image, np.ones((2, 3), bool), one, 1)
    assert len(planes) == 3 + 2 + 2 * 2 + 2 * 2
    for c in range(3):
        np.testing.assert_array_equal(planes[c], image[..., c])
    for k in range(2):
        p = base[1, ..., k].astype(float) + 0.5
        assert np.abs(planes[3 + k] / 200 - p).max() < 0.006
        # Entropy, up to 1 bit.
        assert np.abs(planes[5 + k] / 255 - base[1, ..., k]).max() < 0.003
        # Variance, up to 0.25.
        assert np.abs(planes[7 + k] / 255 * 0.25 - base[1, ..., k] / 8).max() < 0.001
        assert np.abs(planes[9 + k] / 200 - 0.2 * p).max() < 0.006
        assert np.abs(planes[11 + k] / 200 - 0.6 * p).max() < 0.006


def test_where_slices_are_missing_only_the_image_is_left():
    scanned = np.array([[True, False, True], [False, True, True]])
    image = np.full((2, 3, 1), 9, np.uint8)
    planes = worker.planes(image, scanned, prediction()[0], 0)
    assert (planes[0] == 9).all()
    assert len(planes) == 1 + 2 + 2 * 2
    np.testing.assert_allclose(planes[1][scanned], [100, 112, 108, 114], atol=1)
    assert all((plane[~scanned] == 0).all() for plane in planes[1:])
