"""Attention-denoising Residual Block (ADRB), paper section III.C, equation 5.

    F_residual = CGR(F_input) + CGR(RL(Emb) + CGR(F_input))                        (5)

CGR is a 3x3 convolution, a norm and ReLU; RL is ReLU and a linear layer on the time
embedding. Channel and spatial attention follow. The paper promises both and gives no
equation, see docs/paper.md for the two readings.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import Features, GroupNorm, OtherFeatures, batch_norm
from biedsnet_jax.networks.convolutions import Conv, Maps, UpsampledConv, in_place

# What a part of the input gives to the two branches of equation 5, before their first
# norms: to the one with the time embedding, and to the residual one.
Share = tuple[OtherFeatures, OtherFeatures]


class CGR(nn.Module):
    """3x3 convolution without bias, group or batch norm, ReLU: `activate(conv(x))`."""

    features: int  # channels out
    inputs: int | None = None  # channels in; None: x is all
    upsample: bool = False  # double x by nearest neighbour first
    # "group" or "batch": the symbol in equation 5 says group, the prose says batch.
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
                self.features,
                self.inputs,
                folded=self.folded,
                dtype=self.dtype,
            )
        if self.norm == "batch":
            self.normalise = batch_norm(None, dtype=self.dtype, name="norm")
        else:
            # Narrow networks have widths that 16 does not divide.
            groups = math.gcd(self.groups, self.features)
            self.normalise = GroupNorm(
                groups,
                folded=self.folded,
                dtype=self.dtype,
                name="norm",
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
    # "cgr" is equation 5. "conv", as in the reference implementation, is the identity,
    # or a 3x3 convolution where widths differ.
    residual: str = "cgr"
    attention: str = "parallel"  # "parallel", "sequential" or "none", see Attention
    norm: str = "group"
    groups: int = 16
    folded: bool = False  # maps are `space_to_depth` maps
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.linear = nn.Dense(self.features, dtype=self.dtype)
        self.cgr_1 = self._cgr(self.inputs)
        self.cgr_2 = self._cgr(self.features)
        if self.residual == "cgr":
            self.cgr_skip = self._cgr(self.inputs)
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
        if self.folded:
            rl = jnp.tile(rl, (1, 4))
        h = self.cgr_1.activate(h, train=train)
        h = self.cgr_2(h + rl[:, None, None, :], train=train)
        if self.residual == "cgr":
            skip = self.cgr_skip.activate(skip, train=train)
        # (5)
        h = h + skip
        return h if self.attention == "none" else self.attend(h)

    def _cgr(self, inputs):
        return CGR(
            self.features,
            inputs,
            norm=self.norm,
            groups=self.groups,
            folded=self.folded,
            dtype=self.dtype,
        )

    def _branches(self, x, *, last):
        """What x, the first or last channels, gives to both branches before norms."""
        if self.residual == "cgr":
            skip = self.cgr_skip.conv(x, last=last)
        elif self.inputs != self.features:
            skip = self.conv_skip(x, last=last)
        else:
            # x is one map: parts side by side are wider than the block.
            skip = in_place(
                x,
                self.features,
                last=last,
                folded=self.folded,
            )
        return self.cgr_1.conv(x, last=last), skip


class Attention(nn.Module):
    """Channel attention by one shared MLP, spatial attention by a 1x1 convolution.

    The MLP sees the mean and the maximum of each channel. Order "parallel", as in the
    reference implementation, is x * channel + x * spatial. Order "sequential", as in
    CBAM (Woo et al. 2018), applies the channel weights first and computes the spatial
    weights from the result.
    """

    features: int  # channels in and out
    order: str = "parallel"
    reduction: int = 16
    folded: bool = False  # x is a `space_to_depth` map
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        squeezed = max(1, self.features // self.reduction)
        squeeze = nn.Dense(squeezed, dtype=self.dtype, name="squeeze")
        excite = nn.Dense(self.features, dtype=self.dtype, name="excite")
        pixels = 4 if self.folded else 1

        def mlp(pooled):
            return excite(jax.nn.relu(squeeze(pooled)))

        # A folded map is pooled over the pixels of its blocks, too.
        mean = jnp.mean(x, axis=(1, 2)).reshape(-1, pixels, self.features).mean(1)
        largest = jnp.max(x, axis=(1, 2)).reshape(-1, pixels, self.features).max(1)
        channel = jax.nn.sigmoid(mlp(mean) + mlp(largest))
        channel = jnp.tile(channel, (1, pixels))[:, None, None, :]
        if self.order == "parallel":
            return x * (channel + self._spatial(x))
        x = x * channel
        return x * self._spatial(x)

    def _spatial(self, x):
        """One weight in (0, 1) a pixel."""
        weights = Conv(
            1,
            self.features,
            kernel=1,
            use_bias=True,
            folded=self.folded,
            dtype=self.dtype,
            name="spatial",
        )(x)
        weights = jax.nn.sigmoid(weights)
        return jnp.repeat(weights, self.features, axis=-1) if self.folded else weights
