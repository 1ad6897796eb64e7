"""Slices on the network's canvas, and maps back on the slice's own grid."""

import numpy as np
import pytest
from PIL import Image

from biedsnet_jax.data.fit import Fit


@pytest.mark.parametrize("size", [8, (6, 10), (40, 30)])
def test_squash_is_pillows_resize_there_and_back(size):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(21, 13, 2)).astype(np.float32)
    fit = Fit(size)
    height, width = (size, size) if isinstance(size, int) else size
    canvas = fit.image(image)
    back = fit.back(canvas, (21, 13))
    for c in range(2):
        picture = Image.fromarray(image[..., c])
        there = picture.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(canvas[..., c], np.asarray(there))
        again = there.resize((13, 21), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(back[..., c], np.asarray(again))


def test_a_mask_on_the_canvas_has_the_spacing_of_its_pixels():
    mask = np.zeros((20, 10, 1), np.uint8)
    mask[4:8, 2:4] = 1
    there = Fit(5).mask({"mask": mask, "spacing": (0.5, 2.0)})
    # A pixel covers 4 x 2 of the slice's own.
    expected = np.zeros((5, 5), np.uint8)
    expected[1, 1] = 1
    np.testing.assert_array_equal(there["mask"][..., 0], expected)
    assert there["spacing"] == (2.0, 4.0)
