"""SwinUNet: the published forward pass, windows by a plain loop, training, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import SHARED
from random_weights import squares, weights
from torch_state import load_torch_state

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.swin_unet import (
    PatchMerging,
    SwinBlock,
    SwinUNet,
    WindowAttention,
)

VECTORS = SHARED / "golden" / "swinunet_e24_w4_64_in1.npz"
# Constructor of the network that the vectors are of.
OF_VECTORS = {"image_size": 64, "window": 4, "embed_dim": 24, "repeat_gray": False}
TOY = SwinUNet(
    image_size=32, window=4, embed_dim=12, depths=(2, 1), heads=(2, 4), drop_path=0.1
)


@pytest.mark.skipif(
    not VECTORS.is_file(), reason="needs shared/golden beside the project"
)
def test_forward_pass_is_the_published_one():
    with np.load(VECTORS) as golden:
        state = {
            name[2:]: golden[name] for name in golden.files if name.startswith("w:")
        }
        image = jnp.asarray(np.moveaxis(golden["in:x"], 1, -1))
        expected = np.moveaxis(golden["out:y"], 1, -1)
    variables = load_torch_state("swin_unet", state, inputs=(image,), **OF_VECTORS)
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(SwinUNet(**OF_VECTORS).apply, static_argnames="train")
        logits, _ = forward(variables, image, train=False)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_window_attention_is_attention_between_patches_of_one_window(shift):
    side, window, heads, c = 8, 4, 2, 6
    x = np.random.default_rng(1).normal(size=(side, side, c)).astype(np.float32)
    module = WindowAttention(heads, window, shift)
    rng = np.random.default_rng(0)
    params = {
        "qkv": {"kernel": rng.normal(size=(c, 3 * c)), "bias": rng.normal(size=3 * c)},
        "proj": {"kernel": rng.normal(size=(c, c)), "bias": rng.normal(size=c)},
        "relative_position_bias_table": rng.normal(size=((2 * window - 1) ** 2, heads)),
    }
    params = jax.tree.map(lambda p: p.astype(np.float32), params)
    got = jax.jit(module.apply)({"params": params}, jnp.asarray(x)[None])[0]

    # Here shifted windows cut a line at shift, shift + window, ...: no rolling, no
    # mask.
    q, k, v = np.split(x @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=-1)
    table, d = params["relative_position_bias_table"], c // heads
    patches = [(row, col) for row in range(side) for col in range(side)]
    expected = np.zeros_like(x)
    for row, col in patches:
        home = ((row - shift) // window, (col - shift) // window)
        peers = [
            (r, s)
            for r, s in patches
            if ((r - shift) // window, (s - shift) // window) == home
        ]
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            score = [
                q[row, col, part] @ k[r, s, part] / d**0.5
                + table[
                    (row - r + window - 1) * (2 * window - 1) + col - s + window - 1,
                    head,
                ]
                for r, s in peers
            ]
            weight = np.exp(score - np.max(score))
            expected[row, col, part] = sum(
                w * v[p][part] for w, p in zip(weight / weight.sum(), peers)
            )
    expected = expected @ params["proj"]["kernel"] + params["proj"]["bias"]
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_merging_takes_the_pixels_of_a_square_column_by_column():
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    # The kernel picks the second and the third of the four pixels.
    pick = jnp.zeros((4, 2)).at[1, 0].set(1).at[2, 1].set(1)
    params = {
        "norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "reduction": {"kernel": pick},
    }
    y = jax.jit(PatchMerging().apply)({"params": params}, x)
    # Pixel (1, 0) holds 3 and (0, 1) holds 2; their mean is 2.5 and their variance
    # 1.25.
    np.testing.assert_allclose(
        y.ravel(), np.array([0.5, -0.5]) / np.sqrt(1.25), rtol=1e-4
    )


def test_stochastic_depth_drops_a_whole_branch_of_an_example():
    x = jnp.asarray(
        np.tile(np.random.default_rng(1).normal(size=(4, 4, 6)), (32, 1, 1, 1)),
        jnp.float32,
    )
    block = SwinBlock(heads=2, window=4, shift=0, drop_path=0.5)
    variables = weights(block, x, train=False)
    y = jax.jit(
        lambda key: block.apply(variables, x, train=True, rngs={"dropout": key})
    )(jax.random.key(2))
    distinct = np.unique(np.round(np.asarray(y - x).reshape(32, -1), 5), axis=0)
    # Attention on or off, MLP on or off; both off leaves the example as it was.
    assert len(distinct) == 4
    assert (np.abs(distinct).max(axis=1) == 0).sum() == 1


@pytest.mark.slow
def test_a_few_adam_steps_in_bfloat16_lower_the_loss():
    image, mask = squares()
    optimizer, half = optax.adam(3e-3), TOY.clone(dtype=jnp.bfloat16)

    def loss_of(params, key):
        logits, _ = half.apply(
            {"params": params}, image, train=True, rngs={"dropout": key}
        )
        assert logits.dtype == jnp.float32
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask))

    @jax.jit
    def step(params, opt_state, key):
        loss, grads = jax.value_and_grad(loss_of)(params, key)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    params = weights(TOY, image, train=False)["params"]
    opt_state, losses = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), 12):
        params, opt_state, loss = step(params, opt_state, key)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0], losses
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("module", "size", "message"),
    [
        (
            SwinUNet(window=7),
            256,
            "data.size 256.* 224 or 448, or .*window=2 or 4 or 8 or 16",
        ),
        (SwinUNet(image_size=100), 100, "data.size 100.* 64 or 128"),
        (
            SwinUNet(image_size=224, window=0),
            224,
            "data.size 224.*window=7 or 14",
        ),
        (
            SwinUNet(image_size=224, window=7),
            256,
            "image_size=224.* 256x256.* to 224",
        ),
    ],
)
def test_a_size_that_windows_do_not_tile_is_refused_with_those_that_fit(
    module, size, message
):
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
