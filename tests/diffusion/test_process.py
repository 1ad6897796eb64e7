"""The forward process against closed forms, scipy, and guided-diffusion's terms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDEN
from scipy import stats

from biedsnet_jax.diffusion import process, schedule, vlb
from biedsnet_jax.errors import BadInput

VECTORS = GOLDEN / "medsegdiff_diffusion_math.npz"

SCHEDULE = schedule.linear(1000)
T = jnp.array([0, 400, 999])
# One compilation for all tests.
vlb_bits = jax.jit(functools.partial(vlb.vlb_bits, SCHEDULE))


def normal(seed, shape=(3, 4, 4, 2)):
    return jax.random.normal(jax.random.key(seed), shape)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("mask_range", "mask_scale", "expected"),
    [
        ("plus_minus", 1.0, [-1.0, 0.0, 1.0]),
        ("plus_minus", 0.5, [-0.5, 0.0, 0.5]),
        ("zero_one", 2.0, [0.0, 0.5, 1.0]),
    ],
)
def test_encoding_by_hand_and_back(mask_range, mask_scale, expected):
    y = jnp.array([0.0, 0.5, 1.0])
    x_0 = process.encode_mask(y, mask_range=mask_range, mask_scale=mask_scale)
    close(x_0, expected, 1e-7)
    close(
        process.decode_mask(x_0, mask_range=mask_range, mask_scale=mask_scale), y, 1e-7
    )


@pytest.mark.parametrize(
    ("mask_range", "mask_scale", "field"),
    [("unit", 1.0, "mask_range"), ("plus_minus", 0.0, "mask_scale")],
)
def test_bad_encoding_names_the_field(mask_range, mask_scale, field):
    with pytest.raises(BadInput, match=f"diffusion.{field} is .* Use "):
        process.encode_mask(jnp.zeros(2), mask_range=mask_range, mask_scale=mask_scale)


def test_q_sample_has_the_stated_mean_and_variance_per_example():
    t = jnp.array([10, 600])
    x_0 = jnp.full((2, 128, 128, 1), 0.5)
    x_t = process.q_sample(SCHEDULE, x_0, t, normal(0, x_0.shape))
    # alpha_bar_t multiplied up one beta at a time
    for example, steps in zip(x_t, t):
        kept = math.prod(
            1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(int(steps) + 1)
        )
        noise = math.sqrt(1 - kept)
        assert float(example.mean()) == pytest.approx(
            0.5 * math.sqrt(kept), abs=4 * noise / 128
        )
        assert float(example.std()) == pytest.approx(noise, rel=0.03)


def test_noise_near_t_0_keeps_its_digits():
    # 1 - alpha_bar_0 = beta_0 = 1e-4 exactly; the difference taken in float32 would be
    # off by 1e-4 of itself
    x_1 = process.q_sample(
        SCHEDULE, jnp.zeros((1, 1, 1, 1)), jnp.array([0]), jnp.ones((1, 1, 1, 1))
    )
    assert float(x_1[0, 0, 0, 0]) == pytest.approx(0.01, rel=1e-6)


def test_predictions_convert_into_each_other():
    x_0, eps = normal(1), normal(2)
    x_t = process.q_sample(SCHEDULE, x_0, T, eps)
    # At t = 999 alpha is 0.0064 and at t = 0 sigma is 0.01: float32 loses two digits
    # there.
    close(process.x_0_from_eps(SCHEDULE, x_t=x_t, eps=eps, t=T), x_0, 1e-4)
    close(process.eps_from_x_0(SCHEDULE, x_t=x_t, x_0=x_0, t=T), eps, 1e-4)


def test_posterior_at_t_0_is_x_0():
    x_0, x_t = normal(3, (1, 2, 2, 1)), normal(4, (1, 2, 2, 1))
    mean, variance, log_variance = process.posterior(
        SCHEDULE, x_0=x_0, x_t=x_t, t=jnp.array([0])
    )
    close(mean, x_0, 1e-6)
    assert float(variance[0, 0, 0, 0]) == 0.0
    assert float(log_variance[0, 0, 0, 0]) == pytest.approx(
        math.log(SCHEDULE.posterior_variance[1]), rel=1e-6
    )


def test_posterior_undoes_a_step_of_the_chain():
    # x_t drawn given x_0, then x_{t-1} from the posterior, must have the moments of
    # q(x_{t-1} | x_0)
    t = jnp.array([50])
    x_0 = jnp.full((1, 200, 200, 1), 0.8)
    x_t = process.q_sample(SCHEDULE, x_0, t, normal(5, x_0.shape))
    mean, variance, _ = process.posterior(SCHEDULE, x_0=x_0, x_t=x_t, t=t)
    x_prev = mean + jnp.sqrt(variance) * normal(6, x_0.shape)
    assert float(x_prev.mean()) == pytest.approx(
        0.8 * math.sqrt(SCHEDULE.alpha_bar[49]), abs=0.004
    )
    assert float(x_prev.var()) == pytest.approx(1 - SCHEDULE.alpha_bar[49], rel=0.03)


def test_learned_range_spans_posterior_to_beta():
    t = jnp.array([300])
    ends = [math.log(SCHEDULE.posterior_variance[300]), math.log(SCHEDULE.beta[300])]
    for v, expected in ((-1.0, ends[0]), (1.0, ends[1]), (0.0, sum(ends) / 2)):
        got = process.learned_range_log_variance(
            SCHEDULE, v=jnp.full((1, 1, 1, 1), v), t=t
        )
        assert float(got[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-6)


def test_vlb_is_zero_for_the_true_posterior_and_grows_as_the_closed_form():
    t = jnp.array([200, 700])
    x_0, x_t = normal(7, (2, 4, 4, 1)), normal(8, (2, 4, 4, 1))
    mean, variance, log_variance = process.posterior(SCHEDULE, x_0=x_0, x_t=x_t, t=t)
    everywhere = jnp.broadcast_to(log_variance, x_0.shape)

    def bits(**prediction):
        return vlb_bits(x_0=x_0, x_t=x_t, t=t, **prediction)

    close(bits(mean=mean, log_variance=everywhere), [0.0, 0.0], 1e-6)
    # means d standard deviations apart: d^2 / 2 nats
    shifted = mean + 0.3 * jnp.sqrt(variance)
    close(bits(mean=shifted, log_variance=everywhere), [0.045 / math.log(2)] * 2, 1e-3)
    # variance r times too large: (log r - 1 + 1 / r) / 2 nats
    wider = bits(mean=mean, log_variance=everywhere + math.log(4.0))
    close(wider, [(math.log(4) - 0.75) / 2 / math.log(2)] * 2, 1e-3)


@pytest.mark.parametrize(
    ("x_0", "low", "high"), [(0.1, -1, 1), (-1.0, -math.inf, 1), (1.0, -1, math.inf)]
)
def test_vlb_at_t_0_is_the_mass_of_one_grey_level(x_0, low, high):
    mean, deviation = x_0 * 0.99, 0.01
    edges = [x_0 + low / 255, x_0 + high / 255]
    expected = -math.log2(np.diff(stats.norm(mean, deviation).cdf(edges))[0])
    one = jnp.ones((1, 1, 1, 1))
    got = vlb_bits(
        x_0=x_0 * one,
        x_t=one,
        t=jnp.array([0]),
        mean=mean * one,
        log_variance=2 * math.log(deviation) * one,
    )
    assert float(got[0]) == pytest.approx(expected, abs=2e-3)


def test_vlb_is_the_mean_over_the_pixels_that_are_known():
    t = jnp.array([0, 700, 700, 0])
    x_0 = jnp.full((4, 4, 4, 1), 0.1)
    x_t = normal(9, x_0.shape)
    known = jax.random.bernoulli(jax.random.key(3), 0.4, x_0.shape).astype(float)
    known = known.at[2:].set(0.0)
    true_mean, variance, log_variance = process.posterior(
        SCHEDULE, x_0=x_0, x_t=x_t, t=t
    )
    deviation = jnp.array([0.01, 1.0, 1.0, 0.01])[:, None, None, None]
    start = (t == 0)[:, None, None, None]
    right = jnp.where(start, 0.1, true_mean + 0.3 * jnp.sqrt(variance))
    log_variance = jnp.where(start, 2 * jnp.log(deviation), log_variance)

    def bits(elsewhere):
        return vlb_bits(
            x_0=x_0,
            x_t=x_t,
            t=t,
            # What is predicted where nothing is known does not matter.
            mean=jnp.where(known > 0, right, elsewhere),
            log_variance=jnp.broadcast_to(log_variance, x_0.shape),
            known=known,
        )

    level = stats.norm(0.1, 0.01).cdf([0.1 - 1 / 255, 0.1 + 1 / 255])
    expected = [-math.log2(np.diff(level)[0]), 0.045 / math.log(2), 0.0, 0.0]
    close(bits(1.5), expected, 2e-3)
    close(bits(-30.0), expected, 2e-3)


def test_vlb_of_a_hopeless_prediction_is_finite():
    one = jnp.ones((1, 1, 1, 1))

    def bits(mean, log_variance):
        return vlb_bits(
            x_0=one, x_t=one, t=jnp.array([0]), mean=mean, log_variance=log_variance
        )[0]

    value, gradient = jax.value_and_grad(bits, argnums=(0, 1))(-50 * one, -9.8 * one)
    assert float(value) == pytest.approx(12 * math.log2(10), rel=1e-4)
    assert all(np.isfinite(g).all() for g in gradient)


def test_loss_terms_equal_guided_diffusion():
    golden = np.load(VECTORS)

    def channel(name, number=-1):
        """A channel "b h w 1" of an array "b c h w"; the last one is the mask."""
        return jnp.asarray(golden[name][:, number, :, :, None])

    x_0 = channel("loss:x_start")
    noise = channel("loss:noise")
    t = jnp.asarray(golden["loss:t"], jnp.int32)
    eps = channel("loss:model_output", 0)
    v = channel("loss:model_output")
    x_t = process.q_sample(SCHEDULE, x_0, t, noise)
    close(x_t, channel("loss:x_t_model_input"))

    x_0_hat = process.x_0_from_eps(SCHEDULE, x_t=x_t, eps=eps, t=t)
    mean, _, _ = process.posterior(SCHEDULE, x_0=x_0_hat, x_t=x_t, t=t)
    log_variance = process.learned_range_log_variance(SCHEDULE, v=v, t=t)
    bits = vlb_bits(x_0=x_0, x_t=x_t, t=t, mean=mean, log_variance=log_variance)
    close(bits, golden["loss:term_vb"], 1e-4)
    error = ((noise - eps) ** 2).mean((1, 2, 3))
    close(error, golden["loss:term_loss_diff"], 1e-4)
    close(error + bits, golden["loss:term_loss"], 1e-4)

    clipped = jnp.clip(x_0_hat, -1, 1)
    close(clipped, channel("p_mean_variance:pred_xstart"), 1e-4)
    mean, _, _ = process.posterior(SCHEDULE, x_0=clipped, x_t=x_t, t=t)
    close(mean, channel("p_mean_variance:mean"), 1e-4)
    close(log_variance, channel("p_mean_variance:log_variance"))
