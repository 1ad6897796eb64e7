"""Samplers against slow loops from the papers' equations and a solvable Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biedsnet_jax.diffusion import process, sampler, schedule
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.errors import BadInput

METHODS = ["ddpm", "ddim", "dpm_solver"]
LINEAR = schedule.linear(1000)
COSINE = schedule.cosine(50)
SHAPE = (1, 4, 4, 1)
X_T = jax.random.normal(jax.random.key(1), SHAPE)
# One per example.
KEYS = jax.random.split(jax.random.key(2), SHAPE[0])


def draw(step):
    """Draws the noise of one step, example by example."""
    return jnp.stack(
        [jax.random.normal(jax.random.fold_in(key, step), SHAPE[1:]) for key in KEYS]
    )


def sample(denoise, noise_schedule=LINEAR, *, x_T=X_T, keys=KEYS, **sampling):
    """Samples, and returns x_0 without its trajectory."""
    x_0, _ = sampler.sample(denoise, x_T, keys, noise_schedule, Sampling(**sampling))
    return x_0


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def curved(x_t, t, xp=jnp):
    """A made-up network of both arguments: every coefficient shows in the result."""
    return xp.tanh(0.8 * x_t + xp.cos(t / 90.0)[:, None, None, None])


# --- slow references: one step at a time in float64, in the notation of each paper ---


def slow_loop(step, times, alpha_bar):
    """Walks `times` by `step`, and returns the network's last prediction."""
    x = np.asarray(X_T, np.float64)
    history = []
    for i, t in enumerate(times):
        x_0 = curved(x, np.full(1, t), np)
        history.append(x_0)
        if i + 1 < len(times):
            z = np.asarray(draw(i), np.float64)
            x = step(x, history, z, [alpha_bar[s] for s in times[: i + 2]])
    return x_0


def ddpm_step(x, history, z, alpha_bars):
    """Ho et al. 2020, algorithm 2, line 4, from t to the next kept time.

    sigma^2 is beta tilde.
    """
    now, after = alpha_bars[-2:]
    alpha = now / after
    beta = 1 - alpha
    eps = (x - np.sqrt(now) * history[-1]) / np.sqrt(1 - now)
    sigma = np.sqrt((1 - after) / (1 - now) * beta)
    return (x - beta / np.sqrt(1 - now) * eps) / np.sqrt(alpha) + sigma * z


def ddim_step(x, history, z, alpha_bars, eta):
    """Song et al. 2021, eq. 12 and 16."""
    now, after = alpha_bars[-2:]
    eps = (x - np.sqrt(now) * history[-1]) / np.sqrt(1 - now)
    sigma = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
    return (
        np.sqrt(after) * history[-1] + np.sqrt(1 - after - sigma**2) * eps + sigma * z
    )


def dpm_solver_step(x, history, z, alpha_bars):
    """Lu et al. 2022 (DPM-Solver++), algorithm 2.

    x = sigma_i / sigma_{i-1} x - alpha_i (exp(-h_i) - 1) D_i
    """
    alpha, sigma = np.sqrt(alpha_bars), np.sqrt(1 - np.array(alpha_bars))
    h = np.diff(np.log(alpha / sigma))
    d = history[-1]
    if len(history) > 1:
        r = h[-2] / h[-1]
        d = (1 + 1 / (2 * r)) * history[-1] - 1 / (2 * r) * history[-2]
    return sigma[-1] / sigma[-2] * x - alpha[-1] * np.expm1(-h[-1]) * d


SLOW_STEPS = {
    ("ddpm", 0.0): ddpm_step,
    ("ddim", 0.0): functools.partial(ddim_step, eta=0.0),
    ("ddim", 0.5): functools.partial(ddim_step, eta=0.5),
    ("ddim", 1.0): functools.partial(ddim_step, eta=1.0),
    ("dpm_solver", 0.0): dpm_solver_step,
}


@pytest.mark.parametrize(
    ("noise_schedule", "steps", "spacing"),
    [(LINEAR, 9, "trailing"), (COSINE, 4, "linspace")],
    ids=["linear-9-trailing", "cosine-4-linspace"],
)
@pytest.mark.parametrize(("method", "eta"), SLOW_STEPS)
def test_equals_the_textbook_loop(method, eta, noise_schedule, steps, spacing):
    times = schedule.select_timesteps(noise_schedule.timesteps, steps, spacing)
    expected = slow_loop(SLOW_STEPS[method, eta], times, noise_schedule.alpha_bar)
    got = sample(
        curved, noise_schedule, method=method, steps=steps, eta=eta, spacing=spacing
    )
    close(got, expected)


def test_a_self_conditioned_network_sees_its_last_prediction_beside_x_t_and_0_at_first():
    def mixed(x_t, x_0, t, xp=jnp):
        return curved(x_t + 0.7 * x_0 - 0.3, t, xp)

    times = schedule.select_timesteps(LINEAR.timesteps, 4, "trailing")
    x = np.asarray(X_T, np.float64)
    x_0 = np.zeros(SHAPE)
    predictions = []
    for i, t in enumerate(times):
        x_0 = mixed(x, x_0, np.full(1, t), np)
        predictions.append(x_0)
        if i + 1 < len(times):
            x = ddim_step(
                x, [x_0], 0.0, [LINEAR.alpha_bar[s] for s in times[i : i + 2]], eta=0.0
            )

    def denoise(given, t):
        return mixed(*jnp.split(given, 2, axis=-1), t)

    got, trajectory = sampler.sample(
        denoise, X_T, KEYS, LINEAR, Sampling("ddim", steps=4), self_condition=True
    )
    close(got, x_0)
    close(trajectory.x_0, np.stack(predictions))


def test_leading_spacing_reaches_the_sampler():
    expected = slow_loop(
        SLOW_STEPS["ddim", 0.0], [800, 600, 400, 200, 0], LINEAR.alpha_bar
    )
    close(sample(curved, steps=5, method="ddim", spacing="leading"), expected)


# --- denoisers that know the answer ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("noise_schedule", "steps"),
    [*((LINEAR, steps) for steps in (1, 2, 3, 7, 50)), (COSINE, 1), (COSINE, 50)],
    ids=lambda value: str(value) if isinstance(value, int) else f"T{value.timesteps}",
)
def test_perfect_denoiser_gives_the_mask(method, steps, noise_schedule):
    x_0 = jnp.sign(jax.random.normal(jax.random.key(3), SHAPE))
    got = sample(lambda x_t, t: x_0, noise_schedule, steps=steps, method=method)
    close(got, x_0)


@pytest.mark.parametrize("method", ["ddim", "dpm_solver"])
@pytest.mark.parametrize("steps", [2, 3, 7, 50])
def test_perfect_noise_prediction_stays_on_the_line(method, steps):
    # With the true noise, x_t stays alpha x_0 + sigma eps at every time: any wrong
    # weight on the way is amplified.
    x_0, eps = jnp.sign(X_T), jax.random.normal(jax.random.key(4), SHAPE)
    x_T = process.q_sample(LINEAR, x_0, jnp.array([999]), eps)

    def denoise(x_t, t):
        return process.x_0_from_eps(LINEAR, x_t=x_t, eps=eps, t=t)

    close(sample(denoise, x_T=x_T, steps=steps, method=method), x_0, 2e-4)


# --- Gaussian data, x_0 ~ N(m, s^2): the best denoiser and the ODE's solution are known ---

M, S = 0.3, 0.5


def gaussian_denoiser(alpha_bar):
    """E[x_0 | x_t] = m + s^2 alpha / (alpha^2 s^2 + sigma^2) (x_t - alpha m)."""
    alpha = np.sqrt(alpha_bar)
    gain = jnp.asarray(S**2 * alpha / (alpha_bar * S**2 + 1 - alpha_bar), jnp.float32)
    alpha = jnp.asarray(alpha, jnp.float32)

    def at(values, t):
        return values[t][:, None, None, None]

    return lambda x_t, t: M + at(gain, t) * (x_t - at(alpha, t) * M)


@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 0.5)])
def test_stochastic_samplers_give_the_data_distribution(method, eta):
    noise_schedule = schedule.cosine(200)
    x_T = jax.random.normal(jax.random.key(5), (4, 64, 64, 1))
    denoise = gaussian_denoiser(noise_schedule.alpha_bar)
    keys = jax.random.split(jax.random.key(2), len(x_T))
    x_0 = sample(
        denoise, noise_schedule, x_T=x_T, keys=keys, steps=200, method=method, eta=eta
    )
    assert float(x_0.mean()) == pytest.approx(M, abs=4 * S / 128)
    assert float(x_0.std()) == pytest.approx(S, rel=0.025)


def test_orders_of_convergence():
    """Halving the step halves DDIM's error and quarters DPM-Solver++'s.

    A schedule uniform in lambda = log(alpha / sigma) from -3 to 3, so that every N has
    equal steps between the same ends. The ODE takes x_T to x at t = 0 linearly; that x
    is read back from the last prediction, before the final step.
    """
    half_log_snr = np.linspace(3.0, -3.0, 961)
    alpha_bar = 1.0 / (1.0 + np.exp(-2.0 * half_log_snr))
    uniform = schedule.Schedule(1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    denoise = gaussian_denoiser(alpha_bar)
    x_T = jnp.linspace(-2.0, 2.0, 16).reshape(SHAPE)

    first, last = alpha_bar[0], alpha_bar[-1]
    spread = np.sqrt((first * S**2 + 1 - first) / (last * S**2 + 1 - last))
    exact = np.sqrt(first) * M + spread * (
        np.asarray(x_T, np.float64) - np.sqrt(last) * M
    )
    expected = np.asarray(denoise(jnp.asarray(exact, jnp.float32), jnp.array([0])))

    def error(method, intervals):
        x_0 = sample(
            denoise,
            uniform,
            x_T=x_T,
            steps=intervals + 1,
            method=method,
            spacing="linspace",
        )
        return np.abs(x_0 - expected).max()

    for method, order in (("ddim", 1), ("dpm_solver", 2)):
        errors = [error(method, intervals) for intervals in (20, 40, 80)]
        rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
        assert rates == pytest.approx([order, order], abs=0.2), (method, errors)


# --- randomness, types, the trajectory ---


def test_ddim_with_eta_1_is_ddpm():
    close(
        sample(curved, steps=8, method="ddpm"),
        sample(curved, steps=8, method="ddim", eta=1.0),
        1e-5,
    )


@pytest.mark.parametrize(
    ("method", "random"), [("ddpm", True), ("ddim", False), ("dpm_solver", False)]
)
def test_the_key_decides_the_noise_and_only_that(method, random):
    run = jax.jit(lambda keys: sample(curved, keys=keys, steps=4, method=method))
    first, again, other = (
        run(KEYS),
        run(KEYS),
        run(jax.random.split(jax.random.key(7), SHAPE[0])),
    )
    np.testing.assert_array_equal(first, again)
    assert bool((first != other).all()) is random
    assert bool((first == other).all()) is not random


def test_an_ensemble_is_a_map_over_keys():
    keys = jax.random.split(jax.random.key(2), (3, SHAPE[0]))
    run = jax.jit(lambda keys: sample(curved, keys=keys, steps=3, method="ddpm"))
    together = jax.vmap(run)(keys)
    for i in range(3):
        close(together[i], run(keys[i]), 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_state_stays_float32_for_a_bfloat16_network(method):
    types = []

    def denoise(x_t, t):
        types.append((x_t.dtype, t.dtype, t.shape))
        return curved(x_t, t).astype(jnp.bfloat16)

    got = sample(denoise, x_T=X_T.astype(jnp.bfloat16), steps=3, method=method)
    assert got.dtype == jnp.float32
    assert set(types) == {(jnp.dtype("float32"), jnp.dtype("int32"), (1,))}


@pytest.mark.parametrize("method", METHODS)
def test_trajectory_holds_each_prediction_and_ends_in_the_sample(method):
    sampling = Sampling(method, steps=5)
    got, trajectory = sampler.sample(curved, X_T, KEYS, LINEAR, sampling)
    assert trajectory.x_t.shape == trajectory.x_0.shape == (5, *SHAPE)
    close(trajectory.x_t[0], X_T, 1e-6)
    for x_t, x_0, t in zip(*trajectory, sampling.visited(LINEAR)):
        close(x_0, curved(x_t, jnp.array([t])), 1e-5)
    close(trajectory.x_0[-1], got, 1e-6)


def test_a_compiled_program_drops_a_trajectory_that_nobody_reads():
    def temporaries(wanted, steps):
        def run(x_T):
            sampling = Sampling("ddpm", steps=steps)
            return wanted(*sampler.sample(curved, x_T, keys, LINEAR, sampling))

        compiled = jax.jit(run).lower(x_T).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    x_T, keys = jnp.zeros((2, 64, 64, 1)), jax.random.split(jax.random.key(0))
    kept = temporaries(lambda x_0, _: x_0, 500)
    assert kept < temporaries(lambda x_0, _: x_0, 5) + x_T.nbytes
    # Where something of it is read, it has to be there.
    read = temporaries(lambda _, trajectory: jnp.sort(trajectory.x_t.ravel())[0], 500)
    assert read > 500 * x_T.nbytes


# --- learned variance ---


def test_learned_variance_at_the_lower_end_is_ddpm():
    # v = -1 is the posterior's own variance.
    def with_variance(x_t, t):
        return curved(x_t, t), -jnp.ones_like(x_t)

    close(
        sample(with_variance, steps=9, method="ddpm"),
        sample(curved, steps=9, method="ddpm"),
    )


@pytest.mark.parametrize("method", ["ddim", "dpm_solver"])
def test_the_other_methods_do_not_read_the_variance(method):
    def with_variance(x_t, t):
        return curved(x_t, t), jnp.full_like(x_t, jnp.nan)

    got, expected = (
        sample(denoise, steps=4, method=method, eta=0.5)
        for denoise in (with_variance, curved)
    )
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_learned_variance_equals_the_textbook_loop(spacing):
    times = schedule.select_timesteps(1000, 6, spacing)
    v = 0.4

    def step(x, history, z, alpha_bars):
        now, after = alpha_bars[-2:]
        beta = 1 - now / after
        mean = (
            np.sqrt(after) * beta / (1 - now) * history[-1]
            + np.sqrt(now / after) * (1 - after) / (1 - now) * x
        )
        tilde = (1 - after) / (1 - now) * beta
        log_variance = 0.5 * (v + 1) * np.log(beta) + (1 - 0.5 * (v + 1)) * np.log(
            tilde
        )
        return mean + np.exp(0.5 * log_variance) * z

    expected = slow_loop(step, times, LINEAR.alpha_bar)

    def with_variance(x_t, t):
        return curved(x_t, t), jnp.full_like(x_t, v)

    close(sample(with_variance, steps=6, method="ddpm", spacing=spacing), expected)


def test_the_trajectory_of_learned_variance_ends_in_its_sample():
    def with_variance(x_t, t):
        return curved(x_t, t), jnp.full_like(x_t, 0.4)

    sampling = Sampling("ddpm", steps=6)
    got, (x_t, x_0) = sampler.sample(with_variance, X_T, KEYS, LINEAR, sampling)
    close(x_t[0], X_T, 1e-6)
    for i, t in enumerate(sampling.visited(LINEAR)):
        close(x_0[i], curved(x_t[i], jnp.array([t])), 1e-5)
    close(x_0[-1], got, 1e-5)


def test_learned_variance_runs_in_one_step():
    close(sample(lambda x_t, t: (2 * x_t, x_t), steps=1, method="ddpm"), 2 * X_T, 1e-6)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"method": "ddim", "eta": 1.5}, "eta"),
        ({"steps": 1001}, "steps"),
    ],
)
def test_bad_input_names_the_field(wrong, field):
    with pytest.raises(BadInput, match=f"sampler.{field} is .* Use "):
        sample(curved, **wrong)
