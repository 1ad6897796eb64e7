"""BIEDSNet, paper section III.A and figure 1: a condition encoder of BFFMs and a U-shaped denoiser of ADRBs.

The condition encoder sees the image alone, never x_t or t, so a sampler calls `encode` once per image and `denoise` at
every step. The denoiser predicts the mask: one logit map per foreground class.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.adrb import ADRB, CGR, Attention
from biedsnet_jax.networks.bffm import BFFM
from biedsnet_jax.networks.blocks import (
    Time,
    TimeEmbedding,
    check_size,
    conv,
    max_pool,
    resize_bilinear,
    upsample_nearest,
)
from biedsnet_jax.types import Image, Logits, Noisy


class BIEDSNet(nn.Module):
    """The whole network; the defaults are this project's reading of the paper, `lineage` fields its PyTorch relative.

    `encode(image)` gives the condition features, `denoise(features, x_t, image, t)` the logits of the mask, and
    `__call__` does both. `out["supervision"]` lists the side heads' logits at full size, level 2 first.
    """

    classes: int = 1  # k, foreground classes
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)  # per level; a 2x2 maximum pool between levels
    blocks_per_level: int = 3
    bffm: bool = True  # False: ablation row 1
    dconv: str = "separable"  # or "lineage"
    count_include_pad: bool = False  # True in the lineage
    reduction: int = 16
    residual: str = "cgr"  # or "conv" (lineage)
    attention: str = "parallel"  # or "sequential", "none"
    attention_per: str = "block"  # or "level" (lineage: once, after a level's blocks)
    norm: str = "group"  # or "batch"
    second_skip: bool = True  # a decoder level's second block also gets its encoder level's second block
    supervision: bool = True  # side heads on the upper decoder levels; False: ablation rows 1 to 4
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.condition = ConditionEncoder(
            channels=self.channels[:-1],
            bffm=self.bffm,
            dconv=self.dconv,
            count_include_pad=self.count_include_pad,
            reduction=self.reduction,
            dtype=self.dtype,
        )
        self.denoiser = Denoiser(
            classes=self.classes,
            channels=self.channels,
            blocks_per_level=self.blocks_per_level,
            residual=self.residual,
            attention=self.attention,
            attention_per=self.attention_per,
            norm=self.norm,
            second_skip=self.second_skip,
            supervision=self.supervision,
            dtype=self.dtype,
        )

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise BadInput for an image of (height, width) that it cannot take."""
        check_size(size, multiple=2 ** (len(self.channels) - 1), network="BIEDSNet")

    def encode(self, image: Image, *, train: bool = False) -> list[Float[Array, "b _h _w _c"]]:
        """Condition features of levels 1 to L-1, finest first."""
        self.check_size(image.shape[1:3])
        return self.condition(image, train=train)

    def denoise(self, features: list, x_t: Noisy, image: Image, t: Time, *, train: bool = False) -> tuple[Logits, dict]:
        """Logits of the clean mask from the noisy one."""
        return self.denoiser(features, x_t, image, t, train=train)

    def __call__(self, x_t: Noisy, image: Image, t: Time, *, train: bool = False) -> tuple[Logits, dict]:
        return self.denoise(self.encode(image, train=train), x_t, image, t, train=train)


class ConditionEncoder(nn.Module):
    """One BFFM per level, a 2x2 maximum pool between levels."""

    channels: tuple[int, ...]
    bffm: bool = True
    dconv: str = "separable"
    count_include_pad: bool = False
    reduction: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> list[Float[Array, "b _h _w _c"]]:
        x, features = image.astype(self.dtype), []
        for level, width in enumerate(self.channels, start=1):
            x = BFFM(
                width,
                edges=self.bffm,
                count_include_pad=self.count_include_pad,
                reduction=self.reduction,
                dconv=self.dconv,
                dtype=self.dtype,
                name=f"level_{level}",
            )(x if level == 1 else max_pool(x), train=train)
            features.append(x)
        return features


class Denoiser(nn.Module):
    """The U of ADRBs. Condition feature i joins level i after its blocks, so the next level and the skip carry it."""

    classes: int
    channels: tuple[int, ...]
    blocks_per_level: int = 3
    residual: str = "cgr"
    attention: str = "parallel"
    attention_per: str = "block"
    norm: str = "group"
    second_skip: bool = True
    supervision: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: list, x_t: Noisy, image: Image, t: Time, *, train: bool) -> tuple[Logits, dict]:
        emb = TimeEmbedding(self.channels[0], dtype=self.dtype, name="time")(t)
        h = jnp.concatenate([image, x_t], axis=-1).astype(self.dtype)
        h = conv(self.channels[0] // 2, use_bias=True, dtype=self.dtype, name="stem")(h)

        skips = []
        for level, width in enumerate(self.channels, start=1):
            h = h if level == 1 else max_pool(h)
            h, second = self._level(h, None, emb, width, f"encoder_{level}", train)
            if level < len(self.channels):
                h = jnp.concatenate([h, features[level - 1]], axis=-1)
                skips.append((h, second))

        heads = []
        for level in range(len(self.channels) - 1, 0, -1):
            width = self.channels[level - 1]
            skip, second = skips[level - 1]
            h = CGR(width, norm=self.norm, dtype=self.dtype, name=f"up_{level}")(upsample_nearest(h), train=train)
            h = jnp.concatenate([h, skip], axis=-1)
            h, _ = self._level(h, second if self.second_skip else None, emb, width, f"decoder_{level}", train)
            if level == 1 or self.supervision:
                heads.insert(0, self._head(h, x_t.shape[1:3], level))
        return heads[0], {"supervision": heads[1:]}

    def _level(self, h, second, emb, width, name, train):
        """ADRBs in a row; gives their result and that of the second block, the one a decoder level may ask for."""
        after_second = None
        for i in range(1, self.blocks_per_level + 1):
            if i == 2 and second is not None:
                h = jnp.concatenate([h, second], axis=-1)
            h = ADRB(
                width,
                residual=self.residual,
                attention=self.attention if self.attention_per == "block" else "none",
                norm=self.norm,
                dtype=self.dtype,
                name=f"{name}_block_{i}",
            )(h, emb, train=train)
            after_second = h if i == min(2, self.blocks_per_level) else after_second
        if self.attention_per == "level" and self.attention != "none":
            h = Attention(order=self.attention, dtype=self.dtype, name=f"{name}_attention")(h)
        return h, after_second

    def _head(self, h, size, level):
        """Logits of one decoder level at full size; in float32, since losses and the sampler live there."""
        logits = conv(self.classes, 1, use_bias=True, dtype=self.dtype, name=f"head_{level}")(h).astype(jnp.float32)
        return logits if level == 1 else resize_bilinear(logits, size)
