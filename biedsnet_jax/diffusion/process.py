"""The forward process and its algebra.

    x_t = alpha x_0 + sigma eps,    alpha^2 = alpha_bar_t,  sigma^2 = 1 - alpha^2

A network may predict x_0, the noise eps or v = alpha eps - sigma x_0 (Salimans & Ho
2022, appendix D); any one of them gives the others. Arrays are masks in diffusion
units, "b h w k", and t holds one time in 0..T-1 per example.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from biedsnet_jax.diffusion.schedule import Schedule
from biedsnet_jax.errors import BadInput
from biedsnet_jax.types import Noisy

MASK_RANGES = ("plus_minus", "zero_one")

Times = Int[Array, " b"]
PerExample = Float[Array, "b 1 1 1"]


def encode_mask(
    y: Float[Array, "..."], *, mask_range: str, mask_scale: float
) -> Float[Array, "..."]:
    """Maps masks, or probabilities, y in [0, 1] to the diffusion variable x_0.

    "plus_minus" gives s (2y - 1) with s = `mask_scale`. "zero_one" gives y itself,
    whatever the scale, as MedSegDiff has it. Raises BadInput for another range or a
    scale that is not positive.
    """
    centre, half = _affine(mask_range, mask_scale)
    return centre + half * (2.0 * y - 1.0)


def decode_mask(
    x_0: Float[Array, "..."], *, mask_range: str, mask_scale: float
) -> Float[Array, "..."]:
    """The inverse of `encode_mask`.

    It does not clip: an x_0 out of range gives a value outside [0, 1].
    """
    centre, half = _affine(mask_range, mask_scale)
    return 0.5 + 0.5 * (x_0 - centre) / half


def q_sample(schedule: Schedule, x_0: Noisy, t: Times, noise: Noisy) -> Noisy:
    """Draws x_t from q(x_t | x_0), given standard normal `noise`.

    Source: Ho et al. 2020, equation 4.
    """
    return _alpha(schedule, t) * x_0 + _sigma(schedule, t) * noise


def x_0_from_eps(schedule: Schedule, *, x_t: Noisy, eps: Noisy, t: Times) -> Noisy:
    """The clean mask that `eps` noised to x_t."""
    return (x_t - _sigma(schedule, t) * eps) / _alpha(schedule, t)


def eps_from_x_0(schedule: Schedule, *, x_t: Noisy, x_0: Noisy, t: Times) -> Noisy:
    """The noise between x_0 and x_t."""
    return (x_t - _alpha(schedule, t) * x_0) / _sigma(schedule, t)


def posterior(
    schedule: Schedule, *, x_0: Noisy, x_t: Noisy, t: Times
) -> tuple[Noisy, PerExample, PerExample]:
    """Mean, variance and log variance of q(x_{t-1} | x_t, x_0).

    At t = 0 the variance is 0 and the log variance is that of t = 1, so that it stays
    finite. Source: Ho et al. 2020, equations 6 and 7.
    """
    mean = _at(schedule.posterior_x_0, t) * x_0 + _at(schedule.posterior_x_t, t) * x_t
    return (
        mean,
        _at(schedule.posterior_variance, t),
        _at(schedule.posterior_log_variance, t),
    )


def learned_range_log_variance(schedule: Schedule, *, v: Noisy, t: Times) -> Noisy:
    """The log variance between the posterior's (v = -1) and beta's (v = 1).

    Source: Nichol & Dhariwal 2021, equation 15, with v scaled as in guided-diffusion.
    """
    low = _at(schedule.posterior_log_variance, t)
    high = jnp.log(_at(schedule.beta, t))
    share = (v + 1.0) / 2.0
    return share * high + (1.0 - share) * low


def _alpha(schedule, t):
    return _at(schedule.alpha_bar**0.5, t)


def _sigma(schedule, t):
    # 1 - alpha_bar is float64: near t = 0 the difference would lose three digits in
    # float32.
    return _at((1.0 - schedule.alpha_bar) ** 0.5, t)


def _at(values, t):
    """values[t] in float32, shaped to broadcast over "b h w k"."""
    return jnp.asarray(values, jnp.float32)[t][:, None, None, None]


def _affine(mask_range, mask_scale):
    """Centre and half width of the interval that [0, 1] is mapped to."""
    if mask_range == "zero_one":
        return 0.5, 0.5
    if mask_range != "plus_minus":
        raise BadInput(
            f"diffusion.mask_range is {mask_range!r}. Use 'plus_minus' or 'zero_one'."
        )
    if mask_scale <= 0.0:
        raise BadInput(
            f"diffusion.mask_scale is {mask_scale:g}, not above 0. "
            "Use 1, or less for stronger noise."
        )
    return 0.0, mask_scale
