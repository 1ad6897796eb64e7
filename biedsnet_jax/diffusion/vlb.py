"""The variational bound's term at time t, which trains a network's learned variance.

    L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))    for t > 0
    L_0 = -log p(x_0 | x_1)

In L_0 p is a Gaussian cut into bins of width 2/255 over [-1, 1] (Ho et al. 2020,
equations 5 and 13; Nichol & Dhariwal 2021, section 3.1). All is in bits per pixel.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from biedsnet_jax.diffusion import process
from biedsnet_jax.diffusion.schedule import Schedule
from biedsnet_jax.types import Noisy

HALF_BIN = 1.0 / 255.0
# Beyond it a value lies in the first or last bin, which reach to infinity.
EDGE = 0.999
LEAST_PROBABILITY = 1e-12


def vlb_bits(
    schedule: Schedule,
    *,
    x_0: Noisy,
    x_t: Noisy,
    t: process.Times,
    mean: Noisy,
    log_variance: Noisy,
    known: Noisy | None = None,
) -> Float[Array, " b"]:
    """L_t per example, averaged over the pixels where `known` is 1, or all, in bits.

    The network's p is N(`mean`, exp(`log_variance`)). To train the variance alone, stop
    the gradient of `mean`. Source: guided-diffusion, whose values it reproduces.
    """
    true_mean, _, true_log_variance = process.posterior(schedule, x_0=x_0, x_t=x_t, t=t)
    kl = _gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    nll = -_discretised_log_likelihood(x_0, mean, log_variance)
    nats = jnp.where(t == 0, _mean(nll, known), _mean(kl, known))
    return nats / math.log(2.0)


def _mean(x, known):
    if known is None:
        return x.mean((1, 2, 3))
    count = known.sum((1, 2, 3))
    return (x * known).sum((1, 2, 3)) / jnp.maximum(count, 1)


def _gaussian_kl(mean_q, log_variance_q, mean_p, log_variance_p):
    """KL(q || p) per pixel, in nats."""
    log_ratio = log_variance_q - log_variance_p
    shift = (mean_q - mean_p) ** 2 * jnp.exp(-log_variance_p)
    return 0.5 * (jnp.exp(log_ratio) - 1.0 - log_ratio + shift)


def _discretised_log_likelihood(x, mean, log_variance):
    """Logarithm of the Gaussian's mass in the bin around x, in nats."""
    precision = jnp.exp(-0.5 * log_variance)
    above = _normal_cdf((x + HALF_BIN - mean) * precision)
    below = _normal_cdf((x - HALF_BIN - mean) * precision)
    mass = jnp.where(x > EDGE, 1.0 - below, above - below)
    mass = jnp.where(x < -EDGE, above, mass)
    return jnp.log(jnp.maximum(mass, LEAST_PROBABILITY))


def _normal_cdf(z):
    """The tanh approximation (Page 1977), off by at most 2e-4.

    It is kept so that losses equal guided-diffusion's.
    """
    return 0.5 * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))
