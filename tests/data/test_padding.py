"""Padding of absurd values on the way from a file to the network."""

import nibabel as nib
import numpy as np
import pytest

from biedsnet_jax.config import build_data
from biedsnet_jax.data.fit import Fit
from biedsnet_jax.data.padding import without_padding
from biedsnet_jax.data.sources.nifti_folder import NiftiFolder
from biedsnet_jax.data.transforms import METHODS, Prepare
from biedsnet_jax.prediction import overlay
from configs import nifti

LOWEST = float(np.finfo(np.float32).min)
FILLS = [-1e5, -1e6, -3.4e38, LOWEST]
SIDE = 24


def tissue(seed=0, side=SIDE):
    """Grey values like those of a CT, none of them whole."""
    return np.random.default_rng(seed).normal(40, 300, (side, side)).astype(np.float32)


def outside(side=SIDE):
    """The corners around a round field of view, a fifth of the slice."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return x**2 + y**2 > (side / 2) ** 2


def padded(fill, grey=None):
    grey = tissue() if grey is None else grey
    return np.where(outside(len(grey)), np.float32(fill), grey)[..., None]


@pytest.mark.parametrize("fill", FILLS)
def test_padding_becomes_a_low_percentile_of_the_rest(fill):
    found = without_padding(padded(fill))
    inside = tissue()[~outside()]
    expected = np.where(outside(), np.percentile(inside, 0.5), tissue())
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fill", FILLS)
def test_a_prepared_slice_does_not_depend_on_the_fill(method, fill):
    """As if the corners held the tissue's 0.5 percentile, also where it is resized."""
    low = np.percentile(tissue()[~outside()], 0.5)
    for fit in (Fit(SIDE), Fit(16), Fit(40, "pad")):
        prepare = Prepare(fit, method)
        found = prepare.image(padded(fill))
        np.testing.assert_allclose(found, prepare.image(padded(low)), atol=1e-3)
        assert np.ptp(found[6:10, 6:10]) > 0.1


def test_pixels_blended_with_padding_at_its_border_are_padding_too():
    image = padded(-1e6)
    image[12, 0, 0] = -4e5
    image[12, 1, 0] = -1.5e5
    found = without_padding(image)
    assert found.min() > -1e4
    assert found[12, 0, 0] == found[12, 1, 0] == found[0, 0, 0]


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8),
        np.where(outside(), -32768, tissue()).astype(np.int16)[..., None],
        np.where(outside(), -99999, tissue()).astype(np.float32)[..., None],
        # A map in units of its own, far below -1e5 and without a fill.
        1e6 * np.random.default_rng(1).normal(size=(20, 20, 2)),
        # A high fill is an image's own.
        padded(1e6),
    ],
)
def test_other_images_are_left_as_they_are(image):
    assert without_padding(image) is image or np.array_equal(
        without_padding(image), image.astype(np.float32)
    )


def test_each_channel_for_itself_and_padding_alone_is_zero():
    image = np.concatenate(
        [padded(-1e6), tissue()[..., None], np.full((SIDE, SIDE, 1), -1e6)], axis=-1
    ).astype(np.float32)
    found = without_padding(image)
    assert np.array_equal(found[..., 1], image[..., 1])
    assert np.array_equal(found[..., :1], without_padding(image[..., :1]))
    assert not found[..., 2].any()


def test_a_window_clips_padding_as_ever():
    prepare = Prepare(Fit(SIDE), "none", (-1000.0, 400.0))
    expected = (np.clip(padded(-1e6), -1000, 400) + 1000) / 1400
    np.testing.assert_allclose(prepare.image(padded(-1e6)), expected, atol=1e-6)


@pytest.mark.parametrize("fill", FILLS[1:])
def test_from_the_file_through_the_cache_to_the_network(tmp_path, fill):
    """The tissue has all its greys, and training and prediction see the same."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    volume = np.stack([padded(fill, tissue(z))[..., 0] for z in range(4)], axis=-1)
    label = np.zeros(volume.shape, np.uint8)
    label[10:14, 10:14] = 1
    for kind, voxels in (("images", volume), ("labels", label)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / kind / "v.nii.gz")
    cfg = nifti.get_config("cpu")
    cfg.data.size = SIDE
    prepare = build_data.make_prepare(cfg)
    source = NiftiFolder(tmp_path, tmp_path / "cache")
    (scan,) = source.scans("v")
    for z in range(4):
        trained_on = prepare(source[z])["image"]
        predicted = prepare.image(scan.slices[z])
        np.testing.assert_array_equal(trained_on, predicted)
        # Canonical slices are turned, so the greys are compared without their places.
        inside = np.sort(tissue(z)[~outside()])
        low, high = np.percentile(trained_on, (30, 90))
        assert high - low > 0.2
        greys = np.unique(predicted)
        assert len(greys) > 0.9 * len(inside)


def test_a_picture_of_a_padded_slice_shows_its_tissue():
    grey = overlay.in_colours(padded(-1e6))
    assert np.ptp(grey[6:18, 6:18]) > 100
