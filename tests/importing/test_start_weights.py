"""`init.source`: workdirs and weights files, read for a network of other sizes."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from places import GOLDEN
from refusals import refused
from untrained import toy, untrained

from biedsnet_jax.config import build_model
from biedsnet_jax.importing import start_weights
from biedsnet_jax.importing.imagenet import lay_out
from configs import nifti


def shapes_of(cfg):
    return jax.eval_shape(
        lambda: build_model.init_variables(build_model.build(cfg), cfg)
    )


def read(source, cfg):
    cfg.init.source = str(source)
    return start_weights.read(cfg, shapes_of(cfg))


def other(**fields):
    """A toy on volumes with two classes and a slice of context on each side."""
    return toy(nifti, data__classes=2, data__context=1, **fields)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("source") / "run", toy())


def test_a_workdir_of_other_classes_and_channels_fills_all_but_heads(source):
    weights = read(source, other())
    spread = {"denoiser/stem/kernel", "condition/level_1/conv_1/kernel"}
    heads = {"denoiser/head_1/kernel", "denoiser/head_1/bias"}
    for how, names in (("averaged", spread), ("drawn anew", heads)):
        spoken = {line.split()[0] for line in weights.lines if how in line}
        assert spoken == {f"params/{name}" for name in names}
    everything = shapes_of(other())
    filled = weights.put_into(everything)
    # Each leaf that is not a head is an array now, of the shape that it was to have.
    jax.tree.map(
        lambda x, y: np.testing.assert_equal(x.shape, y.shape), filled, everything
    )
    shapes = [x for x in jax.tree.leaves(filled) if not isinstance(x, np.ndarray)]
    assert len(shapes) == len(heads)


def test_a_direct_network_keeps_the_mean_of_its_heads(tmp_path):
    source = untrained(tmp_path / "run", toy(chosen="unet"))
    there = read(source, toy(chosen="unet")).arrays["params/final/kernel"]
    here = toy(nifti, "unet", data__classes=2).copy_and_resolve_references()
    found = read(source, here).arrays["params/final/kernel"]
    for label in range(2):
        np.testing.assert_array_equal(found[..., label], there[..., 0])


def test_settings_of_the_network_that_differ_are_named(source):
    weights = read(source, toy(diffusion__mask_scale=0.5, networks__biedsnet__groups=4))
    spoken = "\n".join(weights.lines)
    assert "diffusion.mask_scale is 1.0 there, 0.5 here" in spoken
    assert "networks.biedsnet.groups is 16 there, 4 here" in spoken


def test_a_file_by_this_packages_own_paths(source, tmp_path):
    arrays = read(source, toy()).arrays
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    again = read(tmp_path / "w.safetensors", toy()).arrays
    assert again.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(again[name], value)


def test_pytorch_weights_for_another_number_of_classes_and_channels(tmp_path):
    with np.load(GOLDEN / "unet_4uiiurz1_w8.npz") as vectors:
        state = {name[2:]: vectors[name] for name in vectors if name.startswith("w:")}
    np.savez(tmp_path / "w.npz", **state)
    cfg = toy(
        chosen="unet",
        data__channels=3,
        data__classes=4,
        networks__unet__channels=(8, 16, 32, 64, 128),
    )
    weights = read(tmp_path / "w.npz", cfg)
    first = state["conv0_0.conv1.weight"]
    got = weights.arrays["params/conv0_0/conv1/kernel"]
    for channel in range(3):
        # OIHW there, HWIO here.
        expected = first[:, 0].transpose(1, 2, 0) / 3
        np.testing.assert_allclose(got[:, :, channel], expected, rtol=1e-6)
    assert "params/final/kernel" not in weights.arrays
    assert "params/final/kernel" in "\n".join(weights.lines)


def test_an_imagenet_classifier_is_laid_out_whatever_the_channels():
    tensors = {
        "head.weight": np.zeros((10, 12)),
        "patch_embed.proj.weight": np.arange(12 * 3 * 16).reshape(12, 3, 4, 4),
    }
    params = {"embed": {"kernel": np.zeros((4, 4, 1, 12))}}
    found = lay_out("swin_unet", tensors, params)
    assert found["embed/kernel"].shape == (4, 4, 3, 12)
    assert lay_out("unet", tensors, params) is None


def test_a_source_of_another_network_or_none_is_refused(source, tmp_path):
    cfg = toy(chosen="unet")
    refused(lambda: read(source, cfg), "init.source", source, "networks.unet")
    refused(lambda: read(tmp_path, toy()), tmp_path, "config.json")
    gone = tmp_path / "gone.npz"
    refused(lambda: read(gone, toy()), "init.source", gone)
