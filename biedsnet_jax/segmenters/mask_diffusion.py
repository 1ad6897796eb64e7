"""The paper's method: diffusion on masks."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from biedsnet_jax.diffusion import process, sampler
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.diffusion.schedule import Schedule
from biedsnet_jax.networks import winograd
from biedsnet_jax.segmenters import mirror, segmenter
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

    With `self_condition` it is given its last prediction of x_0 as further channels
    behind x_t, 0 where there is none. In training that is its own prediction from the
    same x_t, in every second batch by chance (Chen et al. 2023, arXiv:2208.04202).
    """

    network: nn.Module
    schedule: Schedule
    heads_loss: HeadsLoss
    mask_range: str = "plus_minus"
    mask_scale: float = 1.0
    self_condition: bool = False
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    mirror: str = ""  # one of mirror.CHOICES

    draws_samples = True

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        x_t, image, t = segmenter.denoiser_inputs(self.network, jnp.zeros((1, *shape)))
        x_t = self._with_prediction(x_t, jnp.zeros_like(x_t))
        return self.network.init(key, x_t, image, t, train=False)

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool
    ) -> Loss:
        """See Segmenter. It draws x_t from q(x_t | x_0) at a uniform t.

        Where the truth is not known, x_0 is background, noised as elsewhere: the network
        sees a mask like any other there, and the loss does not look.
        """
        key_t, key_noise, key_dropout = jax.random.split(key, 3)
        y = batch["mask"]
        # Every example has a time of its own.
        t = jax.random.randint(key_t, (len(y),), 0, self.schedule.timesteps)
        noise = jax.random.normal(key_noise, y.shape)
        x_t = process.q_sample(self.schedule, self.encode(y), t, noise)
        image = batch["image"]
        if self.self_condition:
            x_0 = self._predicted(variables, x_t, image, t, key_dropout, train)
            x_t = self._with_prediction(x_t, x_0)
        inputs = x_t, image, t
        return segmenter.mask_loss(self, variables, inputs, batch, key_dropout, train)

    def predict(
        self, variables: Variables, image: Image, keys: Keys, *, ensemble: int
    ) -> Probabilities:
        """See Segmenter. The image is encoded once for all steps and samples."""

        def one_pass(turn):
            sample = self._sampler(variables, image, keys, ensemble, turn)
            # One after another: side by side they would take a batch's memory each.
            return jax.lax.map(lambda number: sample(number)[0], jnp.arange(ensemble))

        return mirror.average(one_pass, self.mirror)

    def trajectory(
        self, variables: Variables, image: Image, keys: Keys
    ) -> sampler.Trajectory:
        """See Segmenter. It is that of the pass that is not mirrored."""
        return self._sampler(variables, image, keys, 1, mirror.as_it_is)(0)[1]

    def encode(self, y):
        """Maps a mask, or a probability, to x_0."""
        return process.encode_mask(
            y, mask_range=self.mask_range, mask_scale=self.mask_scale
        )

    def _decode(self, x_0):
        return process.decode_mask(
            x_0, mask_range=self.mask_range, mask_scale=self.mask_scale
        )

    def _sampler(self, variables, image, keys, samples, turn):
        """Makes `sample(number) -> (probability, trajectory)` of each image.

        `samples` says how many numbers it will be called with. The network sees image
        and noise through `turn`, see `mirror`.
        """
        network = self.network
        # Kernels are transformed, and the image encoded, outside the loop over steps.
        variables = winograd.prepare(variables, uses=samples * self.sampling.steps)
        seen = turn(image)
        features = network.apply(variables, seen, train=False, method=network.encode)

        def denoise(x_t, t):
            inputs = features, turn(x_t), seen, t
            logits, _ = network.apply(
                variables, *inputs, train=False, method=network.denoise
            )
            return self.encode(jax.nn.sigmoid(turn(logits)))

        def sample(number):
            x_T, step_keys = segmenter.draw(network, image, keys, number)
            sampled = sampler.sample(
                denoise,
                x_T,
                step_keys,
                self.schedule,
                self.sampling,
                self_condition=self.self_condition,
            )
            return jax.tree.map(self._decode, sampled)

        return sample

    def _with_prediction(self, x_t, x_0):
        """What the network is given of the mask."""
        if not self.self_condition:
            return x_t
        return jnp.concatenate([x_t, x_0], axis=-1)

    def _predicted(self, variables, x_t, image, t, key, train):
        """The network's own x_0 from x_t, or by an even chance zeros."""

        def zeros():
            return jnp.zeros_like(x_t)

        def predict():
            inputs = self._with_prediction(x_t, zeros()), image, t
            (logits, _), _ = segmenter.apply(
                self.network, variables, inputs, key, train
            )
            return jax.lax.stop_gradient(self.encode(jax.nn.sigmoid(logits)))

        # `key` itself draws the dropout.
        chosen = jax.random.bernoulli(jax.random.fold_in(key, 1))
        return jax.lax.cond(chosen, predict, zeros)
