"""Schedules against golden vectors, numbers worked out by hand, and slow sums."""

import math

import numpy as np
import pytest
from places import GOLDEN

from biedsnet_jax.diffusion import schedule as schedules
from biedsnet_jax.errors import BadInput

VECTORS = GOLDEN / "medsegdiff_diffusion_math.npz"


@pytest.mark.parametrize("timesteps", [50, 1000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_constants_equal_guided_diffusion(name, timesteps):
    golden = np.load(VECTORS)
    schedule = schedules.SCHEDULES[name](timesteps)
    ours = {
        "betas": schedule.beta,
        "alphas_cumprod": schedule.alpha_bar,
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_log_variance,
        "posterior_mean_coef1": schedule.posterior_x_0,
        "posterior_mean_coef2": schedule.posterior_x_t,
    }
    for key, value in ours.items():
        np.testing.assert_allclose(
            value, golden[f"{name}{timesteps}:{key}"], rtol=1e-12, err_msg=key
        )


def test_linear_by_hand():
    # T = 40 scales the betas by 25: 0.0025 to 0.5.
    schedule = schedules.linear(40)
    assert schedule.timesteps == 40
    assert schedule.beta[[0, -1]] == pytest.approx([0.0025, 0.5])
    assert schedule.alpha_bar[1] == pytest.approx(0.9975 * (1 - 0.0025 - 0.4975 / 39))
    assert schedule.alpha_bar_prev[0] == 1.0


def test_cosine_by_hand():
    # Two steps: f(u) = cos^2((u + .008) / 1.008 * pi / 2) at u = 0, 1/2, 1; the last
    # beta, 1, is held at 0.999.
    first = (
        math.cos(0.508 / 1.008 * math.pi / 2) ** 2
        / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    )
    assert schedules.cosine(2).alpha_bar == pytest.approx([first, first * 0.001])


def test_posterior_of_one_step_chain_is_finite():
    chain = schedules.respace(schedules.linear(1000), np.array([999]))
    assert chain.posterior_variance[0] == 0.0
    assert chain.posterior_log_variance[0] == pytest.approx(math.log(chain.beta[0]))


def test_posterior_is_bayes_rule():
    # q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0):
    # precisions and weighted means add.
    schedule = schedules.cosine(30)
    beta, prev = schedule.beta[1:], schedule.alpha_bar_prev[1:]
    variance = 1.0 / ((1 - beta) / beta + 1 / (1 - prev))
    np.testing.assert_allclose(schedule.posterior_variance[1:], variance, rtol=1e-10)
    np.testing.assert_allclose(
        schedule.posterior_x_t[1:], variance * np.sqrt(1 - beta) / beta, rtol=1e-10
    )
    np.testing.assert_allclose(
        schedule.posterior_x_0[1:], variance * np.sqrt(prev) / (1 - prev), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("trailing", [9, 7, 5, 3, 1]),
        ("trailing", [9, 7, 4, 2]),
        ("linspace", [9, 7, 4, 2, 0]),
        ("linspace", [9, 6, 3, 0]),
        ("leading", [8, 6, 4, 2, 0]),
        ("leading", [6, 4, 2, 0]),
    ],
)
def test_spacing_by_hand(spacing, expected):
    assert schedules.select_timesteps(10, len(expected), spacing).tolist() == expected


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_every_number_of_steps_gives_distinct_times(spacing):
    for timesteps in (1, 2, 7, 100, 101):
        for steps in range(1, timesteps + 1):
            times = schedules.select_timesteps(timesteps, steps, spacing)
            assert len(times) == steps
            assert (np.diff(times) < 0).all()
            assert times[-1] >= 0 and times[0] < timesteps
            if spacing != "leading":
                assert times[0] == timesteps - 1
            if steps == timesteps:
                assert times.tolist() == list(range(timesteps))[::-1]


def test_spacing_equals_guided_diffusion():
    golden = np.load(VECTORS)

    def ascending(*args):
        return schedules.select_timesteps(*args)[::-1]

    np.testing.assert_array_equal(
        ascending(1000, 50, "leading"), golden["space_timesteps:1000:ddim50"]
    )
    np.testing.assert_array_equal(
        ascending(1000, 100, "linspace"), golden["space_timesteps:1000:100"]
    )
    sections = [
        100 * i + ascending(100, steps, "linspace")
        for i, steps in enumerate((10, 15, 20))
    ]
    np.testing.assert_array_equal(
        np.concatenate(sections), golden["space_timesteps:300:10,15,20"]
    )


@pytest.mark.parametrize("kept", [[999, 500, 3], [0, 1, 2, 998]])
def test_respaced_chain_keeps_alpha_bar(kept):
    schedule = schedules.linear(1000)
    chain = schedules.respace(schedule, np.array(kept))
    np.testing.assert_allclose(
        chain.alpha_bar, schedule.alpha_bar[sorted(kept)], rtol=1e-12
    )
    # guided-diffusion's loop over the kept times
    last, betas = 1.0, []
    for t in sorted(kept):
        betas.append(1 - schedule.alpha_bar[t] / last)
        last = schedule.alpha_bar[t]
    np.testing.assert_allclose(chain.beta, betas, rtol=1e-12)


def test_respacing_to_every_time_changes_nothing():
    schedule = schedules.cosine(60)
    np.testing.assert_allclose(
        schedules.respace(schedule, np.arange(60)).beta, schedule.beta, rtol=1e-10
    )


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: schedules.linear(20), "diffusion.timesteps=20"),
        (lambda: schedules.linear(0), "diffusion.timesteps"),
        (lambda: schedules.cosine(0), "diffusion.timesteps"),
        (lambda: schedules.select_timesteps(10, 0), "sampler.steps"),
        (lambda: schedules.select_timesteps(10, 11), "sampler.steps"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(call, field):
    with pytest.raises(BadInput) as error:
        call()
    message = str(error.value)
    assert field in message and " Use " in message
    assert "\n" not in message


def test_smallest_linear_schedule_is_valid():
    beta = schedules.linear(21).beta
    assert beta.min() > 0 and beta.max() < 1
