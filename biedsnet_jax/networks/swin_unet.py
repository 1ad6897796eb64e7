"""Swin-Unet (Cao et al. 2022, arXiv:2105.05537): a U of Swin transformer blocks, no
convolution between them.

    x = x + Attention(LN(x))     within windows of w x w patches,
    x = x + MLP(LN(x))           the windows of every second block shifted by w // 2       (Liu et al. 2021, eq. 3)
    Attention = softmax(q k^T / sqrt(d) + B) v,    B from a table over relative positions  (eq. 4)

A stage no wider than a window is one window, unshifted. Everything the shifts and
positions need is numpy, made while tracing. Sizes, order of concatenation and epsilons
follow the authors' PyTorch, so its weights can be imported.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.blocks import Features, conv
from biedsnet_jax.types import Image, Logits

# pixels a side
PATCH = 4

# the authors truncate it at 100 standard deviations, which is never
_dense_init = nn.initializers.normal(0.02)


class SwinUNet(nn.Module):
    """The whole network; 224 pixels with window 7 is the authors' setting, 256 with
    window 8 ours.

    Raises `BadInput` for an image that is not `image_size` square, or a size that its
    windows do not tile.
    """

    classes: int = 1  # k, foreground classes
    image_size: int = 256  # pixels, both sides
    window: int = 8  # patches a side
    embed_dim: int = 96  # channels of the first stage, doubled at each further one
    # blocks of an encoder stage; the decoder mirrors them
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: int = 4
    drop_path: float = 0.2  # of the deepest block, growing linearly from 0
    # one channel in becomes three, as the authors do for ImageNet weights
    repeat_gray: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise BadInput for an image of (height, width) that it cannot take."""
        side, stages = self.image_size, len(self.depths)
        if not _tiles(side, self.window, stages):
            raise BadInput(
                f"SwinUNet image size that windows of {self.window} patches do not tile, {side}, in data.size; "
                f"use {_what_tiles(side, self.window, stages)}"
            )
        if size != (side, side):
            raise BadInput(
                f"SwinUNet image of another size than it was built for, {size[0]}x{size[1]} for {side}, in image_size; "
                f"resize the images to {side}, or set image_size to a square size of theirs"
            )

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        stages = len(self.depths)
        x = jnp.tile(image, 3) if self.repeat_gray and image.shape[-1] == 1 else image
        x = nn.Conv(
            self.embed_dim,
            (PATCH, PATCH),
            (PATCH, PATCH),
            dtype=self.dtype,
            name="embed",
        )(x)
        x = self._norm("embed_norm")(x)

        skips = []
        for stage in range(stages):
            # what the stage is given, not what it makes
            skips.append(x)
            x = self._stage(x, stage, f"encoder_{stage}", train)
            if stage < stages - 1:
                x = PatchMerging(dtype=self.dtype, name=f"merge_{stage}")(x)
        x = self._norm("norm")(x)

        for i, stage in enumerate(reversed(range(stages - 1)), start=1):
            x = PatchExpanding(
                2, x.shape[-1] // 2, dtype=self.dtype, name=f"expand_{i - 1}"
            )(x)
            x = jnp.concatenate([x, skips[stage]], axis=-1)
            x = nn.Dense(
                x.shape[-1] // 2,
                kernel_init=_dense_init,
                dtype=self.dtype,
                name=f"concat_{i}",
            )(x)
            x = self._stage(x, stage, f"decoder_{i}", train)
        x = self._norm("norm_up")(x)
        x = PatchExpanding(PATCH, self.embed_dim, dtype=self.dtype, name="expand_last")(
            x
        )
        logits = conv(self.classes, 1, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32), {}

    def _stage(self, x, stage: int, name: str, train: bool):
        """`depths[stage]` blocks at one resolution, the windows of every second one
        shifted.
        """
        resolution = x.shape[1]
        window = min(self.window, resolution)
        first = sum(self.depths[:stage])
        rates = np.linspace(0.0, self.drop_path, sum(self.depths))[
            first : first + self.depths[stage]
        ]
        for i, rate in enumerate(rates):
            x = SwinBlock(
                heads=self.heads[stage],
                window=window,
                shift=window // 2 if i % 2 and resolution > window else 0,
                mlp_ratio=self.mlp_ratio,
                drop_path=float(rate),
                dtype=self.dtype,
                name=f"{name}_block_{i}",
            )(x, train=train)
        return x

    def _norm(self, name: str):
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each with its layer norm before and its residual
    around: "b h w c" -> same.
    """

    heads: int
    window: int  # patches a side
    shift: int  # patches; 0: windows start at the corner
    mlp_ratio: int = 4
    drop_path: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, *, train: bool) -> Features:
        c = x.shape[-1]
        # One draw for an example's whole map is stochastic depth.
        drop_path = nn.Dropout(
            self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train
        )
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        y = WindowAttention(
            self.heads, self.window, self.shift, dtype=self.dtype, name="attn"
        )(y)
        x = x + drop_path(y)
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(
            self.mlp_ratio * c, kernel_init=_dense_init, dtype=self.dtype, name="fc1"
        )(y)
        y = jax.nn.gelu(y, approximate=False)
        y = nn.Dense(c, kernel_init=_dense_init, dtype=self.dtype, name="fc2")(y)
        return x + drop_path(y)


class WindowAttention(nn.Module):
    """Self-attention among the patches of each window, with a learned bias by relative
    position: "b h w c" -> same.
    """

    heads: int
    window: int
    shift: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, h, w, c = x.shape
        n, d = self.window, c // self.heads
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        x = x.reshape(b, h // n, n, w // n, n, c).transpose(0, 1, 3, 2, 4, 5)
        # b, windows, patches of one, c
        x = x.reshape(b, -1, n * n, c)

        qkv = nn.Dense(3 * c, kernel_init=_dense_init, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:3], 3, self.heads, d), 3, 0)
        scores = jnp.einsum(
            "bwihd,bwjhd->bwhij", q * d**-0.5, k, preferred_element_type=jnp.float32
        )
        table = self.param(
            "relative_position_bias_table", _dense_init, ((2 * n - 1) ** 2, self.heads)
        )
        scores = (
            scores + table[relative_position_index(n)].transpose(2, 0, 1)[None, None]
        )
        if self.shift:
            # -100, not -inf: what the published weights were trained with.
            scores = (
                scores
                + np.where(_neighbours((h, w), n, self.shift), 0.0, -100.0)[
                    None, :, None
                ]
            )
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        x = jnp.einsum("bwhij,bwjhd->bwihd", weights, v).reshape(x.shape)
        x = nn.Dense(c, kernel_init=_dense_init, dtype=self.dtype, name="proj")(x)

        x = (
            x.reshape(b, h // n, w // n, n, n, c)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(b, h, w, c)
        )
        return jnp.roll(x, (self.shift, self.shift), axis=(1, 2)) if self.shift else x


class PatchMerging(nn.Module):
    """2 x 2 patches become one of twice the channels: "b h w c" -> "b h/2 w/2 2c"."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h//2 w//2 2*c"]:
        b, h, w, c = x.shape
        # Column parity is the slow index of the 4c: (row, col) = (0, 0), (1, 0), (0,
        # 1), (1, 1).
        x = (
            x.reshape(b, h // 2, 2, w // 2, 2, c)
            .transpose(0, 1, 3, 4, 2, 5)
            .reshape(b, h // 2, w // 2, 4 * c)
        )
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return nn.Dense(
            2 * c,
            use_bias=False,
            kernel_init=_dense_init,
            dtype=self.dtype,
            name="reduction",
        )(x)


class PatchExpanding(nn.Module):
    """A patch becomes `factor` x `factor` patches of `features` channels: the inverse
    of merging.
    """

    factor: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h2 w2 c2"]:
        b, h, w, _ = x.shape
        p, c = self.factor, self.features
        x = nn.Dense(
            p * p * c,
            use_bias=False,
            kernel_init=_dense_init,
            dtype=self.dtype,
            name="expand",
        )(x)
        x = (
            x.reshape(b, h, w, p, p, c)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(b, h * p, w * p, c)
        )
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)


def relative_position_index(window: int) -> Int[np.ndarray, "t t"]:
    """Row of the (2 window - 1)^2 bias table for each pair (i, j) of a window's
    patches, t = window^2.

    The table is row-major over the offsets (row_i - row_j, col_i - col_j), each from
    -(window - 1).
    """
    row, col = np.divmod(np.arange(window * window), window)
    offset_row = row[:, None] - row[None, :] + window - 1
    offset_col = col[:, None] - col[None, :] + window - 1
    return offset_row * (2 * window - 1) + offset_col


def _neighbours(
    size: tuple[int, int], window: int, shift: int
) -> Bool[np.ndarray, "windows t t"]:
    """Whether two patches of a window of the rolled map were in one window's reach
    before it was rolled.
    """
    # Rolling by -shift puts the first `shift` lines last, beside lines they never
    # touched.
    row, col = (np.arange(n) >= n - shift for n in size)
    region = 2 * row[:, None] + col[None, :]
    region = region.reshape(
        size[0] // window, window, size[1] // window, window
    ).transpose(0, 2, 1, 3)
    region = region.reshape(-1, window * window)
    return region[:, :, None] == region[:, None, :]


def _tiles(side: int, window: int, stages: int) -> bool:
    """Whether windows tile every stage of an image `side` pixels wide; a stage no wider
    than a window is one.
    """
    patches = [side // (PATCH * 2**stage) for stage in range(stages)]
    whole = side > 0 and side % (PATCH * 2 ** (stages - 1)) == 0
    return whole and window > 0 and all(n <= window or n % window == 0 for n in patches)


def _what_tiles(side: int, window: int, stages: int) -> str:
    """The two nearest sizes for this window, and the windows for this size."""
    sizes = [
        n
        for n in range(PATCH, 2 * side + 16 * PATCH * window)
        if _tiles(n, window, stages)
    ]
    nearest = sorted(sorted(sizes, key=lambda n: abs(n - side))[:2])
    windows = [w for w in range(2, 17) if _tiles(side, w, stages)]
    offers = [
        " or ".join(map(str, nearest)),
        "networks.swin_unet.window=" + " or ".join(map(str, windows)),
    ]
    return ", or ".join(
        offer for offer, found in zip(offers, (nearest, windows)) if found
    )
