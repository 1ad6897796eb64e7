"""BIEDSNet, paper section III.A and figure 1.

    image --> ConditionEncoder: a BFFM a level --> features --.
    [image, x_t], t ------------------------------------------+--> Denoiser: a U of ADRBs --> mask

The condition encoder sees the image alone, never x_t or t, so a sampler calls `encode`
once per image and `denoise` at every step. The denoiser's convolutions are split alike:
conv([h, c]) is conv(h) + conv(c), where conv(c) of a condition feature c belongs to
`encode`. The denoiser predicts the mask: one logit map per foreground class.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from biedsnet_jax.networks.adrb import ADRB, CGR, Attention, Share
from biedsnet_jax.networks.bffm import BFFM
from biedsnet_jax.networks.blocks import (
    OtherFeatures,
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
    size, level 2 first.
    """

    # Number of foreground classes, k.
    classes: int = 1
    # Widths of the levels in channels, full size first.
    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    # Residual blocks of each level.
    blocks_per_level: int = 3
    # Boundary features in the condition encoder. False is ablation row 1.
    bffm: bool = True
    # End of a BFFM. "separable" is depthwise, then 1x1. "lineage", as in the reference
    # implementation, is 1x1, ReLU, depthwise, norm, 1x1.
    dconv: str = "separable"
    # Whether boundaries count zeros beyond the image, so that its border reads as an
    # edge. The reference implementation does.
    count_include_pad: bool = False
    # Factor by which the channel attention of a BFFM squeezes its channels.
    reduction: int = 16
    # Residual branch of a block. "cgr" is equation 5. "conv", as in the reference
    # implementation, is the identity, or a 3x3 convolution where widths differ.
    residual: str = "cgr"
    # How a block's channel and spatial attention join: added, or one after the other.
    attention: str = "parallel"
    # Attention after each "block", or, as in the reference implementation, once after the
    # blocks of a "level".
    attention_per: str = "block"
    # Norm of the denoiser: equation 5 says group, the paper's prose says batch.
    norm: str = "group"
    # Groups of a group norm. With one channel each they would undo what the time
    # embedding adds.
    groups: int = 16
    # Whether a decoder level's second block also reads its encoder level's second block.
    second_skip: bool = True
    # Whether a condition feature joins its level "after" the blocks, as in the reference
    # implementation, or "before" them.
    condition_joins: str = "after"
    # Side heads on the upper decoder levels. False in ablation rows 1 to 4.
    supervision: bool = True
    # Computes the widest level on folded maps, to the same result; faster on a TPU.
    fold: bool = False
    # Computes each block again in the backward pass: less memory, more time.
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
        """Raises BadInput for an image of (height, width) that it cannot take."""
        check_size(size, multiple=2 ** (len(self.channels) - 1), network="BIEDSNet")

    def encode(self, image: Image, *, train: bool = False) -> dict[str, Share]:
        """All that needs the image alone: its features' shares in the denoiser."""
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
        """Logits of the clean mask, and the side heads', from the noisy mask x_t."""
        return self.denoiser(features, x_t, image, t, train=train)

    def __call__(
        self,
        x_t: Noisy,
        image: Image,
        t: Time,
        *,
        train: bool = False,
    ) -> tuple[Logits, dict]:
        return self.denoise(self.encode(image, train=train), x_t, image, t, train=train)


class ConditionEncoder(nn.Module):
    """A BFFM per level, a 2x2 maximum pool between levels; fields as in BIEDSNet."""

    channels: tuple[int, ...]
    bffm: bool
    dconv: str
    count_include_pad: bool
    reduction: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> list[OtherFeatures]:
        x = image.astype(self.dtype)
        features = []
        for level, width in enumerate(self.channels, start=1):
            if level > 1:
                x = max_pool(x)
            x = BFFM(
                width,
                edges=self.bffm,
                count_include_pad=self.count_include_pad,
                reduction=self.reduction,
                dconv=self.dconv,
                dtype=self.dtype,
                name=f"level_{level}",
            )(x, train=train)
            features.append(x)
        return features


class Denoiser(nn.Module):
    """The U of ADRBs, L levels deep; fields as in BIEDSNet.

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
    `input_widths` is this table in numbers, `share` its right half.
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
        levels = range(1, len(self.channels))
        self.embed = TimeEmbedding(self.channels[0], dtype=self.dtype, name="time")
        self.stem = Conv(
            self.channels[0] // 2,
            use_bias=True,
            folded=self.fold,
            dtype=self.dtype,
        )
        self.blocks = {
            f"{side}_{level}": self._blocks(side, level, widths)
            for (side, level), widths in inputs.items()
        }
        attends = self.attention_per == "level" and self.attention != "none"
        self.attentions = {
            f"{side}_{level}": Attention(
                self.channels[level - 1],
                order=self.attention,
                folded=self._folded(level),
                dtype=self.dtype,
                name=f"{side}_{level}_attention",
            )
            for side, level in inputs
            if attends
        }
        self.up = {
            level: CGR(
                self.channels[level - 1],
                upsample=True,
                norm=self.norm,
                groups=self.groups,
                folded=self._folded(level),
                dtype=self.dtype,
                name=f"up_{level}",
            )
            for level in levels
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
            for level in levels
            if level == 1 or self.supervision
        }

    def share(self, features: list[OtherFeatures]) -> dict[str, Share]:
        """What each condition feature gives to the first blocks that read it."""
        reads = {}
        for level, c in enumerate(features, start=1):
            here = fold(c, self._folded(level))
            if self.condition_joins == "after":
                reads[f"encoder_{level + 1}"] = max_pool(c)
                reads[f"decoder_{level}"] = here
            else:
                reads[f"encoder_{level}"] = here
        return {name: self.blocks[name][0].share(c) for name, c in reads.items()}

    def __call__(
        self,
        shares: dict[str, Share],
        x_t: Noisy,
        image: Image,
        t: Time,
        *,
        train: bool,
    ) -> tuple[Logits, dict]:
        emb = self.embed(t)
        h = jnp.concatenate([image, x_t], axis=-1).astype(self.dtype)
        h = self.stem(fold(h, self.fold))

        # Down the left side of the U.
        skips = {}
        for level in range(1, len(self.channels) + 1):
            if level > 1:
                h = pool(h, self._folded(level - 1))
            h, second = self._level(f"encoder_{level}", h, None, shares, emb, train)
            skips[level] = (h, second if self.second_skip else None)

        # Up the right side.
        heads = []
        for level in range(len(self.channels) - 1, 0, -1):
            skip, second = skips[level]
            h = (self.up[level](h, train=train), skip)
            h, _ = self._level(f"decoder_{level}", h, second, shares, emb, train)
            if level in self.heads:
                heads.append(self._head(h, x_t.shape[1:3], level))
        *side_heads, logits = heads
        return logits, {"supervision": side_heads[::-1]}

    def _folded(self, level):
        """Level 1, the widest map, is folded if any is."""
        return self.fold and level == 1

    def _blocks(self, side, level, widths):
        """The ADRBs of a level, whose first and second one read `widths` channels."""
        features = self.channels[level - 1]
        widths = [*widths, *[features] * self.blocks_per_level]
        # Argument 4 is `train`.
        block = nn.remat(ADRB, static_argnums=(4,)) if self.remat else ADRB
        return [
            block(
                features,
                widths[i],
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
        """Results of a level and, for `second_skip`, of its second (or only) block.

        The level's own second block reads `second` too, where it is given.
        """
        share = shares.get(name)
        for i, block in enumerate(self.blocks[name]):
            if i == 1 and second is not None:
                h = (h, second)
            h = block(h, emb, share if i == 0 else None, train)
            if i <= 1:
                after_second = h
        if name in self.attentions:
            h = self.attentions[name](h)
        return h, after_second

    def _head(self, h, size, level):
        """Logits at full size, in float32, as losses and the sampler compute."""
        logits = self.heads[level](h).astype(jnp.float32)
        logits = unfold(logits, self._folded(level))
        return logits if level == 1 else resize_bilinear(logits, size)


def input_widths(
    channels: tuple[int, ...], condition_joins: str, second_skip: bool
) -> dict[tuple[str, int], tuple[int, int]]:
    """`Denoiser`'s table: channels that a level's first and second block read.

    The keys are (side, level), such as ("encoder", 1).
    """
    after = condition_joins == "after"
    # Channels of the stem, then of level i.
    widths = (channels[0] // 2, *channels)
    # Channels of condition feature i; there is none at 0 and none at the deepest level.
    features = (0, *channels[:-1], 0)
    inputs = {}
    for i, width in enumerate(channels, start=1):
        joined = features[i - 1] if after else features[i]
        inputs["encoder", i] = (widths[i - 1] + joined, width)
    for i, width in enumerate(channels[:-1], start=1):
        joined = features[i] if after else 0
        skipped = width if second_skip else 0
        inputs["decoder", i] = (2 * width + joined, width + skipped)
    return inputs
