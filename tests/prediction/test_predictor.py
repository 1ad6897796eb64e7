"""Tests masks of arrays against the network, the fusion and the resizing by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from refusals import refused
from untrained import SIZE, image, toy, untrained

from biedsnet_jax.config import run_config
from biedsnet_jax.prediction import predictor, trained
from biedsnet_jax.prediction.result import label_map
from biedsnet_jax.prediction.scan_prediction import array_scan
from biedsnet_jax.runtime import devices
from configs import nifti


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Folders of untrained runs: "diffusion", "direct" and "2.5D"."""
    root = tmp_path_factory.mktemp("workdirs")
    made = {
        "diffusion": toy(fusion="mean_squared", seed=3, threshold=0.25),
        "direct": toy(chosen="unet", data__channels=3),
        "2.5D": toy(
            nifti,
            "unet",
            data__context=1,
            data__classes=2,
            data__labels=((1,), (2, 4)),
            threshold=0.4,
        ),
    }
    return {name: untrained(root / name, cfg) for name, cfg in made.items()}


@pytest.fixture(scope="module")
def predictors(workdirs):
    return {name: predictor.load(workdir) for name, workdir in workdirs.items()}


def resized(plane, height, width):
    return np.asarray(
        Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
    )


def prepared(array, size=SIZE):
    """Resizes an image "h w c" and scales each channel to [0, 1]."""
    planes = [resized(array[..., c], size, size) for c in range(array.shape[-1])]
    return np.stack([(p - p.min()) / (p.max() - p.min()) for p in planes], axis=-1)


def samples_by_hand(workdir, images, numbers):
    """Draws samples "n b h w k" by the segmenter itself, on one device."""
    cfg = run_config.load(workdir)
    model = trained.load(workdir, cfg)
    segmenter = model.segmenter
    keys = jax.numpy.stack(
        [jax.random.fold_in(jax.random.key(cfg.seed), n) for n in numbers]
    )
    run = jax.jit(
        lambda v, x, k: segmenter.predict(v, x, k, ensemble=cfg.sampler.ensemble)
    )
    return np.asarray(run(jax.device_get(model.variables), np.stack(images), keys))


# --- the same as by hand ---


def test_a_diffusion_model_by_hand(workdirs, predictors):
    scan = image(3, 20, 24, 1)
    found = predictors["diffusion"](scan, keep_samples=True)
    samples = samples_by_hand(
        workdirs["diffusion"], [prepared(one) for one in scan], range(3)
    )
    # The samples do differ.
    assert samples.std(axis=0).max() > 1e-3
    for n in range(3):
        expected = np.stack([resized(samples[n, z, ..., 0], 20, 24) for z in range(3)])
        np.testing.assert_allclose(found.samples[n][..., 0], expected, atol=2e-4)
    squared = samples.mean(axis=0) ** 2
    probability = np.stack([resized(squared[z, ..., 0], 20, 24) for z in range(3)])
    np.testing.assert_allclose(found.probability[..., 0], probability, atol=2e-4)
    np.testing.assert_array_equal(found.mask, found.probability > 0.25)
    np.testing.assert_array_equal(found.label_map, found.mask[..., 0])
    assert 0 < found.mask.mean() < 1
    assert found.label_map.dtype == np.uint8
    assert found.seconds > 0
    p = samples.astype(np.float64).clip(1e-12, 1 - 1e-12)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    m = p.mean(axis=0)
    total = -(m * np.log2(m) + (1 - m) * np.log2(1 - m))
    maps = {
        "entropy": total,
        "mutual_information": total - entropy.mean(axis=0),
        "variance": p.var(axis=0),
    }
    assert set(found.uncertainty) == set(maps)
    for name, expected in maps.items():
        np.testing.assert_allclose(found.maps[name], expected, atol=1e-3)
        assert found.uncertainty[name].shape == (3, 20, 24, 1)


def test_a_direct_model_by_hand_has_no_samples_and_no_uncertainty(workdirs, predictors):
    colour = image(12, 30, 3)
    found = predictors["direct"](colour, keep_samples=True)
    expected = samples_by_hand(workdirs["direct"], [prepared(colour)], [0])[
        0, 0, ..., 0
    ]
    np.testing.assert_allclose(
        found.probability, resized(expected, 12, 30)[None, ..., None], atol=1e-5
    )
    assert found.uncertainty == {}
    assert set(found.maps) == {"probability"}
    assert len(found.samples) == 1
    np.testing.assert_array_equal(found.samples[0], found.probability)


def test_neighbouring_slices_and_classes_by_hand(workdirs, predictors):
    scan = image(4, SIZE, SIZE, 1)
    found = predictors["2.5D"](scan)
    around = [
        np.concatenate([scan[max(z - 1, 0)], scan[z], scan[min(z + 1, 3)]], axis=-1)
        for z in range(4)
    ]
    expected = samples_by_hand(
        workdirs["2.5D"], [prepared(one) for one in around], range(4)
    )[0]
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    one, two = found.probability[..., 0], found.probability[..., 1]
    by_hand = np.where(np.maximum(one, two) > 0.4, np.where(two > one, 2, 1), 0)
    np.testing.assert_array_equal(found.label_map, by_hand)
    assert found.mask.shape == (4, SIZE, SIZE, 2)


def test_the_mean_entropy_is_over_likely_pixels(predictors):
    found = predictors["diffusion"](image(3, 20, 24, 1))
    some = np.random.default_rng(0).random((3, 20, 24)) > 0.5
    for likely, where in ((0.0, None), (0.2, None), (0.2, some), (2.0, None)):
        counted = (found.probability >= likely) & (
            True if where is None else some[..., None]
        )
        chosen = found.uncertainty["entropy"][counted]
        assert found.mean_entropy(likely, where) == pytest.approx(
            [chosen.mean() if chosen.size else 0.0], rel=1e-5
        )


# --- what is given ---


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 1), (1, 20, 24, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64, np.uint8])
def test_one_slice_in_every_shape_and_type(predictors, shape, dtype):
    pixels = image(20, 24).clip(0, 255).astype(dtype)
    found = predictors["diffusion"](pixels.reshape(shape))
    assert (
        found.probability.shape
        == found.mask.shape
        == (
            1,
            20,
            24,
            1,
        )
    )
    assert found.label_map.shape == (1, 20, 24)
    expected = predictors["diffusion"](pixels.astype(np.float32))
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
    assert found.samples == []
    assert found.maps["probability"].shape == (1, SIZE, SIZE, 1)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("diffusion", (9, 9, 3)),
        # A volume needs an axis of channels.
        ("diffusion", (4, 9, 9)),
        ("diffusion", (4, 9, 9, 1, 1)),
        ("diffusion", (9,)),
        ("diffusion", (0, 9, 9, 1)),
        ("direct", (9, 9)),
        # The scan itself has the neighbouring slices.
        ("2.5D", (4, 9, 9, 3)),
    ],
)
def test_shapes_that_do_not_fit(predictors, model, shape):
    channels = predictors[model].model.config.data.channels
    fix = f"Give (h, w), (h, w, {channels}) or (d, h, w, {channels})"
    refused(lambda: predictors[model](np.zeros(shape)), shape, fix)


@pytest.mark.parametrize(
    "values",
    [
        np.full((9, 9), np.nan),
        np.full((9, 9), np.inf),
        np.zeros((9, 9), complex),
        np.full((9, 9), "a"),
        np.full((9, 9), None),
    ],
)
def test_values_that_are_no_numbers(predictors, values):
    refused(lambda: predictors["diffusion"](values), values.dtype, "finite")


# --- a slice by itself ---


def test_a_slice_does_not_depend_on_what_shares_its_batch(workdirs, predictors):
    scan = array_scan(image(11, 20, 24, 1))
    other = array_scan(image(3, 9, 30, 1, seed=1))
    alone = predictors["diffusion"].predict([scan])[0]
    done = []
    shared = predictors["diffusion"].predict([other, scan, other], done=done.append)
    assert done == [8, 8, 1]
    assert [one.probability.shape for one in shared] == [
        (3, 9, 30, 1),
        (11, 20, 24, 1),
        (3, 9, 30, 1),
    ]
    cfg = run_config.load(workdirs["diffusion"])
    cfg.eval.batch_size = 16
    larger = predictor.load(workdirs["diffusion"], cfg).predict([scan])[0]
    for found in (shared[1], larger):
        for name in alone.maps:
            np.testing.assert_allclose(found.maps[name], alone.maps[name], atol=2e-4)
    changed = scan.slices.copy()
    changed[4:] = image(7, 20, 24, 1, seed=2)
    np.testing.assert_allclose(
        predictors["diffusion"](changed).maps["entropy"][:4],
        alone.maps["entropy"][:4],
        atol=2e-4,
    )


@pytest.mark.parametrize(
    ("slices", "sizes"),
    [([1, 30], [1, 8]), ([3, 1, 4], [4]), ([8, 1], [8]), ([5], [8])],
)
def test_few_sizes_of_batch_are_compiled(predictors, slices, sizes):
    compiled = []

    def run_batch(variables, image, number):
        compiled.append(len(image))
        return {"probability": jnp.zeros((len(image), SIZE, SIZE, 1))}

    mesh = devices.make_mesh(jax.devices()[:1])
    model = dataclasses.replace(predictors["direct"].model, variables={}, mesh=mesh)
    made = predictor.Predictor(model, jax.jit(run_batch))
    for number in slices:
        made.predict([array_scan(image(number, 20, 24, 3))])
    # jit calls the function once for each size.
    assert compiled == sizes


# --- label maps ---


@pytest.mark.parametrize(
    ("labels", "pixels", "expected"),
    [
        (((1,),), [[0.5], [0.6], [0.0]], [0, 1, 0]),
        (
            ((1,), (2,)),
            [[0.9, 0.8], [0.7, 0.8], [0.4, 0.6], [0.5, 0.5], [0.6, 0.6]],
            [1, 2, 2, 0, 1],
        ),
        (((3,), (7, 8)), [[0.9, 0.1], [0.1, 0.9]], [3, 7]),
        (((300,), (2,)), [[0.9, 0.1], [0.1, 0.9]], [300, 2]),
        # Regions: whole (1, 2, 3), core (2, 3), centre (3), of which the smallest wins
        # whatever is likelier.
        (
            ((1, 2, 3), (2, 3), (3,)),
            [[0.9, 0.2, 0.1], [0.9, 0.6, 0.1], [0.9, 0.8, 0.6], [0.0, 0.0, 0.6]],
            [1, 2, 3, 3],
        ),
        (
            ((3,), (2, 3), (1, 2, 3)),
            [[0.1, 0.2, 0.9], [0.1, 0.6, 0.9], [0.6, 0.8, 0.9], [0.6, 0.0, 0.0]],
            [1, 2, 3, 3],
        ),
        # The one painted last has no label of its own left.
        (((1, 2), (2, 4)), [[0.9, 0.1], [0.1, 0.9], [0.9, 0.6]], [1, 2, 2]),
    ],
)
def test_label_maps_by_hand(labels, pixels, expected):
    found = label_map(np.array(pixels), threshold=0.5, labels=labels)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == (np.uint16 if max(expected) > 255 else np.uint8)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_label_map_of_true_regions_is_the_label_map_they_came_from(order):
    truth = np.random.default_rng(0).integers(0, 4, (5, 6))
    labels = [((1, 2, 3), (2, 3), (3,))[k] for k in order]
    probability = np.stack([np.isin(truth, group) for group in labels], axis=-1).astype(
        np.float32
    )
    np.testing.assert_array_equal(
        label_map(probability, threshold=0.5, labels=labels), truth
    )


# --- loading ---


def test_load_takes_another_sampling(workdirs):
    cfg = run_config.load(workdirs["diffusion"])
    cfg.sampler.ensemble, cfg.threshold = 2, 0.0
    found = predictor.load(str(workdirs["diffusion"]), cfg)(
        image(8, 8), keep_samples=True
    )
    assert len(found.samples) == 2
    assert found.threshold == 0.0


def test_what_cannot_be_loaded(workdirs, tmp_path):
    refused(lambda: predictor.load(tmp_path), tmp_path)
    config = (workdirs["direct"] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    refused(lambda: predictor.load(tmp_path), tmp_path, "checkpoint")
    workdir = workdirs["direct"]
    cfg = run_config.load(workdir)
    cfg.data.size = 32
    refused(lambda: predictor.load(workdir, cfg), "data.size", 16, 32)
