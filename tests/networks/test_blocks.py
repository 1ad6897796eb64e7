"""Building blocks against jax, Flax or numbers worked out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from random_weights import normal

from biedsnet_jax.networks.blocks import (
    DepthwiseConv,
    GroupNorm,
    TimeEmbedding,
    max_pool,
    resize_bilinear,
    timestep_embedding,
    upsample_bilinear,
    upsample_nearest,
)

VECTORS = GOLDEN / "medsegdiff_diffusion_math.npz"


def test_max_pool_is_a_window_reduction():
    x = normal(2, 6, 12, 3)
    strides = (1, 2, 2, 1)
    expected = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, strides, strides, "VALID"
    )
    np.testing.assert_array_equal(jax.jit(max_pool)(x), expected)


def test_max_pool_sends_the_gradient_to_the_maximum_and_shares_it_between_equals():
    x = jnp.asarray([[1.0, 2.0, 5.0, 5.0], [0.0, -1.0, 5.0, 5.0]])[None, :, :, None]
    grad = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x))))(x)[0, :, :, 0]
    np.testing.assert_allclose(grad, [[0, 1, 0.25, 0.25], [0, 0, 0.25, 0.25]])


def test_nearest_upsampling_repeats_pixels():
    x = normal(2, 2, 4, 3)
    expected = np.kron(x, np.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(upsample_nearest(x), expected)


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (3, 2), (4, 6)])
def test_bilinear_resize_is_jaxs_without_antialiasing(size):
    x = normal(2, 4, 6, 3)
    got = jax.jit(lambda x: resize_bilinear(x, size))(x)
    np.testing.assert_allclose(
        got, jax.image.resize(x, (2, *size, 3), "bilinear", antialias=False), atol=1e-5
    )


def test_bilinear_resize_with_aligned_corners_spreads_the_samples_from_corner_to_corner():
    x = jnp.asarray([[0.0, 1.0, 4.0], [10.0, 11.0, 14.0]])[None, :, :, None]
    expected = [[0, 0.5, 1, 2.5, 4], [5, 5.5, 6, 7.5, 9], [10, 10.5, 11, 12.5, 14]]
    got = jax.jit(lambda x: resize_bilinear(x, (3, 5), align_corners=True))(x)
    np.testing.assert_allclose(got[0, :, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_float32_map_is_resized_in_float32_on_every_device(dtype):
    """By default a TPU rounds products of float32 to bfloat16, and a GPU to TF32."""
    x = jnp.zeros((1, 4, 4, 1), dtype)
    text = jax.jit(lambda x: resize_bilinear(x, (8, 8))).lower(x).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2
    for line in products:
        assert ("HIGHEST" in line) == (dtype == "float32")


@pytest.mark.parametrize(
    ("align_corners", "expected"),
    [(False, [0, 0.75, 2.25, 3]), (True, [0, 1, 2, 3])],
    ids=["centres", "corners"],
)
def test_bilinear_upsampling_by_hand(align_corners, expected):
    x = jnp.asarray([0.0, 3.0])[None, None, :, None]
    y = jax.jit(lambda x: upsample_bilinear(x, align_corners=align_corners))(x)
    np.testing.assert_allclose(y[0, :, :, 0], [expected, expected], atol=1e-6)


@pytest.mark.parametrize("use_bias", [False, True])
def test_depthwise_convolution_is_flaxs_with_one_group_a_channel(use_bias):
    x, params = normal(2, 6, 5, 4), {"kernel": normal(3, 3, 1, 4, seed=1)}
    if use_bias:
        params["bias"] = normal(4, seed=2)
    grouped = nn.Conv(
        4, (3, 3), padding=((1, 1), (1, 1)), feature_group_count=4, use_bias=use_bias
    )
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(grouped.apply)({"params": params}, x)
        got = jax.jit(DepthwiseConv(use_bias=use_bias).apply)({"params": params}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_group_norm_is_flaxs(groups):
    x = 3.0 * normal(2, 6, 5, 8) + 2.0
    params = {"scale": normal(8, seed=1), "bias": normal(8, seed=2)}
    expected = jax.jit(nn.GroupNorm(num_groups=groups, epsilon=1e-5).apply)(
        {"params": params}, x
    )
    np.testing.assert_allclose(
        jax.jit(GroupNorm(groups).apply)({"params": params}, x), expected, atol=2e-5
    )


def test_group_norm_of_bfloat16_takes_its_statistics_in_float32():
    # Around 30 bfloat16 has steps of 1/8: statistics in it would be off by tenths.
    x = (normal(1, 32, 32, 4) + 30.0).astype(jnp.bfloat16)
    variables = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    got = jax.jit(GroupNorm(2, dtype=jnp.bfloat16).apply)(variables, x)
    exact = np.asarray(x, np.float64).reshape(32 * 32, 2, 2)
    exact = (exact - exact.mean((0, 2), keepdims=True)) / exact.std(
        (0, 2), keepdims=True
    )
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        got.astype(jnp.float32), exact.reshape(1, 32, 32, 4), rtol=2**-8, atol=2e-3
    )


def test_group_norm_of_a_constant_is_its_bias():
    variables = {"params": {"scale": jnp.ones(4), "bias": jnp.arange(4.0)}}
    y, pullback = jax.vjp(
        jax.jit(lambda x: GroupNorm(2).apply(variables, x)),
        jnp.full((1, 4, 4, 4), 100.0),
    )
    np.testing.assert_allclose(y, np.broadcast_to(np.arange(4.0), y.shape), atol=0.05)
    assert np.isfinite(pullback(jnp.ones_like(y))[0]).all()


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_timestep_embedding_by_hand(dtype):
    t = jnp.asarray([0, 3], dtype)
    # The frequencies are 1 and 10000^(-1/2) = 0.01.
    got = jax.jit(lambda t: timestep_embedding(t, 4))(t)
    expected = [[1, 1, 0, 0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_timestep_embedding_is_guided_diffusions():
    golden = np.load(VECTORS)
    t = jnp.asarray(golden["timestep_embedding128:t"], jnp.int32)
    np.testing.assert_allclose(
        timestep_embedding(t, 128), golden["timestep_embedding128"], atol=1e-4
    )


def test_time_embedding_is_dense_relu_dense_on_the_sinusoid():
    # At 0 cosines are 1 and sines 0.
    t = jnp.asarray([0, 100])
    sinusoid = [[1, 1, 0, 0], [np.cos(100), np.cos(1), np.sin(100), np.sin(1)]]
    w1 = normal(4, 16)
    b1 = normal(16, seed=1)
    w2 = normal(16, 16, seed=2)
    b2 = normal(16, seed=3)
    params = {
        "dense_1": {"kernel": w1, "bias": b1},
        "dense_2": {"kernel": w2, "bias": b2},
    }
    hidden = np.maximum(np.asarray(sinusoid) @ np.asarray(w1) + np.asarray(b1)[None], 0)
    expected = hidden @ np.asarray(w2) + np.asarray(b2)[None]
    np.testing.assert_allclose(
        jax.jit(TimeEmbedding(4).apply)({"params": params}, t),
        expected,
        rtol=1e-4,
        atol=1e-4,
    )
