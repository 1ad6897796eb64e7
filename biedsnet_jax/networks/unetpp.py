"""UNet++ (Zhou et al. 2018): UNet with a triangle of nested blocks for its skips.

Level i is a row, and column j depends on column j - 1:

    x0_0  x0_1  x0_2  x0_3  x0_4
    x1_0  x1_1  x1_2  x1_3
    x2_0  x2_1  x2_2
    x3_0  x3_1
    x4_0

For j >= 1 a block sees all of its row before it, and the row below (paper, equation 1):

    x{i}_{j} = VGG([x{i}_0, ..., x{i}_{j-1}, up(x{i+1}_{j-1})])
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


class UNetPlusPlus(nn.Module):
    """Fifteen nodes at five widths; 9,162,753 parameters for one channel and one class.

    With `deep_supervision` each of x0_1 .. x0_4 has a head. The logits are the last
    one's; `out["supervision"]` holds the full-size logits of the others, from the
    shallowest node x0_1 on. Height and width are multiples of 16.
    Source: pytorch-nested-unet, `NestedUNet`.
    """

    classes: int = 1
    # Widths of the levels in channels, full size first.
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    # Whether each node of the first row has a head, for the loss.
    deep_supervision: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for an image of (height, width) that it cannot take."""
        check_size(size, multiple=2 ** (len(self.channels) - 1), network="UNet++")

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        depth = len(self.channels) - 1

        # rows[i][j] is x{i}_{j}
        rows = [[] for _ in self.channels]

        def block(x, i, j):
            name = f"conv{i}_{j}"
            x = VGGBlock(self.channels[i], dtype=self.dtype, name=name)(x, train=train)
            rows[i].append(x)
            return x

        x = block(image.astype(self.dtype), 0, 0)
        for i in range(1, depth + 1):
            x = block(max_pool(x), i, 0)
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                below = upsample_bilinear(rows[i + 1][j - 1], align_corners=True)
                block(jnp.concatenate([*rows[i], below], axis=-1), i, j)

        def head(x, name):
            return conv(self.classes, 1, use_bias=True, name=name)(x)

        if not self.deep_supervision:
            return head(rows[0][-1], "final"), {}
        heads = [head(rows[0][j], f"final{j}") for j in range(1, depth + 1)]
        return heads[-1], {"supervision": heads[:-1]}
