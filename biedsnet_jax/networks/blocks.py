"""Building blocks that more than one network uses: pooling, resizing, convolution with
norm, time embedding.

All maps are channels last, "b h w c". Padding and epsilon follow PyTorch, so that
published weights can be imported.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from biedsnet_jax.errors import BadInput

Features = Float[Array, "b h w c"]
Time = Int[Array, " b"] | Float[Array, " b"]


def conv(
    features: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    use_bias: bool = False,
    dtype=jnp.float32,
    name=None,
):
    """A convolution padded by kernel // 2 on every side, as `torch.nn.Conv2d(...,
    padding=kernel // 2)`.
    """
    pad = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=use_bias,
        conv_general_dilated=_pointwise if kernel == stride == 1 else None,
        dtype=dtype,
        name=name,
    )


def _pointwise(x, kernel, strides, padding, **_):
    """1x1 convolution as a product of matrices, which a CPU does two to six times as
    fast, and its gradient.
    """
    return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0])


def check_size(size: tuple[int, int], *, multiple: int, network: str) -> None:
    """Raise BadInput, with the next smaller and larger size, unless both sides are
    multiples of `multiple`.
    """
    if all(side and side % multiple == 0 for side in size):
        return
    below = [max(multiple, side // multiple * multiple) for side in size]
    above = [fit if fit >= side else fit + multiple for side, fit in zip(size, below)]
    sizes = (size, below, above)
    if size[0] == size[1]:
        # a square is one number, as in the config
        sizes = [sides[:1] for sides in sizes]
    given, *fits = dict.fromkeys("x".join(map(str, sides)) for sides in sizes)
    raise BadInput(
        f"{network} image size not divisible by {multiple}, {given}, in data.size; use {' or '.join(fits)}"
    )


class DepthwiseConv(nn.Module):
    """3x3 convolution of each channel by itself, padded to the same size; the kernel
    has `nn.Conv`'s shape "3 3 1 c".

    Nine shifted products: XLA's grouped convolution took twenty times as long on a CPU
    and reads no less memory on a GPU.
    """

    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        kernel = self.param("kernel", self.kernel_init, (3, 3, 1, x.shape[-1])).astype(
            self.dtype
        )
        y = depthwise(x.astype(self.dtype), kernel)
        if self.use_bias:
            y = (
                y
                + self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(
                    self.dtype
                )[None, None, None]
            )
        return y


@jax.custom_vjp
def depthwise(x: Features, kernel: Float[Array, "3 3 1 c"]) -> Features:
    """Each channel's 3x3 convolution, zeros around, as nine shifted products.

    Its gradient is written down, since the one found by tracing keeps nine maps, a
    third of what a BFFM moves on a TPU.
    """
    # `macs` counts them by this name
    with jax.named_scope("products_of_convolution"):
        return sum(shifted * kernel[i, j][None, None] for i, j, shifted in _shifts(x))


def _depthwise_forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved, g):
    x, kernel = saved
    taps = [
        jnp.sum(shifted * g, axis=(0, 1, 2), dtype=jnp.float32)
        for _, _, shifted in _shifts(x)
    ]
    return depthwise(g, kernel[::-1, ::-1]), jnp.stack(taps).reshape(
        kernel.shape
    ).astype(kernel.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _shifts(x):
    """(row, column, x as that tap of a 3x3 kernel sees it)"""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [(i, j, padded[:, i : i + h, j : j + w]) for i in range(3) for j in range(3)]


def batch_norm(train: bool | None, *, dtype=jnp.float32, name=None):
    """Batch norm with PyTorch's epsilon 1e-5 and momentum 0.1 (Flax counts it the other
    way round: 0.9).

    With `train` None, as in a `setup`, its call says `use_running_average`.
    """
    fixed = None if train is None else not train
    return nn.BatchNorm(
        use_running_average=fixed, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name
    )


class GroupNorm(nn.Module):
    """Group norm over (h, w, channels of the group), epsilon 1e-5; parameters as
    `nn.GroupNorm`'s.

    Means per channel first, then over the few channels of a group: `nn.GroupNorm`
    reduces over a minor axis as short as a group, which took five times as long on a
    CPU. Statistics are float32 whatever `dtype` is.
    """

    groups: int
    folded: bool = False  # x is a `space_to_depth` map
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        # a block
        pixels = 4 if self.folded else 1
        channels = x.shape[-1] // pixels
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        mean = self._over_group(jnp.mean(x, axis=(1, 2)), channels)
        variance = self._over_group(
            jnp.mean(jnp.square(x), axis=(1, 2)), channels
        ) - jnp.square(mean)
        factor = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + 1e-5) * scale[None]
        shift = bias[None] - mean * factor
        factor, shift = (
            jnp.tile(value, (1, pixels))[:, None, None] for value in (factor, shift)
        )
        return (x * factor + shift).astype(self.dtype)

    def _over_group(
        self, per_channel: Float[Array, "b c4"], channels: int
    ) -> Float[Array, "b c"]:
        # not len: it may be symbolic, see export
        b = per_channel.shape[0]
        mean = jnp.mean(
            per_channel.reshape(b, -1, self.groups, channels // self.groups),
            axis=(1, 3),
        )
        return jnp.repeat(mean, channels // self.groups, axis=1)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maximum over blocks of 2x2 pixels; height and width must be even.

    Maxima of strided parts: the gradient of XLA's window reduction took twenty times as
    long on a CPU. Where several pixels share the maximum, they share the gradient.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Repeat each pixel twice along both axes."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def resize_bilinear(
    x: Float[Array, "b h w c"], size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Bilinear resize to `size` as `torch.nn.functional.interpolate` does it.

    `jax.image.resize` has no align_corners, and antialiases when it shrinks. Here each
    axis is a product with a small interpolation matrix, which XLA runs as a matrix
    multiplication.
    """
    rows = _interpolation_matrix(x.shape[1], size[0], align_corners).astype(x.dtype)
    cols = _interpolation_matrix(x.shape[2], size[1], align_corners).astype(x.dtype)
    # `macs` leaves these products out
    with jax.named_scope("resampling"):
        x = jnp.einsum("oh,bhwc->bowc", rows, x)
        return jnp.einsum("pw,bowc->bopc", cols, x)


def upsample_bilinear(
    x: Float[Array, "b h w c"], *, align_corners: bool
) -> Float[Array, "b h2 w2 c"]:
    """Double height and width by `resize_bilinear`."""
    return resize_bilinear(
        x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=align_corners
    )


def _interpolation_matrix(
    n_in: int, n_out: int, align_corners: bool
) -> Float[Array, "o i"]:
    """Weights "o i" of linear interpolation from n_in to n_out samples."""
    if align_corners:
        where = jnp.linspace(0.0, n_in - 1.0, n_out)
    else:
        where = jnp.clip(
            (jnp.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0.0, n_in - 1.0
        )
    return jnp.maximum(0.0, 1.0 - jnp.abs(where[:, None] - jnp.arange(n_in)[None, :]))


def timestep_embedding(t: Time, width: int) -> Float[Array, "b e"]:
    """Sinusoidal embedding [cos, sin] of `t`, `width` wide (Ho et al. 2020, as in
    guided-diffusion).
    """
    half = width // 2
    frequencies = jnp.exp(
        -math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half
    )
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class VGGBlock(nn.Module):
    """Two [3x3 convolution with bias, batch norm, ReLU], the block of UNet, UNet++ and
    Attention U-Net.
    """

    features: int  # channels
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c2"]:
        for i in (1, 2):
            x = conv(self.features, use_bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            x = jax.nn.relu(batch_norm(train, dtype=self.dtype, name=f"bn{i}")(x))
        return x


class TimeEmbedding(nn.Module):
    """Sinusoid of width `width`, dense to 4 width, ReLU, dense (READING: time
    embedding).
    """

    width: int  # channels
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Time) -> Float[Array, "b e"]:
        x = timestep_embedding(t, self.width).astype(self.dtype)
        x = nn.Dense(4 * self.width, dtype=self.dtype, name="dense_1")(x)
        return nn.Dense(4 * self.width, dtype=self.dtype, name="dense_2")(
            jax.nn.relu(x)
        )
