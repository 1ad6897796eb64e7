"""K samples of one image into one probability map."""

import jax.numpy as jnp
from jaxtyping import Array, Float

Samples = Float[Array, "n b h w k"]
Probability = Float[Array, "b h w k"]


def mean(samples: Samples) -> Probability:
    """The mean: BIEDSNet's lineage."""
    return jnp.mean(samples, axis=0)


def majority(samples: Samples) -> Probability:
    """The share of samples above one half."""
    return jnp.mean((samples > 0.5).astype(jnp.float32), axis=0)


def mean_squared(samples: Samples) -> Probability:
    """The square of the mean: what the published MedSegDiff calls staple, mean(s * mean(s)), comes to."""
    return jnp.square(jnp.mean(samples, axis=0))


FUSIONS = {"mean": mean, "majority": majority, "mean_squared": mean_squared}
