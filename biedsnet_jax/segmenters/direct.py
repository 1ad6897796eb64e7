"""Segmentation without diffusion."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

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
class Direct:
    """Any network in one pass.

    A denoiser is used as if sampling were over: x_t and t are zero.
    """

    network: nn.Module
    heads_loss: HeadsLoss
    mirror: str = ""  # one of mirror.CHOICES

    draws_samples = False

    def init(self, key: PRNGKey, shape: tuple[int, int, int]) -> Variables:
        """See Segmenter."""
        inputs = self._inputs(jnp.zeros((1, *shape)))
        return self.network.init(key, *inputs, train=False)

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKey, *, train: bool
    ) -> Loss:
        """See Segmenter."""
        inputs = self._inputs(batch["image"])
        return segmenter.mask_loss(self, variables, inputs, batch, key, train)

    def predict(
        self, variables: Variables, image: Image, keys: Keys, *, ensemble: int
    ) -> Probabilities:
        """See Segmenter; always one sample."""

        def one_pass(turn):
            inputs = self._inputs(turn(image))
            logits, _ = self.network.apply(variables, *inputs, train=False)
            # The samples' axis has one entry, whatever `ensemble` asks for.
            return jax.nn.sigmoid(turn(logits))[None]

        return mirror.average(one_pass, self.mirror)

    def trajectory(self, variables: Variables, image: Image, keys: Keys) -> None:
        """See Segmenter: there are no steps."""

    def _inputs(self, image):
        if hasattr(self.network, "denoise"):
            return segmenter.denoiser_inputs(self.network, image)
        return (image,)
