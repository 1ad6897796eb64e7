"""UNet (Ronneberger et al. 2015) as the UNet++ authors' PyTorch port builds it.

Each block is two [3x3 convolution, batch norm, ReLU]. Max pooling halves the size on
the way down. Bilinear interpolation with aligned corners, without a convolution of its
own, doubles it on the way up. Node x{i}_{j} sits at level i.

    x0_0 ---------------------------------> x0_4 -> final
      x1_0 --------------------------> x1_3
        x2_0 -------------------> x2_2
          x3_0 ------------> x3_1
            x4_0 ----------/
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from biedsnet_jax.networks.blocks import (
    VGGBlock,
    check_size,
    conv,
    max_pool,
    upsample_bilinear,
)
from biedsnet_jax.types import Image, Logits


class UNet(nn.Module):
    """One decoder block per level; 7,851,969 parameters for one channel and one class.

    Height and width are multiples of 2 per level below the first: 16. `out` is empty.
    Source: pytorch-nested-unet, `UNet`.
    """

    classes: int = 1
    # Widths of the levels in channels, full size first.
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for an image of (height, width) that it cannot take."""
        check_size(size, multiple=2 ** (len(self.channels) - 1), network="UNet")

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        depth = len(self.channels) - 1

        # Down the left side of the U, keeping what its right side joins.
        skips = []
        x = image.astype(self.dtype)
        for i, width in enumerate(self.channels):
            if i > 0:
                x = max_pool(x)
            x = VGGBlock(width, dtype=self.dtype, name=f"conv{i}_0")(x, train=train)
            skips.append(x)

        for i in reversed(range(depth)):
            x = upsample_bilinear(x, align_corners=True)
            x = jnp.concatenate([skips[i], x], axis=-1)
            name = f"conv{i}_{depth - i}"
            x = VGGBlock(self.channels[i], dtype=self.dtype, name=name)(x, train=train)

        head = conv(self.classes, 1, use_bias=True, name="final")
        return head(x), {}
