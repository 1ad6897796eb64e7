"""The interface of a method, which is a network and the way it makes masks.

Training and prediction see no more of a method than `Segmenter`. The methods share the
functions below. Variables are {"params": ...,
"batch_stats": ...}; probabilities are "n b h w k", n samples an image.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from biedsnet_jax.diffusion.sampler import Trajectory
from biedsnet_jax.segmenters import losses
from biedsnet_jax.types import Batch, Image, PRNGKey

Variables = dict
Probabilities = Float[Array, "n b h w k"]
# One per image, so that a mask does not depend on what shares its batch.
Keys = Key[Array, " b"]
# (logits of final and side heads, mask, known or None) -> "b".
HeadsLoss = Callable[[Sequence, Array, Array | None], Float[Array, " b"]]
Loss = tuple[Array, tuple[dict, dict]]


@runtime_checkable
class Segmenter(Protocol):
    """What training and prediction need to know of a method."""

    # Whether `predict` starts from noise, so that samples differ.
    draws_samples: bool

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """Draws fresh variables for images of (height, width, channels)."""

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool
    ) -> Loss:
        """Returns the mean loss of a batch, and (metrics, new batch_stats)."""

    def predict(
        self, variables: Variables, image: Image, keys: Keys, *, ensemble: int
    ) -> Probabilities:
        """Draws `ensemble` samples an image, one where a method is deterministic."""

    def trajectory(
        self, variables: Variables, image: Image, keys: Keys
    ) -> Trajectory | None:
        """The steps to `predict`'s first sample, as probabilities, or None."""


def denoiser_inputs(network, image: Image) -> tuple:
    """Returns (x_t, image, t) with x_t and t zero."""
    b, h, w, _ = image.shape
    return jnp.zeros((b, h, w, network.classes)), image, jnp.zeros(b, jnp.int32)


def apply(
    network, variables: Variables, inputs: tuple, key_dropout: PRNGKey, train: bool
) -> tuple:
    """Applies a network and returns (its result, new batch_stats)."""
    result, updated = network.apply(
        variables,
        *inputs,
        train=train,
        rngs={"dropout": key_dropout},
        mutable=["batch_stats"] if train else [],
    )
    return result, updated.get("batch_stats", variables.get("batch_stats", {}))


def mask_loss(
    method, variables: Variables, inputs: tuple, batch: Batch, key_dropout, train: bool
) -> Loss:
    """Applies a method's network, which predicts masks, and scores all its heads."""
    y = batch["mask"]
    known = batch.get("known")
    (logits, out), batch_stats = apply(
        method.network, variables, inputs, key_dropout, train
    )
    heads = [logits, *out.get("supervision", [])]
    value = jnp.mean(method.heads_loss(heads, y, known))
    metrics = {"train_dice": train_dice(logits > 0, y, known)}
    return value, (metrics, batch_stats)


def train_dice(mask, y, known=None) -> Float[Array, ""]:
    """Mean Dice of a batch of predicted masks, of those examples of which any is known."""
    loss = losses.dice(mask.astype(jnp.float32), y, known=known)
    if known is None:
        return 1.0 - jnp.mean(loss)
    there = jnp.any(known > 0, axis=(1, 2, 3))
    return 1.0 - jnp.sum(loss * there) / jnp.maximum(jnp.sum(there), 1)


def draw(network, image: Image, keys: Keys, number) -> tuple[Array, Keys]:
    """Draws x_T, and the keys of the steps, for sample `number` of each image."""
    shape = (*image.shape[1:3], network.classes)

    def split(key):
        return jax.random.split(jax.random.fold_in(key, number))

    # One key draws x_T, the other the noise of the steps.
    sample_keys = jax.vmap(split)(keys)
    x_T = jax.vmap(lambda key: jax.random.normal(key, shape))(sample_keys[:, 0])
    return x_T, sample_keys[:, 1]
