"""Weights of another network are taken, spread or named, each as counted by hand."""

import numpy as np
import pytest

from biedsnet_jax.importing.fitting import Inputs, fit

GREY, COLOUR = Inputs(channels=1, classes=1), Inputs(channels=3, classes=2)


def kernel(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def fitted(value, shape, there, here):
    return fit({"a/kernel": value}, {"a/kernel": shape}, there=there, here=here)


def response(weights, image):
    """The middle pixel of a 3x3 convolution, one product at a time."""
    out = np.zeros(weights.shape[-1])
    for i, j, c in np.ndindex(weights.shape[:3]):
        out += image[i, j, c] * weights[i, j, c]
    return out


def test_a_tensor_of_the_same_shape_is_taken_without_a_word():
    value = kernel(3, 3, 4, 2)
    got = fitted(value, (3, 3, 4, 2), GREY, GREY)
    np.testing.assert_array_equal(got.arrays["a/kernel"], value)
    assert got.lines == []


@pytest.mark.parametrize(
    ("there", "here"), [(GREY, COLOUR), (COLOUR, GREY), (None, COLOUR), (None, GREY)]
)
def test_an_image_that_is_alike_in_every_channel_gives_what_it_gave(there, here):
    old = (there or Inputs(2, 1)).channels
    value = kernel(3, 3, old, 5)
    got = fitted(value, (3, 3, here.channels, 5), there, here)
    new = got.arrays["a/kernel"]
    grey = np.random.default_rng(1).normal(size=(3, 3, 1))
    np.testing.assert_allclose(
        response(new, np.repeat(grey, here.channels, axis=2)),
        response(value, np.repeat(grey, old, axis=2)),
        rtol=1e-5,
    )
    (line,) = got.lines
    assert "a/kernel" in line and str(old) in line and str(here.channels) in line


@pytest.mark.parametrize("predictions", [1, 2])
def test_image_and_mask_that_are_read_side_by_side_are_spread_apart(predictions):
    value = kernel(3, 3, 1 + predictions, 4)
    got = fitted(value, (3, 3, 3 + 2 * predictions, 4), GREY, COLOUR)
    new = got.arrays["a/kernel"]
    for channel in range(3):
        np.testing.assert_allclose(new[:, :, channel], value[:, :, 0] / 3, rtol=1e-6)
    # Masks of other classes make no difference at first.
    assert new.shape[2] == 3 + 2 * predictions and not new[:, :, 3:].any()
    colour = Inputs(channels=3, classes=1)
    same = fitted(value, (3, 3, 3 + predictions, 4), GREY, colour)
    np.testing.assert_array_equal(same.arrays["a/kernel"][:, :, 3:], value[:, :, 1:])


def test_of_an_image_that_stays_the_part_of_the_image_stays_bit_for_bit():
    value = kernel(3, 3, 2, 4)
    got = fitted(value, (3, 3, 3, 4), GREY, Inputs(channels=1, classes=2))
    new = got.arrays["a/kernel"]
    np.testing.assert_array_equal(new[:, :, 0], value[:, :, 0])


@pytest.mark.parametrize("outputs", [1, 2])
def test_each_class_of_a_head_starts_as_the_mean_of_those_there(outputs):
    there, here = Inputs(channels=1, classes=2), Inputs(channels=1, classes=3)
    value = kernel(1, 1, 4, 2 * outputs)
    got = fitted(value, (1, 1, 4, 3 * outputs), there, here)
    new = got.arrays["a/kernel"]
    for output in range(outputs):
        first, second = value[..., 2 * output], value[..., 2 * output + 1]
        for label in range(3):
            column = new[..., 3 * output + label]
            np.testing.assert_allclose(column, (first + second) / 2, rtol=1e-6)
    bias = fitted(np.array([1.0, 5.0], np.float32), (3,), there, here)
    np.testing.assert_array_equal(bias.arrays["a/kernel"], [3.0, 3.0, 3.0])


def test_the_head_of_a_denoiser_is_drawn_anew_where_its_classes_differ():
    arrays = {"head/kernel": kernel(1, 1, 4, 1), "stem/kernel": kernel(3, 3, 1, 4)}
    shapes = {"head/kernel": (1, 1, 4, 2), "stem/kernel": (3, 3, 3, 4)}
    got = fit(arrays, shapes, there=GREY, here=COLOUR, spread_heads=False)
    assert list(got.arrays) == ["stem/kernel"]
    assert any("head/kernel" in line and "anew" in line for line in got.lines)
    same = {"head/kernel": (1, 1, 4, 1)}
    got = fit(arrays, same, there=GREY, here=GREY, spread_heads=False)
    np.testing.assert_array_equal(got.arrays["head/kernel"], arrays["head/kernel"])


def test_layers_of_other_widths_are_named_and_left_to_be_drawn():
    arrays = {
        "deep/kernel": kernel(3, 3, 8, 8),
        "deep/bias": kernel(8),
        "gone/kernel": kernel(2),
    }
    shapes = {"deep/kernel": (3, 3, 16, 8), "deep/bias": (16,), "new/scale": (4,)}
    got = fit(arrays, shapes, there=GREY, here=COLOUR)
    assert got.arrays == {}
    for path in ("deep/kernel", "deep/bias", "gone/kernel", "new/scale"):
        (line,) = [line for line in got.lines if path in line]
        assert "\n" not in line


def test_a_head_of_a_file_that_does_not_tell_its_classes_is_drawn_anew():
    assert fitted(kernel(1, 1, 8, 1), (1, 1, 8, 2), None, COLOUR).arrays == {}


def test_very_many_misfits_are_counted():
    arrays = {f"{n}/bias": kernel(2) for n in range(90)}
    got = fit(arrays, {path: (3,) for path in arrays}, there=GREY, here=GREY)
    assert len(got.lines) < 30 and "more" in got.lines[-1]
