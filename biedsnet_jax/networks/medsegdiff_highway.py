"""MedSegDiff's highway (condition) network on the clean image, and the gates of v1.

The highway network is a plain U-Net in nnU-Net's style, five levels and a bottleneck.
It predicts a calibration map of its own, and two of its decoder maps, brought to full
size, anchor the denoiser of version `new`:

    anchor = [a_0, a_0, a_1],   a_0 from 1/2 size (width 0), a_1 from 1/4 size (width 1)

In `v1` the denoiser's map h of the same size gates the pooled map x of each of the
first four levels, by one map times one vector of channels:

    g = irfft2(W * rfft2(conv_1x1(h)))
    x <- x * conv_1x1(g) * mean_hw(g)

Wu et al., "MedSegDiff: medical image segmentation with diffusion probabilistic model",
2023, as published in code.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import Features, batch_norm, max_pool, resize_bilinear
from biedsnet_jax.types import Image

# Levels, each with a pooling, so that a side must be divisible by 32.
LEVELS = 5
# The most gates in v1. They sit at the first levels, as far as the denoiser has maps.
GATES = 4

# He initialisation for a leaky ReLU of slope 0.01, as nnU-Net does.
_he_normal = nn.initializers.variance_scaling(2.0 / (1.0 + 0.01**2), "fan_in", "normal")


def highway_widths(channels: int, cap: int) -> tuple[int, ...]:
    """Widths of the levels, then of the bottleneck: doubled at each, up to `cap`."""
    return tuple(min(channels * 2**level, cap) for level in range(LEVELS + 1))


class HighwayBlock(nn.Module):
    """conv3x3 - dropout of whole channels - batch norm - leaky ReLU."""

    features: int  # output channels
    dropout: float = 0.0  # rate
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Float[Array, "b h w d"]:
        x = nn.Conv(
            self.features,
            (3, 3),
            padding=1,
            kernel_init=_he_normal,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
        x = batch_norm(train, dtype=self.dtype, name="norm")(x)
        return jax.nn.leaky_relu(x, 0.01)


class Highway(nn.Module):
    """The condition network: image -> calibration map and anchor.

    `maps` are the denoiser's at 1/2, 1/4, ..., which gate the first levels; there are
    none in version `new`. Returns `calibration` "b h w k" in [0, 1], its
    `calibration_logits`, and `anchor` "b h w 2*w_0+w_1".
    """

    classes: int = 1  # k
    channels: int = 32  # width of the first level
    cap: int = 480  # largest width
    dropout: float = 0.5  # rate, encoder and bottleneck
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Image, maps: Sequence[Array] = (), *, train: bool
    ) -> dict[str, Array]:
        def block(x, features, name, dropout=0.0):
            module = HighwayBlock(features, dropout, self.dtype, name=name)
            return module(x, train=train)

        widths = highway_widths(self.channels, self.cap)
        size = image.shape[1:3]
        x = image.astype(self.dtype)

        skips = []
        for i, width in enumerate(widths[:LEVELS]):
            x = block(x, width, f"down_{i}_0", self.dropout)
            x = block(x, width, f"down_{i}_1", self.dropout)
            skips.append(x)
            x = max_pool(x)
            if i < len(maps):
                x = x * Gate(width, self.dtype, name=f"gate_{i}")(maps[i])
        x = block(x, widths[LEVELS], "bottleneck_0", self.dropout)
        x = block(x, widths[LEVELS - 1], "bottleneck_1", self.dropout)

        decoded = {}
        for u, i in enumerate(reversed(range(LEVELS))):
            x = resize_bilinear(x, skips[i].shape[1:3])
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = block(x, widths[i], f"up_{u}_0")
            # This block is already as wide as the next skip.
            x = block(x, widths[max(i - 1, 0)], f"up_{u}_1")
            decoded[i] = x

        # One channel per class; the published network has one class and no bias.
        head = nn.Conv(
            self.classes,
            (1, 1),
            use_bias=False,
            kernel_init=_he_normal,
            dtype=self.dtype,
            name="head",
        )
        logits = head(x).astype(jnp.float32)
        a_0 = resize_bilinear(decoded[1], size)
        a_1 = resize_bilinear(decoded[2], size)
        anchor = jnp.concatenate([a_0, a_0, a_1], axis=-1)
        return {
            "calibration": jax.nn.sigmoid(logits),
            "calibration_logits": logits,
            "anchor": anchor,
        }


class Gate(nn.Module):
    """The factor of a highway level's pooled map: a map times a vector of channels."""

    features: int  # channels of the level
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Features) -> Float[Array, "b h w d"]:
        h = self._conv(self.features, "embed")(h)
        g = FFParser(name="ff_parser")(h)
        return self._conv(1, "map")(g) * jnp.mean(g, axis=(1, 2), keepdims=True)

    def _conv(self, features, name):
        return nn.Conv(
            features,
            (1, 1),
            kernel_init=_he_normal,
            dtype=self.dtype,
            name=name,
        )


class FFParser(nn.Module):
    """Multiplies the spectrum of a map by a learned weight: irfft2(W * rfft2(x)).

    The transforms are orthonormal. The complex weight has one entry per frequency
    and channel, "h w/2+1 c 2" (real, imaginary), so it fits a single image size.
    """

    @nn.compact
    def __call__(self, x: Features) -> Features:
        _, h, w, c = x.shape
        shape = (h, w // 2 + 1, c, 2)
        weight = self.param("complex_weight", nn.initializers.normal(0.02), shape)
        # FFTs take no half precision.
        spectrum = jnp.fft.rfft2(x.astype(jnp.float32), axes=(1, 2), norm="ortho")
        spectrum = spectrum * jax.lax.complex(weight[..., 0], weight[..., 1])[None]
        y = jnp.fft.irfft2(
            spectrum,
            s=(h, w),
            axes=(1, 2),
            norm="ortho",
        )
        return y.astype(x.dtype)
