"""Attention U-Net (Oktay et al. 2018), which gates each skip at its own resolution.

    alpha = sigmoid(BN(psi(ReLU(BN(W_g g) + BN(W_x x)))))     (equations 1 and 2 of the paper)

g is the upsampled decoder feature, x the skip, and alpha x joins g. The paper computes
the gate on a coarser grid. This form, which public results are made with, does not
resample.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import (
    Features,
    VGGBlock,
    batch_norm,
    check_size,
    conv,
    max_pool,
    upsample_nearest,
)
from biedsnet_jax.types import Image, Logits


class AttentionUNet(nn.Module):
    """A U-Net with gated skips.

    It has 34,877,421 parameters for one channel and one class, 34,525,889 without the
    gates. `out["attention"]` holds the maps alpha "b h w 1", coarsest first (none
    without gates). Height and width are multiples of 16.
    Source: LeeJunHyun/Image_Segmentation, `AttU_Net`, and `U_Net` for gates=False.
    """

    classes: int = 1
    # Widths of the levels in channels, full size first.
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024)
    gates: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for an image of (height, width) that it cannot take."""
        multiple = 2 ** (len(self.channels) - 1)
        check_size(size, multiple=multiple, network="Attention U-Net")

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        depth = len(self.channels) - 1

        # Down the left side of the U, keeping what the gates weigh.
        skips = []
        x = image.astype(self.dtype)
        for i, width in enumerate(self.channels):
            if i > 0:
                x = max_pool(x)
            x = VGGBlock(width, dtype=self.dtype, name=f"Conv{i + 1}")(x, train=train)
            skips.append(x)

        maps = []
        for i in reversed(range(depth)):
            width = self.channels[i]
            skip = skips[i]
            # The source counts from 1, and names a block after the level it comes from.
            level = i + 2
            g = UpConv(width, dtype=self.dtype, name=f"Up{level}")(x, train=train)
            if self.gates:
                gate = AttentionGate(width // 2, dtype=self.dtype, name=f"Att{level}")
                alpha = gate(g, skip, train=train)
                skip = alpha * skip
                maps.append(alpha)
            x = jnp.concatenate([skip, g], axis=-1)
            block = VGGBlock(width, dtype=self.dtype, name=f"Up_conv{level}")
            x = block(x, train=train)

        head = conv(self.classes, 1, use_bias=True, name="Conv_1x1")
        return head(x), {"attention": maps}


class UpConv(nn.Module):
    """Nearest x2, then one [3x3 convolution, batch norm, ReLU]."""

    features: int  # channels
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        x = upsample_nearest(x)
        x = conv(
            self.features,
            use_bias=True,
            dtype=self.dtype,
            name="conv",
        )(x)
        return jax.nn.relu(batch_norm(train, dtype=self.dtype, name="bn")(x))


class AttentionGate(nn.Module):
    """The map alpha "b h w 1" in [0, 1] from gating signal g and skip x."""

    features: int  # channels F_int in which g and x are compared
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, g: Features, x: Features, *, train: bool
    ) -> Float[Array, "b h w 1"]:
        def conv_norm(x, features, name):
            x = conv(
                features,
                1,
                use_bias=True,
                dtype=self.dtype,
                name=name,
            )(x)
            return batch_norm(train, dtype=self.dtype, name=f"{name}_bn")(x)

        joint = conv_norm(g, self.features, "W_g") + conv_norm(x, self.features, "W_x")
        return jax.nn.sigmoid(conv_norm(jax.nn.relu(joint), 1, "psi"))
