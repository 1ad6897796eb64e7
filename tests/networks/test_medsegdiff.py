"""MedSegDiff, version new: the published code's vectors, and its denoiser's contract."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.flatten_util import ravel_pytree
from places import GOLDEN, SHARED
from random_weights import initial, normal, weights
from torch_state import load_torch_state

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.medsegdiff import MedSegDiff, ResBlock, SelfAttention
from biedsnet_jax.networks.medsegdiff_highway import FFParser, HighwayBlock
from biedsnet_jax.segmenters import fusion, losses
from configs import covid

SHARED_GOLDEN = SHARED / "golden" / "medsegdiff_new_c32_in1.npz"
# Constructor of the network that the vectors are of.
OF_VECTORS = {
    "channel_mult": (1, 1, 2, 2),
    "attention_downsample": (4,),
    "num_heads": 2,
    "channels": 32,
    "highway_channels": 8,
}
TOY = {
    "channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_downsample": (2,),
    "highway_channels": 8,
}


def shapes_of(net: MedSegDiff, size: int, channels: int):
    """Shapes of the variables of `net`; nothing is allocated."""
    x_t = jnp.zeros((1, size, size, net.classes))
    image = jnp.zeros((1, size, size, channels))
    return initial(net, x_t, image, jnp.zeros(1), train=False)


def random_variables(net: MedSegDiff, *, size: int, channels: int):
    """Random weights and statistics, of the zero-initialised layers too."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1] in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 25.0
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    flat = traverse_util.flatten_dict(shapes_of(net, size, channels))
    return traverse_util.unflatten_dict(
        {path: fill(path, leaf) for path, leaf in flat.items()}
    )


@pytest.fixture(scope="module")
def toy():
    """A narrow network with random weights, and its inputs (x_t, image, t)."""
    net = MedSegDiff(**TOY)
    rng = np.random.default_rng(1)
    x_t, image = (
        jnp.asarray(rng.normal(size=(2, 32, 32, c)), jnp.float32) for c in (1, 2)
    )
    variables = random_variables(net, size=32, channels=2)
    return net, variables, (x_t, image, jnp.array([17, 900]))


@pytest.fixture(scope="module")
def toy_result(toy):
    """Result of the toy network in float32."""
    net, variables, inputs = toy
    return jax.jit(lambda v: net.apply(v, *inputs, train=False))(variables)


@pytest.mark.skipif(
    not SHARED_GOLDEN.exists(), reason="shared/golden is not beside this checkout"
)
def test_forward_matches_the_published_code():
    golden = np.load(SHARED_GOLDEN)
    channels_last = {
        name: golden[name].transpose(0, 2, 3, 1)
        for name in golden.files
        if golden[name].ndim == 4
    }
    image, x_t = jnp.split(jnp.asarray(channels_last["in:x"]), 2, axis=-1)
    t = jnp.asarray(golden["in:t"], jnp.int32)
    state = {name[2:]: golden[name] for name in golden.files if name.startswith("w:")}
    variables = load_torch_state(
        "medsegdiff", state, inputs=(x_t, image, t), **OF_VECTORS
    )

    def encode_and_denoise(net, x_t, image, t):
        features = net.encode(image, train=False)
        return features, net.denoise(features, x_t, image, t, train=False)[0]

    net = MedSegDiff(**OF_VECTORS)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda v: net.apply(v, x_t, image, t, method=encode_and_denoise))
        features, y = run(variables)
    results = {
        "y": y,
        "cal": features["calibration"],
        "anchor0": features["anchor"][..., 8:16],
        "anchor1": features["anchor"][..., 16:],
    }
    for name, value in results.items():
        expected = channels_last[f"out:{name}"]
        np.testing.assert_allclose(
            value, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name
        )


def test_ff_parser_matches_the_published_code():
    golden = np.load(GOLDEN / "medsegdiff_ffparser.npz")
    assert json.loads(str(golden["meta"]))["ctor"] == "FFParser(dim=4,h=16,w=9)"
    # c h w 2 -> h w c 2
    weight = golden["w:complex_weight"].transpose(1, 2, 0, 3)
    x, expected = (golden[name].transpose(0, 2, 3, 1) for name in ("in:x", "out:y"))
    y = FFParser().apply({"params": {"complex_weight": weight}}, jnp.asarray(x))
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_calibration_loss_and_staple_match_the_published_code():
    golden = np.load(GOLDEN / "medsegdiff_diffusion_math.npz")
    names = ("loss:cal", "loss:x_start", "staple:in", "staple:out")
    calibration, inputs, samples, fused = (
        jnp.moveaxis(jnp.asarray(golden[name]), 1, -1) for name in names
    )
    # The mask comes behind the image.
    mask = inputs[..., -1:]
    np.testing.assert_allclose(
        losses.mse(calibration, mask), golden["loss:term_loss_cal"], rtol=1e-5
    )
    np.testing.assert_allclose(fusion.mean_squared(samples[:, None]), fused, atol=1e-6)


def test_self_attention_matches_a_loop_over_heads_and_pixels():
    rng = np.random.default_rng(2)
    module = SelfAttention(heads=2)
    x = rng.normal(size=(1, 2, 3, 32))
    weight = rng.normal(size=(32, 96)) / 6
    out = rng.normal(size=(32, 32)) / 6
    # 32 groups of one channel are an instance norm.
    normed = (x - x.mean((1, 2))) / np.sqrt(x.var((1, 2)) + 1e-5)
    pixels = normed.reshape(6, 32) @ weight
    expected = np.zeros((6, 32))
    for head in range(2):
        q, k, v = np.split(pixels[:, 48 * head : 48 * head + 48], 3, axis=1)
        for i in range(6):
            # A head has 16 channels.
            scores = np.exp(k @ q[i] / 4.0)
            expected[i, 16 * head : 16 * head + 16] = scores / scores.sum() @ v
    expected = x + (expected @ out).reshape(x.shape)

    params = {
        "norm": {"scale": np.ones(32), "bias": np.zeros(32)},
        "qkv": {"kernel": weight, "bias": np.zeros(96)},
        "project": {"kernel": out, "bias": np.zeros(32)},
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(
            module.apply({"params": params}, jnp.asarray(x, jnp.float32)),
            expected,
            atol=1e-4,
        )


def test_highway_dropout_drops_whole_channels():
    block = HighwayBlock(64, dropout=0.5)
    x = normal(1, 8, 8, 4, seed=3)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    y, _ = block.init_with_output(rngs, x, train=True)
    spread = np.asarray(y).std((0, 1, 2))
    # 32 expected, standard deviation 4
    assert 16 < (spread == 0).sum() < 48
    # A kept channel is normalised before the leaky ReLU.
    assert (spread[spread != 0] > 0.3).all()


@pytest.mark.slow
def test_encode_then_denoise_is_call_and_the_anchor_matters(toy, toy_result):
    net, variables, (x_t, image, t) = toy
    features = jax.jit(lambda v: net.apply(v, image, train=False, method="encode"))(
        variables
    )
    denoise = jax.jit(
        lambda v, features: net.apply(
            v, features, x_t, image, t, train=False, method="denoise"
        )
    )
    output, out = denoise(variables, features)
    without, _ = denoise(
        variables, {**features, "anchor": jnp.zeros_like(features["anchor"])}
    )

    assert output.shape == (2, 32, 32, 2)
    assert features["anchor"].shape == (2, 32, 32, 32)
    assert out.keys() == {"calibration", "calibration_logits"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        (output, out),
        toy_result,
    )
    assert np.abs(output - without).max() > 0.01


@pytest.mark.slow
def test_bfloat16_forward_is_near_float32(toy, toy_result):
    net, variables, inputs = toy
    half = net.clone(dtype=jnp.bfloat16)
    result = jax.jit(lambda v: half.apply(v, *inputs, train=False))(variables)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(toy_result)):
        assert a.dtype == jnp.float32
        assert jnp.abs(a - b).max() < 0.05 * jnp.abs(b).max()


@pytest.fixture(scope="module")
def training():
    """A one-level network's flat parameters, and its gradient of the paper's loss.

    Adam on one flat vector compiles one kernel rather than hundreds, and both tests
    below share one gradient function.
    """
    net = MedSegDiff(**{**TOY, "channel_mult": (1,), "attention_downsample": ()})
    variables = random_variables(net, size=32, channels=1)
    flat, unravel = ravel_pytree(variables["params"])
    rng = np.random.default_rng(4)
    noise, texture = (
        jnp.asarray(rng.normal(size=(2, 32, 32, 1)), jnp.float32) for _ in range(2)
    )
    mask, t = (
        jnp.zeros((2, 32, 32, 1)).at[:, 4:20, 8:30].set(1.0),
        jnp.array([10.0, 900.0]),
    )
    image, x_t = mask + 0.1 * texture, 0.6 * mask + 0.8 * noise

    def loss(params, batch_stats, key, calibration_weight):
        variables = {"params": params, "batch_stats": batch_stats}
        (output, out), new = net.apply(
            variables,
            x_t,
            image,
            t,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        terms = (
            jnp.mean((output[..., :1] - noise) ** 2),
            jnp.mean((out["calibration"] - mask) ** 2),
        )
        return terms[0] + calibration_weight * terms[1], (
            jnp.stack(terms),
            new["batch_stats"],
        )

    @jax.jit
    def gradient(flat, *rest):
        tree, aux = jax.grad(loss, has_aux=True)(unravel(flat), *rest)
        return ravel_pytree(tree)[0], aux

    return flat, unravel, variables["batch_stats"], gradient


@pytest.mark.slow
def test_the_denoisers_gradient_stops_before_the_highway(training):
    flat, unravel, batch_stats, gradient = training

    def largest(calibration_weight):
        tree = unravel(
            gradient(flat, batch_stats, jax.random.key(0), calibration_weight)[0]
        )
        return {
            part: max(
                float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree[part])
            )
            for part in tree
        }

    without, with_calibration = largest(0.0), largest(10.0)
    assert without["highway"] == 0 and without["denoiser"] > 1e-3
    assert with_calibration["highway"] > 1e-3
    assert with_calibration["denoiser"] == pytest.approx(without["denoiser"], rel=1e-5)


@pytest.mark.slow
def test_adam_lowers_both_terms_of_the_papers_loss(training):
    params, _, batch_stats, gradient = training
    start = batch_stats
    optimizer = optax.adam(3e-3)
    state, history = optimizer.init(params), []
    for i in range(20):
        direction, (terms, batch_stats) = gradient(
            params, batch_stats, jax.random.key(i), 10.0
        )
        updates, state = optimizer.update(direction, state)
        params = optax.apply_updates(params, updates)
        history.append(terms)
    # step, (eps, calibration)
    history = np.array(history)
    assert (history[-3:].mean(0) < 0.7 * history[0]).all(), history
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), batch_stats, start)
    assert min(jax.tree.leaves(moved)) > 0


def test_a_residual_block_starts_as_the_identity():
    x = normal(1, 2, 2, 32, seed=5)
    emb = jnp.ones((1, 8))
    y, _ = ResBlock(32).init_with_output(jax.random.key(0), x, emb, train=False)
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("groups, knows_the_time", [(32, False), (8, True)])
def test_norm_groups_of_one_channel_hide_the_time_from_a_block(groups, knows_the_time):
    # The time is a constant added to each channel, which an instance norm takes away.
    x, emb = normal(1, 4, 4, 32, seed=1), normal(2, 1, 8, seed=2)
    block = ResBlock(32, groups)
    variables = weights(block, x, emb[0], train=False)
    early, late = (block.apply(variables, x, e, train=False) for e in emb)
    assert (float(jnp.abs(early - late).max()) > 0.1) is knows_the_time


@pytest.mark.parametrize("variant", ["cpu", "toy"])
def test_the_small_variants_have_as_many_channels_in_a_group_as_full_size(variant):
    full, small = (
        covid.get_config(name).networks.medsegdiff
        for name in ("medsegdiff", f"medsegdiff,{variant}")
    )
    assert small.channels / small.groups == full.channels / full.groups == 4


@pytest.mark.parametrize(
    "size, named",
    [
        ((100, 64), "96x64 or 128x64"),
        ((20, 33), "32x32 or 32x64"),
        ((250, 250), "data.size 250.* 224 or 256"),
    ],
)
def test_a_size_that_does_not_fit_names_two_that_do(size, named):
    image = jnp.zeros((1, *size, 1))
    net = MedSegDiff(**TOY)
    with pytest.raises(BadInput, match=named):
        initial(net, image, image, jnp.zeros(1), train=False)


@pytest.mark.parametrize(
    "fields, named",
    [
        (
            {"channels": 64},
            "channels=64.* highway_channels=16 with highway_cap >= 32, or channels=32",
        ),
        ({"highway_cap": 8}, "highway_cap=8 .* channels=24"),
        (
            {"channels": 48, "highway_channels": 12},
            "channels=48 .*multiple of groups=32",
        ),
        ({"num_heads": 3}, "num_heads=3 .*32 channels"),
        ({"version": "v2"}, "version 'v2'.* 'new' or 'v1'"),
    ],
)
def test_widths_that_do_not_fit_together_are_refused(fields, named):
    with pytest.raises(BadInput, match=named):
        shapes_of(MedSegDiff(**{**TOY, **fields}), 32, 1)
