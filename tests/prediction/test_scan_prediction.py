"""Tests a prediction with its scan: files as mode predict writes them, geometry, plots,
and a short repr.
"""

import sys
import warnings

import bright_model
import nibabel as nib
import numpy as np
import pytest
from bright_model import SIZE
from PIL import Image
from refusals import refused

from biedsnet_jax.config import run_config
from biedsnet_jax.prediction import predict, predictor

# Left and right swapped, so that the file's order is not the canonical one.
AFFINE = np.array([[2, 0, 0, 7], [0, -1, 0, 5], [0, 0, 4, -9], [0, 0, 0, 1]], float)
# Voxels along x, y, z.
BRIGHT = (slice(3, 6), slice(4, 12), slice(2, 4))


@pytest.fixture(scope="module", autouse=True)
def made_up():
    with bright_model.in_place():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return bright_model.write_workdir(tmp_path_factory.mktemp("runs") / "bright")


@pytest.fixture(scope="module")
def model(workdir):
    return predictor.load(workdir)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A NIfTI file that is bright in BRIGHT."""
    voxels = np.zeros((SIZE, SIZE, 5), np.float32)
    # A slice of one value alone has no brightest pixel. At the edge, an outline must
    # close too.
    voxels[0, 0] = 1
    voxels[BRIGHT] = 1
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[2:9, 3:7] = 200
    path = tmp_path_factory.mktemp("pictures") / "slice.png"
    Image.fromarray(pixels).save(path)
    return path


def voxels_of(path):
    return np.asarray(nib.load(path).dataobj)


# --- files ---


@pytest.mark.parametrize("kind", ["volume", "picture"])
def test_the_files_are_those_of_mode_predict(kind, model, workdir, tmp_path, request):
    source = request.getfixturevalue(kind)
    cfg = run_config.load(workdir)
    assert predict.run(cfg, str(workdir), str(source), str(tmp_path / "theirs")) == 0
    found = model.file(source)
    ours = found.save_all(tmp_path / "ours")
    for path in ours.values():
        there = tmp_path / "theirs" / path.name
        assert there.exists(), path.name
        if path.suffix == ".gz":
            assert np.array_equal(voxels_of(path), voxels_of(there)), path.name
        else:
            assert path.read_bytes() == there.read_bytes(), path.name
    alone = found.save(tmp_path / "new folder" / ours["mask"].name)
    if kind == "volume":
        assert np.array_equal(voxels_of(alone), voxels_of(ours["mask"]))
    else:
        assert alone.read_bytes() == ours["mask"].read_bytes()


def test_a_volume_keeps_its_geometry(model, volume, tmp_path):
    found = model.file(str(volume))
    assert np.array_equal(found.affine, AFFINE)
    # Slices, rows, columns.
    assert found.spacing == (4, 1, 2)
    truth = voxels_of(volume) > 0.5
    assert np.array_equal(found.in_file_order(found.mask)[..., 0], truth)
    written = nib.load(found.save(tmp_path / "mask.nii.gz"))
    assert np.array_equal(written.affine, AFFINE)
    assert np.array_equal(np.asarray(written.dataobj) == 1, truth)


def test_samples_are_kept_when_asked(model, volume, tmp_path):
    found = model.file(volume, keep_samples=True)
    assert {"sample_1", "sample_2"} <= set(found.save_all(tmp_path))


def test_an_array_of_one_slice_is_saved_as_a_picture(model, tmp_path):
    image = np.zeros((SIZE, SIZE), np.float32)
    image[5:9, 2:4] = 3
    path = model(image).save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(path)) == 255, image > 0)


def test_what_cannot_be_saved_or_read_is_refused(model, volume, picture, tmp_path):
    of_volume, of_picture = model.file(volume), model.file(picture)
    refused(lambda: of_volume.save(tmp_path / "mask.png"), "mask.png", ".nii.gz")
    refused(lambda: of_picture.save(tmp_path / "mask.nii"), "mask.nii", ".png")
    refused(lambda: of_picture.in_file_order(of_picture.mask), "slice.png", "geometry")
    several = model(np.random.default_rng(0).normal(size=(3, SIZE, SIZE, 1)))
    refused(lambda: several.save(tmp_path / "mask.png"), "3 slices")
    (tmp_path / "file").write_text("in the way")
    refused(lambda: of_picture.save(tmp_path / "file" / "a.png"), "file", "path")
    for name in ("a.png", "b.png"):
        Image.new("L", (SIZE, SIZE)).save(tmp_path / name)
    (tmp_path / "file").unlink()
    refused(lambda: model.file(tmp_path), tmp_path, 2)
    refused(lambda: model.file(tmp_path / "none.png"), "none.png")


# --- repr ---


def test_a_repr_is_short_and_names_what_it_is_of(model, volume):
    for shown, parts in [
        (repr(model), ["step", f"{SIZE} x {SIZE}", "2 samples", "label 1"]),
        (repr(model.model), ["step", f"{SIZE} x {SIZE}", "2 samples", "label 1"]),
        (repr(model.file(volume)), [volume, "5 slices", "4 x 1 x 2 mm", "entropy"]),
        (repr(model(np.eye(SIZE))), ["1 slice of", "label 1"]),
    ]:
        assert len(shown.splitlines()) <= 10, shown
        assert len(shown) < 800
        for part in parts:
            assert str(part) in shown


# --- plots ---


@pytest.fixture
def pyplot():
    return pytest.importorskip("matplotlib.pyplot")


def test_a_plot_has_image_outline_probability_and_entropy(model, volume, pyplot):
    found = model.file(volume)
    figure = found.plot()
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == 4
    # The slices 2 and 3 are equally full; the first one is shown.
    shown = [np.asarray(axes.images[0].get_array()) for axes in panels]
    assert np.allclose(shown[2], found.probability[2, ..., 0])
    assert np.allclose(shown[3], found.uncertainty["entropy"][2, ..., 0])
    # Pixels are half as high as they are wide.
    assert {axes.get_aspect() for axes in panels} == {0.5}
    # The outline of the second panel encloses the mask, to half a pixel.
    (outline,) = panels[1].collections
    inside = np.argwhere(found.mask[2, ..., 0])
    (left, low), (right, high) = outline.get_datalim(panels[1].transData).get_points()
    assert (low, left) == pytest.approx(inside.min(axis=0) - 0.5)
    assert (high, right) == pytest.approx(inside.max(axis=0) + 0.5)
    # A notebook shows the figure once, as the value of its cell.
    assert figure.number not in pyplot.get_fignums()


def test_plots_of_an_array_and_of_a_file_in_one_call(model, volume, pyplot):
    blank = np.zeros((SIZE, SIZE), np.float32)
    with warnings.catch_warnings():
        # matplotlib warns of an outline of nothing.
        warnings.simplefilter("error")
        assert model.plot(blank).axes[0].get_title() == "image"
    assert model.plot(volume, z=-1).axes[0].get_title() == "slice 4"
    refused(lambda: model.plot(volume, z=5), "z is 5", "0 to 4")


def test_a_missing_matplotlib_is_one_sentence(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(lambda: model.plot(np.eye(SIZE)), "matplotlib", "viz")
