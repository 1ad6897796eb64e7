"""Whole scans of a case, as prediction reads their files, with the truth on their grid."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from biedsnet_jax.data.sources.image_folder import ImageFolder
from biedsnet_jax.data.sources.nifti_folder import NiftiFolder
from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.sources.source import Cached
from biedsnet_jax.prediction import scans

# The file's first axis goes up, its second to the left, its third to the front.
TURNED = np.array([[0, -0.8, 0, 5], [0, 0, 1.5, 3], [3.0, 0, 0, -7], [0, 0, 0, 1]])
OBLIQUE = np.array(
    [[0.78, 0.2, 0, 5], [-0.16, 0.97, 0, 3], [0, 0, 4.0, -7], [0, 0, 0, 1]]
)


def volumes(root, affine, shape=(4, 12, 15)):
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    image = rng.integers(-900, 900, shape).astype(np.int16)
    label = (rng.random(shape) > 0.7).astype(np.uint8) * rng.integers(1, 3, shape)
    label = label.astype(np.uint8)
    label[..., 0] = 0
    for name, voxels in (("images", image), ("labels", label)):
        nib.save(nib.Nifti1Image(voxels, affine), root / name / "one.nii.gz")
    return image, label


@pytest.mark.parametrize("affine", [TURNED, OBLIQUE], ids=["turned", "oblique"])
def test_a_volume_is_what_prediction_reads_with_its_truth(tmp_path, affine):
    _, label = volumes(tmp_path, affine)
    source = NiftiFolder(tmp_path, tmp_path / "cache", classes=2, min_foreground=5)
    (scan,) = source.scans(source.cases[0])
    item = scans.search(tmp_path / "images", channels=1).items[0]
    read = scans.read(item, channels=1)
    assert scan.slices.dtype == read.slices.dtype == np.int16
    np.testing.assert_array_equal(scan.slices, read.slices)
    # In the order of the file, where the label map can be compared as it stands.
    for k in range(2):
        own = read.volume.restore(scan.truth[..., k])
        np.testing.assert_array_equal(own, label == k + 1)
    assert scan.is_volume
    assert scan.spacing == pytest.approx(read.volume.spacing)
    # All slices, also those that are too empty to train with.
    assert len(scan.slice_names) == len(read.slices) >= len(source)
    for i in range(len(source)):
        z = scan.indices.index(i)
        assert scan.slice_names[z] == source[i]["slice"]
        np.testing.assert_array_equal(scan.truth[z], source[i]["mask"])


def test_each_picture_is_a_scan(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        for case in ("a", "b"):
            (tmp_path / name / case).mkdir(parents=True)
            for z in range(2):
                pixels = rng.integers(0, 2, (6, 5)).astype(np.uint8) * 255
                Image.fromarray(pixels).save(tmp_path / name / case / f"{z}.png")
    source = Cached(ImageFolder(tmp_path))
    found = list(source.scans("b"))
    assert [scan.slice_names for scan in found] == [("0",), ("1",)]
    assert [scan.indices for scan in found] == [(2,), (3,)]
    for scan, i in zip(found, (2, 3)):
        np.testing.assert_array_equal(scan.slices, source[i]["image"][None])
        np.testing.assert_array_equal(scan.truth, source[i]["mask"][None])
        assert (scan.case, scan.is_volume, scan.spacing) == ("b", False, None)


def test_a_phantoms_slices_know_their_spacing():
    phantom = Phantom(n_cases=2, slices_per_case=3, size=16)
    found = list(phantom.scans("phantom_001"))
    assert [scan.spacing for scan in found] == [phantom[3]["spacing"]] * 3
