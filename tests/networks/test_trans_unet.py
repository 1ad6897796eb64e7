"""TransUNet: the published forward pass, standardised weights, training, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import SHARED
from random_weights import squares, weights
from torch_state import load_torch_state

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.trans_unet import Bottleneck, StandardisedConv, TransUNet

VECTORS = SHARED / "golden" / "transunet_small_64.npz"
# Constructor of the network that the vectors are of.
OF_VECTORS = {
    "classes": 2,
    "image_size": 64,
    "hidden": 48,
    "mlp": 96,
    "heads": 4,
    "layers": 2,
    "resnet_units": (2, 2, 2),
    "resnet_width": 32,
    "decoder": (32, 32, 16, 16),
}
TOY = TransUNet(
    image_size=32,
    hidden=16,
    mlp=32,
    heads=2,
    layers=1,
    resnet_units=(1, 1, 1),
    resnet_width=32,
    decoder=(8, 8, 8, 8),
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
    variables = load_torch_state("trans_unet", state, inputs=(image,), **OF_VECTORS)
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(TransUNet(**OF_VECTORS).apply, static_argnames="train")
        logits, _ = forward(variables, image, train=False)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_standardised_convolution_sees_neither_mean_nor_scale_of_its_kernel():
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 3)).astype(np.float32)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    apply = jax.jit(
        lambda kernel: StandardisedConv(4, kernel=3).apply(
            {"params": {"kernel": kernel}}, jnp.asarray(x)
        )
    )
    y, moved = apply(kernel), apply(7 * kernel + 2)
    np.testing.assert_allclose(moved, y, atol=1e-3)
    # One output pixel, by hand: the window at row 2, column 3 of output channel 1.
    k = kernel[..., 1]
    k = (k - k.mean()) / np.sqrt(k.var() + 1e-5)
    np.testing.assert_allclose(y[0, 2, 3, 1], (x[0, 1:4, 2:5] * k).sum(), rtol=1e-4)


@pytest.mark.slow
def test_its_group_norms_have_as_many_groups_as_asked_for():
    # A bottleneck's first norm, worked out by hand from its convolution's result.
    module = Bottleneck(16, groups=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 6, 64)), jnp.float32)
    variables = module.init(jax.random.key(0), x)
    _, seen = module.apply(variables, x, capture_intermediates=True)
    before, after = (
        np.asarray(seen["intermediates"][name]["__call__"][0])
        for name in ("conv1", "gn1")
    )
    # "pixels groups channels"
    parts = before.reshape(36, 4, 4)
    expected = (parts - parts.mean((0, 2), keepdims=True)) / np.sqrt(
        parts.var((0, 2), keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(after.reshape(36, 4, 4), expected, atol=1e-4)


@pytest.mark.parametrize("size", [16, 48])
def test_every_multiple_of_16_gives_logits_of_its_size(size):
    module = TOY.clone(image_size=size, classes=3)
    image = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    (logits, out), _ = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, train=False), image
    )
    assert (logits.shape, out) == ((2, size, size, 3), {})


@pytest.mark.slow
def test_a_few_adam_steps_in_bfloat16_lower_the_loss():
    image, mask = squares()
    optimizer, half = optax.adam(3e-3), TOY.clone(dtype=jnp.bfloat16)

    def loss_of(params, batch_stats, key):
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, _), new = half.apply(
            variables, image, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        assert logits.dtype == jnp.float32
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask)), new[
            "batch_stats"
        ]

    @jax.jit
    def step(params, batch_stats, opt_state, key):
        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, batch_stats, key
        )
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), batch_stats, opt_state, loss

    variables = weights(TOY, image, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state, losses = optimizer.init(params), []
    keys = jax.random.split(jax.random.key(1), 12)
    same = [float(step(params, batch_stats, opt_state, key)[-1]) for key in keys[:2]]
    # The same weights lose differently by dropout.
    assert same[0] != same[1]
    for key in keys:
        params, batch_stats, opt_state, loss = step(params, batch_stats, opt_state, key)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0], losses
    assert {leaf.dtype for leaf in jax.tree.leaves((params, batch_stats))} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize(
    ("module", "size", "message"),
    [
        (
            TransUNet(image_size=250),
            250,
            "data.size 250.* 240 or 256",
        ),
        (TransUNet(image_size=8), 8, "data.size 8.* 16"),
        (
            TransUNet(image_size=224),
            256,
            "image_size=224.* 256x256.* to 224",
        ),
        (
            TransUNet(image_size=32, resnet_width=16),
            32,
            "resnet_width=16 .*groups=32",
        ),
        (TransUNet(image_size=32, groups=0), 32, "resnet_width=64 .*groups=0"),
    ],
)
def test_a_size_it_cannot_take_is_refused_with_those_it_can(module, size, message):
    image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
