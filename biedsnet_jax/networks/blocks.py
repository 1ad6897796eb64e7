"""Building blocks of several networks: pooling, resizing, convolution, norms, time.

All maps are channels last, "b h w c". Padding and epsilon follow PyTorch, so that
published weights can be imported.
"""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from biedsnet_jax.errors import BadInput

Features = Float[Array, "b h w c"]
# A map of the same batch, whose size and channels are others than `Features` has.
OtherFeatures = Float[Array, "b _h _w _c"]
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
    """A convolution padded by kernel // 2, as `torch.nn.Conv2d` with that padding."""
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
    """A 1x1 convolution as a matrix product, two to six times as fast on a CPU."""
    return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0])


def check_size(size: tuple[int, int], *, multiple: int, network: str) -> None:
    """Checks that both sides of an image are positive multiples of `multiple`.

    Raises BadInput with the next smaller and the next larger size.
    """
    if all(side and side % multiple == 0 for side in size):
        return
    below = [max(multiple, side // multiple * multiple) for side in size]
    above = [max(multiple, math.ceil(side / multiple) * multiple) for side in size]
    # A square is one number, as in the config.
    square = size[0] == size[1]
    shown = [
        f"{height}" if square else f"{height}x{width}"
        for height, width in (size, below, above)
    ]
    given, *fits = dict.fromkeys(shown)
    raise BadInput(
        f"{network} cannot take data.size {given}, which {multiple} does not divide. "
        f"Use {' or '.join(fits)}."
    )


class DepthwiseConv(nn.Module):
    """3x3 convolution of each channel by itself, padded to the same size.

    The kernel has `nn.Conv`'s shape "3 3 1 c". The convolution is nine shifted
    products: XLA's grouped convolution took twenty times as long on a CPU and reads no
    less memory on a GPU.
    """

    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, 1, channels))
        y = depthwise(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,))
            y = y + bias.astype(self.dtype)[None, None, None]
        return y


@jax.custom_vjp
def depthwise(x: Features, kernel: Float[Array, "3 3 1 c"]) -> Features:
    """Each channel's 3x3 convolution, zeros around, as nine shifted products.

    The gradient is written out: the one found by tracing keeps nine maps, a third of
    what a BFFM moves on a TPU.
    """
    total = 0
    # `macs` counts these products by the name of their scope.
    with jax.named_scope("products_of_convolution"):
        for row, column, shifted in _shifts(x):
            tap = kernel[row, column][None, None]
            total = total + shifted * tap
    return total


def _depthwise_forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved, g):
    x, kernel = saved
    taps = []
    for _, _, shifted in _shifts(x):
        # Sums over a whole map would lose digits in half precision.
        tap = jnp.sum(shifted * g, axis=(0, 1, 2), dtype=jnp.float32)
        taps.append(tap)
    turned = kernel[::-1, ::-1]
    to_x = depthwise(g, turned)
    to_kernel = jnp.stack(taps).reshape(kernel.shape)
    return to_x, to_kernel.astype(kernel.dtype)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _shifts(x):
    """(row, column, x as the tap at that place of a 3x3 kernel sees it)."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = []
    for i, j in itertools.product(range(3), range(3)):
        shifted = padded[:, i : i + h, j : j + w]
        shifts.append((i, j, shifted))
    return shifts


def batch_norm(train: bool | None, *, dtype=jnp.float32, name=None):
    """Batch norm with PyTorch's epsilon 1e-5 and momentum 0.1.

    With `train` None, as in a `setup`, the call gives `use_running_average`.
    """
    use_running_average = None
    if train is not None:
        use_running_average = not train
    return nn.BatchNorm(
        use_running_average=use_running_average,
        # Flax weighs the old statistics by its momentum, PyTorch the new ones.
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        name=name,
    )


class GroupNorm(nn.Module):
    """Group norm over (h, w, channels of the group) with epsilon 1e-5.

    Parameters are `nn.GroupNorm`'s. Means are taken per channel first, then over the
    few channels of a group: `nn.GroupNorm` reduces over a minor axis as short as a
    group, which took five times as long on a CPU. Statistics are float32 whatever
    `dtype` is.
    """

    groups: int
    folded: bool = False  # x is a `space_to_depth` map
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        # A folded map has the 2x2 pixels of a block side by side as channels.
        pixels = 4 if self.folded else 1
        channels = x.shape[-1] // pixels
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        means = jnp.mean(x, axis=(1, 2))
        mean = self._over_group(means, channels)
        means_of_squares = jnp.mean(jnp.square(x), axis=(1, 2))
        mean_square = self._over_group(means_of_squares, channels)
        variance = mean_square - jnp.square(mean)
        # Rounding can leave a constant map with a variance below 0.
        variance = jnp.maximum(variance, 0.0)
        factor = jax.lax.rsqrt(variance + 1e-5) * scale[None]
        shift = bias[None] - mean * factor
        factor = jnp.tile(factor, (1, pixels))[:, None, None]
        shift = jnp.tile(shift, (1, pixels))[:, None, None]
        return (x * factor + shift).astype(self.dtype)

    def _over_group(self, per_channel, channels):
        """Means "b c" over each group of values "b c", or "b 4*c" of a folded map."""
        # Not len(): an exported network has a symbolic batch size.
        b = per_channel.shape[0]
        width = channels // self.groups
        grouped = per_channel.reshape(b, -1, self.groups, width)
        mean = jnp.mean(grouped, axis=(1, 3))
        return jnp.repeat(mean, width, axis=1)


def max_pool(x: Features) -> Float[Array, "b h2 w2 c"]:
    """Maximum over blocks of 2x2 pixels; height and width must be even.

    It takes maxima of strided parts: the gradient of XLA's window reduction took twenty
    times as long on a CPU. Pixels that tie for the maximum share the gradient.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def upsample_nearest(x: Features) -> Float[Array, "b h2 w2 c"]:
    """Repeats each pixel twice along both axes."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def resize_bilinear(
    x: Features, size: tuple[int, int], *, align_corners: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Bilinear resize to `size` as `torch.nn.functional.interpolate` does it.

    `jax.image.resize` has no align_corners, and antialiases when it shrinks. Here each
    axis is a product with a small interpolation matrix, which XLA runs as a matrix
    multiplication. Of float32 maps it is one in float32 on every device.
    """
    _, h, w, _ = x.shape
    rows = _interpolation_matrix(h, size[0], align_corners)
    rows = rows.astype(x.dtype)
    columns = _interpolation_matrix(w, size[1], align_corners)
    columns = columns.astype(x.dtype)
    precision = full_precision(x.dtype)
    # `macs` leaves these products out by the name of their scope.
    with jax.named_scope("resampling"):
        x = jnp.einsum("oh,bhwc->bowc", rows, x, precision=precision)
        return jnp.einsum("pw,bowc->bopc", columns, x, precision=precision)


def full_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """The precision for products that only move or mix values of `dtype`.

    By default a TPU rounds float32 to bfloat16 in every product, and a GPU to TF32.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def upsample_bilinear(x: Features, *, align_corners: bool) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by `resize_bilinear`."""
    size = (2 * x.shape[1], 2 * x.shape[2])
    return resize_bilinear(x, size, align_corners=align_corners)


def _interpolation_matrix(n_in, n_out, align_corners):
    """Weights "n_out n_in" of linear interpolation between samples."""
    last = n_in - 1.0
    if align_corners:
        where = jnp.linspace(0.0, last, n_out)
    else:
        centres = (jnp.arange(n_out) + 0.5) * (n_in / n_out)
        where = jnp.clip(centres - 0.5, 0.0, last)
    distance = jnp.abs(where[:, None] - jnp.arange(n_in)[None, :])
    return jnp.maximum(0.0, 1.0 - distance)


def timestep_embedding(t: Time, width: int) -> Float[Array, "b e"]:
    """Sinusoidal embedding [cos, sin] of `t` in `width` channels.

    Source: Ho et al. 2020, in the order of guided-diffusion.
    """
    half = width // 2
    channels = jnp.arange(half, dtype=jnp.float32)
    exponents = -math.log(10_000.0) * channels / half
    times = t.astype(jnp.float32)[:, None]
    angles = times * jnp.exp(exponents)[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class VGGBlock(nn.Module):
    """Two [3x3 convolution with bias, batch norm, ReLU].

    It is the block of UNet, UNet++ and Attention U-Net.
    """

    features: int  # channels
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Float[Array, "b h w c2"]:
        for i in (1, 2):
            x = conv(
                self.features,
                use_bias=True,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x)
            norm = batch_norm(train, dtype=self.dtype, name=f"bn{i}")
            x = jax.nn.relu(norm(x))
        return x


class TimeEmbedding(nn.Module):
    """Embedding of the time t: sinusoid, dense layer, ReLU, dense layer."""

    width: int  # channels of the sinusoid, a quarter of the result's
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Time) -> Float[Array, "b e"]:
        x = timestep_embedding(t, self.width).astype(self.dtype)
        x = nn.Dense(4 * self.width, dtype=self.dtype, name="dense_1")(x)
        x = jax.nn.relu(x)
        return nn.Dense(4 * self.width, dtype=self.dtype, name="dense_2")(x)
