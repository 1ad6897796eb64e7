"""The convolutional networks: training, half precision, sizes.

That their forward passes are the published ones is tested in
tests/importing/test_torch_weights.py, on golden vectors.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.attention_unet import AttentionUNet
from biedsnet_jax.networks.unet import UNet
from biedsnet_jax.networks.unetpp import UNetPlusPlus
from biedsnet_jax.networks.unext import UNeXt

TOYS = [
    pytest.param(UNet(channels=(4, 8), dtype=jnp.bfloat16), id="unet"),
    pytest.param(
        UNetPlusPlus(channels=(4, 8, 8), deep_supervision=True, dtype=jnp.bfloat16),
        id="unetpp",
    ),
    pytest.param(
        AttentionUNet(channels=(4, 8), dtype=jnp.bfloat16), id="attention_unet"
    ),
    pytest.param(UNeXt(channels=(4, 4, 8, 8, 8), dtype=jnp.bfloat16), id="unext"),
]


def discs(count: int = 4, size: int = 32):
    """Noisy images of one bright disc each, and its mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.uniform(10, size - 10, (count, 2)), rng.uniform(5, 9, count)
    mask = np.stack(
        [(y - cy) ** 2 + (x - cx) ** 2 < r**2 for (cy, cx), r in zip(centres, radii)]
    )[..., None]
    image = mask + rng.normal(0, 0.3, mask.shape)
    return jnp.asarray(image, jnp.float32), jnp.asarray(mask, jnp.float32)


def start(module, image):
    """Variables drawn in numpy, without compiling the modules' own initialisers."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            fan_in = math.prod(leaf.shape[:-1])
            return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), leaf.dtype)

    shapes = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), image
    )
    return jax.tree_util.tree_map_with_path(draw, shapes)


def dice_bce(logits, mask):
    p = jax.nn.sigmoid(logits)
    dice = 2 * jnp.sum(p * mask) / (jnp.sum(p) + jnp.sum(mask))
    return 1 - dice + jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask))


@pytest.mark.slow
@pytest.mark.parametrize("module", TOYS)
def test_a_few_bfloat16_adam_steps_lower_the_loss(module):
    image, mask = discs()
    variables, optimizer = start(module, image), optax.adam(1e-2)
    # Adam on one flat vector compiles one kernel.
    params, unravel = ravel_pytree(variables["params"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_of(params, batch_stats):
        variables = {"params": unravel(params), "batch_stats": batch_stats}
        (logits, out), new = module.apply(
            variables, image, train=True, mutable=["batch_stats"]
        )
        heads = [logits, *out.get("supervision", [])]
        return sum(dice_bce(head, mask) for head in heads) / len(heads), (
            logits,
            new["batch_stats"],
        )

    batch_stats = variables["batch_stats"]
    opt_state = optimizer.init(params)
    losses = []
    for _ in range(15):
        (loss, (logits, batch_stats)), grads = loss_of(params, batch_stats)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0], losses
    # Weights, statistics and what the loss sees stay in float32.
    kept = jax.tree.leaves((variables, batch_stats, logits))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("module", "size", "fits"),
    [
        (UNet(), (100, 64), "96x64 or 112x64"),
        (UNetPlusPlus(), (64, 40), "64x32 or 64x48"),
        (AttentionUNet(), (4, 16), "16x16"),
        (UNeXt(), (48, 80), "32x64 or 64x96"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(module, size, fits):
    with pytest.raises(BadInput, match=f"{size[0]}x{size[1]}.* {fits}"):
        jax.eval_shape(
            lambda x: module.init(jax.random.key(0), x, train=False),
            jnp.zeros((1, *size, 1)),
        )


def test_attention_maps_come_coarsest_first_and_lie_in_0_1():
    module, image = AttentionUNet(classes=3, channels=(4, 4, 8)), discs()[0]
    logits, out = jax.jit(
        lambda variables: module.apply(variables, image, train=False)
    )(start(module, image))
    assert logits.shape == (4, 32, 32, 3)
    assert [alpha.shape for alpha in out["attention"]] == [
        (4, 16, 16, 1),
        (4, 32, 32, 1),
    ]
    assert all(
        0 < float(alpha.min()) < float(alpha.max()) < 1 for alpha in out["attention"]
    )


def test_fewer_widths_make_a_shallower_network_that_takes_more_sizes():
    # Three levels take multiples of 2**2.
    module, image = UNetPlusPlus(channels=(4, 4, 8)), jnp.zeros((4, 12, 20, 1))
    (logits, _), _ = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, train=False), image
    )
    assert logits.shape == (4, 12, 20, 1)
