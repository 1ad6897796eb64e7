"""UNeXt (Valanarasu and Patel 2022): a U-Net with shifted MLPs at its deepest levels.

    encoder   conv 1, conv 2, conv 3 | tokens at 1/16 | tokens at 1/32
    decoder   conv, + t4, tokens | conv, + t3, tokens | conv, + t2 | conv, + t1 | conv

A shift moves the five channel groups by -2 .. 2 pixels along one axis, so that a dense
layer over channels also mixes neighbours: along the height before the first dense
layer, along the width before the second.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import (
    DepthwiseConv,
    Features,
    batch_norm,
    check_size,
    conv,
    max_pool,
    upsample_bilinear,
)
from biedsnet_jax.types import Image, Logits

# These layers start as the source's. Its convolutions are normal with variance
# 2 / fan_out, where a depthwise filter has a fan-out of its nine taps alone. Its dense
# layers are normal with deviation 0.02; it truncates at 2, which is never reached.
_Conv = functools.partial(
    nn.Conv,
    kernel_size=(3, 3),
    padding=1,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
)
_depthwise_init = nn.initializers.normal(math.sqrt(2 / 9))
_Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))


class UNeXt(nn.Module):
    """Three convolutional levels and two of tokens.

    It has 1,471,633 parameters for one channel and one class; UNeXt-S, with
    channels=(8, 16, 32, 64, 128), has 253,417. Height and width are multiples of 32.
    `out` is empty. A `drop_path` above 0 draws from the "dropout" stream in training.
    Source: jeya-maria-jose/UNeXt-pytorch, `UNext` and `UNext_S`.
    """

    classes: int = 1
    # Widths of the five levels in channels, half size first.
    channels: tuple[int, ...] = (16, 32, 128, 160, 256)
    # Probability that a sample skips a shifted block in training.
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for an image of (height, width) that it cannot take."""
        check_size(size, multiple=32, network="UNeXt")

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        c1, c2, c3, c4, c5 = self.channels
        conv3 = functools.partial(_Conv, dtype=self.dtype)
        norm = functools.partial(batch_norm, train, dtype=self.dtype)
        layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        block = functools.partial(
            ShiftedBlock, drop_path=self.drop_path, dtype=self.dtype
        )

        def encoder(x, features, i):
            x = norm(name=f"ebn{i}")(conv3(features, name=f"encoder{i}")(x))
            return jax.nn.relu(max_pool(x))

        def tokens(x, block_name, norm_name):
            x = block(name=block_name)(x, train=train)
            return layer_norm(name=norm_name)(x)

        def decoder(x, features, i):
            return _up(norm(name=f"dbn{i}")(conv3(features, name=f"decoder{i}")(x)))

        t1 = encoder(image.astype(self.dtype), c1, 1)
        t2 = encoder(t1, c2, 2)
        t3 = encoder(t2, c3, 3)

        # The authors number the token levels on from their three convolutions.
        x = PatchEmbed(c4, dtype=self.dtype, name="patch_embed3")(t3)
        t4 = tokens(x, "block1", "norm3")
        x = PatchEmbed(c5, dtype=self.dtype, name="patch_embed4")(t4)
        x = tokens(x, "block2", "norm4")

        x = tokens(t4 + decoder(x, c4, 1), "dblock1", "dnorm3")
        x = tokens(t3 + decoder(x, c3, 2), "dblock2", "dnorm4")
        x = t2 + decoder(x, c2, 3)
        x = t1 + decoder(x, c1, 4)
        x = _up(conv3(c1, name="decoder5")(x))
        head = conv(self.classes, 1, use_bias=True, name="final")
        return head(x), {}


class PatchEmbed(nn.Module):
    """Overlapping patches: 3x3 convolution at stride 2, then layer norm."""

    features: int  # channels
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h2 w2 c2"]:
        x = _Conv(
            self.features,
            strides=2,
            dtype=self.dtype,
            name="proj",
        )(x)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)


class ShiftedBlock(nn.Module):
    """x + DropPath(TokenisedMLP(LayerNorm(x)))."""

    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        y = TokenisedMLP(dtype=self.dtype, name="mlp")(y)
        # One draw per sample for the whole branch is what makes dropout drop-path.
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))
        return x + drop_path(y, deterministic=not train)


class TokenisedMLP(nn.Module):
    """Shift by rows, dense, depthwise convolution, GELU, shift by columns, dense."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        c = x.shape[-1]
        x = _Dense(c, dtype=self.dtype, name="fc1")(shift(x, axis=1))
        x = DepthwiseConv(
            use_bias=True,
            kernel_init=_depthwise_init,
            dtype=self.dtype,
            name="dwconv",
        )(x)
        x = jax.nn.gelu(x, approximate=False)
        return _Dense(c, dtype=self.dtype, name="fc2")(shift(x, axis=2))


def shift(x: Features, *, axis: int) -> Features:
    """Moves channel group k of five by k - 2 pixels along `axis`.

    Zeros flow in at the border. Groups hold ceil(c / 5) channels, the last one what is
    left.
    """
    size = math.ceil(x.shape[-1] / 5)
    moved = []
    for k, start in enumerate(range(0, x.shape[-1], size)):
        padding = [(0, 0, 0)] * x.ndim
        # What is added at one end is cut off at the other.
        padding[axis] = (k - 2, 2 - k, 0)
        group = x[..., start : start + size]
        moved.append(jax.lax.pad(group, jnp.zeros((), x.dtype), padding))
    return jnp.concatenate(moved, axis=-1)


def _up(x: Features) -> Float[Array, "b h2 w2 c"]:
    return jax.nn.relu(upsample_bilinear(x, align_corners=False))
