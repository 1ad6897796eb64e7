"""Boundary Feature Fusion Module (BFFM), paper section III.B, equations 1 to 4.

    F_1      = CBR(CBR(F_input))                                                   (1)
    F_edge_k = F_1 - AvgPool_k(F_1),  k = 3, 5, 7                                  (2)
    F_edge   = Concat(F_1, F_edge_3, F_edge_5, F_edge_7)                           (3)
    F_output = DConv(F_edge * Sig(Conv(ReLU(Conv(GlobalAvgPool(F_edge))))))        (4)

An average pool keeps what is smooth. What it leaves over is boundaries, here at three
widths.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.networks.blocks import DepthwiseConv, Features, batch_norm, conv


class BFFM(nn.Module):
    """One level of the condition encoder: "b h w c_in" -> "b h w features"."""

    features: int  # channels out, the c of the equations
    # False leaves equation 1 alone, the condition encoder of ablation row 1.
    edges: bool = True
    windows: tuple[int, ...] = (3, 5, 7)  # pixels, odd
    # True, as in the reference implementation: the image border reads as an edge.
    count_include_pad: bool = False
    reduction: int = 16  # channel attention squeezes 4c to 4c / reduction
    # "separable": depthwise, then 1x1; "lineage": 1x1, ReLU, depthwise, norm, 1x1.
    dconv: str = "separable"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Float[Array, "b h w c2"]:
        # (1)
        for i in (1, 2):
            x = conv(self.features, dtype=self.dtype, name=f"conv_{i}")(x)
            x = jax.nn.relu(batch_norm(train, dtype=self.dtype, name=f"norm_{i}")(x))
        if not self.edges:
            return x
        # (2)
        pad = self.count_include_pad
        edges = [boundary(x, k, count_include_pad=pad) for k in self.windows]
        # (3): 4c channels
        f_edge = jnp.concatenate([x, *edges], axis=-1)
        # (4)
        f_edge = f_edge * self._channel_weights(f_edge)
        return self._depthwise_separable(f_edge, train)

    def _channel_weights(self, f_edge):
        """Squeeze and excitation: weights "b 1 1 4c" in (0, 1)."""
        channels = f_edge.shape[-1]
        w = jnp.mean(f_edge, axis=(1, 2), keepdims=True)
        w = self._pointwise(max(1, channels // self.reduction), "squeeze")(w)
        w = self._pointwise(channels, "excite")(jax.nn.relu(w))
        return jax.nn.sigmoid(w)

    def _depthwise_separable(self, x, train):
        """DConv of (4): 4c channels to c."""
        lineage = self.dconv == "lineage"
        if lineage:
            x = jax.nn.relu(self._pointwise(self.features, "reduce")(x))
        x = DepthwiseConv(dtype=self.dtype, name="depthwise")(x)
        if lineage:
            x = batch_norm(train, dtype=self.dtype, name="norm_3")(x)
        return self._pointwise(self.features, "pointwise")(x)

    def _pointwise(self, features, name):
        return conv(
            features,
            1,
            use_bias=True,
            dtype=self.dtype,
            name=name,
        )


def boundary(f: Features, window: int, *, count_include_pad: bool = False) -> Features:
    """F - AvgPool_window(F) at stride 1 and the same size (equation 2).

    With `count_include_pad` the mean divides by window^2 even where the window hangs
    over the border, so a constant image has an edge all around. Without it, the mean
    divides by the pixels that exist.
    """
    # In bfloat16 the difference of nearly equal numbers would keep a digit or two.
    x = f.astype(jnp.float32)
    rows, cols = (_pixels(n, window, count_include_pad) for n in f.shape[1:3])
    share = 1.0 / (rows[:, None] * cols)
    return (x - _window_sum(x, window) * share[None, :, :, None]).astype(f.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _window_sum(x, window):
    """Sums over `window` x `window` pixels, zeros around: rows, then columns.

    The sum is its own transpose. That is written out, since the traced gradient of a
    window reduction crawls on a CPU. Two products with banded matrices took eleven
    times as long there.
    """
    for shape in ((1, window, 1, 1), (1, 1, window, 1)):
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, shape, (1, 1, 1, 1), "SAME")
    return x


_window_sum.defvjp(
    lambda x, window: (_window_sum(x, window), None),
    lambda window, _, g: (_window_sum(g, window),),
)


def _pixels(size, window, count_include_pad):
    """Pixels that a window counts along a line of `size`, by the window's centre."""
    if count_include_pad:
        return np.full(size, window, np.float32)
    centre = np.arange(size)
    half = window // 2
    first = np.maximum(centre - half, 0)
    last = np.minimum(centre + half, size - 1)
    return (last - first + 1).astype(np.float32)
