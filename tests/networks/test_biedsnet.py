"""BIEDSNet: its equations against plain computations, its PyTorch relative's vectors and size, its ablation rows."""

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
from biedsnet_jax.networks.biedsnet import BIEDSNet
from biedsnet_jax.types import BadInput
from configs import default

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
LINEAGE = BIEDSNet(dconv="lineage", count_include_pad=True, residual="conv", attention_per="level")
TOY = BIEDSNet(channels=(4, 8, 8), blocks_per_level=2)


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


def inputs(size=(16, 16), *, channels: int = 1, classes: int = 1, batch: int = 2):
    """x_t, image, t"""
    return normal(batch, *size, classes), normal(batch, *size, channels, seed=1), jnp.arange(batch) * 100


def size_of(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


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


# ---- The lineage: vectors of its PyTorch blocks, size of its network


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


@pytest.mark.parametrize(("channels", "expected"), [(1, 33_848_273), (3, 33_849_137)])
def test_parameter_count_is_the_lineages(channels, expected):
    assert size_of(initial(LINEAGE, *inputs((16, 16), channels=channels))["params"]) == expected


def test_the_lineage_variant_of_the_config_is_the_lineage():
    config = default.choose(default.get_config(), "lineage", default.VARIANTS)
    assert BIEDSNet(**config.networks.biedsnet) == LINEAGE


# ---- The ablation, Table 2


CHANNELS = (16, 32, 48, 64)


def row(number: int):
    config = default.choose(default.get_config(), f"row{number}", default.VARIANTS)
    config.networks.biedsnet.update(channels=CHANNELS, blocks_per_level=1)
    return initial(BIEDSNet(**config.networks.biedsnet), *inputs())["params"]


def test_each_row_of_the_ablation_adds_the_parameters_of_its_module_and_no_others():
    rows = {i: row(i) for i in range(1, 6)}
    sizes = {i: size_of(rows[i]) for i in rows}
    # Per level: squeeze 4c to 4c/16 and back with biases, depthwise 3x3 on 4c, pointwise 4c to c with bias.
    bffm = sum(2 * 4 * c * (c // 4) + c // 4 + 4 * c + 9 * 4 * c + 4 * c * c + c for c in CHANNELS[:-1])
    # Per block (one a level, encoder and decoder): squeeze c to c/16 and back with biases, one weight a channel and 1.
    blocks = [*CHANNELS, *CHANNELS[:-1]]
    attention = sum(2 * c * (c // 16) + c // 16 + c + c + 1 for c in blocks)
    heads = sum(c + 1 for c in CHANNELS[1:-1])
    assert sizes[2] - sizes[1] == bffm
    assert sizes[3] - sizes[2] == attention
    assert rows[4] == rows[3]  # another loss, the same network
    assert sizes[5] - sizes[4] == heads
    assert all(set(level) == {"conv_1", "norm_1", "conv_2", "norm_2"} for level in rows[1]["condition"].values())
    assert not any("attention" in block for block in rows[2]["denoiser"].values())
    assert [name for name in rows[4]["denoiser"] if "head" in name] == ["head_1"]
    assert rows[5]["condition"] == rows[2]["condition"]


# ---- The network as a whole


@functools.cache
def toy_variables():
    return weights(TOY, *inputs())


encode = jax.jit(functools.partial(TOY.apply, method="encode"))


@jax.jit
def denoise(variables, features, x_t, image, t):
    """Logits, side outputs, and what came out of each residual block."""
    (logits, out), seen = TOY.apply(
        variables, features, x_t, image, t, method="denoise",
        capture_intermediates=lambda module, _: isinstance(module, ADRB), mutable="intermediates",
    )  # fmt: skip
    return logits, out, {name: value["__call__"][0] for name, value in seen["intermediates"]["denoiser"].items()}


def test_features_of_one_encode_serve_every_x_t_and_t():
    variables, (x_t, image, t) = toy_variables(), inputs()
    features, whole, seen = encode(variables, image), jax.jit(TOY.apply), []
    for noisy, time in [(x_t, t), (2.0 * x_t + 1.0, t), (x_t, t + 700)]:
        logits, out, _ = denoise(variables, features, noisy, image, time)
        expected, expected_out = whole(variables, noisy, image, time)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        np.testing.assert_allclose(out["supervision"][0], expected_out["supervision"][0], atol=1e-4)
        seen.append(logits)
    assert np.abs(seen[0] - seen[1]).max() > 1e-2
    assert np.abs(seen[0] - seen[2]).max() > 1e-2


@pytest.mark.parametrize("level", [1, 2])
def test_a_condition_feature_joins_its_level_after_the_blocks_and_enters_the_skip(level):
    variables, (x_t, image, t) = toy_variables(), inputs()
    features = encode(variables, image)
    _, _, before = denoise(variables, features, x_t, image, t)
    features[level - 1] = features[level - 1] + 1.0
    _, _, after = denoise(variables, features, x_t, image, t)
    changed = {name for name in before if np.abs(before[name] - after[name]).max() > 1e-4}
    encoder = {f"encoder_{i}_block_{j}" for i in range(level + 1, 4) for j in (1, 2)}
    assert changed == encoder | {f"decoder_{i}_block_{j}" for i in (1, 2) for j in (1, 2)}
    kernel = variables["params"]["denoiser"][f"decoder_{level}_block_1"]["cgr_1"]["conv"]["kernel"]
    width = TOY.channels[level - 1]
    assert kernel.shape[2] == width + (width + width)  # up path, and the skip: encoder level with its feature


def test_the_second_block_of_a_decoder_level_also_gets_its_encoder_levels_second_block():
    with_skip = initial(TOY, *inputs())["params"]["denoiser"]
    without = initial(TOY.clone(second_skip=False), *inputs())["params"]["denoiser"]
    for level, width in ((1, 4), (2, 8)):
        name = f"decoder_{level}_block_2"
        assert with_skip[name]["cgr_1"]["conv"]["kernel"].shape[2] == 2 * width
        assert without[name]["cgr_1"]["conv"]["kernel"].shape[2] == width


def test_the_final_head_is_level_1_and_side_heads_follow_finest_first():
    module = BIEDSNet(channels=(2, 2, 2, 2), blocks_per_level=1, attention="none", bffm=False)
    variables = weights(module, *inputs())
    for level in (1, 2, 3):
        head = variables["params"]["denoiser"][f"head_{level}"]
        head["kernel"][:], head["bias"][:] = 0, level
    logits, out = jax.jit(module.apply)(variables, *inputs())
    assert [float(np.ptp(x)) for x in (logits, *out["supervision"])] == pytest.approx([0, 0, 0], abs=1e-5)
    assert [float(x.mean()) for x in (logits, *out["supervision"])] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_every_head_has_the_size_of_the_image_and_a_channel_for_each_class(channels, classes):
    module = BIEDSNet(classes=classes, channels=(2, 2, 2, 2, 2), blocks_per_level=1, dtype=jnp.bfloat16)
    x_t, image, t = inputs((32, 48), channels=channels, classes=classes)
    (logits, out), _ = jax.eval_shape(lambda *xs: module.init_with_output(jax.random.key(0), *xs), x_t, image, t)
    assert [x.shape for x in (logits, *out["supervision"])] == [(2, 32, 48, classes)] * 4
    assert {x.dtype for x in (logits, *out["supervision"])} == {jnp.dtype("float32")}


def test_bfloat16_computes_nearly_the_same_logits():
    variables, given = toy_variables(), inputs()
    half, _ = jax.jit(TOY.clone(dtype=jnp.bfloat16).apply)(variables, *given)
    exact, _, _ = denoise(variables, encode(variables, given[1]), *given)
    assert half.dtype == jnp.float32 and np.isfinite(half).all()
    assert np.abs(half - exact).max() < 0.1 * np.abs(exact).max()
    assert np.corrcoef(half.ravel(), exact.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("size", "message"),
    [((100, 96), "size 100.* by 16.*resize to 96 or 112"), ((96, 250), "250.*240 or 256"), ((8, 16), "8.*to 16")],
)
def test_a_size_that_pooling_does_not_divide_is_refused_with_the_two_nearest(size, message):
    with pytest.raises(BadInput, match=message) as error:
        initial(BIEDSNet(), *inputs(size))
    assert "\n" not in str(error.value)


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
