"""A network and the way it makes masks: `Diffusion` denoises them, `Direct` predicts them in one pass.

`NoisePrediction` is MedSegDiff's way of diffusion. This is the only place where they differ. Training, evaluation and
prediction see one interface, `Segmenter`. Variables are {"params": ..., "batch_stats": ...}; probabilities are
"n b h w k", n samples an image.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from biedsnet_jax.diffusion import process, sampler, schedule, vlb
from biedsnet_jax.networks import winograd
from biedsnet_jax.segmenters import losses
from biedsnet_jax.types import Batch, Image, PRNGKey

Variables = dict
Probabilities = Float[Array, "n b h w k"]
Keys = Key[Array, " b"]  # one per image, so that a mask does not depend on what shares its batch
HeadsLoss = Callable[[Sequence, Array], Float[Array, " b"]]


@runtime_checkable
class Segmenter(Protocol):
    """What training and prediction need to know of a method."""

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for images of (height, width, channels)."""

    def loss(self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool) -> tuple[Array, tuple[dict, dict]]:
        """Mean loss of a batch, and (metrics, new batch_stats)."""

    def predict(self, variables: Variables, image: Image, keys: Keys, *, ensemble: int) -> Probabilities:
        """`ensemble` samples an image; one where a method is deterministic."""

    def trajectory(self, variables: Variables, image: Image, keys: Keys) -> sampler.Trajectory | None:
        """How the first of the samples of `predict` came about, x_t and x_0 as probabilities; None without steps."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a diffusion method samples, as in `sampler.sample`."""

    method: str = "ddim"
    steps: int = 10
    eta: float = 0.0
    spacing: str = "trailing"

    @property
    def fields(self) -> dict:
        """Those of `sampler.sample`."""
        return dataclasses.asdict(self)

    def visited(self, noise_schedule: schedule.Schedule) -> np.ndarray:
        """The times of its steps, as `sampler.visited`."""
        return sampler.visited(noise_schedule, steps=self.steps, spacing=self.spacing)


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A denoiser that predicts the mask, trained at random times, sampled from noise (paper section III.A).

    With `self_condition` it sees its last prediction of x_0 beside x_t, as further channels, 0 where there is none:
    in training its own of the same x_t in every second batch, by chance (Chen et al. 2023, arXiv:2208.04202).
    """

    network: nn.Module
    schedule: schedule.Schedule
    heads_loss: HeadsLoss  # (logits of final and side heads, mask) -> "b"
    mask_range: str = "plus_minus"
    mask_scale: float = 1.0
    self_condition: bool = False
    sampling: Sampling = Sampling()

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        x_t, image, t = _denoiser_inputs(self.network, jnp.zeros((1, *shape)))
        return self.network.init(key, self._beside(x_t), image, t, train=False)

    def loss(self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool) -> tuple[Array, tuple[dict, dict]]:
        """See Segmenter: x_t from q(x_t | x_0) at a uniform t, the mask from x_t."""
        key_t, key_noise, key_dropout = jax.random.split(key, 3)
        y = batch["mask"]
        t = jax.random.randint(key_t, (len(y),), 0, self.schedule.timesteps)
        noise = jax.random.normal(key_noise, y.shape)
        inputs = process.q_sample(self.schedule, self._encode(y), t, noise), batch["image"], t
        if self.self_condition:
            inputs = self._guessed(variables, *inputs, key_dropout, train)
        return _loss(self.network, self.heads_loss, variables, inputs, y, key_dropout, train)

    def predict(self, variables: Variables, image: Image, keys: Keys, *, ensemble: int) -> Probabilities:
        """See Segmenter. The image is encoded once, whatever the steps and samples."""
        denoise = self._denoiser(variables, image, ensemble)

        def one_sample(x_T, keys):
            return self._decode(sampler.sample(denoise, x_T, keys, self.schedule, **self._sampling))

        return _samples(one_sample, keys, (*image.shape[1:3], self.network.classes), ensemble)

    def trajectory(self, variables: Variables, image: Image, keys: Keys) -> sampler.Trajectory:
        """See Segmenter."""
        denoise = self._denoiser(variables, image, 1)
        x_T, keys = _draw(keys, (*image.shape[1:3], self.network.classes), 0)
        steps = sampler.sample_trajectory(denoise, x_T, keys, self.schedule, **self._sampling)
        return sampler.Trajectory(*map(self._decode, steps))

    @property
    def _sampling(self):
        return {**self.sampling.fields, "self_condition": self.self_condition}

    def _beside(self, x_t, x_0=None):
        """What the network sees of the mask."""
        return jnp.concatenate([x_t, jnp.zeros_like(x_t) if x_0 is None else x_0], -1) if self.self_condition else x_t

    def _guessed(self, variables, x_t, image, t, key, train):
        """Inputs of the network, with its own x_0 of them beside x_t or without."""

        def guess():
            (logits, _), _ = _apply(self.network, variables, (self._beside(x_t), image, t), key, train)
            return jax.lax.stop_gradient(self._encode(jax.nn.sigmoid(logits)))

        chosen = jax.random.bernoulli(jax.random.fold_in(key, 1))
        return self._beside(x_t, jax.lax.cond(chosen, guess, lambda: jnp.zeros_like(x_t))), image, t

    def _denoiser(self, variables, image, samples):
        """`denoise(x_t, t) -> x_0` for these images, of which so many samples are drawn."""
        network = self.network
        variables = winograd.prepare(variables, uses=samples * self.sampling.steps)
        features = network.apply(variables, image, train=False, method=network.encode)

        def denoise(x_t, t):
            logits, _ = network.apply(variables, features, x_t, image, t, train=False, method=network.denoise)
            return self._encode(jax.nn.sigmoid(logits))

        return denoise

    def _decode(self, x_0):
        return process.decode_mask(x_0, mask_range=self.mask_range, mask_scale=self.mask_scale)

    def _encode(self, y):
        return process.encode_mask(y, mask_range=self.mask_range, mask_scale=self.mask_scale)


@dataclasses.dataclass(frozen=True)
class NoisePrediction:
    """MedSegDiff: the denoiser predicts noise and variance, the highway network a mask of its own (Wu et al. 2023).

    x_0 is the mask in {0, 1}. The loss is mean (eps - eps_hat)^2 + VLB in bits, with eps_hat held, + 10 mean
    (y - calibration)^2, as published. A sample, clipped to [0, 1], is a probability.
    """

    network: nn.Module
    schedule: schedule.Schedule
    sampling: Sampling = Sampling()
    calibration_weight: float = 10.0

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        return self.network.init(key, *_denoiser_inputs(self.network, jnp.zeros((1, *shape))), train=False)

    def loss(self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool) -> tuple[Array, tuple[dict, dict]]:
        """See Segmenter."""
        key_t, key_noise, key_dropout = jax.random.split(key, 3)
        y = batch["mask"]
        t = jax.random.randint(key_t, (len(y),), 0, self.schedule.timesteps)
        eps = jax.random.normal(key_noise, y.shape)
        x_t = process.q_sample(self.schedule, y, t, eps)
        (output, out), batch_stats = _apply(self.network, variables, (x_t, batch["image"], t), key_dropout, train)
        eps_hat, v = jnp.split(output, 2, axis=-1)
        x_0_hat = process.x_0_from_eps(self.schedule, x_t=x_t, eps=jax.lax.stop_gradient(eps_hat), t=t)
        mean, _, _ = process.posterior(self.schedule, x_0=x_0_hat, x_t=x_t, t=t)
        log_variance = process.learned_range_log_variance(self.schedule, v=v, t=t)
        terms = {
            "eps": jnp.mean(losses.mse(eps_hat, eps)),
            "vlb": jnp.mean(vlb.vlb_bits(self.schedule, x_0=y, x_t=x_t, t=t, mean=mean, log_variance=log_variance)),
            "calibration": self.calibration_weight * jnp.mean(losses.mse(out["calibration"], y)),
        }
        hard = (out["calibration"] > 0.5).astype(jnp.float32)
        return sum(terms.values()), ({**terms, "train_dice": 1.0 - jnp.mean(losses.dice(hard, y))}, batch_stats)

    def predict(self, variables: Variables, image: Image, keys: Keys, *, ensemble: int) -> Probabilities:
        """See Segmenter. "ddpm" draws with the learned variance; the other methods need none."""
        denoise, sampling = self._denoiser(variables, image), self.sampling

        def one_sample(x_T, keys):
            if sampling.method == "ddpm":
                x_0 = sampler.ancestral_learned(denoise, x_T, keys, self.schedule, **self._learned)
            else:
                x_0 = sampler.sample(lambda x_t, t: denoise(x_t, t)[0], x_T, keys, self.schedule, **sampling.fields)
            return jnp.clip(x_0, 0.0, 1.0)

        return _samples(one_sample, keys, (*image.shape[1:3], self.network.classes), ensemble)

    def trajectory(self, variables: Variables, image: Image, keys: Keys) -> sampler.Trajectory:
        """See Segmenter."""
        denoise, sampling = self._denoiser(variables, image), self.sampling
        x_T, keys = _draw(keys, (*image.shape[1:3], self.network.classes), 0)
        if sampling.method == "ddpm":
            steps = sampler.ancestral_learned_trajectory(denoise, x_T, keys, self.schedule, **self._learned)
        else:
            fields = sampling.fields
            steps = sampler.sample_trajectory(lambda x_t, t: denoise(x_t, t)[0], x_T, keys, self.schedule, **fields)
        return sampler.Trajectory(*(jnp.clip(x, 0.0, 1.0) for x in steps))

    @property
    def _learned(self):
        return {"steps": self.sampling.steps, "spacing": self.sampling.spacing}

    def _denoiser(self, variables, image):
        """`denoise(x_t, t) -> (x_0, v)` for these images."""
        network = self.network
        features = network.apply(variables, image, train=False, method=network.encode)

        def denoise(x_t, t):
            output, _ = network.apply(variables, features, x_t, image, t, train=False, method=network.denoise)
            eps, v = jnp.split(output, 2, axis=-1)
            return jnp.clip(process.x_0_from_eps(self.schedule, x_t=x_t, eps=eps, t=t), -1.0, 1.0), v

        return denoise


@dataclasses.dataclass(frozen=True)
class Direct:
    """Any network in one pass. A denoiser is used as if sampling were over: x_t and t are zero."""

    network: nn.Module
    heads_loss: HeadsLoss
    denoiser: bool = False

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        return self.network.init(key, *self._inputs(jnp.zeros((1, *shape))), train=False)

    def loss(self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool) -> tuple[Array, tuple[dict, dict]]:
        """See Segmenter."""
        inputs = self._inputs(batch["image"])
        return _loss(self.network, self.heads_loss, variables, inputs, batch["mask"], key, train)

    def predict(self, variables: Variables, image: Image, keys: Keys, *, ensemble: int) -> Probabilities:
        """See Segmenter; always one sample."""
        logits, _ = self.network.apply(variables, *self._inputs(image), train=False)
        return jax.nn.sigmoid(logits)[None]

    def trajectory(self, variables: Variables, image: Image, keys: Keys) -> None:
        """See Segmenter: there are no steps."""

    def _inputs(self, image):
        return _denoiser_inputs(self.network, image) if self.denoiser else (image,)


def _loss(network, heads_loss, variables, inputs, y, key_dropout, train):
    """Apply a network that predicts masks, and score all its heads."""
    (logits, out), batch_stats = _apply(network, variables, inputs, key_dropout, train)
    value = jnp.mean(heads_loss([logits, *out.get("supervision", [])], y))
    hard = (logits > 0).astype(jnp.float32)
    return value, ({"train_dice": 1.0 - jnp.mean(losses.dice(hard, y))}, batch_stats)


def _apply(network, variables, inputs, key_dropout, train):
    """(what the network returns, new batch_stats)."""
    result, updated = network.apply(
        variables, *inputs, train=train, rngs={"dropout": key_dropout}, mutable=["batch_stats"] if train else []
    )
    return result, updated.get("batch_stats", variables.get("batch_stats", {}))


def _samples(one_sample, keys, shape, ensemble):
    """`one_sample(x_T, keys)` for each of `ensemble` draws of noise, one after another: "n b h w k"."""

    return jax.lax.map(lambda number: one_sample(*_draw(keys, shape, number)), jnp.arange(ensemble))


def _draw(keys, shape, number):
    """(x_T, keys of the steps) of sample `number` of each image."""
    mine = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(mine[:, 0]), mine[:, 1]


def _denoiser_inputs(network, image):
    """(x_t, image, t) with neither noise nor time."""
    b, h, w, _ = image.shape
    return jnp.zeros((b, h, w, network.classes)), image, jnp.zeros(b, jnp.int32)
