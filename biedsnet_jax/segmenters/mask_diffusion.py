"""The paper's method: diffusion on masks."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from biedsnet_jax.diffusion import process, sampler
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.diffusion.schedule import Schedule
from biedsnet_jax.networks import winograd
from biedsnet_jax.segmenters import segmenter
from biedsnet_jax.segmenters.segmenter import (
    HeadsLoss,
    Keys,
    Loss,
    Probabilities,
    Variables,
)
from biedsnet_jax.types import Batch, Image, PRNGKey


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A denoiser that predicts the mask, trained at random times (paper section III.A).

    With `self_condition` it sees its last prediction of x_0 beside x_t, as further
    channels, 0 where there is none: in training its own of the same x_t in every second
    batch, by chance (Chen et al. 2023, arXiv:2208.04202).
    """

    network: nn.Module
    schedule: Schedule
    heads_loss: HeadsLoss  # (logits of final and side heads, mask) -> "b"
    mask_range: str = "plus_minus"
    mask_scale: float = 1.0
    self_condition: bool = False
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    draws_samples = True

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        x_t, image, t = segmenter.denoiser_inputs(self.network, jnp.zeros((1, *shape)))
        return self.network.init(key, self._beside(x_t), image, t, train=False)

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool
    ) -> Loss:
        """See Segmenter: x_t from q(x_t | x_0) at a uniform t, the mask from x_t."""
        key_t, key_noise, key_dropout = jax.random.split(key, 3)
        y = batch["mask"]
        t = jax.random.randint(key_t, (len(y),), 0, self.schedule.timesteps)
        noise = jax.random.normal(key_noise, y.shape)
        inputs = (
            process.q_sample(self.schedule, self.encode(y), t, noise),
            batch["image"],
            t,
        )
        if self.self_condition:
            inputs = self._guessed(variables, *inputs, key_dropout, train)
        return segmenter.mask_loss(self, variables, inputs, y, key_dropout, train)

    def predict(
        self, variables: Variables, image: Image, keys: Keys, *, ensemble: int
    ) -> Probabilities:
        """See Segmenter. The image is encoded once, whatever the steps and samples."""
        sample = self._sampler(variables, image, keys, ensemble)
        return jax.lax.map(lambda number: sample(number)[0], jnp.arange(ensemble))

    def trajectory(
        self, variables: Variables, image: Image, keys: Keys
    ) -> sampler.Trajectory:
        """See Segmenter."""
        return self._sampler(variables, image, keys, 1)(0)[1]

    def encode(self, y):
        """A mask, or a probability, as x_0."""
        return process.encode_mask(
            y, mask_range=self.mask_range, mask_scale=self.mask_scale
        )

    def _decode(self, x_0):
        return process.decode_mask(
            x_0, mask_range=self.mask_range, mask_scale=self.mask_scale
        )

    def _sampler(self, variables, image, keys, samples):
        """`sample(number) -> (probability, trajectory)` of each image, for so many
        numbers.
        """
        network = self.network
        variables = winograd.prepare(variables, uses=samples * self.sampling.steps)
        features = network.apply(variables, image, train=False, method=network.encode)

        def denoise(x_t, t):
            inputs = features, x_t, image, t
            logits, _ = network.apply(
                variables, *inputs, train=False, method=network.denoise
            )
            return self.encode(jax.nn.sigmoid(logits))

        def sample(number):
            x_T, step_keys = segmenter.draw(network, image, keys, number)
            found = sampler.sample(
                denoise,
                x_T,
                step_keys,
                self.schedule,
                self.sampling,
                self_condition=self.self_condition,
            )
            return jax.tree.map(self._decode, found)

        return sample

    def _beside(self, x_t, x_0=None):
        """What the network sees of the mask."""
        if not self.self_condition:
            return x_t
        return jnp.concatenate(
            [x_t, jnp.zeros_like(x_t) if x_0 is None else x_0], axis=-1
        )

    def _guessed(self, variables, x_t, image, t, key, train):
        """Inputs of the network, with its own x_0 of them beside x_t or without."""

        def guess():
            inputs = self._beside(x_t), image, t
            (logits, _), _ = segmenter.apply(
                self.network, variables, inputs, key, train
            )
            return jax.lax.stop_gradient(self.encode(jax.nn.sigmoid(logits)))

        chosen = jax.random.bernoulli(jax.random.fold_in(key, 1))
        return (
            self._beside(x_t, jax.lax.cond(chosen, guess, lambda: jnp.zeros_like(x_t))),
            image,
            t,
        )
