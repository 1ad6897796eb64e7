"""Attention-denoising Residual Block (ADRB), paper section III.C, equation 5.

    F_residual = CGR(F_input) + CGR(RL(Emb) + CGR(F_input))                        (5)

CGR is a 3x3 convolution, a norm and ReLU; RL is ReLU and a linear layer on the time embedding. Channel and spatial
attention follow; the paper promises both and gives no equation, see README for the two readings.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import Features, GroupNorm, batch_norm, conv

Embedding = Float[Array, "b e"]


class CGR(nn.Module):
    """3x3 convolution without bias, group or batch norm, ReLU."""

    features: int  # channels out
    norm: str = "group"  # "group" or "batch": the symbol in eq 5 says group, the prose says batch
    groups: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Float[Array, "b h w c2"]:
        x = conv(self.features, dtype=self.dtype, name="conv")(x)
        if self.norm == "batch":
            x = batch_norm(train, dtype=self.dtype, name="norm")(x)
        else:
            # Narrow networks have widths that 16 does not divide.
            groups = math.gcd(self.groups, self.features)
            x = GroupNorm(groups, dtype=self.dtype, name="norm")(x)
        return jax.nn.relu(x)


class ADRB(nn.Module):
    """Equation 5 with attention behind it: "b h w c_in", "b e" -> "b h w features"."""

    features: int  # channels out
    residual: str = "cgr"  # "cgr": eq 5; "conv", as in the lineage: identity, or a 3x3 convolution where widths differ
    attention: str = "parallel"  # "parallel", "sequential" or "none", see Attention
    norm: str = "group"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, emb: Embedding, *, train: bool) -> Float[Array, "b h w c2"]:
        def cgr(name):
            return CGR(self.features, norm=self.norm, dtype=self.dtype, name=name)

        rl = nn.Dense(self.features, dtype=self.dtype, name="linear")(jax.nn.relu(emb))
        h = cgr("cgr_1")(x, train=train)
        h = cgr("cgr_2")(h + rl[:, None, None, :], train=train)
        if self.residual == "cgr":
            h = h + cgr("cgr_skip")(x, train=train)
        elif x.shape[-1] == self.features:
            h = h + x
        else:
            h = h + conv(self.features, use_bias=True, dtype=self.dtype, name="conv_skip")(x)
        if self.attention == "none":
            return h
        return Attention(order=self.attention, dtype=self.dtype, name="attention")(h)


class Attention(nn.Module):
    """Channel attention (mean and maximum pooled, one shared MLP) and spatial attention (1x1 convolution).

    order "parallel", the lineage: x * channel + x * spatial. "sequential", as CBAM (Woo et al. 2018): channel first,
    then spatial on what is left.
    """

    order: str = "parallel"
    reduction: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        squeeze = nn.Dense(max(1, x.shape[-1] // self.reduction), dtype=self.dtype, name="squeeze")
        excite = nn.Dense(x.shape[-1], dtype=self.dtype, name="excite")
        spatial = conv(1, 1, use_bias=True, dtype=self.dtype, name="spatial")

        def mlp(pooled):
            return excite(jax.nn.relu(squeeze(pooled)))

        channel = jax.nn.sigmoid(mlp(jnp.mean(x, axis=(1, 2))) + mlp(jnp.max(x, axis=(1, 2))))[:, None, None, :]
        if self.order == "parallel":
            return x * (channel + jax.nn.sigmoid(spatial(x)))
        x = x * channel
        return x * jax.nn.sigmoid(spatial(x))
