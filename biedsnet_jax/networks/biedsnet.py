"""BIEDSNet, paper section III.A and figure 1: a condition encoder of BFFMs and a U-shaped denoiser of ADRBs.

The condition encoder sees the image alone, never x_t or t, so a sampler calls `encode` once per image and `denoise` at
every step. So do the denoiser's convolutions that read its features: conv([h, c]) = conv(h) + conv(c), and conv(c) is
part of `encode`. The denoiser predicts the mask: one logit map per foreground class.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.adrb import ADRB, CGR, Attention, Share
from biedsnet_jax.networks.bffm import BFFM
from biedsnet_jax.networks.blocks import Time, TimeEmbedding, check_size, max_pool, resize_bilinear
from biedsnet_jax.networks.convolutions import Conv, depth_to_space, max_pool_folded, space_to_depth
from biedsnet_jax.types import Image, Logits, Noisy


class BIEDSNet(nn.Module):
    """The whole network; the defaults are this project's reading of the paper, `lineage` fields its PyTorch relative.

    `encode(image)` gives what the condition features add to the denoiser's convolutions, `denoise(features, x_t, image,
    t)` the logits of the mask, and `__call__` does both. `out["supervision"]` lists the side heads' logits at full
    size, level 2 first.
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
    groups: int = 16  # of the group norms; of one channel each, they would undo what the time embedding adds
    second_skip: bool = True  # a decoder level's second block also gets its encoder level's second block
    condition_joins: str = "after"  # condition feature i joins level i after its blocks (lineage), or "before" them
    supervision: bool = True  # side heads on the upper decoder levels; False: ablation rows 1 to 4
    fold: bool = False  # compute the denoiser's level 1 on `space_to_depth` maps: the same numbers, for a TPU
    remat: bool = False  # compute each ADRB again in the backward pass: less memory, more time
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
        """All that needs the image alone: what its features give to the denoiser, by level."""
        self.check_size(image.shape[1:3])
        return self.denoiser.share(self.condition(image, train=train))

    def denoise(self, features: dict, x_t: Noisy, image: Image, t: Time, *, train: bool = False) -> tuple[Logits, dict]:
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
    """The U of ADRBs. Condition feature i joins level i after its blocks, so the next level and the skip carry it.

    Or before them: the blocks mix it into what the next level and the skip carry.
    """

    classes: int
    channels: tuple[int, ...]
    blocks_per_level: int = 3
    residual: str = "cgr"
    attention: str = "parallel"
    attention_per: str = "block"
    norm: str = "group"
    groups: int = 16
    second_skip: bool = True
    condition_joins: str = "after"
    supervision: bool = True
    fold: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        widths = dict(enumerate(self.channels, start=1))
        upper = range(1, len(widths))
        self.embed = TimeEmbedding(widths[1], dtype=self.dtype, name="time")
        self.stem = Conv(widths[1] // 2, use_bias=True, **self._kind(1))
        # A first block reads the level above, in the decoder the level below and its encoder's; and a feature.
        inputs = {("encoder", i): widths[i - 1] if i > 1 else widths[1] // 2 for i in widths}
        inputs |= {("decoder", i): 2 * widths[i] for i in upper}
        self.first = {f"{side}_{i}": number for (side, i), number in inputs.items()}  # channel of a feature
        for i in upper:
            joined = [("encoder", i + 1), ("decoder", i)] if self.condition_joins == "after" else [("encoder", i)]
            inputs |= {block: inputs[block] + widths[i] for block in joined}
        self.blocks = {f"{side}_{i}": self._blocks(side, i, number) for (side, i), number in inputs.items()}
        if self.attention_per == "level" and self.attention != "none":
            self.attentions = {
                f"{side}_{i}": Attention(widths[i], order=self.attention, **self._kind(i), name=f"{side}_{i}_attention")
                for side, i in inputs
            }
        self.up = {
            i: CGR(widths[i], widths[i + 1], upsample=True, **self._norm(), **self._kind(i), name=f"up_{i}")
            for i in upper
        }
        self.heads = {
            i: Conv(self.classes, kernel=1, use_bias=True, **self._kind(i), name=f"head_{i}")
            for i in upper
            if i == 1 or self.supervision
        }

    def share(self, features: list[Float[Array, "b _h _w _c"]]) -> dict[str, Share]:
        """What each condition feature gives to the first blocks that read it: below it and on the way up, or beside it.

        A convolution is linear, so this part of its result needs neither x_t nor t.
        """
        read = {}
        for level, c in enumerate(features, start=1):
            if self.condition_joins == "after":
                read |= {f"encoder_{level + 1}": max_pool(c), f"decoder_{level}": self._fold(c, level)}
            else:
                read[f"encoder_{level}"] = self._fold(c, level)
        return {name: self.blocks[name][0].share(c, first=self.first[name]) for name, c in read.items()}

    def __call__(self, shares: dict, x_t: Noisy, image: Image, t: Time, *, train: bool) -> tuple[Logits, dict]:
        emb = self.embed(t)
        h = self.stem(self._fold(jnp.concatenate([image, x_t], axis=-1).astype(self.dtype), 1))

        skips = []
        for level in range(1, len(self.channels) + 1):
            h = h if level == 1 else self._pool(h, level - 1)
            h, second = self._level(f"encoder_{level}", h, shares, None, emb, train)
            skips.append((h, second))

        heads = []
        for level in range(len(self.channels) - 1, 0, -1):
            skip, second = skips[level - 1]
            h = self.up[level](h, train=train)
            second = second if self.second_skip else None
            h, _ = self._level(f"decoder_{level}", (h, skip), shares, second, emb, train)
            if level == 1 or self.supervision:
                heads.insert(0, self._head(h, x_t.shape[1:3], level))
        return heads[0], {"supervision": heads[1:]}

    def _kind(self, level):
        """Fields of all modules of a level: level 1, the widest, is folded if any is."""
        return {"folded": self.fold and level == 1, "dtype": self.dtype}

    def _norm(self):
        return {"norm": self.norm, "groups": self.groups}

    def _fold(self, x, level):
        return space_to_depth(x) if self.fold and level == 1 else x

    def _pool(self, x, level):
        return max_pool_folded(x) if self.fold and level == 1 else max_pool(x)

    def _unfold(self, x, level):
        return depth_to_space(x) if self.fold and level == 1 else x

    def _blocks(self, side, level, inputs):
        """The ADRBs of a level; `inputs` counts the channels that the first one reads, its share's included."""
        width, decoding = self.channels[level - 1], side == "decoder"
        second = width * (2 if decoding and self.second_skip else 1)
        block = nn.remat(ADRB, static_argnums=(4,)) if self.remat else ADRB  # 4: train
        return [
            block(
                width,
                {1: inputs, 2: second}.get(i, width),
                residual=self.residual,
                attention=self.attention if self.attention_per == "block" else "none",
                **self._norm(),
                **self._kind(level),
                name=f"{side}_{level}_block_{i}",
            )
            for i in range(1, self.blocks_per_level + 1)
        ]

    def _level(self, name, h, shares, second, emb, train):
        """ADRBs in a row; gives their result and that of the second block, the one a decoder level may ask for."""
        after_second = None
        for i, block in enumerate(self.blocks[name], start=1):
            if i == 2 and second is not None:
                h = (h, second)
            h = block(h, emb, shares.get(name) if i == 1 else None, train)
            after_second = h if i == min(2, self.blocks_per_level) else after_second
        if self.attention_per == "level" and self.attention != "none":
            h = self.attentions[name](h)
        return h, after_second

    def _head(self, h, size, level):
        """Logits of one decoder level at full size; in float32, since losses and the sampler live there."""
        logits = self._unfold(self.heads[level](h).astype(jnp.float32), level)
        return logits if level == 1 else resize_bilinear(logits, size)
