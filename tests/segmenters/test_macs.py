"""Multiply-adds of small functions worked out by hand, and of a prediction."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from random_weights import initial

from biedsnet_jax.diffusion import schedule
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.networks import NETWORKS
from biedsnet_jax.networks.bffm import boundary
from biedsnet_jax.networks.blocks import DepthwiseConv, resize_bilinear
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import losses
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.macs import count_macs, prediction_gmacs
from biedsnet_jax.segmenters.mask_diffusion import Diffusion


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def convolve(stride=1, dilation=1, groups=1, stretch=1, padding="SAME"):
    def fn(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            lhs_dilation=(stretch, stretch),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return fn


@pytest.mark.parametrize(
    ("fn", "image", "kernel", "expected"),
    [
        (convolve(), (2, 8, 8, 3), (3, 3, 3, 5), 2 * 8 * 8 * 5 * 3 * 3 * 3),
        (convolve(stride=2), (1, 8, 8, 3), (3, 3, 3, 5), 4 * 4 * 5 * 27),
        # 8 - 2 * 2 pixels left
        (
            convolve(dilation=2, padding="VALID"),
            (1, 8, 8, 3),
            (3, 3, 3, 5),
            4 * 4 * 5 * 27,
        ),
        (convolve(groups=3), (1, 8, 8, 6), (3, 3, 2, 9), 8 * 8 * 9 * 9 * 2),
        # of 4 taps
        (
            convolve(stretch=2, padding=((1, 1), (1, 1))),
            (1, 4, 4, 3),
            (2, 2, 3, 5),
            4 * 4 * 3 * 4 * 5,
        ),
    ],
)
def test_convolution(fn, image, kernel, expected):
    assert count_macs(fn, shaped(*image), shaped(*kernel)) == expected


def test_matrix_products():
    assert count_macs(jnp.matmul, shaped(4, 6), shaped(6, 10)) == 240
    assert (
        count_macs(
            lambda a, b: jnp.einsum("bqd,bkd->bqk", a, b),
            shaped(2, 5, 3),
            shaped(2, 7, 3),
        )
        == 2 * 5 * 7 * 3
    )
    assert count_macs(lambda a: jnp.exp(a) * a + a.sum(), shaped(4, 6)) == 0


# A @ A is 64 multiply-adds.
A = shaped(4, 4)


def square(a):
    return a @ a


@jax.custom_jvp
def custom_jvp(a):
    return a @ a


custom_jvp.defjvp(
    lambda primals, tangents: (primals[0] @ primals[0], tangents[0] @ primals[0])
)


@jax.custom_vjp
def custom_vjp(a):
    return a @ a


custom_vjp.defvjp(lambda a: (a @ a, a), lambda a, g: (g @ a.T + a.T @ g,))


@pytest.mark.parametrize(
    ("fn", "squares"),
    [
        (lambda a: jax.jit(square)(jax.jit(square)(a)), 2),
        (jax.checkpoint(square), 1),
        (custom_jvp, 1),
        (custom_vjp, 1),
        (lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, length=7)[0], 7),
        (lambda a: jax.lax.map(lambda i: jax.jit(square)(a) * i, jnp.arange(3)), 3),
        (
            lambda a: jax.lax.scan(
                lambda c, _: (jax.lax.fori_loop(0, 5, lambda i, d: d @ a, c), 0),
                a,
                length=2,
            )[0],
            10,
        ),
        (lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a, lambda a: a @ a @ a, a), 2),
        (
            lambda a: jax.lax.switch(
                0, [lambda a: a @ a @ a @ a, lambda a: a, square], a
            ),
            3,
        ),
        (
            lambda a: jax.lax.while_loop(lambda c: c[0, 0] < 0, lambda c: c + 1, a @ a),
            1,
        ),
        (jax.vmap(lambda v: v @ jnp.ones((4, 4))), 1),
        # The product itself is not needed, its transpose is.
        (jax.grad(lambda a: (a @ jnp.ones((4, 4))).sum()), 1),
        # Nothing depends on the second product.
        (lambda a: [a @ a, a @ a @ a][0], 1),
    ],
)
def test_counts_inside_the_functions_that_a_function_calls(fn, squares):
    assert count_macs(fn, A) == squares * 64


def test_shards_are_counted_on_all_devices():
    mesh = devices.make_mesh()
    fn = jax.shard_map(
        square,
        mesh=mesh,
        in_specs=P(None, None),
        out_specs=P(None, None),
        check_vma=False,
    )
    assert count_macs(fn, A) == mesh.size * 64


def test_a_while_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="while loop"):
        count_macs(lambda a: jax.lax.while_loop(lambda c: c[0, 0] < 0, square, a), A)


def test_depthwise_convolution_is_nine_an_output_and_resampling_is_free():
    image = shaped(2, 8, 8, 6)
    module = DepthwiseConv(use_bias=True)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), image)
    assert count_macs(module.apply, variables, image) == 2 * 8 * 8 * 6 * 9
    assert (
        count_macs(
            jax.vmap(module.apply, (None, 0)), variables, shaped(3, *image.shape)
        )
        == 3 * 2 * 8 * 8 * 6 * 9
    )
    assert count_macs(lambda x: resize_bilinear(boundary(x, 3), (16, 16)), image) == 0


def test_a_scope_holds_for_the_functions_called_in_it():
    def fn(a):
        with jax.named_scope("resampling"):
            a = jax.jit(square)(a)
        with jax.named_scope("products_of_convolution"):
            a = jax.lax.scan(lambda c, _: (c * c, None), a, length=3)[0]
        return a @ a * a

    assert count_macs(fn, A) == 3 * 16 + 64


TOY = NETWORKS["biedsnet"](channels=(8, 16), blocks_per_level=1, dconv="lineage")


def test_prediction_encodes_once_and_denoises_steps_times_samples():
    image = mask = shaped(1, 16, 16, 1)
    t = shaped(1, dtype=jnp.int32)
    variables = initial(TOY, mask, image, t, train=False)

    def encode_of(variables, image):
        return TOY.apply(variables, image, method=TOY.encode)

    def denoise_of(variables, *inputs):
        return TOY.apply(variables, *inputs, method=TOY.denoise)[0]

    features = jax.eval_shape(encode_of, variables, image)
    encode = count_macs(encode_of, variables, image)
    denoise = count_macs(denoise_of, variables, features, mask, image, t)
    assert encode > 0 and denoise > 0

    model = Diffusion(
        TOY, schedule.linear(100), losses.dice, sampling=Sampling(steps=7)
    )
    counted = prediction_gmacs(model, variables, (16, 16, 1), ensemble=3)
    assert counted == pytest.approx((encode + 3 * 7 * denoise) / 1e9, rel=1e-12)

    once = prediction_gmacs(
        Direct(TOY, losses.dice), variables, (16, 16, 1), ensemble=3
    )
    assert once == pytest.approx((encode + denoise) / 1e9, rel=1e-12)
