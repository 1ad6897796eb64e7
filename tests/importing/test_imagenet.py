"""ImageNet starts: every tensor goes where it belongs, every misfit is named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from refusals import refused

from biedsnet_jax.importing import import_weights
from biedsnet_jax.importing.imagenet import (
    find_loader,
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
    """Tensors with values of their own, so that a swap of two cannot pass."""
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
                norm = f"{at}/{name.replace('conv', 'gn')}"
                shapes[f"{norm}/scale"] = shapes[f"{norm}/bias"] = (1, 1, 1, shape[-1])
            channels = 4 * mid
    # One layer more than the network has.
    for layer in range(3):
        at = f"Transformer/encoderblock_{layer}"
        attention = f"{at}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            shapes[f"{attention}/{name}/kernel"] = (HIDDEN, HEADS, HIDDEN // HEADS)
            shapes[f"{attention}/{name}/bias"] = (HEADS, HIDDEN // HEADS)
        shapes[f"{attention}/out/kernel"] = (HEADS, HIDDEN // HEADS, HIDDEN)
        shapes[f"{attention}/out/bias"] = (HIDDEN,)
        for name in ("LayerNorm_0", "LayerNorm_2"):
            shapes[f"{at}/{name}/scale"] = shapes[f"{at}/{name}/bias"] = (HIDDEN,)
        shapes[f"{at}/MlpBlock_3/Dense_0/kernel"] = (HIDDEN, MLP)
        shapes[f"{at}/MlpBlock_3/Dense_0/bias"] = (MLP,)
        shapes[f"{at}/MlpBlock_3/Dense_1/kernel"] = (MLP, HIDDEN)
        shapes[f"{at}/MlpBlock_3/Dense_1/bias"] = (HIDDEN,)
    return fill(shapes)


@pytest.fixture(scope="module")
def swin_tensors():
    """Names and shapes of the official Swin-T, narrow, of three stages and windows of 3."""
    shapes = {
        "patch_embed.proj.weight": (12, 3, 4, 4),
        "patch_embed.proj.bias": (12,),
        "head.weight": (5, 48),
    }

    def add_norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def add_linear(name, n_in, n_out):
        shapes[f"{name}.weight"] = (n_out, n_in)
        shapes[f"{name}.bias"] = (n_out,)

    add_norm("patch_embed.norm", 12)
    add_norm("norm", 48)
    for stage, (depth, heads) in enumerate(zip((2, 2, 6), (2, 4, 8))):
        c = 12 * 2**stage
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}"
            shapes[f"{at}.attn.relative_position_bias_table"] = (25, heads)
            shapes[f"{at}.attn.relative_position_index"] = (9, 9)
            add_linear(f"{at}.attn.qkv", c, 3 * c)
            add_linear(f"{at}.attn.proj", c, c)
            add_linear(f"{at}.mlp.fc1", c, 4 * c)
            add_linear(f"{at}.mlp.fc2", 4 * c, c)
            add_norm(f"{at}.norm1", c)
            add_norm(f"{at}.norm2", c)
        if stage < 2:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * c, 4 * c)
            add_norm(f"layers.{stage}.downsample.norm", 4 * c)
    return fill(shapes)


def at(variables, path):
    """The parameter at a path."""
    return np.asarray(traverse_util.flatten_dict(variables["params"], sep="/")[path])


def check_equal(variables, pairs):
    """Asserts that each path of `pairs` holds the array beside it."""
    for path, expected in pairs.items():
        np.testing.assert_array_equal(at(variables, path), expected, err_msg=path)


def assert_only_these_stay_zero(variables, prefixes):
    for path, leaf in traverse_util.flatten_dict(variables["params"], sep="/").items():
        assert np.any(leaf) != path.startswith(prefixes), path


def stretch(table, side):
    """Linear interpolation with the corners kept, one channel and one line at a time."""
    n = table.shape[0]

    def stretch_line(line):
        return np.interp(np.linspace(0, n - 1, side), np.arange(n), line)

    rows = np.apply_along_axis(stretch_line, 0, table)
    return np.apply_along_axis(stretch_line, 1, rows)


@pytest.mark.slow
def test_vit_fills_the_encoder_and_nothing_else(vit_tensors):
    before = zeros(VIT)
    after = load_pretrained_vit_r50(vit_tensors, before)
    assert_only_these_stay_zero(after, ("decoder_", "head/"))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    # The argument is left as it is.
    assert not np.any(at(before, "embed/bias"))


def test_vit_convolutions_and_norms_keep_their_meaning(vit_tensors):
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT))
    root = {
        "resnet/root_conv/kernel": vit_tensors["conv_root/kernel"],
        "resnet/root_gn/scale": vit_tensors["gn_root/scale"].ravel(),
        "embed/kernel": vit_tensors["embedding/kernel"][0, 0],
    }
    check_equal(after, root)
    for stage, unit in ((1, 1), (2, 1), (2, 2), (3, 1)):
        ours, theirs = f"resnet/block{stage}_unit{unit}", f"block{stage}/unit{unit}"
        for i in ("1", "2", "3", "_proj") if unit == 1 else ("1", "2", "3"):
            block = {
                f"{ours}/conv{i}/kernel": vit_tensors[f"{theirs}/conv{i}/kernel"],
                f"{ours}/gn{i}/scale": vit_tensors[f"{theirs}/gn{i}/scale"].ravel(),
                f"{ours}/gn{i}/bias": vit_tensors[f"{theirs}/gn{i}/bias"].ravel(),
            }
            check_equal(after, block)


def test_vit_attention_keeps_its_meaning(vit_tensors):
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT))
    z = np.random.default_rng(1).normal(size=(3, HIDDEN)).astype(np.float32)
    for layer in range(2):
        ours = f"encoder_{layer}"
        theirs = f"Transformer/encoderblock_{layer}/MultiHeadDotProductAttention_1"
        # Their projection, head by head.
        for name in ("query", "key", "value"):
            kernel = vit_tensors[f"{theirs}/{name}/kernel"]
            bias = vit_tensors[f"{theirs}/{name}/bias"]
            heads = [z @ kernel[:, head] + bias[head] for head in range(HEADS)]
            found = z @ at(after, f"{ours}/{name}/kernel")
            found += at(after, f"{ours}/{name}/bias")
            expected = np.concatenate(heads, axis=-1)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        out = vit_tensors[f"{theirs}/out/kernel"]
        parts = np.split(z, HEADS, axis=-1)
        expected = sum(part @ out[head] for head, part in enumerate(parts))
        found = z @ at(after, f"{ours}/out/kernel")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_vit_layers_keep_their_meaning(vit_tensors):
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT))
    names = {
        "attention_norm/scale": "LayerNorm_0/scale",
        "attention_norm/bias": "LayerNorm_0/bias",
        "ffn_norm/scale": "LayerNorm_2/scale",
        "ffn_norm/bias": "LayerNorm_2/bias",
        "fc1/kernel": "MlpBlock_3/Dense_0/kernel",
        "fc1/bias": "MlpBlock_3/Dense_0/bias",
        "fc2/kernel": "MlpBlock_3/Dense_1/kernel",
        "fc2/bias": "MlpBlock_3/Dense_1/bias",
        "out/bias": "MultiHeadDotProductAttention_1/out/bias",
    }
    for layer in range(2):
        theirs = f"Transformer/encoderblock_{layer}"
        pairs = {
            f"encoder_{layer}/{ours}": vit_tensors[f"{theirs}/{name}"]
            for ours, name in names.items()
        }
        check_equal(after, pairs)
    norm = {
        f"encoder_norm/{leaf}": vit_tensors[f"Transformer/encoder_norm/{leaf}"]
        for leaf in ("scale", "bias")
    }
    check_equal(after, norm)


def test_vit_positions_lose_the_class_token_and_follow_the_image_size(vit_tensors):
    table = vit_tensors["Transformer/posembed_input/pos_embedding"]
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT.clone(image_size=32)))
    np.testing.assert_array_equal(at(after, "position_embeddings"), table[:, 1:])
    # At 48 pixels, from 2x2 tokens to 3x3.
    after = load_pretrained_vit_r50(vit_tensors, zeros(VIT))
    expected = stretch(table[0, 1:].reshape(2, 2, HIDDEN), 3).reshape(1, 9, HIDDEN)
    np.testing.assert_allclose(at(after, "position_embeddings"), expected, atol=1e-6)


def test_vit_misfits_are_listed_by_name(vit_tensors):
    broken = dict(vit_tensors)
    broken["conv_root/kernel"] = np.zeros((7, 7, 1, WIDTH), np.float32)
    del broken["Transformer/encoderblock_1/LayerNorm_2/bias"]
    missing = "missing: Transformer/encoderblock_1/LayerNorm_2/bias"
    misshapen = "misshapen: conv_root/kernel ("
    refused(lambda: load_pretrained_vit_r50(broken, zeros(VIT)), missing, misshapen)


@pytest.mark.slow
def test_swin_fills_encoder_and_decoder_blocks_and_nothing_else(swin_tensors):
    after = load_pretrained_swin_t(swin_tensors, zeros(SWIN))
    assert_only_these_stay_zero(after, ("expand_", "concat_", "norm_up/", "head/"))


def test_swin_embedding_and_merges_keep_their_meaning(swin_tensors):
    after = load_pretrained_swin_t(swin_tensors, zeros(SWIN))
    # One element of "h w in out", worked out by hand.
    found = at(after, "embed/kernel")[1, 2, 0, 5]
    assert found == swin_tensors["patch_embed.proj.weight"][5, 0, 1, 2]
    pairs = {}
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
        pairs[f"embed_norm/{leaf}"] = swin_tensors[f"patch_embed.norm.{name}"]
        pairs[f"norm/{leaf}"] = swin_tensors[f"norm.{name}"]
    for stage in range(2):
        ours, theirs = f"merge_{stage}", f"layers.{stage}.downsample"
        pairs[f"{ours}/reduction/kernel"] = swin_tensors[f"{theirs}.reduction.weight"].T
        pairs[f"{ours}/norm/bias"] = swin_tensors[f"{theirs}.norm.bias"]
    check_equal(after, pairs)


@pytest.mark.parametrize(
    ("ours", "stage"),
    # The first decoder stage has the resolution of encoder stage 1, the second that of 0.
    [("encoder_0", 0), ("encoder_1", 1), ("decoder_1", 1), ("decoder_2", 0)],
)
def test_swin_stage_starts_the_stages_of_its_resolution(swin_tensors, ours, stage):
    after = load_pretrained_swin_t(swin_tensors, zeros(SWIN))
    linear = {"attn/qkv": "attn.qkv", "attn/proj": "attn.proj"}
    linear |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    for i in (0, 1):
        block, theirs = f"{ours}_block_{i}", f"layers.{stage}.blocks.{i}"
        pairs = {}
        for part, name in linear.items():
            pairs[f"{block}/{part}/kernel"] = swin_tensors[f"{theirs}.{name}.weight"].T
            pairs[f"{block}/{part}/bias"] = swin_tensors[f"{theirs}.{name}.bias"]
        for norm in ("norm1", "norm2"):
            pairs[f"{block}/{norm}/scale"] = swin_tensors[f"{theirs}.{norm}.weight"]
            pairs[f"{block}/{norm}/bias"] = swin_tensors[f"{theirs}.{norm}.bias"]
        check_equal(after, pairs)
        table = swin_tensors[f"{theirs}.attn.relative_position_bias_table"]
        # From offsets -2..2 to -3..3.
        expected = stretch(table.reshape(5, 5, -1), 7).reshape(49, -1)
        found = at(after, f"{block}/attn/relative_position_bias_table")
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_swin_misfits_are_listed_by_name(swin_tensors):
    broken, bias = dict(swin_tensors), "attn.relative_position_bias_table"
    broken["layers.1.blocks.0.mlp.fc1.weight"] = np.zeros((3, 3), np.float32)
    broken[f"layers.0.blocks.1.{bias}"] = np.zeros((25, 3), np.float32)
    del broken["layers.2.blocks.0.norm1.bias"]
    says = (
        "missing: layers.2.blocks.0.norm1.bias",
        f"misshapen: layers.0.blocks.1.{bias}",
        "layers.1.blocks.0.mlp.fc1.weight (becomes (3, 3), needs (24, 96))",
    )
    refused(lambda: load_pretrained_swin_t(broken, zeros(SWIN)), *says)


def test_mode_import_takes_an_imagenet_start_and_draws_the_rest(
    swin_tensors, monkeypatch
):
    # Instead of a true draw, which takes long to compile.
    drawn = jax.tree.map(jnp.ones_like, zeros(SWIN))
    monkeypatch.setattr(
        import_weights.build_model, "init_variables", lambda model, cfg: drawn
    )
    c = folder.get_config("swin_unet")
    c.data.size = SWIN.image_size
    c.networks.swin_unet.update(
        window=SWIN.window,
        embed_dim=SWIN.embed_dim,
        depths=SWIN.depths,
        heads=SWIN.heads,
    )
    variables, kind = import_weights.make_variables(c, swin_tensors)
    assert kind == "an ImageNet start"
    kernel = swin_tensors["layers.0.blocks.1.attn.qkv.weight"].T
    blocks = ("encoder_0_block_1", "decoder_2_block_1")
    check_equal(variables, {f"{block}/attn/qkv/kernel": kernel for block in blocks})
    assert (at(variables, "head/kernel") == 1).all()


def test_imagenet_tensors_are_known_by_their_names():
    vit = ["Transformer/encoder_norm/scale"]
    assert find_loader("trans_unet", vit) is load_pretrained_vit_r50
    assert find_loader("swin_unet", ["head.weight"]) is load_pretrained_swin_t
    assert find_loader("swin_unet", ["output.weight"]) is None
