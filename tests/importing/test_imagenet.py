"""Pretrained starts, on mappings made here: every tensor where it belongs, every misfit
listed by name.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from biedsnet_jax.errors import BadInput
from biedsnet_jax.importing import import_weights
from biedsnet_jax.importing.imagenet import (
    load_pretrained_swin_t,
    load_pretrained_vit_r50,
)
from biedsnet_jax.networks.swin_unet import SwinUNet
from biedsnet_jax.networks.trans_unet import TransUNet
from configs import folder

HIDDEN, MLP, HEADS, WIDTH = 16, 32, 2, 32
VIT = TransUNet(
    image_size=48,
    hidden=HIDDEN,
    mlp=MLP,
    heads=HEADS,
    layers=2,
    resnet_units=(1, 2, 1),
    resnet_width=WIDTH,
)
SWIN = SwinUNet(
    image_size=64, window=4, embed_dim=12, depths=(2, 2, 1), heads=(2, 4, 8)
)


@functools.cache
def zeros(module):
    image = jax.ShapeDtypeStruct(
        (1, module.image_size, module.image_size, 1), jnp.float32
    )
    shapes = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), image
    )
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def fill(shapes: dict) -> dict:
    """Each tensor with values of its own, so that a swap of two cannot pass."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def vit_tensors():
    """Names and shapes of `R50+ViT-B_16.npz`, narrow, with a 2x2 grid of positions."""
    shapes = {
        "cls": (1, 1, HIDDEN),
        "head/kernel": (HIDDEN, 5),
        "conv_root/kernel": (7, 7, 3, WIDTH),
        "gn_root/scale": (1, 1, 1, WIDTH),
        "gn_root/bias": (1, 1, 1, WIDTH),
        "embedding/kernel": (1, 1, 16 * WIDTH, HIDDEN),
        "embedding/bias": (HIDDEN,),
        "Transformer/posembed_input/pos_embedding": (1, 5, HIDDEN),
        "Transformer/encoder_norm/scale": (HIDDEN,),
        "Transformer/encoder_norm/bias": (HIDDEN,),
    }
    channels = WIDTH
    for stage, units in enumerate((1, 2, 1), start=1):
        mid = WIDTH * 2 ** (stage - 1)
        for unit in range(1, units + 1):
            at = f"block{stage}/unit{unit}"
            convs = {
                "conv1": (1, 1, channels, mid),
                "conv2": (3, 3, mid, mid),
                "conv3": (1, 1, mid, 4 * mid),
            }
            if unit == 1:
                convs["conv_proj"] = (1, 1, channels, 4 * mid)
            for name, shape in convs.items():
                shapes[f"{at}/{name}/kernel"] = shape
                for leaf in ("scale", "bias"):
                    shapes[f"{at}/{name.replace('conv', 'gn')}/{leaf}"] = (
                        1,
                        1,
                        1,
                        shape[-1],
                    )
            channels = 4 * mid
    # one more than the network has
    for layer in range(3):
        at, attention = (
            f"Transformer/encoderblock_{layer}",
            "MultiHeadDotProductAttention_1",
        )
        for name in ("query", "key", "value"):
            shapes[f"{at}/{attention}/{name}/kernel"] = (HIDDEN, HEADS, HIDDEN // HEADS)
            shapes[f"{at}/{attention}/{name}/bias"] = (HEADS, HIDDEN // HEADS)
        shapes[f"{at}/{attention}/out/kernel"] = (HEADS, HIDDEN // HEADS, HIDDEN)
        shapes[f"{at}/{attention}/out/bias"] = (HIDDEN,)
        for name in ("LayerNorm_0", "LayerNorm_2"):
            shapes[f"{at}/{name}/scale"] = shapes[f"{at}/{name}/bias"] = (HIDDEN,)
        for name, (n_in, n_out) in {
            "Dense_0": (HIDDEN, MLP),
            "Dense_1": (MLP, HIDDEN),
        }.items():
            shapes[f"{at}/MlpBlock_3/{name}/kernel"] = (n_in, n_out)
            shapes[f"{at}/MlpBlock_3/{name}/bias"] = (n_out,)
    return fill(shapes)


@pytest.fixture(scope="module")
def swin_tensors():
    """Names and shapes of the official Swin-T, narrow, one stage fewer, with windows of
    3 patches.
    """
    shapes = {
        "patch_embed.proj.weight": (12, 3, 4, 4),
        "patch_embed.proj.bias": (12,),
        "head.weight": (5, 48),
    }
    shapes |= {f"patch_embed.norm.{leaf}": (12,) for leaf in ("weight", "bias")}
    shapes |= {f"norm.{leaf}": (48,) for leaf in ("weight", "bias")}
    for stage, (depth, heads) in enumerate(zip((2, 2, 6), (2, 4, 8))):
        c = 12 * 2**stage
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}"
            shapes[f"{at}.attn.relative_position_bias_table"] = (25, heads)
            shapes[f"{at}.attn.relative_position_index"] = (9, 9)
            for name, (n_in, n_out) in {
                "attn.qkv": (c, 3 * c),
                "attn.proj": (c, c),
                "mlp.fc1": (c, 4 * c),
                "mlp.fc2": (4 * c, c),
            }.items():
                shapes |= {
                    f"{at}.{name}.weight": (n_out, n_in),
                    f"{at}.{name}.bias": (n_out,),
                }
            shapes |= {
                f"{at}.norm{i}.{leaf}": (c,)
                for i in (1, 2)
                for leaf in ("weight", "bias")
            }
        if stage < 2:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * c, 4 * c)
            shapes |= {
                f"layers.{stage}.downsample.norm.{leaf}": (4 * c,)
                for leaf in ("weight", "bias")
            }
    return fill(shapes)


def at(variables, path):
    return np.asarray(traverse_util.flatten_dict(variables["params"], sep="/")[path])


def assert_only_these_stay_zero(variables, prefixes):
    for path, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items():
        assert np.any(leaf) != path.startswith(prefixes), path


def stretch(table, side):
    """Linear interpolation with the corners kept, one channel and one line at a time."""
    n = table.shape[0]
    where = np.linspace(0, n - 1, side)
    rows = np.apply_along_axis(
        lambda line: np.interp(where, np.arange(n), line), 0, table
    )
    return np.apply_along_axis(
        lambda line: np.interp(where, np.arange(n), line), 1, rows
    )


def test_vit_fills_the_encoder_and_nothing_else(vit_tensors):
    before = zeros(VIT)
    after = load_pretrained_vit_r50(vit_tensors, before)
    assert_only_these_stay_zero(after, ("decoder_", "head/"))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    # the argument is not touched
    assert not np.any(at(before, "embed/bias"))


def test_vit_tensors_keep_their_meaning(vit_tensors):
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT))
    np.testing.assert_array_equal(
        at(after, "resnet/root_conv/kernel"), vit_tensors["conv_root/kernel"]
    )
    np.testing.assert_array_equal(
        at(after, "resnet/root_gn/scale"), vit_tensors["gn_root/scale"].ravel()
    )
    np.testing.assert_array_equal(
        at(after, "embed/kernel"), vit_tensors["embedding/kernel"][0, 0]
    )
    for stage, units in ((1, 1), (2, 2), (3, 1)):
        for unit in range(1, units + 1):
            for i in ("1", "2", "3", *(["_proj"] if unit == 1 else [])):
                ours, theirs = (
                    f"resnet/block{stage}_unit{unit}",
                    f"block{stage}/unit{unit}",
                )
                np.testing.assert_array_equal(
                    at(after, f"{ours}/conv{i}/kernel"),
                    vit_tensors[f"{theirs}/conv{i}/kernel"],
                )
                for leaf in ("scale", "bias"):
                    expected = vit_tensors[f"{theirs}/gn{i}/{leaf}"].ravel()
                    np.testing.assert_array_equal(
                        at(after, f"{ours}/gn{i}/{leaf}"), expected
                    )
    z = np.random.default_rng(1).normal(size=(3, HIDDEN)).astype(np.float32)
    for layer in range(2):
        theirs = f"Transformer/encoderblock_{layer}"
        # their projection, head by head
        for name in ("query", "key", "value"):
            kernel = vit_tensors[
                f"{theirs}/MultiHeadDotProductAttention_1/{name}/kernel"
            ]
            bias = vit_tensors[f"{theirs}/MultiHeadDotProductAttention_1/{name}/bias"]
            heads = [z @ kernel[:, head] + bias[head] for head in range(HEADS)]
            ours = z @ at(after, f"encoder_{layer}/{name}/kernel") + at(
                after, f"encoder_{layer}/{name}/bias"
            )
            np.testing.assert_allclose(
                ours, np.concatenate(heads, axis=-1), rtol=1e-5, atol=1e-5
            )
        out = vit_tensors[f"{theirs}/MultiHeadDotProductAttention_1/out/kernel"]
        expected = sum(
            part @ out[head] for head, part in enumerate(np.split(z, HEADS, axis=-1))
        )
        np.testing.assert_allclose(
            z @ at(after, f"encoder_{layer}/out/kernel"), expected, rtol=1e-4, atol=1e-5
        )
        for ours, other in {
            "attention_norm/scale": "LayerNorm_0/scale",
            "attention_norm/bias": "LayerNorm_0/bias",
            "ffn_norm/scale": "LayerNorm_2/scale",
            "ffn_norm/bias": "LayerNorm_2/bias",
            "fc1/kernel": "MlpBlock_3/Dense_0/kernel",
            "fc1/bias": "MlpBlock_3/Dense_0/bias",
            "fc2/kernel": "MlpBlock_3/Dense_1/kernel",
            "fc2/bias": "MlpBlock_3/Dense_1/bias",
            "out/bias": "MultiHeadDotProductAttention_1/out/bias",
        }.items():
            np.testing.assert_array_equal(
                at(after, f"encoder_{layer}/{ours}"), vit_tensors[f"{theirs}/{other}"]
            )
    for leaf in ("scale", "bias"):
        np.testing.assert_array_equal(
            at(after, f"encoder_norm/{leaf}"),
            vit_tensors[f"Transformer/encoder_norm/{leaf}"],
        )


def test_vit_positions_lose_the_class_token_and_follow_the_image_size(vit_tensors):
    table = vit_tensors["Transformer/posembed_input/pos_embedding"]
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT.clone(image_size=32)))
    np.testing.assert_array_equal(at(after, "position_embeddings"), table[:, 1:])
    # 48 pixels: from 2x2 tokens to 3x3
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT))
    expected = stretch(table[0, 1:].reshape(2, 2, HIDDEN), 3).reshape(1, 9, HIDDEN)
    np.testing.assert_allclose(at(after, "position_embeddings"), expected, atol=1e-6)


def test_vit_misfits_are_listed_by_name(vit_tensors):
    broken = dict(vit_tensors)
    broken["conv_root/kernel"] = np.zeros((7, 7, 1, WIDTH), np.float32)
    del broken["Transformer/encoderblock_1/LayerNorm_2/bias"]
    with pytest.raises(BadInput) as error:
        load_pretrained_vit_r50(broken, zeros(VIT))
    assert (
        "missing: Transformer/encoderblock_1/LayerNorm_2/bias, misshapen: conv_root/kernel ("
        in str(error.value)
    )
    assert "\n" not in str(error.value)


def test_swin_fills_encoder_and_decoder_blocks_and_nothing_else(swin_tensors):
    after = load_pretrained_swin_t(swin_tensors, zeros(SWIN))
    assert_only_these_stay_zero(after, ("expand_", "concat_", "norm_up/", "head/"))


def test_swin_stage_i_starts_encoder_stage_i_and_the_decoder_stage_of_its_resolution(
    swin_tensors,
):
    after = load_pretrained_swin_t(swin_tensors, zeros(SWIN))
    # h w in out
    kernel = at(after, "embed/kernel")
    np.testing.assert_array_equal(
        kernel[1, 2, 0, 5], swin_tensors["patch_embed.proj.weight"][5, 0, 1, 2]
    )
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
        np.testing.assert_array_equal(
            at(after, f"embed_norm/{leaf}"), swin_tensors[f"patch_embed.norm.{name}"]
        )
        np.testing.assert_array_equal(
            at(after, f"norm/{leaf}"), swin_tensors[f"norm.{name}"]
        )
    for stage in range(2):
        theirs = swin_tensors[f"layers.{stage}.downsample.reduction.weight"]
        np.testing.assert_array_equal(
            at(after, f"merge_{stage}/reduction/kernel"), theirs.T
        )
        theirs = swin_tensors[f"layers.{stage}.downsample.norm.bias"]
        np.testing.assert_array_equal(at(after, f"merge_{stage}/norm/bias"), theirs)
    # Three stages: the first decoder stage works at the resolution of encoder stage 1,
    # the second at that of 0.
    blocks = {"encoder_0": 0, "encoder_1": 1, "decoder_1": 1, "decoder_2": 0}
    for ours, theirs in [
        (f"{name}_block_{i}", f"layers.{j}.blocks.{i}")
        for name, j in blocks.items()
        for i in (0, 1)
    ]:
        for part, name in (
            ("attn/qkv", "attn.qkv"),
            ("attn/proj", "attn.proj"),
            ("fc1", "mlp.fc1"),
            ("fc2", "mlp.fc2"),
        ):
            np.testing.assert_array_equal(
                at(after, f"{ours}/{part}/kernel"),
                swin_tensors[f"{theirs}.{name}.weight"].T,
            )
            np.testing.assert_array_equal(
                at(after, f"{ours}/{part}/bias"), swin_tensors[f"{theirs}.{name}.bias"]
            )
        for norm in ("norm1", "norm2"):
            np.testing.assert_array_equal(
                at(after, f"{ours}/{norm}/scale"),
                swin_tensors[f"{theirs}.{norm}.weight"],
            )
            np.testing.assert_array_equal(
                at(after, f"{ours}/{norm}/bias"), swin_tensors[f"{theirs}.{norm}.bias"]
            )
        table = swin_tensors[f"{theirs}.attn.relative_position_bias_table"]
        # offsets -2..2 to -3..3
        expected = stretch(table.reshape(5, 5, -1), 7).reshape(49, -1)
        np.testing.assert_allclose(
            at(after, f"{ours}/attn/relative_position_bias_table"), expected, atol=1e-6
        )


def test_swin_misfits_are_listed_by_name(swin_tensors):
    broken = dict(swin_tensors)
    broken["layers.1.blocks.0.mlp.fc1.weight"] = np.zeros((3, 3), np.float32)
    broken["layers.0.blocks.1.attn.relative_position_bias_table"] = np.zeros(
        (25, 3), np.float32
    )
    del broken["layers.2.blocks.0.norm1.bias"]
    with pytest.raises(BadInput) as error:
        load_pretrained_swin_t(broken, zeros(SWIN))
    message = str(error.value)
    assert (
        "missing: layers.2.blocks.0.norm1.bias, misshapen: layers.0.blocks.1.attn.relative_position_bias"
        in message
    )
    assert (
        "layers.1.blocks.0.mlp.fc1.weight (becomes (3, 3), needs (24, 96))" in message
    )
    assert "\n" not in message


def test_mode_import_takes_an_imagenet_start_and_draws_the_rest(
    swin_tensors, monkeypatch
):
    # for a true draw, which takes long to compile
    drawn = jax.tree.map(jnp.ones_like, zeros(SWIN))
    monkeypatch.setattr(
        import_weights.build_model, "init_variables", lambda model, cfg: drawn
    )
    c = folder.get_config("swin_unet")
    c.data.size = SWIN.image_size
    fields = {
        name: getattr(SWIN, name) for name in ("window", "embed_dim", "depths", "heads")
    }
    c.networks.swin_unet.update(fields)
    variables, what = import_weights._variables(c, swin_tensors)
    assert what == "an ImageNet start"
    expected = swin_tensors["layers.0.blocks.1.attn.qkv.weight"].T
    for block in ("encoder_0_block_1", "decoder_2_block_1"):
        np.testing.assert_array_equal(
            at(variables, f"{block}/attn/qkv/kernel"), expected
        )
    assert (at(variables, "head/kernel") == 1).all()
