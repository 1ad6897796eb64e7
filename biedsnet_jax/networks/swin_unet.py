"""Swin-Unet (Cao et al. 2022, arXiv:2105.05537): a U of Swin transformer blocks.

The blocks are those of Liu et al. 2021, equations 3 and 4:

    x = x + Attention(LN(x))     within windows of w x w patches,
    x = x + MLP(LN(x))           the windows of every second block shifted by w // 2
    Attention = softmax(q k^T / sqrt(d) + B) v,    B from a table over relative positions

A stage no wider than a window is one window, unshifted. Everything the shifts and
positions need is numpy, made while tracing. Sizes, order of concatenation and epsilons
follow the authors' PyTorch, so its weights can be imported.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.blocks import Features, conv
from biedsnet_jax.types import Image, Logits

# Pixels a side of a patch.
PATCH = 4

# The authors truncate it at 100 standard deviations, which is never reached.
_dense_init = nn.initializers.normal(0.02)


class SwinUNet(nn.Module):
    """The whole network, built for square images of one size.

    The authors' setting is 224 pixels with window 7, ours 256 with window 8. Raises
    BadInput for an image that is not `image_size` square, or a size that its windows do
    not tile.
    """

    # Number of foreground classes, k.
    classes: int = 1
    # Side of the image in pixels.
    image_size: int = 256
    # Side of an attention window, in patches of 4 pixels.
    window: int = 8
    # Channels of the first stage, doubled at each further one.
    embed_dim: int = 96
    # Blocks of each encoder stage, mirrored by the decoder.
    depths: tuple[int, ...] = (2, 2, 2, 2)
    # Attention heads of each stage.
    heads: tuple[int, ...] = (3, 6, 12, 24)
    # Hidden units of a block's MLP, in units of its channels.
    mlp_ratio: int = 4
    # Rate at which the deepest block is skipped, growing linearly from 0 at the first.
    drop_path: float = 0.2
    # One channel in becomes three, as the authors do for ImageNet weights.
    repeat_gray: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for an image of (height, width) that it cannot take."""
        side = self.image_size
        stages = len(self.depths)
        if not _tiles(side, self.window, stages):
            raise BadInput(
                f"SwinUNet's windows of {self.window} patches do not tile data.size {side}. "
                f"Use {_what_tiles(side, self.window, stages)}."
            )
        if size != (side, side):
            raise BadInput(
                f"SwinUNet has image_size={side}, but an image is {size[0]}x{size[1]}. "
                f"Resize images to {side}, or set image_size to a square size of theirs."
            )

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        stages = len(self.depths)
        if self.repeat_gray and image.shape[-1] == 1:
            image = jnp.tile(image, 3)
        patch = (PATCH, PATCH)
        embed = nn.Conv(
            self.embed_dim,
            patch,
            patch,
            dtype=self.dtype,
            name="embed",
        )
        x = embed(image)
        x = self._norm("embed_norm")(x)

        skips = []
        for stage in range(stages):
            # A skip is what the stage is given, not what it makes.
            skips.append(x)
            x = self._stage(x, stage, f"encoder_{stage}", train)
            if stage < stages - 1:
                x = PatchMerging(dtype=self.dtype, name=f"merge_{stage}")(x)
        x = self._norm("norm")(x)

        for i, stage in enumerate(reversed(range(stages - 1)), start=1):
            width = x.shape[-1] // 2
            expand = PatchExpanding(
                2,
                width,
                dtype=self.dtype,
                name=f"expand_{i - 1}",
            )
            x = expand(x)
            x = jnp.concatenate([x, skips[stage]], axis=-1)
            x = _dense(width, self.dtype, f"concat_{i}")(x)
            x = self._stage(x, stage, f"decoder_{i}", train)
        x = self._norm("norm_up")(x)
        expand = PatchExpanding(
            PATCH,
            self.embed_dim,
            dtype=self.dtype,
            name="expand_last",
        )
        x = expand(x)
        head = conv(
            self.classes,
            1,
            dtype=self.dtype,
            name="head",
        )
        logits = head(x)
        return logits.astype(jnp.float32), {}

    def _stage(self, x, stage, name, train):
        """Blocks of one resolution, the windows of every second one shifted."""
        resolution = x.shape[1]
        side = min(self.window, resolution)
        first = sum(self.depths[:stage])
        rates = np.linspace(0.0, self.drop_path, sum(self.depths))
        for i in range(self.depths[stage]):
            shifted = i % 2 == 1 and resolution > side
            x = SwinBlock(
                heads=self.heads[stage],
                window=side,
                shift=side // 2 if shifted else 0,
                mlp_ratio=self.mlp_ratio,
                drop_path=float(rates[first + i]),
                dtype=self.dtype,
                name=f"{name}_block_{i}",
            )(x, train=train)
        return x

    def _norm(self, name):
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)


class SwinBlock(nn.Module):
    """Window attention, then an MLP: "b h w c" -> same.

    Each has a layer norm before it and a residual around it.
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
        attention = WindowAttention(
            self.heads,
            self.window,
            self.shift,
            dtype=self.dtype,
            name="attn",
        )
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm1")(x)
        x = x + drop_path(attention(y))
        y = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm2")(x)
        y = _dense(self.mlp_ratio * c, self.dtype, "fc1")(y)
        y = jax.nn.gelu(y, approximate=False)
        y = _dense(c, self.dtype, "fc2")(y)
        return x + drop_path(y)


class WindowAttention(nn.Module):
    """Self-attention among the patches of each window: "b h w c" -> same.

    A learned bias by relative position is added to the scores.
    """

    heads: int
    window: int
    shift: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, h, w, c = x.shape
        n = self.window
        d = c // self.heads
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        x = x.reshape(b, h // n, n, w // n, n, c)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        # "b windows patches c"
        x = x.reshape(b, -1, n * n, c)

        qkv = _dense(3 * c, self.dtype, "qkv")(x)
        qkv = qkv.reshape(*x.shape[:3], 3, self.heads, d)
        q, k, v = jnp.moveaxis(qkv, 3, 0)
        scores = jnp.einsum(
            "bwihd,bwjhd->bwhij",
            q * d**-0.5,
            k,
            preferred_element_type=jnp.float32,
        )
        shape = ((2 * n - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", _dense_init, shape)
        bias = table[relative_position_index(n)].transpose(2, 0, 1)
        scores = scores + bias[None, None]
        if self.shift:
            # -100 and not -inf is what the published weights were trained with.
            mask = np.where(_neighbours((h, w), n, self.shift), 0.0, -100.0)
            scores = scores + mask[None, :, None]
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        heads = jnp.einsum("bwhij,bwjhd->bwihd", weights, v)
        x = heads.reshape(x.shape)
        x = _dense(c, self.dtype, "proj")(x)

        x = x.reshape(b, h // n, w // n, n, n, c)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h, w, c)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), axis=(1, 2))
        return x


class PatchMerging(nn.Module):
    """2 x 2 patches become one of twice the channels: "b h w c" -> "b h/2 w/2 2c"."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h//2 w//2 2*c"]:
        b, h, w, c = x.shape
        # In the published weights the column's parity is the slow index of the 4c:
        # (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.reshape(b, h // 2, 2, w // 2, 2, c)
        x = x.transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(b, h // 2, w // 2, 4 * c)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return _dense(2 * c, self.dtype, "reduction", use_bias=False)(x)


class PatchExpanding(nn.Module):
    """The inverse of merging: a patch becomes `factor` x `factor` of `features`."""

    factor: int
    features: int  # channels out
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h2 w2 c2"]:
        b, h, w, _ = x.shape
        p = self.factor
        c = self.features
        x = _dense(p * p * c, self.dtype, "expand", use_bias=False)(x)
        x = x.reshape(b, h, w, p, p, c)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h * p, w * p, c)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)


def _dense(features, dtype, name, *, use_bias=True):
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=_dense_init,
        dtype=dtype,
        name=name,
    )


def relative_position_index(window: int) -> Int[np.ndarray, "t t"]:
    """Row of the bias table for each pair (i, j) of a window's t = window^2 patches.

    The table has (2 window - 1)^2 rows. It is row-major over the offsets
    (row_i - row_j, col_i - col_j), each from -(window - 1).
    """
    row, col = np.divmod(np.arange(window * window), window)
    offset_row = row[:, None] - row[None, :] + window - 1
    offset_col = col[:, None] - col[None, :] + window - 1
    return offset_row * (2 * window - 1) + offset_col


def _neighbours(size, window, shift):
    """Whether two patches of a rolled map's window were near before: "windows t t"."""
    # Rolling by -shift puts the first `shift` lines last, beside lines they never
    # touched.
    h, w = size
    row = np.arange(h) >= h - shift
    col = np.arange(w) >= w - shift
    region = 2 * row[:, None] + col[None, :]
    region = region.reshape(h // window, window, w // window, window)
    region = region.transpose(0, 2, 1, 3)
    region = region.reshape(-1, window * window)
    return region[:, :, None] == region[:, None, :]


def _tiles(side, window, stages):
    """Whether windows tile every stage of an image `side` pixels wide."""
    if side <= 0 or window <= 0 or side % (PATCH * 2 ** (stages - 1)):
        return False
    patches = [side // (PATCH * 2**stage) for stage in range(stages)]
    # A stage no wider than a window is one window.
    return all(n <= window or n % window == 0 for n in patches)


def _what_tiles(side, window, stages):
    """The two nearest sizes for this window, and the windows for this size."""
    candidates = range(PATCH, 2 * side + 16 * PATCH * window)
    sizes = [n for n in candidates if _tiles(n, window, stages)]
    sizes = sorted(sorted(sizes, key=lambda n: abs(n - side))[:2])
    windows = [w for w in range(2, 17) if _tiles(side, w, stages)]
    offers = []
    if sizes:
        offers.append(" or ".join(map(str, sizes)))
    if windows:
        offers.append("networks.swin_unet.window=" + " or ".join(map(str, windows)))
    return ", or ".join(offers)
