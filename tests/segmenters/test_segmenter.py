"""Segmenters on networks whose answer is known, and as configs build them."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import normal, weights

from biedsnet_jax.config.build_model import build, draws_samples
from biedsnet_jax.diffusion import process, schedule
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.networks import NETWORKS
from biedsnet_jax.networks.biedsnet import BIEDSNet
from biedsnet_jax.segmenters import losses
from biedsnet_jax.segmenters.direct import Direct
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.segmenters.noise_diffusion import NoisePrediction
from biedsnet_jax.segmenters.segmenter import Segmenter
from configs import covid, default, variants

# Entry points of Oracle, in the order in which compiled programs ran them.
RUNS = []


class Oracle(nn.Module):
    """A perfect denoiser: the image is the mask, and the noise is of no consequence."""

    classes: int = 1

    def encode(self, image, *, train):
        jax.debug.callback(lambda: RUNS.append("encode"))
        return [image]

    def denoise(self, features, x_t, image, t, *, train):
        jax.debug.callback(lambda: RUNS.append("denoise"))
        return 30.0 * (2.0 * features[0] - 1.0), {}

    def __call__(self, x_t, image, t, *, train):
        return self.denoise(self.encode(image, train=train), x_t, image, t, train=train)


class Probe(nn.Module):
    """Gives back what it was given: logits x_t + image, side heads x_t and t."""

    classes: int = 1

    def encode(self, image, *, train):
        return [image]

    def denoise(self, features, x_t, image, t, *, train):
        t = jnp.broadcast_to(t.astype(jnp.float32)[:, None, None, None], x_t.shape)
        return x_t + features[0], {"supervision": [x_t, t]}

    def __call__(self, x_t, image, t, *, train):
        return self.denoise([image], x_t, image, t, train=train)


class Echo(nn.Module):
    """A self-conditioned network: logits x_t times a parameter.

    Its side head is what it was given behind x_t.
    """

    classes: int = 1

    def setup(self):
        self.slope = self.param("slope", nn.initializers.ones, ())

    def encode(self, image, *, train):
        return [image]

    def denoise(self, features, x_t, image, t, *, train):
        x_t, x_0 = jnp.split(x_t, 2, axis=-1)
        return self.slope * x_t, {"supervision": [x_0]}

    def __call__(self, x_t, image, t, *, train):
        return self.denoise([image], x_t, image, t, train=train)


class NoiseOracle(nn.Module):
    """Predicts the noise on a mask but for a parameter; mask and calibration: the image."""

    noise: schedule.Schedule
    classes: int = 1

    def setup(self):
        self.off = self.param("off", nn.initializers.zeros, ())

    def encode(self, image, *, train):
        return [image]

    def denoise(self, features, x_t, image, t, *, train):
        eps = process.eps_from_x_0(self.noise, x_t=x_t, x_0=features[0], t=t)
        output = jnp.concatenate([eps + self.off, jnp.zeros_like(eps)], axis=-1)
        return output, {"calibration": features[0]}

    def __call__(self, x_t, image, t, *, train):
        return self.denoise([image], x_t, image, t, train=train)


class Normed(nn.Module):
    """A direct network with running statistics."""

    @nn.compact
    def __call__(self, image, *, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")
        return norm(image), {}


def masks(batch: int = 2, classes: int = 1):
    return jnp.asarray(
        np.random.default_rng(0).random((batch, 8, 8, classes)) < 0.3, jnp.float32
    )


def keys(batch: int = 2, seed: int = 0):
    return jax.random.split(jax.random.key(seed), batch)


def diffusion(network, loss=losses.joint, *, noise=None, **fields):
    def heads_loss(heads, y, _):
        return loss(heads[0], y)

    return Diffusion(network, noise or schedule.linear(100), heads_loss, **fields)


def predictor(segmenter, ensemble: int = 1):
    """Compiles predict(image, keys) of a network without parameters."""
    return jax.jit(
        lambda image, keys: segmenter.predict({}, image, keys, ensemble=ensemble)
    )


# ---- Diffusion: prediction


@pytest.mark.parametrize(
    ("method", "steps"), [("ddpm", 7), ("ddim", 1), ("dpm_solver", 5)]
)
@pytest.mark.parametrize(
    ("mask_range", "mask_scale"),
    [("plus_minus", 1.0), ("plus_minus", 0.3), ("zero_one", 1.0)],
)
def test_a_perfect_network_recovers_the_mask(method, steps, mask_range, mask_scale):
    segmenter = diffusion(
        Oracle(classes=2),
        mask_range=mask_range,
        mask_scale=mask_scale,
        sampling=Sampling(method, steps),
    )
    y = masks(classes=2)
    got = predictor(segmenter, ensemble=2)(y, keys())
    assert got.shape == (2, *y.shape)
    np.testing.assert_allclose(got, np.stack([y, y]), atol=1e-4)


@pytest.mark.parametrize(("steps", "ensemble"), [(1, 1), (4, 3)])
def test_the_image_is_encoded_once_whatever_the_steps_and_samples(steps, ensemble):
    predict = predictor(diffusion(Oracle(), sampling=Sampling(steps=steps)), ensemble)
    RUNS.clear()
    jax.block_until_ready(predict(masks(), keys()))
    jax.effects_barrier()
    assert RUNS.count("encode") == 1
    assert RUNS.count("denoise") == steps * ensemble


def test_samples_of_an_ensemble_differ_and_do_not_depend_on_its_size():
    segmenter = diffusion(Probe(), sampling=Sampling(steps=2))
    image = masks()
    three = predictor(segmenter, 3)(image, keys())
    two = predictor(segmenter, 2)(image, keys())
    other_key = predictor(segmenter)(image, keys(seed=1))
    np.testing.assert_allclose(three[:2], two, atol=1e-6)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(three[i] - three[j]).max() > 0.01
    assert np.abs(three[0, 0] - other_key[0, 0]).max() > 0.01


def test_a_mask_does_not_depend_on_its_batch():
    network = BIEDSNet(channels=(4, 8), blocks_per_level=1, dconv="lineage")
    segmenter = diffusion(network, sampling=Sampling("ddpm", steps=2))
    image = normal(3, 8, 8, 1)
    variables = weights(network, image, image, jnp.zeros(3, jnp.int32))
    predict = jax.jit(functools.partial(segmenter.predict, variables, ensemble=2))
    together = predict(image, keys(3))
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(
        predict(image[order], keys(3)[order]), together[:, order], atol=1e-5
    )
    np.testing.assert_allclose(
        predict(image[1:2], keys(3)[1:2]), together[:, 1:2], atol=1e-5
    )
    assert np.abs(predict(image, keys(3)[order]) - together).max() > 0.01


# ---- Diffusion: loss


@pytest.mark.parametrize(
    ("mask_range", "mask_scale", "low", "high"),
    [
        ("plus_minus", 1.0, -1, 1),
        ("plus_minus", 0.3, -0.3, 0.3),
        ("zero_one", 1.0, 0, 1),
    ],
)
def test_the_network_is_trained_on_the_noised_mask_in_its_range(
    mask_range, mask_scale, low, high
):
    y = masks(64)
    x_0 = jnp.where(y > 0, high, low)

    def loss(noise, error):
        probe = Diffusion(
            Probe(), noise, lambda heads, *_: error(heads[1]), mask_range, mask_scale
        )
        return probe.loss({}, {"image": y, "mask": y}, jax.random.key(0), train=True)[0]

    clean = schedule.Schedule(np.full(10, 1e-10))
    assert loss(clean, lambda x_t: jnp.abs(x_t - x_0).max((1, 2, 3))) < 1e-3
    # x_t = sqrt(1/2) x_0 + sqrt(1/2) eps
    halfway = schedule.Schedule(np.array([0.5]))
    variance = loss(
        halfway, lambda x_t: jnp.square(x_t - 0.5**0.5 * x_0).mean((1, 2, 3))
    )
    # Over 4096 pixels the standard error is 0.011.
    assert variance == pytest.approx(0.5, abs=0.05)


def test_half_the_batches_of_a_self_conditioned_network_get_its_prediction_untrained():
    y = masks()
    batch = {"image": y, "mask": y}
    init = diffusion(Echo(), self_condition=True).init
    params = init(jax.random.key(0), (8, 8, 1))["params"]

    def zero(logits, x_0):
        return jnp.abs(x_0).max((1, 2, 3))

    def off_prediction(logits, x_0):
        expected = 0.5 * (2.0 * jax.nn.sigmoid(logits) - 1.0)
        return jnp.abs(x_0 - expected).max((1, 2, 3))

    def square(logits, x_0):
        return jnp.square(x_0).mean((1, 2, 3))

    @jax.jit
    def given(key):
        """Whether it got 0, whether its x_0 from x_t, and the gradient through it."""

        def loss(params, of):
            model = Diffusion(
                Echo(),
                schedule.linear(100),
                lambda heads, *_: of(*heads),
                self_condition=True,
                mask_scale=0.5,
            )
            return model.loss({"params": params}, batch, key, train=True)[0]

        gradient = jax.grad(loss)(params, square)
        is_prediction = loss(params, off_prediction) < 1e-6
        return loss(params, zero) == 0.0, is_prediction, gradient["slope"]

    blank, predicted, gradient = jax.lax.map(
        given, jax.random.split(jax.random.key(0), 60)
    )
    assert (blank ^ predicted).all()
    # Of 60 batches half are expected, with a standard deviation of 3.9.
    assert 18 <= predicted.sum() <= 42
    assert not gradient.any()


def test_prediction_of_a_self_conditioned_network_hands_it_its_last_answer():
    variables = {"params": {"slope": jnp.ones(())}}

    def predict(steps):
        model = diffusion(Echo(), self_condition=True, sampling=Sampling(steps=steps))
        samples = model.predict(variables, masks(), keys(), ensemble=1)
        return samples, model.trajectory(variables, masks(), keys())

    one, _ = predict(1)

    def draw(key):
        first, _ = jax.random.split(jax.random.fold_in(key, 0))
        return jax.random.normal(first, (8, 8, 1))

    noise = jax.vmap(draw)(keys())
    np.testing.assert_allclose(one[0], jax.nn.sigmoid(noise), atol=1e-6)
    many, trajectory = predict(3)
    np.testing.assert_allclose(trajectory.x_0[-1], many[0], atol=1e-6)


def test_training_times_are_uniform_and_each_examples_own():
    y = jnp.zeros((2000, 1, 1, 1))

    def share(time):
        def is_time(heads, *_):
            return (heads[2] == time).mean((1, 2, 3))

        probe = Diffusion(Probe(), schedule.cosine(4), is_time)
        batch = {"image": y, "mask": y}
        return float(probe.loss({}, batch, jax.random.key(0), train=True)[0])

    assert [share(t) for t in range(4)] == pytest.approx([0.25] * 4, abs=0.05)


def test_a_perfect_network_has_no_loss_and_dice_1():
    # One image has no lesion.
    y = masks().at[0].set(0.0)
    value, (metrics, _) = diffusion(Oracle()).loss(
        {}, {"image": y, "mask": y}, jax.random.key(0), train=True
    )
    assert value == pytest.approx(0, abs=1e-5)
    assert metrics["train_dice"] == pytest.approx(1)


def test_the_loss_is_a_function_of_the_key():
    segmenter, batch = diffusion(Probe()), {"image": masks(), "mask": masks()}
    first, again, other = (
        float(segmenter.loss({}, batch, jax.random.key(seed), train=True)[0])
        for seed in (0, 0, 1)
    )
    assert first == again != other


# ---- Prediction of noise


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm_solver"])
def test_perfectly_predicted_noise_recovers_the_mask(method):
    noise, y = schedule.linear(100), masks(classes=2)
    segmenter = NoisePrediction(
        NoiseOracle(noise, classes=2), noise, Sampling(method, steps=6)
    )
    probability = jax.jit(
        functools.partial(segmenter.predict, {"params": {"off": 0.0}}, ensemble=2)
    )(y, keys())
    np.testing.assert_allclose(probability, np.stack([y, y]), atol=1e-3)


def test_the_variational_bound_joins_the_loss_of_noise_but_trains_the_variance_alone():
    noise, y = schedule.linear(100), masks()
    segmenter = NoisePrediction(NoiseOracle(noise), noise)

    def loss(off, image):
        batch = {"image": image, "mask": y}
        value, (terms, _) = segmenter.loss(
            {"params": {"off": off}}, batch, jax.random.key(0), train=True
        )
        return value, terms

    (value, terms), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(0.5, y)
    assert terms["eps"] == pytest.approx(0.25, rel=1e-3)
    assert terms["calibration"] == pytest.approx(0, abs=1e-6)
    assert terms["vlb"] > 0.01
    assert value == pytest.approx(
        sum(float(terms[name]) for name in ("eps", "vlb", "calibration")), rel=1e-5
    )
    # It is the gradient of the squared error alone.
    assert slope == pytest.approx(2 * 0.5, rel=1e-3)
    _, terms = jax.jit(loss)(0.0, jnp.full_like(y, 0.5))
    assert terms["calibration"] == pytest.approx(10 * 0.25)


# ---- How a sample came about


def traced(segmenter, image, variables):
    """Computes the first sample of an image, and its trajectory."""
    predict = jax.jit(functools.partial(segmenter.predict, variables, ensemble=2))
    trajectory = jax.jit(functools.partial(segmenter.trajectory, variables))
    return predict(image, keys())[0], trajectory(image, keys())


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm_solver"])
def test_a_trajectory_ends_in_the_first_sample(method):
    segmenter = diffusion(Probe(), mask_scale=0.7, sampling=Sampling(method, steps=3))
    sample, steps = traced(segmenter, masks(), {})
    assert steps.x_t.shape == steps.x_0.shape == (3, *sample.shape)
    np.testing.assert_allclose(steps.x_0[-1], sample, atol=1e-5)
    assert np.abs(steps.x_0[0] - sample).max() > 1e-3
    # The steps are probabilities: x_t is scaled back, x_0 is the network's answer to it.
    x_t = 0.7 * (2 * steps.x_t - 1)
    np.testing.assert_allclose(
        steps.x_0, jax.nn.sigmoid(x_t + masks()[None]), atol=1e-5
    )


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_a_trajectory_of_predicted_noise_ends_in_the_first_sample(method):
    noise = schedule.linear(100)
    segmenter = NoisePrediction(NoiseOracle(noise), noise, Sampling(method, steps=4))
    sample, steps = traced(segmenter, masks(), {"params": {"off": 0.3}})
    np.testing.assert_allclose(steps.x_0[-1], sample, atol=1e-5)
    assert steps.x_t.shape == (4, *sample.shape)
    assert steps.x_t.min() >= 0 and steps.x_t.max() <= 1


def test_a_network_that_needs_one_pass_has_no_trajectory():
    assert (
        Direct(Normed(), lambda heads, y, _: y).trajectory({}, masks(), keys()) is None
    )


# ---- Direct


def test_a_denoiser_used_directly_sees_neither_noise_nor_time():
    segmenter = Direct(
        Probe(), lambda heads, *_: sum(jnp.abs(x).max((1, 2, 3)) for x in heads[1:])
    )
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    probability = predictor(segmenter, ensemble=5)(image, keys())
    np.testing.assert_allclose(probability, jax.nn.sigmoid(image)[None], atol=1e-6)
    np.testing.assert_array_equal(
        probability, predictor(segmenter)(image, keys(seed=1))
    )
    x_t_and_t, _ = segmenter.loss(
        {}, {"image": image, "mask": masks()}, jax.random.key(0), train=True
    )
    assert x_t_and_t == 0


@pytest.mark.parametrize(("train", "mean"), [(True, 0.5), (False, 0.0)])
def test_running_statistics_move_in_training_only(train, mean):
    segmenter = Direct(Normed(), lambda heads, y, _: losses.bce(heads[0], y))
    variables = segmenter.init(jax.random.key(0), (8, 8, 1))
    batch = {"image": jnp.full((2, 8, 8, 1), 5.0), "mask": masks()}
    _, (_, stats) = segmenter.loss(variables, batch, jax.random.key(0), train=train)
    # 0.9 * 0 + 0.1 * 5
    np.testing.assert_allclose(stats["norm"]["mean"], [mean], atol=1e-6)


# ---- What a config builds


def config_of(variant: str):
    """The config of a variant, with networks small enough to trace quickly."""
    config = default.get_config()
    variants.small(config)
    config.networks.biedsnet.update(channels=(4, 4, 4), blocks_per_level=1)
    config.loss.supervision_weights = (0.7, 0.3)
    return variants.apply(config, variant)


# Those whose programs take longest to compile, and whose parts others have too.
SLOW_VARIANTS = {
    "attention_unet", "medsegdiff", "medsegdiff_v1", "no_attention", "no_bffm",
    "row2", "row3", "row4", "row5", "swin_unet", "trans_unet",
}  # fmt: skip


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_VARIANTS))
        for name in variants.VARIANTS
    ],
)
def test_every_variant_builds_a_segmenter_that_trains_and_predicts(variant):
    config = config_of(variant)
    segmenter = build(config)
    assert isinstance(segmenter, Segmenter)
    assert segmenter.draws_samples is draws_samples(config)
    shape = (config.data.size, config.data.size, config.data.channels)
    image, y = jnp.zeros((2, *shape)), jnp.zeros((2, *shape[:2], config.data.classes))

    def run(key):
        variables = segmenter.init(key, shape)
        value, _ = segmenter.loss(
            variables, {"image": image, "mask": y}, key, train=True
        )
        return value, segmenter.predict(
            variables, image, jax.random.split(key), ensemble=2
        )

    value, probability = jax.eval_shape(run, jax.random.key(0))
    assert value.shape == ()
    assert probability.shape == (1 if isinstance(segmenter, Direct) else 2, *y.shape)


@pytest.mark.parametrize(
    ("variant", "heads", "expected"),
    [
        # Mean squared error of p = 1/2.
        ("row1", 1, 0.25),
        ("row3", 1, 0.25),
        ("row4", 1, 0.125 + (1 - 3 / 5) + 0.5 * math.log(2)),
        # The weights of the heads sum to 1.
        ("row5", 2, 0.125 + (1 - 3 / 5) + 0.5 * math.log(2)),
    ],
)
def test_rows_of_the_ablation_have_the_loss_of_table_2(variant, heads, expected):
    y = jnp.asarray([1.0, 1.0, 0.0, 0.0])[None, None, :, None]
    loss = build(config_of(variant)).heads_loss
    np.testing.assert_allclose(
        loss([jnp.zeros_like(y)] * heads, y), [expected], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("variant", "heads", "dice", "bce"),
    [
        ("unet", 1, 1.0, 0.5),
        # The mean over its heads.
        ("unetpp", 4, 1.0, 0.5),
        ("attention_unet", 1, 1.0, 0.5),
        ("unext", 1, 1.0, 0.5),
        ("swin_unet", 1, 0.6, 0.4),
        ("trans_unet", 1, 0.5, 0.5),
    ],
)
def test_comparison_networks_have_the_loss_of_their_authors(variant, heads, dice, bce):
    # Dice of p = 1/2: 1 - 2 (1/2) / (2 + 1)
    y = jnp.asarray([1.0, 0.0, 0.0, 0.0])[None, None, :, None]
    loss = build(config_of(variant)).heads_loss
    np.testing.assert_allclose(
        loss([jnp.zeros_like(y)] * heads, y),
        [dice * 2 / 3 + bce * math.log(2)],
        rtol=1e-4,
    )


def test_every_row_of_table_1_has_the_same_budget_and_data():
    rows = [covid.get_config(network) for network in NETWORKS]
    for section in ("train", "augment", "data", "split", "eval", "checkpoint"):
        assert len({str(row[section]) for row in rows}) == 1, section


def test_fields_of_the_config_reach_the_segmenter():
    config = config_of("lineage")
    config.data.classes, config.dtype = 3, "bfloat16"
    config.diffusion.update(timesteps=50, schedule="cosine")
    config.sampler.update(method="ddpm", steps=7, eta=0.5, spacing="leading")
    segmenter = build(config)
    assert (segmenter.network.classes, segmenter.network.dtype) == (3, jnp.bfloat16)
    assert segmenter.network.dconv == "lineage"
    assert (segmenter.mask_range, segmenter.mask_scale) == ("zero_one", 1.0)
    np.testing.assert_array_equal(segmenter.schedule.beta, schedule.cosine(50).beta)
    assert segmenter.sampling == Sampling("ddpm", 7, 0.5, "leading")
    direct = build(config_of("direct"))
    assert isinstance(direct, Direct) and isinstance(direct.network, BIEDSNet)
