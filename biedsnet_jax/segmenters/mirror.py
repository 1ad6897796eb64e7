"""Mirrored passes of one sample, averaged.

    p = 1/|F| sum_{f in F} f(predict(f(image), f(noise)))

F holds every combination of the mirrorings of `sampler.mirror`, the plain pass among
them, and each f is its own inverse. A pass starts from the same noise, mirrored as the
image is. So the mean takes out only what the network does otherwise in a mirror:
samples differ as much as without it, and K samples stay K.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Axis of "b h w c" that each word of `sampler.mirror` turns round.
AXES = {"lr": 2, "ud": 1}
# Values of `sampler.mirror`.
CHOICES = ("", "lr", "ud", "lr,ud")

Maps = Float[Array, "b h w c"]
# Mirrors maps, and is its own inverse.
Turn = Callable[[Maps], Maps]
Probabilities = Float[Array, "n b h w k"]


def words(mirror: str) -> tuple[str, ...]:
    """Words of AXES in a value of `sampler.mirror`."""
    return tuple(mirror.split(",")) if mirror else ()


def as_it_is(x: Array) -> Array:
    """The turn of a pass that is not mirrored."""
    return x


def average(one_pass: Callable[[Turn], Probabilities], mirror: str) -> Probabilities:
    """Averages the passes of every combination of mirrorings.

    `one_pass` takes the turn of its pass. One program serves all passes, one after
    another, so that neither its size nor its memory grows with them.
    """
    if not mirror:
        return one_pass(as_it_is)
    axes = [AXES[word] for word in words(mirror)]
    combinations = list(itertools.product((False, True), repeat=len(axes)))

    def of_combination(turned):
        return one_pass(lambda x: _turn(x, axes, turned))

    return jnp.mean(jax.lax.map(of_combination, jnp.array(combinations)), axis=0)


def _turn(x: Maps, axes: Sequence[int], turned) -> Maps:
    for number, axis in enumerate(axes):
        x = jnp.where(turned[number], jnp.flip(x, axis), x)
    return x
