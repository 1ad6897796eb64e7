"""BIEDSNet: its ablation rows, what joins where, shapes, half precision, sizes."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import initial, normal, weights

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.adrb import ADRB
from biedsnet_jax.networks.biedsnet import BIEDSNet, Denoiser, input_widths
from biedsnet_jax.networks.blocks import GroupNorm, max_pool
from biedsnet_jax.segmenters.macs import count_macs
from configs import default, variants

LINEAGE = BIEDSNet(
    dconv="lineage", count_include_pad=True, residual="conv", attention_per="level"
)
TOY = BIEDSNet(channels=(4, 8, 8), blocks_per_level=2)


def inputs(size=(16, 16), *, channels: int = 1, classes: int = 1, batch: int = 2):
    """Returns x_t, image and t."""
    return (
        normal(batch, *size, classes),
        normal(batch, *size, channels, seed=1),
        jnp.arange(batch) * 100,
    )


def size_of(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# ---- The reference implementation


def test_the_lineage_variant_of_the_config_is_the_reference_implementation():
    config = variants.apply(default.get_config(), "lineage")
    assert BIEDSNet(**config.networks.biedsnet) == LINEAGE


# ---- The ablation, Table 2


CHANNELS = (16, 32, 48, 64)


def row(number: int):
    config = variants.apply(default.get_config(), f"row{number}")
    config.networks.biedsnet.update(channels=CHANNELS, blocks_per_level=1)
    return initial(BIEDSNet(**config.networks.biedsnet), *inputs())["params"]


@pytest.mark.slow
def test_each_row_of_the_ablation_adds_the_parameters_of_its_module_and_no_others():
    rows = {i: row(i) for i in range(1, 6)}
    sizes = {i: size_of(rows[i]) for i in rows}
    # Per level: squeeze 4c to 4c/16 and back with biases, depthwise 3x3 on 4c,
    # pointwise 4c to c with bias.
    bffm = sum(
        2 * 4 * c * (c // 4) + c // 4 + 4 * c + 9 * 4 * c + 4 * c * c + c
        for c in CHANNELS[:-1]
    )
    # Per block (one a level, encoder and decoder): squeeze c to c/16 and back with
    # biases, one weight a channel and 1.
    blocks = [*CHANNELS, *CHANNELS[:-1]]
    attention = sum(2 * c * (c // 16) + c // 16 + c + c + 1 for c in blocks)
    heads = sum(c + 1 for c in CHANNELS[1:-1])
    assert sizes[2] - sizes[1] == bffm
    assert sizes[3] - sizes[2] == attention
    # another loss, the same network
    assert rows[4] == rows[3]
    assert sizes[5] - sizes[4] == heads
    assert all(
        set(level) == {"conv_1", "norm_1", "conv_2", "norm_2"}
        for level in rows[1]["condition"].values()
    )
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
    (logits, out), captured = TOY.apply(
        variables,
        features,
        x_t,
        image,
        t,
        method="denoise",
        capture_intermediates=lambda module, _: isinstance(module, ADRB),
        mutable="intermediates",
    )
    blocks = captured["intermediates"]["denoiser"].items()
    return logits, out, {name: value["__call__"][0] for name, value in blocks}


@pytest.mark.slow
def test_features_of_one_encode_serve_every_x_t_and_t():
    variables, (x_t, image, t) = toy_variables(), inputs()
    features = encode(variables, image)
    whole = jax.jit(TOY.apply)
    results = []
    for noisy, time in [(x_t, t), (2.0 * x_t + 1.0, t), (x_t, t + 700)]:
        logits, out, _ = denoise(variables, features, noisy, image, time)
        expected, expected_out = whole(variables, noisy, image, time)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        np.testing.assert_allclose(
            out["supervision"][0], expected_out["supervision"][0], atol=1e-4
        )
        results.append(logits)
    assert np.abs(results[0] - results[1]).max() > 1e-2
    assert np.abs(results[0] - results[2]).max() > 1e-2


@pytest.mark.parametrize("level", [1, 2])
def test_a_condition_feature_joins_its_level_after_the_blocks_and_enters_the_skip(
    level,
):
    variables, (x_t, image, t) = toy_variables(), inputs()
    features = encode(variables, image)
    assert set(features) == {"encoder_2", "encoder_3", "decoder_1", "decoder_2"}
    _, _, before = denoise(variables, features, x_t, image, t)
    for name in (f"encoder_{level + 1}", f"decoder_{level}"):
        features[name] = jax.tree.map(lambda share: 2.0 * share, features[name])
    _, _, after = denoise(variables, features, x_t, image, t)
    changed = {
        name for name in before if np.abs(before[name] - after[name]).max() > 1e-4
    }
    encoder = {f"encoder_{i}_block_{j}" for i in range(level + 1, 4) for j in (1, 2)}
    assert changed == encoder | {
        f"decoder_{i}_block_{j}" for i in (1, 2) for j in (1, 2)
    }
    block = variables["params"]["denoiser"][f"decoder_{level}_block_1"]
    kernel = block["cgr_1"]["conv"]["kernel"]
    width = TOY.channels[level - 1]
    # The block reads the level below and the skip, which is the encoder's level and its
    # feature.
    assert kernel.shape[2] == width + (width + width)


def test_a_condition_feature_that_joins_before_the_blocks_is_read_by_its_own_level_and_no_other():
    module = TOY.clone(condition_joins="before")
    blocks = initial(module, *inputs())["params"]["denoiser"]
    kernels = {
        name: block["cgr_1"]["conv"]["kernel"].shape[2]
        for name, block in blocks.items()
        if "block_1" in name
    }
    # The level above (2 of the stem, 4, 8) and the feature (4, 8, none); in the decoder
    # the level below and the skip.
    assert kernels == {
        "encoder_1_block_1": 2 + 4,
        "encoder_2_block_1": 4 + 8,
        "encoder_3_block_1": 8,
        "decoder_2_block_1": 8 + 8,
        "decoder_1_block_1": 4 + 4,
    }


@pytest.mark.parametrize(
    ("joins", "expected"),
    [
        (
            "after",
            {
                ("encoder", 1): (4, 8),
                ("encoder", 2): (8 + 8, 12),
                ("encoder", 3): (12 + 12, 20),
                ("decoder", 1): (8 + 8 + 8, 16),
                ("decoder", 2): (12 + 12 + 12, 24),
            },
        ),
        (
            "before",
            {
                ("encoder", 1): (4 + 8, 8),
                ("encoder", 2): (8 + 12, 12),
                ("encoder", 3): (12, 20),
                ("decoder", 1): (8 + 8, 16),
                ("decoder", 2): (12 + 12, 24),
            },
        ),
    ],
)
def test_widths_that_the_first_and_second_blocks_of_three_levels_read(joins, expected):
    assert input_widths((8, 12, 20), joins, second_skip=True) == expected
    without = input_widths((8, 12, 20), joins, second_skip=False)
    assert [second for _, second in without.values()] == [8, 12, 20, 8, 12]
    assert {block: first for block, (first, _) in without.items()} == {
        block: first for block, (first, _) in expected.items()
    }


def concatenating(call, args, kwargs, context):
    """Computes the figure as drawn: a block reads its condition feature, concatenated.

    It takes the place of `share`, whose results are then the features themselves.
    """
    module, method = context.module, context.method_name
    if method == "share" and isinstance(module, Denoiser):
        shares = {}
        for i, c in enumerate(args[0], start=1):
            if module.condition_joins == "before":
                shares[f"encoder_{i}"] = (c, c)
            else:
                shares[f"encoder_{i + 1}"] = (max_pool(c), c)
                shares[f"decoder_{i}"] = (c, c)
        return shares
    if method == "__call__" and isinstance(module, ADRB) and args[2] is not None:
        x, emb, (c, _), train = args
        parts = x if isinstance(x, tuple) else (x,)
        return call((*parts, c), emb, None, train)
    return call(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention": "sequential", "norm": "batch"},
        {"attention_per": "level", "dconv": "lineage", "residual": "conv"},
        {"attention": "none", "residual": "conv", "norm": "batch"},
        {"condition_joins": "before"},
    ],
    ids=lambda fields: "-".join(fields) or "paper",
)
def test_shares_of_the_condition_features_are_convolutions_of_the_concatenation(fields):
    # Level 2 reads as many channels as it has, so that its residual may be the identity.
    module = TOY.clone(channels=(8, 8, 12), **fields)
    variables, given = weights(module, *inputs()), inputs()
    got, _ = jax.jit(module.apply)(variables, *given)
    with nn.intercept_methods(concatenating):
        expected, _ = jax.jit(lambda *xs: module.apply(*xs))(variables, *given)
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def gradient(module, variables, given):
    """Returns the gradient and the logits of a loss that reads every head."""

    def loss(params):
        logits, out = module.apply({**variables, "params": params}, *given)
        return jnp.sum(jnp.sin(logits)) + jnp.sum(out["supervision"][0] ** 2), logits

    return jax.grad(loss, has_aux=True)(variables["params"])


def assert_same(module, other):
    """Asserts that logits and gradients are equal but for rounding."""
    given = inputs()
    variables = weights(module, *given)
    (expected, logits), (got, other_logits) = (
        jax.jit(functools.partial(gradient, m))(variables, given)
        for m in (module, other)
    )
    np.testing.assert_allclose(other_logits, logits, atol=1e-5 * np.abs(logits).max())
    error, size = (
        np.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))
        for tree in (jax.tree.map(jnp.subtract, got, expected), expected)
    )
    assert error < 1e-4 * size


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention": "sequential"},
        {"attention_per": "level", "dconv": "lineage", "residual": "conv"},
        {"condition_joins": "before"},
    ],
    ids=lambda fields: "-".join(fields) or "paper",
)
def test_on_folded_maps_logits_and_gradient_are_the_same(fields):
    assert_same(TOY.clone(**fields), TOY.clone(**fields, fold=True))


@pytest.mark.slow
def test_remat_computes_the_blocks_again_for_the_same_gradient():
    again, variables = TOY.clone(remat=True), initial(TOY, *inputs())
    assert_same(TOY, again)
    once, twice = (
        count_macs(functools.partial(gradient, m), variables, inputs())
        for m in (TOY, again)
    )
    # A forward pass is a third of a gradient, and most of it is blocks.
    assert twice > 1.2 * once


@pytest.mark.slow
def test_the_second_block_of_a_decoder_level_also_gets_its_encoder_levels_second_block():
    with_skip = initial(TOY, *inputs())["params"]["denoiser"]
    without = initial(TOY.clone(second_skip=False), *inputs())["params"]["denoiser"]
    for level, width in ((1, 4), (2, 8)):
        name = f"decoder_{level}_block_2"
        assert with_skip[name]["cgr_1"]["conv"]["kernel"].shape[2] == 2 * width
        assert without[name]["cgr_1"]["conv"]["kernel"].shape[2] == width


def test_every_norm_of_the_denoiser_has_the_groups_of_the_network():
    # With 16 groups every channel of 8 would be a group of its own.
    norms = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, GroupNorm):
            norms.append((context.module.groups, args[0].shape[-1]))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        initial(BIEDSNet(channels=(8, 16), groups=4), *inputs())
    assert set(norms) == {(4, 8), (4, 16)}


def test_the_final_head_is_level_1_and_side_heads_follow_finest_first():
    module = BIEDSNet(
        channels=(2, 2, 2, 2), blocks_per_level=1, attention="none", bffm=False
    )
    variables = weights(module, *inputs())
    for level in (1, 2, 3):
        head = variables["params"]["denoiser"][f"head_{level}"]
        head["kernel"][:], head["bias"][:] = 0, level
    logits, out = jax.jit(module.apply)(variables, *inputs())
    assert [float(np.ptp(x)) for x in (logits, *out["supervision"])] == pytest.approx(
        [0, 0, 0], abs=1e-5
    )
    assert [float(x.mean()) for x in (logits, *out["supervision"])] == pytest.approx(
        [1, 2, 3]
    )


@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_every_head_has_the_size_of_the_image_and_a_channel_for_each_class(
    channels, classes
):
    module = BIEDSNet(
        classes=classes,
        channels=(2, 2, 2, 2, 2),
        blocks_per_level=1,
        dtype=jnp.bfloat16,
    )
    x_t, image, t = inputs((32, 48), channels=channels, classes=classes)
    (logits, out), _ = jax.eval_shape(
        lambda *xs: module.init_with_output(jax.random.key(0), *xs), x_t, image, t
    )
    assert [x.shape for x in (logits, *out["supervision"])] == [
        (2, 32, 48, classes)
    ] * 4
    assert {x.dtype for x in (logits, *out["supervision"])} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same_logits():
    variables, given = toy_variables(), inputs()
    half, _ = jax.jit(TOY.clone(dtype=jnp.bfloat16).apply)(variables, *given)
    exact, _, _ = denoise(variables, encode(variables, given[1]), *given)
    assert half.dtype == jnp.float32 and np.isfinite(half).all()
    assert np.abs(half - exact).max() < 0.1 * np.abs(exact).max()
    assert np.corrcoef(half.ravel(), exact.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((100, 96), "100x96.* 96x96 or 112x96"),
        ((96, 250), "96x250.* 96x240 or 96x256"),
        ((8, 8), "data.size 8.* 16"),
    ],
)
def test_a_size_that_pooling_does_not_divide_is_refused_with_the_two_nearest(
    size, message
):
    with pytest.raises(BadInput, match=message) as error:
        initial(BIEDSNet(), *inputs(size))
    assert "\n" not in str(error.value)
