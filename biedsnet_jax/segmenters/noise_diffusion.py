"""MedSegDiff's method: diffusion on masks by a network that predicts their noise."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from biedsnet_jax.diffusion import process, sampler, vlb
from biedsnet_jax.diffusion.sampler import Sampling
from biedsnet_jax.diffusion.schedule import Schedule
from biedsnet_jax.segmenters import losses, mirror, segmenter
from biedsnet_jax.segmenters.segmenter import Keys, Loss, Probabilities, Variables
from biedsnet_jax.types import Batch, Image, PRNGKey


@dataclasses.dataclass(frozen=True)
class NoisePrediction:
    """MedSegDiff: a denoiser of noise and variance, and a highway with its own mask.

    x_0 is the mask in {0, 1}. The loss, as published (Wu et al. 2023), is

        mean (eps - eps_hat)^2 + VLB in bits, eps_hat held + 10 mean (y - calibration)^2

    All three are means over pixels whose truth is known; where it is not, x_0 is
    background. A sample, clipped to [0, 1], is a probability.
    """

    network: nn.Module
    schedule: Schedule
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    calibration_weight: float = 10.0
    mirror: str = ""  # one of mirror.CHOICES

    draws_samples = True

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        inputs = segmenter.denoiser_inputs(self.network, jnp.zeros((1, *shape)))
        return self.network.init(key, *inputs, train=False)

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool
    ) -> Loss:
        """See Segmenter."""
        key_t, key_noise, key_dropout = jax.random.split(key, 3)
        y = batch["mask"]
        known = batch.get("known")
        # Every example has a time of its own.
        t = jax.random.randint(key_t, (len(y),), 0, self.schedule.timesteps)
        eps = jax.random.normal(key_noise, y.shape)
        x_t = process.q_sample(self.schedule, y, t, eps)
        inputs = x_t, batch["image"], t
        (output, out), batch_stats = segmenter.apply(
            self.network, variables, inputs, key_dropout, train
        )
        eps_hat, v = jnp.split(output, 2, axis=-1)
        # The bound trains the variance alone.
        x_0_hat = process.x_0_from_eps(
            self.schedule, x_t=x_t, eps=jax.lax.stop_gradient(eps_hat), t=t
        )
        mean, _, _ = process.posterior(self.schedule, x_0=x_0_hat, x_t=x_t, t=t)
        log_variance = process.learned_range_log_variance(self.schedule, v=v, t=t)
        bits = vlb.vlb_bits(
            self.schedule,
            x_0=y,
            x_t=x_t,
            t=t,
            mean=mean,
            log_variance=log_variance,
            known=known,
        )
        calibration = out["calibration"]
        terms = {
            "eps": jnp.mean(losses.mse(eps_hat, eps, known=known)),
            "vlb": jnp.mean(bits),
            "calibration": self.calibration_weight
            * jnp.mean(losses.mse(calibration, y, known=known)),
        }
        train_dice = segmenter.train_dice(calibration > 0.5, y, known)
        metrics = {**terms, "train_dice": train_dice}
        return sum(terms.values()), (metrics, batch_stats)

    def predict(
        self, variables: Variables, image: Image, keys: Keys, *, ensemble: int
    ) -> Probabilities:
        """See Segmenter. Of the samplers only "ddpm" needs the learned variance."""

        def one_pass(turn):
            sample = self._sampler(variables, image, keys, turn)
            return jax.lax.map(lambda number: sample(number)[0], jnp.arange(ensemble))

        return mirror.average(one_pass, self.mirror)

    def trajectory(
        self, variables: Variables, image: Image, keys: Keys
    ) -> sampler.Trajectory:
        """See Segmenter. It is that of the pass that is not mirrored."""
        return self._sampler(variables, image, keys, mirror.as_it_is)(0)[1]

    def _sampler(self, variables, image, keys, turn):
        """Makes `sample(number) -> (probability, trajectory)` of each image.

        The network sees image and noise through `turn`, see `mirror`.
        """
        network = self.network
        seen = turn(image)
        features = network.apply(variables, seen, train=False, method=network.encode)

        def denoise(x_t, t):
            inputs = features, turn(x_t), seen, t
            output, _ = network.apply(
                variables, *inputs, train=False, method=network.denoise
            )
            eps, v = jnp.split(turn(output), 2, axis=-1)
            x_0 = process.x_0_from_eps(self.schedule, x_t=x_t, eps=eps, t=t)
            # guided-diffusion clips so, and MedSegDiff kept it for masks in [0, 1].
            return jnp.clip(x_0, -1.0, 1.0), v

        def sample(number):
            x_T, step_keys = segmenter.draw(network, image, keys, number)
            sampled = sampler.sample(
                denoise, x_T, step_keys, self.schedule, self.sampling
            )
            return jax.tree.map(lambda x: jnp.clip(x, 0.0, 1.0), sampled)

        return sample
