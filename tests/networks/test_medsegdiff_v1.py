"""MedSegDiff, version 1: its gates by numpy, what depends on them, and training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from random_weights import initial, normal, weights

from biedsnet_jax.diffusion import schedule
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.medsegdiff import MedSegDiff
from biedsnet_jax.networks.medsegdiff_highway import Gate
from biedsnet_jax.segmenters.noise_diffusion import NoisePrediction

TOY = {
    "channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_downsample": (),
    "highway_channels": 8,
}
# x_t, image and t
INPUTS = normal(2, 32, 32, 1), normal(2, 32, 32, 1, seed=1), jnp.array([17, 900])


def network(image_size: int = 32, **fields) -> MedSegDiff:
    return MedSegDiff(**TOY | {"version": "v1", "image_size": image_size} | fields)


@pytest.fixture(scope="module")
def variables():
    return weights(network(), *INPUTS, train=False)


@pytest.fixture(scope="module")
def denoise():
    """(variables, x_t, t) -> (output, out), compiled once."""
    return jax.jit(
        lambda v, x_t, t: network().apply(
            v, {}, x_t, INPUTS[1], t, train=False, method="denoise"
        )
    )


def test_a_gate_is_a_map_times_the_channels_means_of_the_filtered_features():
    gate, h = Gate(5), normal(2, 8, 8, 3)
    params = weights(gate, h)["params"]
    gated = gate.apply({"params": params}, h)
    embed = params["embed"]
    where = params["map"]
    weight = params["ff_parser"]["complex_weight"]
    assert weight.shape == (8, 5, 5, 2)

    spectrum = np.fft.rfft2(
        np.asarray(h) @ embed["kernel"][0, 0] + embed["bias"], axes=(1, 2)
    )
    g = np.fft.irfft2(
        spectrum * (weight[..., 0] + 1j * weight[..., 1]), s=(8, 8), axes=(1, 2)
    )
    expected = (g @ where["kernel"][0, 0] + where["bias"]) * g.mean((1, 2))[
        :, None, None
    ]
    np.testing.assert_allclose(
        gated, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("mult", "gates"), [((1,), 0), ((1, 1), 1), ((1, 1, 2), 2), ((1, 1, 1, 1, 1, 1), 4)]
)
def test_there_is_a_gate_for_each_halving_of_the_denoiser_up_to_four(mult, gates):
    x = jnp.zeros((1, 64, 64, 1))
    highway = initial(network(64, channel_mult=mult), x, x, jnp.zeros(1), train=False)[
        "params"
    ]["highway"]
    found = {
        name: highway[name]["ff_parser"]["complex_weight"].shape
        for name in highway
        if name.startswith("gate")
    }
    sides = (32, 16, 8, 4)[:gates]
    assert found == {
        f"gate_{i}": (side, side // 2 + 1, 8 * 2**i, 2) for i, side in enumerate(sides)
    }


def test_the_calibration_depends_on_the_gates_and_so_on_the_noisy_mask(
    variables, denoise
):
    def scaled(factor):
        """Gates shut by 0, or so wide open that they count beside the skips."""

        def scale(path, leaf):
            return factor * leaf if path[-1].key == "complex_weight" else leaf

        return jax.tree_util.tree_map_with_path(scale, variables)

    x_t, _, t = INPUTS
    output, out = denoise(scaled(30.0), x_t, t)
    assert output.shape == (2, 32, 32, 2)
    assert out.keys() == {"calibration", "calibration_logits"}
    shut_output, shut = denoise(scaled(0.0), x_t, t)
    _, other = denoise(scaled(30.0), normal(2, 32, 32, 1, seed=2), t)
    assert jnp.abs(shut["calibration"] - out["calibration"]).max() > 0.1
    assert jnp.abs(other["calibration"] - out["calibration"]).max() > 0.1
    # The way back, from the highway's bottleneck, is left out.
    np.testing.assert_array_equal(shut_output, output)


@pytest.mark.slow
def test_the_denoiser_is_that_of_version_new_without_an_anchor_and_repeats_itself(
    variables, denoise
):
    x_t, image, t = INPUTS
    output, _ = denoise(variables, x_t, t)
    np.testing.assert_array_equal(denoise(variables, x_t, t)[0], output)
    assert network().apply(variables, image, train=False, method="encode") == {}
    features = dict.fromkeys(("calibration", "calibration_logits"), x_t) | {
        "anchor": jnp.zeros((2, 32, 32, 32))
    }
    new = network(version="new")
    apply = jax.jit(
        lambda v: new.apply(v, features, x_t, image, t, train=False, method="denoise")[
            0
        ]
    )
    np.testing.assert_allclose(apply(variables), output, atol=1e-5)


@pytest.mark.slow
def test_a_step_of_training_goes_through_the_gates(variables):
    model = NoisePrediction(network(), schedule.linear(50))
    batch = {"image": INPUTS[1], "mask": (INPUTS[1] > 1).astype(jnp.float32)}
    flat, unravel = ravel_pytree(variables["params"])

    def loss(flat, of_noise):
        now = {**variables, "params": unravel(flat)}
        value, (metrics, _) = model.loss(now, batch, jax.random.key(0), train=True)
        return of_noise * (value - metrics["calibration"]) + metrics["calibration"]

    step = jax.jit(jax.value_and_grad(loss))
    before, gradient = step(flat, 1.0)
    after, _ = step(flat - 1e-2 * gradient / jnp.linalg.norm(gradient), 1.0)
    assert jnp.isfinite(gradient).all() and after < before
    of_calibration = unravel(step(flat, 0.0)[1])
    gate = of_calibration["highway"]["gate_0"]["ff_parser"]["complex_weight"]
    assert jnp.abs(gate).max() > 1e-6
    assert jnp.abs(of_calibration["denoiser"]["input_0"]["kernel"]).max() > 1e-6


def test_it_predicts_as_version_new_does(variables):
    model = NoisePrediction(network(), schedule.linear(50), Sampling("ddpm", steps=2))
    keys = jax.random.split(jax.random.key(0), 2)
    samples = jax.jit(lambda v: model.predict(v, INPUTS[1], keys, ensemble=2))(
        variables
    )
    assert (
        samples.shape == (2, 2, 32, 32, 1) and 0 <= samples.min() < samples.max() <= 1
    )


@pytest.mark.parametrize(
    ("size", "named"),
    [
        (64, "image_size=32.* 64x64.* to 32, .*multiple of 32"),
        (40, "data.size 40.* 32 or 64"),
    ],
)
def test_another_size_than_it_was_built_for_is_refused(size, named):
    x = jnp.zeros((1, size, size, 1))
    with pytest.raises(BadInput, match=named):
        initial(network(), x, x, jnp.zeros(1), train=False)


def test_no_anchor_has_to_fit():
    assert initial(network(highway_cap=8), *INPUTS, train=False)
