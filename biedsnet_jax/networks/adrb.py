"""Attention-denoising Residual Block (ADRB), paper section III.C, equation 5.

    F_residual = CGR(F_input) + CGR(RL(Emb) + CGR(F_input))                        (5)

CGR is a 3x3 convolution, a norm and ReLU; RL is ReLU and a linear layer on the time
embedding. Channel and spatial attention follow; the paper promises both and gives no
equation, see docs/paper.md for the two readings.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import Features, GroupNorm, batch_norm
from biedsnet_jax.networks.convolutions import Conv, Maps, UpsampledConv, in_place

# What a part of the input gives to the two branches of equation 5, before their first
# norms: to the one with the time embedding, and to the residual one.
Share = tuple[Float[Array, "b _h _w _c"], Float[Array, "b _h _w _c"]]


class CGR(nn.Module):
    """3x3 convolution without bias, group or batch norm, ReLU: `activate(conv(x))`."""

    features: int  # channels out
    inputs: int | None = None  # channels in; None: x is all
    upsample: bool = False  # double x by nearest neighbour first
    # "group" or "batch": the symbol in eq 5 says group, the prose says batch
    norm: str = "group"
    groups: int = 16
    folded: bool = False  # maps are `space_to_depth` maps; not with batch norm
    dtype: DTypeLike = jnp.float32

    def setup(self):
        if self.upsample:
            self.conv = UpsampledConv(
                self.features, folded=self.folded, dtype=self.dtype
            )
        else:
            self.conv = Conv(
                self.features, self.inputs, folded=self.folded, dtype=self.dtype
            )
        if self.norm == "batch":
            self.normalise = batch_norm(None, dtype=self.dtype, name="norm")
        else:
            # Narrow networks have widths that 16 does not divide.
            groups = math.gcd(self.groups, self.features)
            self.normalise = GroupNorm(
                groups, folded=self.folded, dtype=self.dtype, name="norm"
            )

    def activate(self, x: Features, *, train: bool) -> Features:
        """Norm and ReLU of what the convolution gave."""
        if self.norm == "batch":
            return jax.nn.relu(self.normalise(x, use_running_average=not train))
        return jax.nn.relu(self.normalise(x))

    def __call__(self, x: Maps, *, train: bool) -> Float[Array, "b _h _w c2"]:
        return self.activate(self.conv(x), train=train)


class ADRB(nn.Module):
    """Equation 5 with attention behind it: "b h w c_in", "b e" -> "b h w features".

    Both branches read the input by a convolution. So a condition feature c, its last
    channels, need not come with x: `share(c)` is computed once, and `__call__` adds it
    at every step.
    """

    features: int  # channels out
    inputs: int  # channels of x and of what comes as a share
    # "cgr": eq 5; "conv", as in the lineage: identity, or a 3x3 convolution where
    # widths differ
    residual: str = "cgr"
    attention: str = "parallel"  # "parallel", "sequential" or "none", see Attention
    norm: str = "group"
    groups: int = 16
    folded: bool = False  # maps are `space_to_depth` maps
    dtype: DTypeLike = jnp.float32

    def setup(self):
        cgr = functools.partial(
            CGR,
            self.features,
            norm=self.norm,
            groups=self.groups,
            folded=self.folded,
            dtype=self.dtype,
        )
        self.linear = nn.Dense(self.features, dtype=self.dtype)
        self.cgr_1 = cgr(self.inputs)
        self.cgr_2 = cgr()
        if self.residual == "cgr":
            self.cgr_skip = cgr(self.inputs)
        elif self.inputs != self.features:
            self.conv_skip = Conv(
                self.features,
                self.inputs,
                use_bias=True,
                folded=self.folded,
                dtype=self.dtype,
            )
        if self.attention != "none":
            self.attend = Attention(
                self.features,
                order=self.attention,
                folded=self.folded,
                dtype=self.dtype,
                name="attention",
            )

    def share(self, c: Features) -> Share:
        """The part of the condition feature, which needs neither x_t nor t."""
        return self._branches(c, last=True)

    def __call__(
        self,
        x: Maps,
        emb: Float[Array, "b e"],
        share: Share | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w c2"]:
        h, skip = self._branches(x, last=False)
        if share is not None:
            h, skip = h + share[0], skip + share[1]
        rl = self.linear(jax.nn.relu(emb))
        rl = jnp.tile(rl, (1, 4)) if self.folded else rl
        h = self.cgr_1.activate(h, train=train)
        h = self.cgr_2(h + rl[:, None, None, :], train=train)
        if self.residual == "cgr":
            skip = self.cgr_skip.activate(skip, train=train)
        # (5)
        h = h + skip
        return h if self.attention == "none" else self.attend(h)

    def _branches(self, x, *, last):
        """What x, the input's first or last channels, gives to both branches before
        their norms.
        """
        if self.residual == "cgr":
            skip = self.cgr_skip.conv(x, last=last)
        elif self.inputs != self.features:
            skip = self.conv_skip(x, last=last)
        else:
            # Never of several parts: side by side they are wider than the block.
            skip = in_place(x, self.features, last=last, folded=self.folded)
        return self.cgr_1.conv(x, last=last), skip


class Attention(nn.Module):
    """Channel attention (mean and maximum pooled, one shared MLP) and spatial attention
    (1x1 convolution).

    order "parallel", the lineage: x * channel + x * spatial. "sequential", as CBAM (Woo
    et al. 2018): channel first, then spatial on what is left.
    """

    features: int  # channels in and out
    order: str = "parallel"
    reduction: int = 16
    folded: bool = False  # x is a `space_to_depth` map
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        squeeze = nn.Dense(
            max(1, self.features // self.reduction), dtype=self.dtype, name="squeeze"
        )
        excite = nn.Dense(self.features, dtype=self.dtype, name="excite")
        spatial = Conv(
            1,
            self.features,
            1,
            use_bias=True,
            folded=self.folded,
            dtype=self.dtype,
            name="spatial",
        )
        pixels = 4 if self.folded else 1

        def mlp(pooled):
            return excite(jax.nn.relu(squeeze(pooled)))

        def spatially(x):
            weights = jax.nn.sigmoid(spatial(x))
            return (
                jnp.repeat(weights, self.features, axis=-1) if self.folded else weights
            )

        mean = jnp.mean(x, axis=(1, 2)).reshape(-1, pixels, self.features).mean(1)
        highest = jnp.max(x, axis=(1, 2)).reshape(-1, pixels, self.features).max(1)
        channel = jnp.tile(jax.nn.sigmoid(mlp(mean) + mlp(highest)), (1, pixels))[
            :, None, None, :
        ]
        if self.order == "parallel":
            return x * (channel + spatially(x))
        x = x * channel
        return x * spatially(x)
