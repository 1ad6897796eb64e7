"""Winograd's convolution against the plain one, and where the denoiser uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import normal, weights

from biedsnet_jax.networks import winograd
from biedsnet_jax.networks.biedsnet import BIEDSNet
from biedsnet_jax.networks.convolutions import Conv, convolve


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (2, 6, 10, 3)])
def test_it_is_the_plain_convolution(shape):
    x, kernel = normal(*shape), normal(3, 3, 3, 5, seed=1)
    np.testing.assert_allclose(
        winograd.convolve(x, winograd.transform(kernel)), convolve(x, kernel), atol=1e-5
    )


def test_the_transform_of_a_kernel_worked_out_by_hand():
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    # With row 0, column 1 alone, G k G^T is 4 * (column 0 of G) (column 1 of G)^T.
    kernel[0, 1] = 4.0
    columns_by_rows = 4 * np.outer([0, 0.5, -0.5, 0], [1, 0.5, 0.5, 0])
    np.testing.assert_allclose(
        winograd.transform(jnp.asarray(kernel)).reshape(4, 4),
        columns_by_rows,
        atol=1e-7,
    )


@pytest.fixture
def narrow(monkeypatch):
    """A denoiser whose widths count as wide, and its inputs."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 8)
    network = BIEDSNet(classes=1, channels=(8, 16), blocks_per_level=2)
    inputs = normal(2, 12, 12, 1), normal(2, 12, 12, 1, seed=1), jnp.array([3, 900])
    return network, jax.tree.map(jnp.asarray, weights(network, *inputs)), inputs


@pytest.mark.slow
def test_the_denoiser_gives_the_same_with_prepared_kernels_and_reads_them(narrow):
    network, variables, inputs = narrow
    prepared = winograd.prepare(variables, uses=10)
    apply = jax.jit(lambda variables: network.apply(variables, *inputs)[0])
    np.testing.assert_allclose(apply(prepared), apply(variables), atol=1e-4)
    zeros = jax.tree.map(jnp.zeros_like, prepared[winograd.COLLECTION])
    spoiled = {**prepared, winograd.COLLECTION: zeros}
    assert jnp.abs(apply(spoiled) - apply(variables)).max() > 0.01


@pytest.mark.slow
def test_only_wide_3x3_kernels_are_prepared_and_only_for_several_uses(narrow):
    _, variables, _ = narrow
    assert winograd.prepare(variables, uses=1) is variables
    denoiser = winograd.prepare(variables, uses=10)[winograd.COLLECTION]["denoiser"]
    assert not {"stem", "head_1"} & set(denoiser)
    assert "linear" not in denoiser["encoder_1_block_1"]
    # The first block of level 1 reads the stem's 4 channels; the next one 8.
    assert "cgr_1" not in denoiser["encoder_1_block_1"]
    assert denoiser["encoder_1_block_2"]["cgr_1"]["conv"]["kernel"].shape == (16, 8, 8)


@pytest.mark.parametrize("size, dtype", [((5, 6), jnp.float32), ((6, 6), jnp.bfloat16)])
def test_odd_maps_and_bfloat16_take_the_plain_way(size, dtype):
    x, conv = normal(1, *size, 8), Conv(8, dtype=dtype)
    variables = weights(conv, x)
    unread = {
        **variables,
        winograd.COLLECTION: {"kernel": jnp.full((16, 8, 8), jnp.nan)},
    }
    np.testing.assert_array_equal(conv.apply(unread, x), conv.apply(variables, x))
