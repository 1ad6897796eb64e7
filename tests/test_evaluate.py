"""One pass over a split with made-up models: whose noise an image gets, what padding does, the mean for validation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biedsnet_jax import evaluate, experiment, parallel
from configs import phantom


class Noise:
    """Uniform noise from the key of each image and sample."""

    def predict(self, variables, image, keys, *, ensemble):
        def one(key, number):
            return jax.random.uniform(jax.random.fold_in(key, number), (*image.shape[1:3], 1))

        return jax.vmap(lambda number: jax.vmap(lambda key: one(key, number))(keys))(jnp.arange(ensemble))


class Bright:
    """Certain wherever the normalised image is above a value."""

    def predict(self, variables, image, keys, *, ensemble):
        return (image > variables["above"]).astype(jnp.float32)[None]


def config(**fields):
    c = phantom.get_config()
    c.data.size = 16
    c.data.phantom.update(n_cases=3, slices_per_case=6, empty_fraction=0.5)
    c.update_from_flattened_dict(fields)
    return c


def probabilities(cfg, model, mesh, *, seed=0, fusion="mean", variables=None):
    data = experiment.open_data(cfg)
    predict = evaluate.make_predict(model, mesh, ensemble=2, fusion=fusion, seed=seed)
    batches = list(evaluate.predict_split(cfg, predict, variables or {}, data, data.train + data.test, mesh))
    assert [e["index"] for _, _, examples in batches for e in examples] == data.train + data.test
    assert all(len(p) == len(b["image"]) == len(b["mask"]) == len(examples) for p, b, examples in batches)  # no padding
    return np.concatenate([p for p, _, _ in batches]), np.concatenate([b["mask"] for _, b, _ in batches])


def test_an_images_noise_is_its_own_whatever_shares_its_batch_or_device():
    eight, one = parallel.make_mesh(), parallel.make_mesh(jax.devices()[:1])
    expected, _ = probabilities(config(**{"eval.batch_size": 8}), Noise(), eight)
    assert len(expected) == 12 and len(np.unique(expected[:, 0, 0, 0])) == 12
    for mesh, batch_size in ((eight, 16), (one, 5), (one, 1)):
        found, _ = probabilities(config(**{"eval.batch_size": batch_size}), Noise(), mesh)
        np.testing.assert_array_equal(found, expected)
    other, _ = probabilities(config(**{"eval.batch_size": 8}), Noise(), eight, seed=1)
    assert np.abs(other - expected).mean(axis=(1, 2, 3)).min() > 0.1


def test_samples_are_fused():
    mesh, cfg = parallel.make_mesh(), config(**{"eval.batch_size": 8})
    mean, _ = probabilities(cfg, Noise(), mesh)
    squared, _ = probabilities(cfg, Noise(), mesh, fusion="mean_squared")
    majority, _ = probabilities(cfg, Noise(), mesh, fusion="majority")
    np.testing.assert_allclose(squared, mean**2, rtol=1e-6)
    assert set(np.unique(majority)) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("above", [-9.0, 0.0, 9.0])
def test_mean_dice_is_over_the_slices_with_truth(above):
    mesh, cfg, variables = parallel.make_mesh(), config(**{"eval.batch_size": 8}), {"above": jnp.float32(above)}
    data = experiment.open_data(cfg)
    predict = evaluate.make_predict(Bright(), mesh, ensemble=1, fusion="mean", seed=0)
    found = evaluate.mean_dice(cfg, predict, variables, data, data.train + data.test, mesh)
    dice = []
    for p, y in zip(*probabilities(cfg, Bright(), mesh, variables=variables)):
        if y.sum():
            dice.append(2 * (p * y).sum() / (p.sum() + y.sum()))
    assert len(dice) == 6  # of twelve: half of the slices are empty
    assert found == pytest.approx(np.mean(dice), rel=1e-6)
    assert (found == 0.0) == (above == 9.0)


def test_mean_dice_without_any_truth_is_zero():
    mesh, cfg = parallel.make_mesh(), config(**{"eval.batch_size": 8, "data.phantom.empty_fraction": 1.0})
    data = experiment.open_data(cfg)
    predict = evaluate.make_predict(Bright(), mesh, ensemble=1, fusion="mean", seed=0)
    assert evaluate.mean_dice(cfg, predict, {"above": jnp.float32(0)}, data, data.val, mesh) == 0.0
