"""Samplers: from noise x_T to a clean mask x_0, through a few of the schedule's times.

The network enters as a plain function `denoise(x_t, t) -> x_0`. From its prediction x_0 at time t, and x_0' one step
earlier, each method moves on to the next time by

    x_next = a x_t + b x_0 + c x_0' + sigma z,    z ~ N(0, I),

and differs only in its four numbers per step. They are worked out beforehand in float64; one `lax.scan` does the rest.
The last step goes to alpha_bar = 1, where every method's answer is the network's last prediction.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key

from biedsnet_jax.diffusion import process
from biedsnet_jax.diffusion.schedule import Schedule, respace, select_timesteps
from biedsnet_jax.errors import BadInput
from biedsnet_jax.types import Noisy

Keys = Key[Array, " b"]
Denoise = Callable[[Noisy, process.Times], Noisy]
DenoiseWithVariance = Callable[[Noisy, process.Times], tuple[Noisy, Noisy]]


class Trajectory(NamedTuple):
    """A step a row, first to last."""

    x_t: Float[Array, "t b h w k"]  # what the network saw
    x_0: Float[Array, "t b h w k"]  # what it said


def sample(
    denoise: Denoise,
    x_T: Noisy,
    keys: Keys,
    schedule: Schedule,
    *,
    steps: int,
    method: str,
    eta: float = 0.0,
    spacing: str = "trailing",
    self_condition: bool = False,
) -> Noisy:
    """x_0 after `steps` calls of `denoise`, in float32 whatever the network computes in.

    `method` is "ddpm" (ancestral), "ddim" or "dpm_solver" (DPM-Solver++(2M)); `eta` in [0, 1] is DDIM's share of noise,
    which the others ignore. `keys` holds one key per example, so that a mask does not depend on what shares its batch;
    none may be a key that x_T was drawn with. With `self_condition`, `denoise` sees x_t beside its last prediction, 0
    at first, as further channels (Chen et al. 2023, arXiv:2208.04202). Raises BadInput on another method, or on steps,
    spacing or eta out of range.
    """
    plan = _plan(schedule, steps=steps, method=method, eta=eta, spacing=spacing)
    x_0, _ = _run(_step_function(denoise, keys, plan, self_condition), _start(x_T), plan)
    return x_0


def visited(
    schedule: Schedule, *, steps: int, spacing: str = "trailing"
) -> Integer[np.ndarray, " steps"]:
    """The times of the schedule that `sample` calls `denoise` at, descending."""
    return select_timesteps(schedule.timesteps, steps, spacing)


def sample_trajectory(
    denoise: Denoise,
    x_T: Noisy,
    keys: Keys,
    schedule: Schedule,
    *,
    steps: int,
    method: str,
    eta: float = 0.0,
    spacing: str = "trailing",
    self_condition: bool = False,
) -> Trajectory:
    """What `denoise` sees and says at every step of `sample`, for figures; the last x_0 is what `sample` returns."""
    plan = _plan(schedule, steps=steps, method=method, eta=eta, spacing=spacing)
    step = _step_function(denoise, keys, plan, self_condition)
    return _follow(step, _start(x_T), plan, lambda carry: carry[0])


def ancestral_learned(
    denoise: DenoiseWithVariance,
    x_T: Noisy,
    keys: Keys,
    schedule: Schedule,
    *,
    steps: int,
    spacing: str = "trailing",
) -> Noisy:
    """Ancestral sampling for a network that also predicts its variance: `denoise(x_t, t) -> (x_0, v)`, v in [-1, 1].

    x_0 is clipped to [-1, 1] at every step. Source: Nichol & Dhariwal 2021, section 3.1; guided-diffusion.
    """
    step, rows = _learned_steps(denoise, keys, schedule, steps, spacing)
    return _run(step, x_T.astype(jnp.float32), rows)


def ancestral_learned_trajectory(
    denoise: DenoiseWithVariance,
    x_T: Noisy,
    keys: Keys,
    schedule: Schedule,
    *,
    steps: int,
    spacing: str = "trailing",
) -> Trajectory:
    """What `denoise` sees and says at every step of `ancestral_learned`; the last x_0 is what that returns."""
    step, rows = _learned_steps(denoise, keys, schedule, steps, spacing)
    return _follow(step, x_T.astype(jnp.float32), rows, lambda x_t: x_t)


def _run(step, carry, rows):
    """The carry after all steps `(carry, row) -> (carry, x_0)`."""
    return jax.lax.scan(lambda carry, row: (step(carry, row)[0], None), carry, rows)[0]


def _follow(step, carry, rows, x_t):
    """What each of those steps saw, `x_t(carry)`, and said."""

    def seen(carry, row):
        after, x_0 = step(carry, row)
        return after, Trajectory(x_t(carry), x_0)

    return jax.lax.scan(seen, carry, rows)[1]


def _learned_steps(denoise, keys, schedule, steps, spacing):
    """`(x_t, row) -> (x_next, x_0)`, and its rows."""
    times = select_timesteps(schedule.timesteps, steps, spacing)
    chain = respace(schedule, times)

    def step(x_t, row):
        index, t = row
        t = jnp.full(x_t.shape[0], t)
        i = jnp.full(x_t.shape[0], steps - 1 - index)  # the same time, counted in the short chain
        x_0, v = (prediction.astype(jnp.float32) for prediction in denoise(x_t, t))
        x_0 = jnp.clip(x_0, -1.0, 1.0)
        mean, _, _ = process.posterior(chain, x_0=x_0, x_t=x_t, t=i)
        deviation = jnp.exp(0.5 * process.learned_range_log_variance(chain, v=v, t=i))
        noise = _noise(keys, index, x_t.shape)
        return mean + jnp.where(index < steps - 1, deviation, 0.0) * noise, x_0

    return step, (np.arange(steps, dtype=np.int32), times.astype(np.int32))


class _Plan(NamedTuple):
    """One row per step, in the order of sampling."""

    index: Integer[np.ndarray, " steps"]  # 0..steps-1
    t: Integer[np.ndarray, " steps"]  # time of the schedule
    a: Float[np.ndarray, " steps"]
    b: Float[np.ndarray, " steps"]
    c: Float[np.ndarray, " steps"]
    sigma: Float[np.ndarray, " steps"]


def _start(x_T: Noisy) -> tuple[Noisy, Noisy]:
    """The scan's carry: x_t, and the previous prediction of x_0 (none yet; c is 0 at the first step)."""
    x_T = x_T.astype(jnp.float32)
    return x_T, jnp.zeros_like(x_T)


def _step_function(denoise: Denoise, keys: Keys, plan: _Plan, self_condition: bool):
    noisy = bool(plan.sigma.any())

    def step(carry, row):
        x_t, x_0_prev = carry
        seen = jnp.concatenate([x_t, x_0_prev], axis=-1) if self_condition else x_t
        x_0 = denoise(seen, jnp.full(x_t.shape[0], row.t)).astype(jnp.float32)
        x_next = row.a * x_t + row.b * x_0 + row.c * x_0_prev
        if noisy:
            x_next += row.sigma * _noise(keys, row.index, x_t.shape)
        return (x_next, x_0), x_0

    return step


def _noise(keys: Keys, index, shape) -> Noisy:
    """Standard normal noise of one step, each example's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape[1:]))(keys)


def _plan(
    schedule: Schedule, *, steps: int, method: str, eta: float, spacing: str
) -> _Plan:
    times = visited(schedule, steps=steps, spacing=spacing)
    chain = respace(schedule, times)
    if method not in METHODS:
        raise BadInput(f"unknown sampling method, {method!r}, method; use one of {', '.join(METHODS)}")
    # The chain's time ascends, sampling descends.
    a, b, c, sigma = (value[::-1].astype(np.float32) for value in METHODS[method](chain, eta))
    return _Plan(np.arange(steps, dtype=np.int32), times.astype(np.int32), a, b, c, sigma)


def _ddpm(chain: Schedule, eta: float):
    """a, b, c, sigma of the ancestral step: the posterior q(x_next | x_t, x_0) (Ho et al. 2020, eq. 6-7)."""
    zeros = np.zeros(chain.timesteps)
    return chain.posterior_x_t, chain.posterior_x_0, zeros, np.sqrt(chain.posterior_variance)


def _ddim(chain: Schedule, eta: float):
    """The same of Song et al. 2021, eq. 12, with eps written in x_t and x_0; eta 0 is an ODE step, 1 is `_ddpm`."""
    if not 0.0 <= eta <= 1.0:
        raise BadInput(f"DDIM's share of noise outside 0..1, {eta:g}, eta; use 0 for none or 1 for DDPM's")
    sigma = eta * np.sqrt(chain.posterior_variance)
    a = np.sqrt(np.maximum(1.0 - chain.alpha_bar_prev - sigma**2, 0.0) / (1.0 - chain.alpha_bar))
    b = np.sqrt(chain.alpha_bar_prev) - a * np.sqrt(chain.alpha_bar)
    return a, b, np.zeros(chain.timesteps), sigma


def _dpm_solver(chain: Schedule, eta: float):
    """The same of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): a DDIM step along x_0 extrapolated in log SNR.

    It extrapolates to x_0 + w (x_0 - x_0'), w = h / (2 h'), where h and h' are this step's and the last one's length in
    lambda = log(alpha / sigma). The first step has no x_0' and the last goes to lambda = infinity: order 1, w = 0.
    """
    a, b, _, sigma = _ddim(chain, eta=0.0)
    half_log_snr = 0.5 * np.log(chain.alpha_bar / (1.0 - chain.alpha_bar))
    h = half_log_snr[:-1] - half_log_snr[1:]  # h[i] leads from the chain's time i + 1 to i
    w = np.zeros(chain.timesteps)
    w[1:-1] = h[:-1] / (2.0 * h[1:])
    return a, b * (1.0 + w), -b * w, sigma


METHODS = {"ddpm": _ddpm, "ddim": _ddim, "dpm_solver": _dpm_solver}
