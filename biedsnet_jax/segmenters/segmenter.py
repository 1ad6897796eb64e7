"""What training and prediction see of a method: a network and the way it makes masks.

The functions below are shared by the methods. Variables are {"params": ...,
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
# one per image, so that a mask does not depend on what shares its batch
Keys = Key[Array, " b"]
HeadsLoss = Callable[[Sequence, Array], Float[Array, " b"]]
Loss = tuple[Array, tuple[dict, dict]]


@runtime_checkable
class Segmenter(Protocol):
    """What training and prediction need to know of a method."""

    draws_samples: bool  # whether `predict` starts from noise, so that samples differ

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """Fresh variables for images of (height, width, channels)."""

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool
    ) -> Loss:
        """Mean loss of a batch, and (metrics, new batch_stats)."""

    def predict(
        self, variables: Variables, image: Image, keys: Keys, *, ensemble: int
    ) -> Probabilities:
        """`ensemble` samples an image; one where a method is deterministic."""

    def trajectory(
        self, variables: Variables, image: Image, keys: Keys
    ) -> Trajectory | None:
        """How the first of the samples of `predict` came about, x_t and x_0 as
        probabilities; None without steps.
        """


def denoiser_inputs(network, image: Image) -> tuple:
    """(x_t, image, t) with neither noise nor time."""
    b, h, w, _ = image.shape
    return jnp.zeros((b, h, w, network.classes)), image, jnp.zeros(b, jnp.int32)


def apply(
    network, variables: Variables, inputs: tuple, key_dropout: PRNGKey, train: bool
) -> tuple:
    """(what the network returns, new batch_stats)."""
    result, updated = network.apply(
        variables,
        *inputs,
        train=train,
        rngs={"dropout": key_dropout},
        mutable=["batch_stats"] if train else [],
    )
    return result, updated.get("batch_stats", variables.get("batch_stats", {}))


def mask_loss(
    method, variables: Variables, inputs: tuple, y, key_dropout, train: bool
) -> Loss:
    """Applies a method's network, which predicts masks, and scores all its heads."""
    (logits, out), batch_stats = apply(
        method.network, variables, inputs, key_dropout, train
    )
    value = jnp.mean(method.heads_loss([logits, *out.get("supervision", [])], y))
    return value, ({"train_dice": train_dice(logits > 0, y)}, batch_stats)


def train_dice(mask, y) -> Float[Array, ""]:
    """Dice of a predicted mask, the mean of a batch."""
    return 1.0 - jnp.mean(losses.dice(mask.astype(jnp.float32), y))


def draw(network, image: Image, keys: Keys, number) -> tuple[Array, Keys]:
    """(x_T, keys of the steps) of sample `number` of each image."""
    shape = (*image.shape[1:3], network.classes)
    mine = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(mine[:, 0]), mine[:, 1]
