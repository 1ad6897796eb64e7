"""Boundary Feature Fusion Module (BFFM), paper section III.B, equations 1 to 4.

    F_1      = CBR(CBR(F_input))                                                   (1)
    F_edge_k = F_1 - AvgPool_k(F_1),  k = 3, 5, 7                                  (2)
    F_edge   = Concat(F_1, F_edge_3, F_edge_5, F_edge_7)                           (3)
    F_output = DConv(F_edge * Sig(Conv(ReLU(Conv(GlobalAvgPool(F_edge))))))        (4)

An average pool keeps what is smooth, so what it leaves over is boundaries, at three
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
    # False: equation 1 alone, the condition encoder of ablation row 1
    edges: bool = True
    windows: tuple[int, ...] = (3, 5, 7)  # pixels, odd
    # True, as in the lineage: the image border reads as an edge
    count_include_pad: bool = False
    reduction: int = 16  # channel attention squeezes 4c to 4c / reduction
    # "separable": depthwise, then 1x1; "lineage": 1x1, ReLU, depthwise, norm, 1x1
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
        f_edge = [
            x,
            *(
                boundary(x, k, count_include_pad=self.count_include_pad)
                for k in self.windows
            ),
        ]
        # (3): 4c channels
        f_edge = jnp.concatenate(f_edge, axis=-1)
        # (4)
        f_edge = f_edge * self._channel_weights(f_edge)
        return self._depthwise_separable(f_edge, train)

    def _channel_weights(self, f_edge):
        """Squeeze and excitation: weights "b 1 1 4c" in (0, 1)."""
        channels = f_edge.shape[-1]
        w = jnp.mean(f_edge, axis=(1, 2), keepdims=True)
        w = conv(
            max(1, channels // self.reduction),
            1,
            use_bias=True,
            dtype=self.dtype,
            name="squeeze",
        )(w)
        w = conv(channels, 1, use_bias=True, dtype=self.dtype, name="excite")(
            jax.nn.relu(w)
        )
        return jax.nn.sigmoid(w)

    def _depthwise_separable(self, x, train):
        """DConv of (4): 4c channels to c."""
        if self.dconv == "separable":
            x = DepthwiseConv(dtype=self.dtype, name="depthwise")(x)
            return conv(
                self.features, 1, use_bias=True, dtype=self.dtype, name="pointwise"
            )(x)
        x = jax.nn.relu(
            conv(self.features, 1, use_bias=True, dtype=self.dtype, name="reduce")(x)
        )
        x = DepthwiseConv(dtype=self.dtype, name="depthwise")(x)
        x = batch_norm(train, dtype=self.dtype, name="norm_3")(x)
        return conv(
            self.features, 1, use_bias=True, dtype=self.dtype, name="pointwise"
        )(x)


def boundary(
    f: Float[Array, "b h w c"], window: int, *, count_include_pad: bool = False
) -> Float[Array, "b h w c"]:
    """F - AvgPool_window(F), stride 1, same size (equation 2).

    With `count_include_pad` the mean divides by window^2 even where the window hangs
    over the border, so a constant image has an edge all around; without it, by the
    pixels that exist.
    """
    # The difference of two nearly equal numbers: bf16 would keep one or two digits of
    # it.
    x = f.astype(jnp.float32)
    rows, cols = (_pixels(n, window, count_include_pad) for n in f.shape[1:3])
    return (
        x - _window_sum(x, window) * (1.0 / (rows[:, None] * cols))[None, :, :, None]
    ).astype(f.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _window_sum(x, window):
    """Sums over `window` x `window` pixels, zeros around: rows, then columns.

    Its own transpose, which is said here since the gradient of a window reduction
    crawls on a CPU. As two products with banded matrices it took eleven times as long
    there.
    """
    for shape in ((1, window, 1, 1), (1, 1, window, 1)):
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, shape, (1, 1, 1, 1), "SAME")
    return x


_window_sum.defvjp(
    lambda x, window: (_window_sum(x, window), None),
    lambda window, _, g: (_window_sum(g, window),),
)


def _pixels(size: int, window: int, count_include_pad: bool) -> np.ndarray:
    """How many pixels a window along a line of `size` is said to hold, by its centre."""
    if count_include_pad:
        return np.full(size, window, np.float32)
    centre, half = np.arange(size), window // 2
    return (
        np.minimum(centre + half, size - 1) - np.maximum(centre - half, 0) + 1
    ).astype(np.float32)
