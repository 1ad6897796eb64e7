"""Samplers: from noise x_T to a clean mask x_0, through a few of the schedule's times.

The network enters as a plain function `denoise(x_t, t) -> x_0`. From its prediction x_0
at time t, and x_0' one step earlier, each method moves on to the next time by

    x_next = a x_t + b x_0 + c x_0' + sigma z,    z ~ N(0, I),

and differs only in its four numbers per step. They are worked out beforehand in
float64; one `lax.scan` does the rest. The last step goes to alpha_bar = 1, where every
method's answer is the network's last prediction.
"""

import dataclasses
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
Denoise = Callable[[Noisy, process.Times], Noisy | tuple[Noisy, Noisy]]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a diffusion method samples."""

    method: str = "ddim"  # one of METHODS
    steps: int = 10  # calls of the network
    eta: float = 0.0  # DDIM's share of noise, 0 to 1; the other methods ignore it
    spacing: str = "trailing"  # one of schedule.SPACINGS

    def visited(self, schedule: Schedule) -> Integer[np.ndarray, " steps"]:
        """The times of the schedule that the network is called at, descending."""
        return select_timesteps(schedule.timesteps, self.steps, self.spacing)


class Trajectory(NamedTuple):
    """The steps of a sample, first to last."""

    x_t: Float[Array, "t b h w k"]  # what the network was given
    x_0: Float[Array, "t b h w k"]  # what it predicted


def sample(
    denoise: Denoise,
    x_T: Noisy,
    keys: Keys,
    schedule: Schedule,
    sampling: Sampling,
    *,
    self_condition: bool = False,
) -> tuple[Noisy, Trajectory]:
    """Samples x_0 from noise x_T, and returns it with the trajectory to it.

    Both are float32 whatever the network computes in. `keys` holds one key per example,
    so that a mask does not depend on what shares its batch; none may be a key that x_T
    was drawn with. With `self_condition`, `denoise` is given its last prediction, 0 at
    first, as further channels behind x_t (Chen et al. 2023, arXiv:2208.04202).

    `denoise` may return (x_0, v). "ddpm" then draws with the variance that v in [-1, 1]
    picks (Nichol & Dhariwal 2021, section 3.1). Raises BadInput for steps or eta out of
    range.
    """
    plan = make_plan(schedule, sampling)
    chain = respace(schedule, plan.t)
    noisy = bool(plan.sigma.any())

    def step(carry, row):
        x_t, x_0_prev = carry
        given = jnp.concatenate([x_t, x_0_prev], axis=-1) if self_condition else x_t
        x_0 = denoise(given, jnp.full(x_t.shape[0], row.t))
        sigma = row.sigma
        if isinstance(x_0, tuple):
            x_0, v = x_0
            if sampling.method == "ddpm":
                sigma = _learned_sigma(chain, v.astype(jnp.float32), row)
        x_0 = x_0.astype(jnp.float32)
        x_next = row.a * x_t + row.b * x_0 + row.c * x_0_prev
        if noisy:
            x_next += sigma * _noise(keys, row.index, x_t.shape)
        return (x_next, x_0), Trajectory(x_t, x_0)

    x_T = x_T.astype(jnp.float32)
    # The first step has no previous prediction: its c is 0.
    (x_0, _), trajectory = jax.lax.scan(step, (x_T, jnp.zeros_like(x_T)), plan)
    return x_0, trajectory


class Plan(NamedTuple):
    """The numbers of each step, in the order of sampling."""

    index: Integer[np.ndarray, " steps"]  # 0..steps-1
    t: Integer[np.ndarray, " steps"]  # time of the schedule
    a: Float[np.ndarray, " steps"]
    b: Float[np.ndarray, " steps"]
    c: Float[np.ndarray, " steps"]
    sigma: Float[np.ndarray, " steps"]


def make_plan(schedule: Schedule, sampling: Sampling) -> Plan:
    """The numbers of every step that `sampling` takes.

    Raises BadInput for steps or eta out of range.
    """
    times = sampling.visited(schedule)
    coefficients = METHODS[sampling.method](respace(schedule, times), sampling.eta)
    index = np.arange(len(times), dtype=np.int32)
    # The chain's time ascends, sampling descends.
    rows = [value[::-1].astype(np.float32) for value in coefficients]
    return Plan(index, times.astype(np.int32), *rows)


def _learned_sigma(chain, v, row):
    """Standard deviation that v picks at a step, 0 at the last."""
    # The same time, counted in the short chain.
    i = jnp.full(v.shape[0], chain.timesteps - 1 - row.index)
    deviation = jnp.exp(0.5 * process.learned_range_log_variance(chain, v=v, t=i))
    return jnp.where(i[0] > 0, deviation, 0.0)


def _noise(keys, index, shape):
    """Standard normal noise of one step, each example's from its own key."""

    def draw(key):
        return jax.random.normal(jax.random.fold_in(key, index), shape[1:])

    return jax.vmap(draw)(keys)


def _ddpm(chain, eta):
    """a, b, c, sigma of the ancestral step, which draws from q(x_next | x_t, x_0).

    Source: Ho et al. 2020, equations 6 and 7.
    """
    sigma = np.sqrt(chain.posterior_variance)
    return chain.posterior_x_t, chain.posterior_x_0, np.zeros(chain.timesteps), sigma


def _ddim(chain, eta):
    """a, b, c, sigma of DDIM: Song et al. 2021, equation 12, with eps from x_t and x_0.

    With eta 0 it is a step of an ODE, with eta 1 `_ddpm`.
    """
    if not 0.0 <= eta <= 1.0:
        raise BadInput(
            f"sampler.eta is {eta:g}, outside 0 to 1. Use 0 for no noise, 1 for DDPM's."
        )
    sigma = eta * np.sqrt(chain.posterior_variance)
    # Rounding can leave a variance below 0.
    direction = np.maximum(1.0 - chain.alpha_bar_prev - sigma**2, 0.0)
    a = np.sqrt(direction / (1.0 - chain.alpha_bar))
    b = np.sqrt(chain.alpha_bar_prev) - a * np.sqrt(chain.alpha_bar)
    return a, b, np.zeros(chain.timesteps), sigma


def _dpm_solver(chain, eta):
    """a, b, c, sigma of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    It is a DDIM step with x_0 extrapolated to x_0 + w (x_0 - x_0'), w = h / (2 h'),
    where h and h' are the lengths of this step and the last one in
    lambda = log(alpha / sigma). The first step has no x_0' and the last one goes to
    lambda = infinity: both are of order 1, w = 0.
    """
    a, b, _, sigma = _ddim(chain, eta=0.0)
    half_log_snr = 0.5 * np.log(chain.alpha_bar / (1.0 - chain.alpha_bar))
    # h[i] leads from the chain's time i + 1 to i.
    h = half_log_snr[:-1] - half_log_snr[1:]
    w = np.zeros(chain.timesteps)
    w[1:-1] = h[:-1] / (2.0 * h[1:])
    return a, b * (1.0 + w), -b * w, sigma


METHODS = {"ddpm": _ddpm, "ddim": _ddim, "dpm_solver": _dpm_solver}
