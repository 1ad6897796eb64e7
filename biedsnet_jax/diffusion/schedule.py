"""Noise schedules, and the times that a sampler visits.

A schedule says how much of the mask is left at each time t = 0..T-1:
q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), with alpha_bar_t the
product of (1 - beta) up to t (Ho et al. 2020, equation 4). Everything here is float64
numpy: a schedule is a constant that jitted functions close over.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float64, Integer

from biedsnet_jax.errors import BadInput

# One value per time.
Series = Float64[np.ndarray, " t"]


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Noise variances `beta` of a chain of T steps, and what follows from them.

    They lie in (0, 1). A schedule is no pytree. Close over it, or pass it as a static
    argument: it compares and hashes by identity.
    """

    beta: Series

    @property
    def timesteps(self) -> int:
        """T, the number of times."""
        return len(self.beta)

    @functools.cached_property
    def alpha_bar(self) -> Series:
        """The share of the signal's variance left at t."""
        return np.cumprod(1.0 - self.beta)

    @functools.cached_property
    def alpha_bar_prev(self) -> Series:
        """alpha_bar at t - 1; exactly 1 before the first step."""
        return np.append(1.0, self.alpha_bar[:-1])

    @functools.cached_property
    def posterior_x_0(self) -> Series:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0).

        Source: Ho et al. 2020, equation 7.
        """
        return self.beta * np.sqrt(self.alpha_bar_prev) / (1.0 - self.alpha_bar)

    @functools.cached_property
    def posterior_x_t(self) -> Series:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        noise_prev = 1.0 - self.alpha_bar_prev
        return np.sqrt(1.0 - self.beta) * noise_prev / (1.0 - self.alpha_bar)

    @functools.cached_property
    def posterior_variance(self) -> Series:
        """Variance of q(x_{t-1} | x_t, x_0); 0 at t = 0."""
        return self.beta * (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar)

    @functools.cached_property
    def posterior_log_variance(self) -> Series:
        """Logarithm of `posterior_variance`.

        At t = 0, where that is minus infinity, it has the value of t = 1, as in
        guided-diffusion.
        """
        # A chain of one step has no t = 1. There beta is what is left of the range that
        # a learned variance interpolates.
        first = self.posterior_variance[1] if self.timesteps > 1 else self.beta[0]
        return np.log(np.append(first, self.posterior_variance[1:]))


def linear(timesteps: int) -> Schedule:
    """Evenly spaced betas, 0.0001 to 0.02 for T = 1000.

    They are scaled by 1000 / T, so that other T end at the same noise. Raises BadInput
    where a scaled beta reaches 1: for T <= 20.
    Source: Ho et al. 2020, section 4; the scaling is guided-diffusion's.
    """
    _check_timesteps(timesteps)
    scale = 1000.0 / timesteps
    last = 0.02 * scale
    if last >= 1.0:
        raise BadInput(
            f"diffusion.timesteps={timesteps} is too few for the linear schedule, whose "
            f"betas reach {last:.3g}. Use more than 20, or the cosine schedule."
        )
    return Schedule(np.linspace(1e-4 * scale, last, timesteps, dtype=np.float64))


def cosine(timesteps: int) -> Schedule:
    """Betas with which alpha_bar falls as cos^2, none larger than 0.999.

    Raises BadInput for T < 1. Source: Nichol & Dhariwal 2021, equation 17.
    """
    _check_timesteps(timesteps)
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2.0) ** 2
    return Schedule(np.minimum(1.0 - f[1:] / f[:-1], 0.999))


SCHEDULES = {"linear": linear, "cosine": cosine}


def select_timesteps(
    timesteps: int, steps: int, spacing: str = "trailing"
) -> Integer[np.ndarray, " steps"]:
    """The `steps` times out of 0..T-1 that a sampler visits: distinct, descending.

    `spacing` is a key of SPACINGS. Raises BadInput unless 1 <= steps <= T.
    Source: Lin et al. 2024, table 2.
    """
    if not 1 <= steps <= timesteps:
        raise BadInput(
            f"sampler.steps is {steps}, but the schedule has {timesteps} times. "
            f"Use 1 to {timesteps} steps."
        )
    return SPACINGS[spacing](timesteps, steps)


def _trailing(timesteps, steps):
    """Equal strides down from T-1, where x_T is pure noise."""
    return timesteps - 1 - np.arange(steps) * timesteps // steps


def _linspace(timesteps, steps):
    """Even steps from T-1 to 0."""
    # Halves are rounded down: times at least 1 apart then never meet.
    return np.ceil(np.linspace(timesteps - 1, 0, steps) - 0.5).astype(int)


def _leading(timesteps, steps):
    """Equal strides down to 0 from below T-1, as guided-diffusion's "ddimN"."""
    return np.arange(steps)[::-1] * (timesteps // steps)


SPACINGS = {"trailing": _trailing, "linspace": _linspace, "leading": _leading}


def respace(schedule: Schedule, kept: Integer[np.ndarray, " steps"]) -> Schedule:
    """The shorter chain that visits only the times `kept`, in ascending order.

    Its time i is the i-th smallest of them. Its betas give the kept alpha_bar back
    (Nichol & Dhariwal 2021, equation 19).
    """
    alpha_bar = schedule.alpha_bar[np.sort(kept)]
    return Schedule(1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1]))


def _check_timesteps(timesteps):
    if timesteps < 1:
        raise BadInput(
            f"diffusion.timesteps is {timesteps}. Use 1 or more; 1000 is usual."
        )
