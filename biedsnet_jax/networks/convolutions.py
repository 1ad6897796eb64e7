"""Convolutions that do less: of parts known beforehand, up-sampled maps, folded maps.

Each gives what the plain convolution gives, with its parameters (names and shapes of
`blocks.conv`).

A folded map is a `space_to_depth` map. A TPU keeps channels in rows of 128, so a map of
32 channels fills a quarter of the memory that it takes, and its folded form all of it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks import winograd
from biedsnet_jax.networks.blocks import (
    Features,
    OtherFeatures,
    full_precision,
    max_pool,
)

# A tuple of maps counts as their concatenation.
Maps = Features | tuple[Float[Array, "b h w _c"], ...]


class Conv(nn.Module):
    """Same-size convolution whose input may come in parts and whose maps may be folded.

    Parts side by side are a tuple. Parts known at different times are added, and the
    bias comes with the first one:

        conv([x, c]) = conv(x) + conv(c, last=True)

    With `folded` all maps are `space_to_depth` maps. The parameters have the names and
    shapes of the plain `conv([x, c])`.
    """

    features: int  # channels out
    inputs: int | None = None  # channels of all parts; None: x is all
    kernel: int = 3  # pixels a side, odd
    use_bias: bool = False
    folded: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps, *, last: bool = False) -> Float[Array, "b h w c2"]:
        """Convolves the first channels of the input, or with `last` its last ones."""
        parts = x if isinstance(x, tuple) else (x,)
        pixels = 4 if self.folded else 1
        widths = [part.shape[-1] // pixels for part in parts]
        width = sum(widths)
        inputs = self.inputs or width
        read = slice(width)
        if last:
            read = slice(inputs - width, None)
        shape = (self.kernel, self.kernel, inputs, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = jnp.asarray(kernel, self.dtype)[:, :, read]
        if self.folded:
            # Part by part, since each part is folded by itself.
            kernels = jnp.split(kernel, np.cumsum(widths)[:-1], axis=2)
            kernel = jnp.concatenate([fold_kernel(each) for each in kernels], axis=2)
        x = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        x = self._convolve(x, kernel, read)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            bias = jnp.tile(bias.astype(self.dtype), pixels)
            if not last:
                x = x + bias[None, None, None]
        return x

    def _convolve(self, x, kernel, read):
        """Takes Winograd's form on a CPU where `winograd.prepare` has made a kernel."""
        # In bfloat16 the sums of several inputs would cost digits.
        if (
            not self.has_variable(winograd.COLLECTION, "kernel")
            or self.dtype != jnp.float32
            or self.folded
            or x.shape[1] % 2
            or x.shape[2] % 2
        ):
            return convolve(x, kernel)
        transformed = self.get_variable(winograd.COLLECTION, "kernel")[:, read]
        return jax.lax.platform_dependent(
            x,
            cpu=lambda x: winograd.convolve(x, transformed),
            default=lambda x: convolve(x, kernel),
        )


# (pixel of a 2x2 block, tap of a 2x2 kernel) -> taps of the 3x3 kernel that see the
# same small pixel, along one axis.
_SEEN = {(0, 0): (0,), (0, 1): (1, 2), (1, 0): (0, 1), (1, 1): (2,)}


class UpsampledConv(nn.Module):
    """3x3 convolution, without bias, of the map that `upsample_nearest` would make.

    It takes four ninths of the products. Each of the 2x2 pixels that came from one sees
    three rows (columns) of which two are the same: a 2x2 convolution of the small map,
    with sums of the kernel's taps. Parameters are `conv`'s. With `folded` the result is
    a `space_to_depth` map.
    """

    features: int  # channels out
    folded: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> OtherFeatures:
        _, h, w, c = x.shape
        shape = (3, 3, c, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        kernel = kernel.astype(self.dtype)
        places = [(0, 0), (0, 1), (1, 0), (1, 1)]

        def summed(i, j, t, u):
            """Tap (t, u) of the 2x2 kernel for pixel (i, j) of a block."""
            return sum(kernel[r, s] for r in _SEEN[i, t] for s in _SEEN[j, u])

        # The kernels of a block's four pixels stand side by side as channels.
        taps = [
            jnp.concatenate([summed(i, j, t, u) for i, j in places], axis=-1)
            for t, u in places
        ]
        taps = jnp.stack(taps).reshape(2, 2, c, 4 * self.features)
        # One row and one column more than x: upper pixels look up, lower ones down.
        y = convolve_pairs(x.astype(self.dtype), taps)
        pixels = []
        for (i, j), pixel in zip(places, jnp.split(y, 4, axis=-1)):
            pixels.append(pixel[:, i : i + h, j : j + w])
        folded = jnp.concatenate(pixels, axis=-1)
        return folded if self.folded else depth_to_space(folded)


def convolve(
    x: Features, kernel: Float[Array, "k k c c2"]
) -> Float[Array, "b _h _w c2"]:
    """Convolution at stride 1 with k // 2 zeros on each side.

    The result has x's size for an odd kernel, and one pixel more for an even one.
    """
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@jax.custom_vjp
def convolve_pairs(
    x: Features, kernel: Float[Array, "2 2 c c2"]
) -> Float[Array, "b _h _w c2"]:
    """`convolve` with a 2x2 kernel.

    The kernel's gradient is written out, as four products of matrices. Tracing gives a
    convolution with a window of the map's size, which took a hundred times as long on a
    CPU, and nearly half of a training step.
    """
    return convolve(x, kernel)


def _convolve_pairs_forward(x, kernel):
    return convolve_pairs(x, kernel), (x, kernel)


def _convolve_pairs_backward(saved, g):
    x, kernel = saved
    _, h, w, _ = x.shape
    # Tap (t, u) meets pixel (i, j) in result (i + 1 - t, j + 1 - u).
    seen = [g[:, 1 - t : h + 1 - t, 1 - u : w + 1 - u] for t in (0, 1) for u in (0, 1)]
    taps = [
        jnp.einsum("bhwc,bhwd->cd", x, each, preferred_element_type=jnp.float32)
        for each in seen
    ]
    transposed = jax.linear_transpose(lambda x: convolve(x, kernel), x)
    (to_x,) = transposed(g)
    to_kernel = jnp.stack(taps).reshape(kernel.shape)
    return to_x, to_kernel.astype(kernel.dtype)


convolve_pairs.defvjp(_convolve_pairs_forward, _convolve_pairs_backward)


def space_to_depth(x: Features) -> Float[Array, "b h2 w2 c4"]:
    """Makes blocks of 2x2 pixels channels, ordered by (row, column, channel).

    Height and width must be even.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    # "b h/2 w/2 2 2 c"
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def depth_to_space(x: Float[Array, "b h w c4"]) -> Float[Array, "b h2 w2 c"]:
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4)
    # "b h 2 w 2 c/4"
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


def fold_kernel(kernel: Float[Array, "k k c c2"]) -> Float[Array, "_k _k _c4 _c8"]:
    """The kernel that does to folded maps what `kernel` does to plain ones.

    `kernel` is 1x1 or 3x3. Many entries of the result are 0.
    """
    size, _, c_in, c_out = kernel.shape
    radius = size // 2
    reach = slice(-radius, radius + 1)
    block, row, out, tap = np.ogrid[reach, 0:2, 0:2, reach]
    # Pixel `out` of a block, moved by `tap`, is pixel `row` of the block at distance
    # `block`.
    lands = jnp.asarray(2 * block + row == out + tap, kernel.dtype)
    folded = jnp.einsum(
        "apid,bqje,decn->abpqcijn",
        lands,
        lands,
        kernel,
        # The products only move the kernel's entries.
        precision=full_precision(kernel.dtype),
    )
    return folded.reshape(size, size, 4 * c_in, 4 * c_out)


def fold(x: Features, folded: bool) -> OtherFeatures:
    """A plain map as a level keeps it whose maps may be folded."""
    return space_to_depth(x) if folded else x


def unfold(x: Features, folded: bool) -> OtherFeatures:
    """The inverse of `fold`."""
    return depth_to_space(x) if folded else x


def pool(x: Features, folded: bool) -> OtherFeatures:
    """`max_pool` of a map that may be folded; the result is a plain map."""
    if not folded:
        return max_pool(x)
    return functools.reduce(jnp.maximum, jnp.split(x, 4, axis=-1))


def in_place(
    x: Features, channels: int, *, last: bool, folded: bool
) -> Float[Array, "b h w _c"]:
    """Places x at the first or the last of `channels` channels; the others are zero."""
    x = unfold(x, folded)
    missing = channels - x.shape[-1]
    around = (missing, 0) if last else (0, missing)
    x = jnp.pad(x, [(0, 0)] * 3 + [around])
    return fold(x, folded)
