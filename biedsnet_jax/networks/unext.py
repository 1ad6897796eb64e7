"""UNeXt (Valanarasu and Patel 2022): a convolutional U-Net whose two deepest levels are
tokenised, shifted MLPs.

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

# The source's initialisation: dense layers normal 0.02 (it truncates at 2, a hundred
# deviations away), convolutions normal with variance 2 / fan_out, where a depthwise
# filter has a fan-out of its nine taps alone.
_Conv = functools.partial(
    nn.Conv,
    kernel_size=(3, 3),
    padding=1,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
)
_depthwise_init = nn.initializers.normal(math.sqrt(2 / 9))
_Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.02))


class UNeXt(nn.Module):
    """1,471,633 parameters for one channel and one class; UNeXt-S, channels=(8, 16, 32,
    64, 128), has 253,417.

    Height and width are multiples of 32. `out` is empty. A `drop_path` above 0 draws
    from the "dropout" stream in training. Source: jeya-maria-jose/UNeXt-pytorch,
    `UNext` and `UNext_S`.
    """

    classes: int = 1
    channels: tuple[int, ...] = (16, 32, 128, 160, 256)  # five widths, half size first
    drop_path: float = 0.0  # probability that a sample skips a shifted block
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise BadInput for an image of (height, width) that it cannot take."""
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

        x = image.astype(self.dtype)
        t1 = x = jax.nn.relu(max_pool(norm(name="ebn1")(conv3(c1, name="encoder1")(x))))
        t2 = x = jax.nn.relu(max_pool(norm(name="ebn2")(conv3(c2, name="encoder2")(x))))
        t3 = x = jax.nn.relu(max_pool(norm(name="ebn3")(conv3(c3, name="encoder3")(x))))

        x = PatchEmbed(c4, dtype=self.dtype, name="patch_embed3")(x)
        t4 = x = layer_norm(name="norm3")(block(name="block1")(x, train=train))
        x = PatchEmbed(c5, dtype=self.dtype, name="patch_embed4")(x)
        x = layer_norm(name="norm4")(block(name="block2")(x, train=train))

        x = t4 + _up(norm(name="dbn1")(conv3(c4, name="decoder1")(x)))
        x = layer_norm(name="dnorm3")(block(name="dblock1")(x, train=train))
        x = t3 + _up(norm(name="dbn2")(conv3(c3, name="decoder2")(x)))
        x = layer_norm(name="dnorm4")(block(name="dblock2")(x, train=train))
        x = t2 + _up(norm(name="dbn3")(conv3(c2, name="decoder3")(x)))
        x = t1 + _up(norm(name="dbn4")(conv3(c1, name="decoder4")(x)))
        x = _up(conv3(c1, name="decoder5")(x))
        return conv(self.classes, 1, use_bias=True, name="final")(x), {}


class PatchEmbed(nn.Module):
    """Overlapping patches: 3x3 convolution at stride 2, then layer norm."""

    features: int  # channels
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h2 w2 c2"]:
        x = _Conv(self.features, strides=2, dtype=self.dtype, name="proj")(x)
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
        y = nn.Dropout(
            self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train
        )(y)
        return x + y


class TokenisedMLP(nn.Module):
    """Shift along the height, dense, depthwise convolution, GELU, shift along the
    width, dense.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        c = x.shape[-1]
        x = _Dense(c, dtype=self.dtype, name="fc1")(shift(x, axis=1))
        x = DepthwiseConv(
            use_bias=True, kernel_init=_depthwise_init, dtype=self.dtype, name="dwconv"
        )(x)
        x = jax.nn.gelu(x, approximate=False)
        return _Dense(c, dtype=self.dtype, name="fc2")(shift(x, axis=2))


def shift(x: Features, *, axis: int) -> Features:
    """Move channel group k of five by k - 2 pixels along `axis`, zeros flowing in at
    the border.

    Groups hold ceil(c / 5) channels, the last one what is left.
    """
    size = math.ceil(x.shape[-1] / 5)
    moved = []
    for k, start in enumerate(range(0, x.shape[-1], size)):
        padding = [(0, 0, 0)] * x.ndim
        # what is added at one end is cut off at the other
        padding[axis] = (k - 2, 2 - k, 0)
        moved.append(
            jax.lax.pad(x[..., start : start + size], jnp.zeros((), x.dtype), padding)
        )
    return jnp.concatenate(moved, axis=-1)


def _up(x: Features) -> Float[Array, "b h2 w2 c"]:
    return jax.nn.relu(upsample_bilinear(x, align_corners=False))
