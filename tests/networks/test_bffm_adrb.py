"""BFFM and ADRB: the paper's equations 1 to 5 computed plainly, and the vectors of the PyTorch lineage's blocks."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from biedsnet_jax.networks.adrb import ADRB, Attention
from biedsnet_jax.networks.bffm import BFFM, boundary

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


def normal(*shape, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def initial(module, *inputs, **static):
    """Shapes of the module's variables."""
    return jax.eval_shape(lambda *xs: module.init(jax.random.key(0), *xs, **static), *inputs)


def weights(module, *inputs, **static):
    """Random variables of the module's own shapes, from numpy: compiling an `init` costs more than the tests."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 10
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, initial(module, *inputs, **static))


# ---- The boundary module: equations 1 to 4


@pytest.mark.parametrize("window", [3, 5, 7])
def test_a_constant_image_has_no_boundary(window):
    x = jnp.full((1, 9, 12, 2), 100.0)
    np.testing.assert_allclose(boundary(x, window), np.zeros_like(x), atol=1e-4)


@pytest.mark.parametrize(("window", "corner", "side"), [(3, 4 / 9, 6 / 9), (5, 9 / 25, 15 / 25), (7, 16 / 49, 28 / 49)])
def test_with_counted_padding_a_constant_image_has_a_boundary_in_its_outer_ring(window, corner, side):
    edge, half = np.asarray(boundary(jnp.ones((1, 16, 16, 1)), window, count_include_pad=True))[0, :, :, 0], window // 2
    np.testing.assert_allclose(edge[[0, 0, -1, -1], [0, -1, 0, -1]], 1 - corner, atol=1e-6)
    np.testing.assert_allclose([edge[0, 8], edge[8, 0], edge[-1, 8], edge[8, -1]], 1 - side, atol=1e-6)
    np.testing.assert_allclose(edge[half:-half, half:-half], 0, atol=1e-6)
    ring = np.pad(np.zeros((16 - 2 * half, 16 - 2 * half)), half, constant_values=1) == 1
    assert (edge[ring] > 0.1).all()


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_the_boundary_is_what_a_uniform_filter_leaves(window, count_include_pad):
    x = normal(2, 7, 10, 3)
    expected = plain_boundary(x, window, count_include_pad)
    np.testing.assert_allclose(boundary(x, window, count_include_pad=count_include_pad), expected, atol=1e-6)


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
        f = np.maximum((f - mean) / np.sqrt(var + 1e-5) * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"], 0)
    f = np.concatenate([f, *(plain_boundary(f, k, False) for k in (3, 5, 7))], axis=-1)
    squeezed = np.maximum(plain_conv(f.mean((1, 2), keepdims=True), p["squeeze"]), 0)
    f = f * sigmoid(plain_conv(squeezed, p["excite"]))
    f = np.concatenate([plain_conv(f[..., i : i + 1], kernel_of(p["depthwise"], i)) for i in range(4 * c)], axis=-1)
    expected = plain_conv(f, p["pointwise"])
    got = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    np.testing.assert_allclose(got, expected, atol=1e-4)


# ---- The residual block: equation 5 and attention


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_adrb_is_equation_5(norm):
    x, emb, c = normal(2, 8, 8, 6), normal(2, 10, seed=1), 32
    module = ADRB(c, attention="none", norm=norm)
    variables = weights(module, x, emb, train=False)
    p, stats = variables["params"], variables.get("batch_stats")

    def cgr(name, f):
        f, scale = plain_conv(f, p[name]["conv"]), p[name]["norm"]
        if norm == "group":
            f = f.reshape(2, 8, 8, 16, 2)  # 16 groups
            mean, var = (moment(f, axis=(1, 2, 4), keepdims=True) for moment in (np.mean, np.var))
        else:
            mean, var = stats[name]["norm"]["mean"], stats[name]["norm"]["var"]
        return np.maximum(((f - mean) / np.sqrt(var + 1e-5)).reshape(2, 8, 8, c) * scale["scale"] + scale["bias"], 0)

    rl = np.maximum(emb, 0) @ p["linear"]["kernel"] + p["linear"]["bias"]
    expected = cgr("cgr_skip", x) + cgr("cgr_2", rl[:, None, None] + cgr("cgr_1", x))
    got = jax.jit(functools.partial(module.apply, train=False))(variables, x, emb)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("order", ["parallel", "sequential"])
def test_attention_weighs_channels_and_pixels(order):
    x = normal(2, 6, 6, 32)
    module = Attention(order=order)
    variables = weights(module, x)
    p, x = variables["params"], np.asarray(x)

    def mlp(v):
        return (
            np.maximum(v @ p["squeeze"]["kernel"] + p["squeeze"]["bias"], 0) @ p["excite"]["kernel"]
            + p["excite"]["bias"]
        )

    channel = sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))[:, None, None, :]
    if order == "parallel":
        expected = x * channel + x * sigmoid(plain_conv(x, p["spatial"]))
    else:
        expected = x * channel * sigmoid(plain_conv(x * channel, p["spatial"]))
    np.testing.assert_allclose(jax.jit(module.apply)(variables, jnp.asarray(x)), expected, atol=1e-5)


# ---- The lineage: vectors of its PyTorch blocks


def golden(name: str):
    """Weights, inputs and output of a PyTorch block, channels last."""
    with np.load(GOLDEN / f"mbdsnet_{name}.npz") as file:
        entries = {key: file[key] for key in file.files if key != "meta"}
    w = {key[2:]: value for key, value in entries.items() if key.startswith("w:")}
    x, y = (jnp.asarray(np.moveaxis(entries[key], 1, -1)) for key in ("in:x", "out:y"))
    return w, x, y, entries.get("in:emb")


def torch_layer(w, name: str):
    """Kernel (or scale) and bias of one PyTorch layer, in Flax's layout."""
    weight = w[f"{name}.weight"]
    if weight.ndim == 1:
        return {"scale": weight, "bias": w[f"{name}.bias"]}
    layer = {"kernel": weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T}
    return {**layer, "bias": w[f"{name}.bias"]} if f"{name}.bias" in w else layer


def test_bffm_is_the_lineages():
    w, x, y, _ = golden("bffm_block")
    names = {"conv_1": "conv.0", "norm_1": "conv.1", "conv_2": "conv.3", "norm_2": "conv.4"}
    names |= {"squeeze": "PEE.SE.conv1", "excite": "PEE.SE.conv2"}
    names |= {"reduce": "fuse.0", "depthwise": "fuse.2", "norm_3": "fuse.3", "pointwise": "fuse.4"}
    stats = {
        ours: {"mean": w[f"{theirs}.running_mean"], "var": w[f"{theirs}.running_var"]}
        for ours, theirs in names.items()
        if "norm" in ours
    }
    variables = {"params": {ours: torch_layer(w, theirs) for ours, theirs in names.items()}, "batch_stats": stats}
    module = BFFM(16, count_include_pad=True, dconv="lineage")
    got = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    np.testing.assert_allclose(got, y, atol=1e-4)


def test_adrb_is_the_lineages():
    w, x, y, emb = golden("adrb_block")
    params = {
        "cgr_1": {"conv": torch_layer(w, "inconv.0"), "norm": torch_layer(w, "inconv.1")},
        "cgr_2": {"conv": torch_layer(w, "outconv.0"), "norm": torch_layer(w, "outconv.1")},
        "linear": torch_layer(w, "emb_layers.1"),
        "conv_skip": torch_layer(w, "skip_connection"),
    }
    module = ADRB(32, residual="conv", attention="none")
    got = jax.jit(functools.partial(module.apply, train=False))({"params": params}, x, jnp.asarray(emb))
    np.testing.assert_allclose(got, y, atol=1e-4)


def test_attention_is_the_lineages():
    w, x, y, _ = golden("sca")
    params = {"squeeze": torch_layer(w, "cSE.Conv_Squeeze.0"), "excite": torch_layer(w, "cSE.Conv_Excitation.0")}
    params = {name: {**layer, "kernel": layer["kernel"][0, 0]} for name, layer in params.items()}  # 1x1 to dense
    params["spatial"] = torch_layer(w, "sSE.Conv1x1.0")
    np.testing.assert_allclose(jax.jit(Attention().apply)({"params": params}, x), y, atol=1e-4)


# ---- Plain computations


def plain_boundary(x, window: int, count_include_pad: bool):
    size = (1, window, window, 1)
    mean = ndimage.uniform_filter(np.asarray(x, np.float64), size, mode="constant")
    share = ndimage.uniform_filter(np.ones(x.shape), size, mode="constant")  # of the window that lies on the image
    return np.asarray(x, np.float64) - (mean if count_include_pad else mean / share)


def plain_conv(x, layer):
    """Zero-padded convolution, as a sum over the kernel's entries."""
    kernel, (_, h, w, _) = np.asarray(layer["kernel"]), x.shape
    pad = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    entries = np.ndindex(kernel.shape[:2])
    return sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in entries) + layer.get("bias", 0)


def kernel_of(depthwise, channel: int):
    return {"kernel": depthwise["kernel"][..., channel : channel + 1]}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
