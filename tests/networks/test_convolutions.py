"""Convolutions that do less, against the plain convolution, and folded maps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import normal, weights

from biedsnet_jax.networks.adrb import Attention
from biedsnet_jax.networks.blocks import (
    GroupNorm,
    depthwise,
    max_pool,
    upsample_nearest,
)
from biedsnet_jax.networks.convolutions import (
    Conv,
    UpsampledConv,
    depth_to_space,
    fold,
    fold_kernel,
    in_place,
    pool,
    space_to_depth,
    unfold,
)


def plain(size: int = 3, *, use_bias: bool = False):
    """Flax's convolution to 5 channels, padded to the same size."""
    return nn.Conv(
        5, (size, size), padding=size // 2, use_bias=use_bias, precision="highest"
    )


def test_folding_moves_a_kernel_in_float32_on_every_device():
    """By default a TPU rounds products of float32 to bfloat16, and a GPU to TF32."""
    kernel = normal(3, 3, 2, 4)
    folded = jax.jit(fold_kernel)(kernel)
    assert set(np.unique(folded)) == {0.0, *np.unique(kernel)}
    text = jax.jit(fold_kernel).lower(kernel).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)


def test_a_folded_map_has_the_pixels_of_a_block_in_its_channels_row_by_row():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    folded = space_to_depth(x)
    # The block has rows 2 and 3, columns 0 and 1.
    np.testing.assert_array_equal(folded[0, 1, 0], [16, 17, 18, 19, 24, 25, 26, 27])
    np.testing.assert_array_equal(depth_to_space(folded), x)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("folded", [False, True])
def test_convolution_of_parts_is_that_of_their_concatenation(folded, size, use_bias):
    first = normal(2, 6, 8, 3)
    second = normal(2, 6, 8, 2, seed=1)
    third = normal(2, 6, 8, 4, seed=2)
    together = jnp.concatenate([first, second, third], axis=-1)
    variables = weights(plain(size, use_bias=use_bias), together)
    conv = Conv(5, inputs=9, kernel=size, use_bias=use_bias, folded=folded)
    if folded:
        first, second, third = map(space_to_depth, (first, second, third))
    got = conv.apply(variables, (first, second)) + conv.apply(
        variables, third, last=True
    )
    expected = plain(size, use_bias=use_bias).apply(variables, together)
    np.testing.assert_allclose(
        depth_to_space(got) if folded else got, expected, atol=2e-5
    )


@pytest.mark.parametrize("folded", [False, True])
def test_upsampled_convolution_is_that_of_the_upsampled_map_and_so_is_its_gradient(
    folded,
):
    x, weight = normal(2, 3, 5, 4), normal(2, 6, 10, 5, seed=1)
    variables = weights(plain(), upsample_nearest(x))

    def expected(variables, x):
        return plain().apply(variables, upsample_nearest(x))

    def got(variables, x):
        y = UpsampledConv(5, folded=folded).apply(variables, x)
        return depth_to_space(y) if folded else y

    def value_and_grad(f):
        @jax.jit
        def loss(variables, x):
            return jnp.sum(weight * f(variables, x))

        return jax.value_and_grad(loss, argnums=(0, 1))(variables, x)

    value, grad = value_and_grad(got)
    expected_value, expected_grad = value_and_grad(expected)
    np.testing.assert_allclose(got(variables, x), expected(variables, x), atol=2e-5)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(close, grad, expected_grad)


@pytest.mark.parametrize(
    "module",
    [lambda folded: GroupNorm(4, folded=folded)]
    + [
        lambda folded, order=order: Attention(32, order=order, folded=folded)
        for order in ("parallel", "sequential")
    ],
    ids=["norm", "parallel", "sequential"],
)
def test_on_folded_maps_a_module_gives_the_folded_result(module):
    x = normal(2, 4, 6, 32) + 0.5
    variables = weights(module(False), x)
    expected = module(False).apply(variables, x)
    np.testing.assert_allclose(
        depth_to_space(module(True).apply(variables, space_to_depth(x))),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_maximum_pool_of_a_folded_map_is_that_of_the_map():
    x = normal(2, 4, 6, 3)
    np.testing.assert_array_equal(pool(space_to_depth(x), True), max_pool(x))
    np.testing.assert_array_equal(pool(x, False), max_pool(x))


@pytest.mark.parametrize("folded", [False, True])
def test_parts_in_their_place_add_up_to_their_concatenation(folded):
    x, c = normal(2, 4, 6, 3), normal(2, 4, 6, 2, seed=1)
    first, last = (fold(part, folded) for part in (x, c))
    got = in_place(first, 5, last=False, folded=folded)
    got += in_place(last, 5, last=True, folded=folded)
    np.testing.assert_array_equal(unfold(got, folded), jnp.concatenate([x, c], axis=-1))


def test_gradient_of_the_depthwise_convolution_is_that_of_jaxs():
    x = normal(2, 6, 5, 4)
    kernel = normal(3, 3, 1, 4, seed=1)
    weight = normal(2, 6, 5, 4, seed=2)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
            precision="highest",
        )

    def gradient(f):
        return jax.grad(lambda *xs: jnp.sum(weight * f(*xs)), (0, 1))(x, kernel)

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-4),
        gradient(depthwise),
        gradient(grouped),
    )
