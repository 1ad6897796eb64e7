"""A network and the way it makes masks: `Diffusion` denoises them, `Direct` predicts them in one pass.

This is the only place where the two differ. Training, evaluation and prediction see one interface, `Segmenter`.
Variables are {"params": ..., "batch_stats": ...}; probabilities are "n b h w k", n samples an image.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from biedsnet_jax import losses
from biedsnet_jax.diffusion import process, sampler, schedule
from biedsnet_jax.networks import NETWORKS
from biedsnet_jax.types import Batch, Image, PRNGKey

Variables = dict
Probabilities = Float[Array, "n b h w k"]
Keys = Key[Array, " b"]  # one per image, so that a mask does not depend on what shares its batch
HeadsLoss = Callable[[Sequence, Array], Float[Array, " b"]]


class Segmenter(Protocol):
    """What training and prediction need to know of a method."""

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for images of (height, width, channels)."""

    def loss(self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool) -> tuple[Array, tuple[dict, dict]]:
        """Mean loss of a batch, and (metrics, new batch_stats)."""

    def predict(self, variables: Variables, image: Image, keys: Keys, *, ensemble: int) -> Probabilities:
        """`ensemble` samples an image; one where a method is deterministic."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a diffusion method samples; fields as in `sampler.sample`."""

    method: str = "ddim"
    steps: int = 10
    eta: float = 0.0
    spacing: str = "trailing"


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A denoiser that predicts the mask, trained at random times, sampled from noise (paper section III.A)."""

    network: nn.Module
    schedule: schedule.Schedule
    heads_loss: HeadsLoss  # (logits of final and side heads, mask) -> "b"
    mask_range: str = "plus_minus"
    mask_scale: float = 1.0
    sampling: Sampling = Sampling()

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        h, w, _ = shape
        mask, image, t = jnp.zeros((1, h, w, self.network.classes)), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
        return self.network.init(key, mask, image, t, train=False)

    def loss(self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool) -> tuple[Array, tuple[dict, dict]]:
        """See Segmenter: x_t from q(x_t | x_0) at a uniform t, the mask from x_t."""
        key_t, key_noise, key_dropout = jax.random.split(key, 3)
        y = batch["mask"]
        t = jax.random.randint(key_t, (len(y),), 0, self.schedule.timesteps)
        noise = jax.random.normal(key_noise, y.shape)
        x_t = process.q_sample(self.schedule, self._encode(y), t, noise)
        return _loss(self.network, self.heads_loss, variables, (x_t, batch["image"], t), y, key_dropout, train)

    def predict(self, variables: Variables, image: Image, keys: Keys, *, ensemble: int) -> Probabilities:
        """See Segmenter. The image is encoded once, whatever the steps and samples."""
        network = self.network
        features = network.apply(variables, image, train=False, method=network.encode)

        def denoise(x_t, t):
            logits, _ = network.apply(variables, features, x_t, image, t, train=False, method=network.denoise)
            return self._encode(jax.nn.sigmoid(logits))

        def one_sample(number):
            mine = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys)
            shape = (*image.shape[1:3], network.classes)
            x_T = jax.vmap(lambda key: jax.random.normal(key, shape))(mine[:, 0])
            x_0 = sampler.sample(denoise, x_T, mine[:, 1], self.schedule, **dataclasses.asdict(self.sampling))
            return process.decode_mask(x_0, mask_range=self.mask_range, mask_scale=self.mask_scale)

        return jax.lax.map(one_sample, jnp.arange(ensemble))

    def _encode(self, y):
        return process.encode_mask(y, mask_range=self.mask_range, mask_scale=self.mask_scale)


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

    def _inputs(self, image):
        if not self.denoiser:
            return (image,)
        b, h, w, _ = image.shape
        return jnp.zeros((b, h, w, self.network.classes)), image, jnp.zeros(b, jnp.int32)


DENOISERS = ("biedsnet",)  # networks called with (x_t, image, t) instead of (image)


def build(config) -> Segmenter:
    """The segmenter that a checked config asks for."""
    fields = dict(config.networks[config.network])
    network = NETWORKS[config.network](classes=config.data.classes, dtype=jnp.dtype(config.dtype), **fields)
    loss, weights = _loss_function(config.loss), config.loss.supervision_weights
    denoiser = config.network in DENOISERS

    def heads_loss(heads, y):
        return losses.supervised(loss, heads, y, weights)

    if config.method == "direct" or not denoiser:
        return Direct(network, heads_loss, denoiser)
    return Diffusion(
        network,
        schedule.make(config.diffusion.schedule, config.diffusion.timesteps),
        heads_loss,
        config.diffusion.mask_range,
        config.diffusion.mask_scale,
        Sampling(config.sampler.method, config.sampler.steps, config.sampler.eta, config.sampler.spacing),
    )


def _loss_function(fields) -> losses.LossFn:
    if fields.name == "mse":
        return losses.mse_only
    dice_bce = functools.partial(losses.dice_bce, dice_smooth=fields.dice_smooth, bce_weight=fields.bce_weight)
    if fields.name == "dice_bce":
        return dice_bce
    return functools.partial(
        losses.joint, beta=fields.smooth_l1_beta, dice_smooth=fields.dice_smooth, bce_weight=fields.bce_weight
    )


def _loss(network, heads_loss, variables, inputs, y, key_dropout, train):
    """Apply the network and score all its heads; shared by both methods."""
    (logits, out), updated = network.apply(
        variables, *inputs, train=train, rngs={"dropout": key_dropout}, mutable=["batch_stats"] if train else []
    )
    value = jnp.mean(heads_loss([logits, *out.get("supervision", [])], y))
    hard = (logits > 0).astype(jnp.float32)
    metrics = {"train_dice": 1.0 - jnp.mean(losses.dice(hard, y))}
    return value, (metrics, updated.get("batch_stats", variables.get("batch_stats", {})))
