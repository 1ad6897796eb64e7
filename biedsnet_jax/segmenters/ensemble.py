"""Models of one architecture as one segmenter, whose samples are those of all.

    samples = (p_11, ..., p_1K, ..., p_M1, ..., p_MK),   K samples of each of M models

Each model draws from the same noise, so its samples are those that it would draw alone.
"""

import dataclasses

import jax

from biedsnet_jax.diffusion.sampler import Trajectory
from biedsnet_jax.segmenters.segmenter import (
    Keys,
    Loss,
    Probabilities,
    Segmenter,
    Variables,
)
from biedsnet_jax.types import Batch, Image, PRNGKey


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several trained models of one segmenter.

    Its variables are those of all members: each array has their axis first.
    """

    segmenter: Segmenter

    @property
    def draws_samples(self) -> bool:
        """See Segmenter: of one member."""
        return self.segmenter.draws_samples

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """Raises TypeError: members are trained one by one."""
        raise TypeError("The members of an ensemble are trained one by one.")

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool
    ) -> Loss:
        """Raises TypeError: members are trained one by one."""
        raise TypeError("The members of an ensemble are trained one by one.")

    def predict(
        self, variables: Variables, image: Image, keys: Keys, *, ensemble: int
    ) -> Probabilities:
        """See Segmenter: `ensemble` samples of the first member, then of the next."""

        def of_member(own):
            return self.segmenter.predict(own, image, keys, ensemble=ensemble)

        # One member after another: the program and its memory are those of one.
        samples = jax.lax.map(of_member, variables)
        return samples.reshape(-1, *samples.shape[2:])

    def trajectory(
        self, variables: Variables, image: Image, keys: Keys
    ) -> Trajectory | None:
        """See Segmenter: of the first member."""
        first = jax.tree.map(lambda x: x[0], variables)
        return self.segmenter.trajectory(first, image, keys)
