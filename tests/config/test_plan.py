"""What a run takes from its data: plane and spacing, once and for all of its workdir."""

import nibabel as nib
import numpy as np
import pytest

from biedsnet_jax.config import build_data, plan, run_config
from biedsnet_jax.data.sources.phantom import Phantom
from biedsnet_jax.data.sources.source import Facts
from configs import nifti, phantom


class Named(Phantom):
    """Slices whose data name the classes and channels, and a label to ignore."""

    @property
    def facts(self):
        return Facts(class_names=["lesion"], channel_names=["CT"], ignore="9")


def volumes(root, spacings, shape=(12, 10, 6), order=(0, 1, 2)):
    """Writes a volume for each spacing (i, j, k); `order` are the axes of the patient."""
    for n, spacing in enumerate(spacings):
        affine = np.zeros((4, 4))
        affine[list(order), [0, 1, 2]] = spacing
        affine[3, 3] = 1
        for kind in ("images", "labels"):
            voxels = np.random.default_rng(n).integers(0, 2, shape).astype(np.uint8)
            (root / kind).mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(voxels, affine)
            image.to_filename(root / kind / f"{n}.nii")
    return root


def config(root, **fields):
    c = nifti.get_config("toy")
    c.data.root = str(root)
    c.data.cache_dir = str(root / "cache")
    c.split.update(train=("[0-4]",), val=("5",), test=("6",))
    c.update_from_flattened_dict({f"data.{name}": x for name, x in fields.items()})
    return c


# (i, j): 0, 3 and 4 of the five for training have other spacings than most.
SPACINGS = [(3, 1, 2), (0.5, 0.8, 2), (0.5, 0.8, 2), (0.4, 9, 2), (0.9, 0.2, 2)]
SPACINGS += [(50, 50, 2), (70, 70, 2)]


@pytest.mark.parametrize(
    ("fit", "chosen"),
    [
        # Rows are j and columns i; the median of the training cases.
        ("tile", "0.8,0.5"),
        # 10 rows and 12 columns: 8 by 6 mm in the median, of 32 pixels.
        ("pad", "0.25,0.25"),
        ("squash", "auto"),
    ],
)
def test_the_spacing_is_that_of_the_median_training_case(tmp_path, capsys, fit, chosen):
    c = config(volumes(tmp_path, SPACINGS), fit=fit)
    plan.settle(c, build_data.open_data(c))
    assert c.data.spacing == chosen
    said = capsys.readouterr().out
    assert ("mm" in said) == (fit != "squash")
    made = build_data.make_fit(c)
    lengths = None if fit == "squash" else tuple(map(float, chosen.split(",")))
    assert made.spacing == lengths


def test_what_is_given_stays_and_pictures_have_no_spacing(tmp_path):
    root = volumes(tmp_path, SPACINGS, shape=(24, 20, 12))
    c = config(root, fit="tile", spacing="0.7", plane="coronal")
    plan.settle(c, build_data.open_data(c))
    assert (c.data.spacing, c.data.plane) == ("0.7", "coronal")
    assert build_data.make_fit(c).spacing == (0.7, 0.7)


def test_a_plane_that_the_data_chose_is_kept_for_later(tmp_path, capsys):
    # Thick slices from the patient's left to right.
    root = volumes(tmp_path, [(4, 0.5, 0.5)] * 7, shape=(5, 40, 30))
    c = config(root, fit="tile")
    data = build_data.open_data(c)
    assert "sagittal" in capsys.readouterr().err
    plan.settle(c, data)
    assert c.data.plane == "sagittal" and build_data.plane(c) == "sagittal"
    # Rows go down, columns back: 30 by 40.
    assert data.source[0]["mask"].shape == (30, 40, 1)
    assert c.data.spacing == "0.5,0.5"
    run_config.save(c, tmp_path / "config.json")
    later = config(root, fit="tile")
    run_config.check_same_run(later, tmp_path)
    assert (later.data.plane, later.data.spacing) == ("sagittal", "0.5,0.5")


def test_what_the_data_say_fills_what_is_empty_and_a_run_goes_on_with_it(tmp_path):
    c = phantom.get_config()
    c.data.channel_names = ("mine",)
    plan.settle(c, build_data.deal(c, Named(), ""))
    assert c.data.class_names == ("lesion",)
    assert c.data.channel_names == ("mine",)
    assert c.data.ignore == "9"
    run_config.save(c, tmp_path / "config.json")
    later = phantom.get_config()
    later.data.class_names = ("another",)
    run_config.check_same_run(later, tmp_path)
    assert later.data.class_names == ("another",)
    assert later.data.channel_names == ("mine",)
    assert later.data.ignore == "9"


def test_a_run_of_pictures_leaves_volumes_axial(tmp_path):
    c = nifti.get_config("toy")
    c.data.source = "phantom"
    plan.settle(c, build_data.open_data(c))
    assert c.data.plane == "auto" and build_data.plane(c) == "axial"
