"""BFFM and ADRB against equations 1 to 5 and the reference implementation's vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from random_weights import initial, normal, weights
from scipy import ndimage

from biedsnet_jax.importing.torch_weights import to_variables
from biedsnet_jax.networks.adrb import ADRB, Attention
from biedsnet_jax.networks.bffm import BFFM, boundary

# ---- The boundary module: equations 1 to 4


@pytest.mark.parametrize("window", [3, 5, 7])
def test_a_constant_image_has_no_boundary(window):
    x = jnp.full((1, 9, 12, 2), 100.0)
    np.testing.assert_allclose(boundary(x, window), np.zeros_like(x), atol=1e-4)


@pytest.mark.parametrize(
    ("window", "corner", "side"),
    [(3, 4 / 9, 6 / 9), (5, 9 / 25, 15 / 25), (7, 16 / 49, 28 / 49)],
)
def test_with_counted_padding_a_constant_image_has_a_boundary_in_its_outer_ring(
    window, corner, side
):
    edge = boundary(jnp.ones((1, 16, 16, 1)), window, count_include_pad=True)
    edge = np.asarray(edge)[0, :, :, 0]
    half = window // 2
    np.testing.assert_allclose(
        edge[[0, 0, -1, -1], [0, -1, 0, -1]], 1 - corner, atol=1e-6
    )
    np.testing.assert_allclose(
        [edge[0, 8], edge[8, 0], edge[-1, 8], edge[8, -1]], 1 - side, atol=1e-6
    )
    np.testing.assert_allclose(edge[half:-half, half:-half], 0, atol=1e-6)
    ring = np.ones((16, 16), bool)
    ring[half:-half, half:-half] = False
    assert (edge[ring] > 0.1).all()


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_the_boundary_is_what_a_uniform_filter_leaves(window, count_include_pad):
    x = normal(2, 7, 10, 3)
    expected = plain_boundary(x, window, count_include_pad)
    np.testing.assert_allclose(
        boundary(x, window, count_include_pad=count_include_pad), expected, atol=1e-6
    )


def test_the_boundary_of_bfloat16_keeps_the_digits_that_the_image_has():
    x = (normal(1, 16, 16, 1) + 30.0).astype(jnp.bfloat16)
    got = boundary(x, 3)
    assert got.dtype == jnp.bfloat16
    expected = plain_boundary(np.asarray(x, np.float64), 3, False)
    np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


def test_bffm_is_equations_1_to_4():
    x, c = normal(1, 8, 8, 3), 8
    module = BFFM(c)
    variables = weights(module, x, train=False)
    p, stats = variables["params"], variables["batch_stats"]
    f = np.asarray(x)
    for i in (1, 2):
        f = plain_conv(f, p[f"conv_{i}"])
        mean, var = (stats[f"norm_{i}"][name] for name in ("mean", "var"))
        f = np.maximum(
            (f - mean) / np.sqrt(var + 1e-5) * p[f"norm_{i}"]["scale"]
            + p[f"norm_{i}"]["bias"],
            0,
        )
    f = np.concatenate([f, *(plain_boundary(f, k, False) for k in (3, 5, 7))], axis=-1)
    squeezed = np.maximum(plain_conv(f.mean((1, 2), keepdims=True), p["squeeze"]), 0)
    f = f * sigmoid(plain_conv(squeezed, p["excite"]))
    f = np.concatenate(
        [
            plain_conv(f[..., i : i + 1], kernel_of(p["depthwise"], i))
            for i in range(4 * c)
        ],
        axis=-1,
    )
    expected = plain_conv(f, p["pointwise"])
    got = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    np.testing.assert_allclose(got, expected, atol=1e-4)


# ---- The residual block: equation 5 and attention


@pytest.mark.parametrize("norm, groups", [("group", 16), ("group", 4), ("batch", 16)])
def test_adrb_is_equation_5(norm, groups):
    x, emb, c = normal(2, 8, 8, 6), normal(2, 10, seed=1), 32
    module = ADRB(c, 6, attention="none", norm=norm, groups=groups)
    variables = weights(module, x, emb, train=False)
    p, stats = variables["params"], variables.get("batch_stats")

    def cgr(name, f):
        f, scale = plain_conv(f, p[name]["conv"]), p[name]["norm"]
        if norm == "group":
            f = f.reshape(2, 8, 8, groups, c // groups)
            mean, var = (
                moment(f, axis=(1, 2, 4), keepdims=True) for moment in (np.mean, np.var)
            )
        else:
            mean, var = stats[name]["norm"]["mean"], stats[name]["norm"]["var"]
        return np.maximum(
            ((f - mean) / np.sqrt(var + 1e-5)).reshape(2, 8, 8, c) * scale["scale"]
            + scale["bias"],
            0,
        )

    rl = np.maximum(emb, 0) @ p["linear"]["kernel"] + p["linear"]["bias"]
    expected = cgr("cgr_skip", x) + cgr("cgr_2", rl[:, None, None] + cgr("cgr_1", x))
    got = jax.jit(functools.partial(module.apply, train=False))(variables, x, emb)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("order", ["parallel", "sequential"])
def test_attention_weighs_channels_and_pixels(order):
    x = normal(2, 6, 6, 32)
    module = Attention(32, order=order)
    variables = weights(module, x)
    p, x = variables["params"], np.asarray(x)

    def mlp(v):
        return (
            np.maximum(v @ p["squeeze"]["kernel"] + p["squeeze"]["bias"], 0)
            @ p["excite"]["kernel"]
            + p["excite"]["bias"]
        )

    channel = sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))[:, None, None, :]
    if order == "parallel":
        expected = x * channel + x * sigmoid(plain_conv(x, p["spatial"]))
    else:
        expected = x * channel * sigmoid(plain_conv(x * channel, p["spatial"]))
    np.testing.assert_allclose(
        jax.jit(module.apply)(variables, jnp.asarray(x)), expected, atol=1e-5
    )


# ---- The reference implementation: vectors of its PyTorch blocks


def golden(name: str):
    """Reads weights, inputs and output of a PyTorch block, channels last."""
    with np.load(GOLDEN / f"mbdsnet_{name}.npz") as file:
        entries = {key: file[key] for key in file.files if key != "meta"}
    w = {key[2:]: value for key, value in entries.items() if key.startswith("w:")}
    x, y = (jnp.asarray(np.moveaxis(entries[key], 1, -1)) for key in ("in:x", "out:y"))
    return w, x, y, entries.get("in:emb")


def imported(module, w, *inputs, **static):
    """Imports the block's variables from PyTorch's, below the name of a level."""
    shapes = initial(module, *inputs, **static)
    target = {collection: {"level": tree} for collection, tree in shapes.items()}
    variables = to_variables(
        "biedsnet", {f"level.{name}": value for name, value in w.items()}, target
    )
    return {collection: tree["level"] for collection, tree in variables.items()}


def test_bffm_is_that_of_the_reference_implementation():
    w, x, y, _ = golden("bffm_block")
    module = BFFM(16, count_include_pad=True, dconv="lineage")
    apply = jax.jit(functools.partial(module.apply, train=False))
    np.testing.assert_allclose(
        apply(imported(module, w, x, train=False), x), y, atol=1e-4
    )


def test_adrb_is_that_of_the_reference_implementation():
    w, x, y, emb = golden("adrb_block")
    module = ADRB(32, x.shape[-1], residual="conv", attention="none")
    emb = jnp.asarray(emb)
    apply = jax.jit(functools.partial(module.apply, train=False))
    np.testing.assert_allclose(
        apply(imported(module, w, x, emb, train=False), x, emb), y, atol=1e-4
    )


def test_attention_is_that_of_the_reference_implementation():
    w, x, y, _ = golden("sca")
    module = Attention(x.shape[-1])
    np.testing.assert_allclose(
        jax.jit(module.apply)(imported(module, w, x), x), y, atol=1e-4
    )


# ---- Plain computations


def plain_boundary(x, window: int, count_include_pad: bool):
    size = (1, window, window, 1)
    mean = ndimage.uniform_filter(np.asarray(x, np.float64), size, mode="constant")
    # The share of the window that lies on the image.
    share = ndimage.uniform_filter(np.ones(x.shape), size, mode="constant")
    return np.asarray(x, np.float64) - (mean if count_include_pad else mean / share)


def plain_conv(x, layer):
    """Zero-padded convolution, as a sum over the kernel's entries."""
    kernel, (_, h, w, _) = np.asarray(layer["kernel"]), x.shape
    pad = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    entries = np.ndindex(kernel.shape[:2])
    return sum(
        padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in entries
    ) + layer.get("bias", 0)


def kernel_of(depthwise, channel: int):
    return {"kernel": depthwise["kernel"][..., channel : channel + 1]}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
