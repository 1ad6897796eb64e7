"""BIEDSNet, paper section III.A and figure 1: a condition encoder of BFFMs, a denoiser
of ADRBs.

The condition encoder sees the image alone, never x_t or t, so a sampler calls `encode`
once per image and `denoise` at every step. The denoiser's convolutions are split alike:
conv([h, c]) is conv(h) + conv(c), where conv(c) of a condition feature c belongs to
`encode`. The denoiser predicts the mask: one logit map per foreground class.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.adrb import ADRB, CGR, Attention, Share
from biedsnet_jax.networks.bffm import BFFM
from biedsnet_jax.networks.blocks import (
    Time,
    TimeEmbedding,
    check_size,
    max_pool,
    resize_bilinear,
)
from biedsnet_jax.networks.convolutions import Conv, fold, pool, unfold
from biedsnet_jax.types import Image, Logits, Noisy


class BIEDSNet(nn.Module):
    """The whole network; its defaults are this project's reading of the paper.

    `encode(image)` gives what the condition features add to the denoiser's
    convolutions, `denoise(features, x_t, image, t)` the logits of the mask, and
    `__call__` does both. `out["supervision"]` lists the side heads' logits at full
    size, level 2 first. Fields marked `lineage` can be set as in the reference
    implementation, which is in PyTorch.
    """

    classes: int = 1  # k, foreground classes
    # of the levels, full size first
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    blocks_per_level: int = 3
    bffm: bool = True  # False: ablation row 1
    dconv: str = "separable"  # or "lineage"
    count_include_pad: bool = False  # True in the lineage
    reduction: int = 16
    residual: str = "cgr"  # or "conv" (lineage)
    attention: str = "parallel"  # or "sequential", "none"
    attention_per: str = "block"  # or "level" (lineage: once, after a level's blocks)
    norm: str = "group"  # or "batch"
    # Groups of one channel each would undo what the time embedding adds.
    groups: int = 16
    # Whether a decoder level's second block also reads its encoder level's second
    # block.
    second_skip: bool = True
    # Condition feature i joins level i after its blocks (lineage), or "before" them.
    condition_joins: str = "after"
    # side heads on the upper decoder levels; False: ablation rows 1 to 4
    supervision: bool = True
    # Compute the denoiser's level 1 on `space_to_depth` maps: the same numbers, for a
    # TPU.
    fold: bool = False
    # compute each ADRB again in the backward pass: less memory, more time
    remat: bool = False
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
            groups=self.groups,
            second_skip=self.second_skip,
            condition_joins=self.condition_joins,
            supervision=self.supervision,
            fold=self.fold,
            remat=self.remat,
            dtype=self.dtype,
        )

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise BadInput for an image of (height, width) that it cannot take."""
        check_size(size, multiple=2 ** (len(self.channels) - 1), network="BIEDSNet")

    def encode(self, image: Image, *, train: bool = False) -> dict[str, Share]:
        """All that needs the image alone: what its features give to the denoiser, by
        level.
        """
        self.check_size(image.shape[1:3])
        return self.denoiser.share(self.condition(image, train=train))

    def denoise(
        self,
        features: dict[str, Share],
        x_t: Noisy,
        image: Image,
        t: Time,
        *,
        train: bool = False,
    ) -> tuple[Logits, dict]:
        """Logits of the clean mask from the noisy one."""
        return self.denoiser(features, x_t, image, t, train=train)

    def __call__(
        self, x_t: Noisy, image: Image, t: Time, *, train: bool = False
    ) -> tuple[Logits, dict]:
        return self.denoise(self.encode(image, train=train), x_t, image, t, train=train)


class ConditionEncoder(nn.Module):
    """One BFFM per level, a 2x2 maximum pool between levels; the fields are BIEDSNet's."""

    channels: tuple[int, ...]
    bffm: bool
    dconv: str
    count_include_pad: bool
    reduction: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, image: Image, *, train: bool
    ) -> list[Float[Array, "b _h _w _c"]]:
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
    """The U of ADRBs, L levels deep; the fields are BIEDSNet's.

    A block reads the result of the block before it. A level's first block reads, side
    by side:

        first block   of the U                            of the condition, if it joins
                                                          "after"                "before"
        encoder 1     stem of [image, x_t]                nothing                feature 1
        encoder i     encoder i-1, pooled                 feature i-1, pooled    feature i
        encoder L     encoder L-1, pooled                 feature L-1, pooled    nothing
        decoder i     level below, up-sampled; encoder i  feature i              nothing

    The second block of decoder i also reads the second block of encoder i
    (`second_skip`). A feature that joins a level "after" its blocks goes unchanged into
    the skip and to the level below; the blocks mix in one that joins "before".
    `input_widths` is this table in numbers.
    """

    classes: int
    channels: tuple[int, ...]
    blocks_per_level: int
    residual: str
    attention: str
    attention_per: str
    norm: str
    groups: int
    second_skip: bool
    condition_joins: str
    supervision: bool
    fold: bool
    remat: bool
    dtype: DTypeLike

    def setup(self):
        inputs = input_widths(self.channels, self.condition_joins, self.second_skip)
        upper = dict(enumerate(self.channels[:-1], start=1))
        self.embed = TimeEmbedding(self.channels[0], dtype=self.dtype, name="time")
        self.stem = Conv(
            self.channels[0] // 2, use_bias=True, folded=self.fold, dtype=self.dtype
        )
        self.blocks = {
            f"{side}_{level}": self._blocks(side, level, read)
            for (side, level), read in inputs.items()
        }
        attended = (
            inputs if self.attention_per == "level" and self.attention != "none" else ()
        )
        self.attentions = {
            f"{side}_{level}": Attention(
                self.channels[level - 1],
                order=self.attention,
                folded=self._folded(level),
                dtype=self.dtype,
                name=f"{side}_{level}_attention",
            )
            for side, level in attended
        }
        self.up = {
            level: CGR(
                width,
                upsample=True,
                norm=self.norm,
                groups=self.groups,
                folded=self._folded(level),
                dtype=self.dtype,
                name=f"up_{level}",
            )
            for level, width in upper.items()
        }
        self.heads = {
            level: Conv(
                self.classes,
                kernel=1,
                use_bias=True,
                folded=self._folded(level),
                dtype=self.dtype,
                name=f"head_{level}",
            )
            for level in upper
            if level == 1 or self.supervision
        }

    def share(self, features: list[Float[Array, "b _h _w _c"]]) -> dict[str, Share]:
        """What each condition feature gives to the first blocks that read it."""
        read = {}
        for level, c in enumerate(features, start=1):
            here = fold(c, self._folded(level))
            if self.condition_joins == "after":
                read |= {f"encoder_{level + 1}": max_pool(c), f"decoder_{level}": here}
            else:
                read[f"encoder_{level}"] = here
        return {name: self.blocks[name][0].share(c) for name, c in read.items()}

    def __call__(
        self,
        shares: dict[str, Share],
        x_t: Noisy,
        image: Image,
        t: Time,
        *,
        train: bool,
    ) -> tuple[Logits, dict]:
        levels = range(1, len(self.channels) + 1)
        emb = self.embed(t)
        h = jnp.concatenate([image, x_t], axis=-1).astype(self.dtype)
        h = self.stem(fold(h, self.fold))

        skips = {}
        for level in levels:
            if level > 1:
                h = pool(h, self._folded(level - 1))
            h, second = self._level(f"encoder_{level}", h, None, shares, emb, train)
            skips[level] = (h, second if self.second_skip else None)

        heads = []
        for level in reversed(levels[:-1]):
            skip, second = skips[level]
            h = self.up[level](h, train=train)
            h, _ = self._level(
                f"decoder_{level}", (h, skip), second, shares, emb, train
            )
            if level in self.heads:
                heads.insert(0, self._head(h, x_t.shape[1:3], level))
        return heads[0], {"supervision": heads[1:]}

    def _folded(self, level):
        """Level 1, the widest map, is folded if any is."""
        return self.fold and level == 1

    def _blocks(self, side, level, inputs):
        """The ADRBs of a level, whose first and second one read `inputs` channels."""
        width = self.channels[level - 1]
        inputs = [*inputs, *[width] * self.blocks_per_level]
        # Argument 4 is `train`.
        block = nn.remat(ADRB, static_argnums=(4,)) if self.remat else ADRB
        return [
            block(
                width,
                inputs[i],
                residual=self.residual,
                attention=self.attention if self.attention_per == "block" else "none",
                norm=self.norm,
                groups=self.groups,
                folded=self._folded(level),
                dtype=self.dtype,
                name=f"{side}_{level}_block_{i + 1}",
            )
            for i in range(self.blocks_per_level)
        ]

    def _level(self, name, h, second, shares, emb, train):
        """Results of a level's last block, and of its second (or only) one for
        `second_skip`.
        """
        results = []
        for i, block in enumerate(self.blocks[name]):
            if i == 1 and second is not None:
                h = (h, second)
            h = block(h, emb, shares.get(name) if i == 0 else None, train)
            results.append(h)
        if name in self.attentions:
            h = self.attentions[name](h)
        return h, results[:2][-1]

    def _head(self, h, size, level):
        """Logits at full size; in float32, since losses and the sampler live there."""
        logits = self.heads[level](h).astype(jnp.float32)
        logits = unfold(logits, self._folded(level))
        return logits if level == 1 else resize_bilinear(logits, size)


def input_widths(
    channels: tuple[int, ...], condition_joins: str, second_skip: bool
) -> dict[tuple[str, int], tuple[int, int]]:
    """Channels that the first and the second block read, by (side, level): `Denoiser`'s
    table.
    """
    after = condition_joins == "after"
    # Channels of the stem, then of level i.
    widths = (channels[0] // 2, *channels)
    # Channels of condition feature i; there is none at 0 and none at the deepest level.
    features = (0, *channels[:-1], 0)
    inputs = {}
    for i, width in enumerate(channels, start=1):
        inputs["encoder", i] = widths[i - 1] + features[i - 1 if after else i], width
    for i, width in enumerate(channels[:-1], start=1):
        first = width + width + (features[i] if after else 0)
        inputs["decoder", i] = first, width + (width if second_skip else 0)
    return inputs
