"""MedSegDiff: a guided-diffusion U-Net denoiser and a highway network on the clean
image, in both published versions.

    new   calibration, anchor = highway(I)                                      once per image
          eps, variance = denoiser([I, x_t], t; first conv + stop_gradient(anchor))
    v1    eps, variance, h_1, ... = denoiser([I, x_t], t)                       h_d: its map at 1/2^d, on the way down
          calibration = highway(I; gated by h_1, ..., h_4)                      at every step

Wu et al., "MedSegDiff: medical image segmentation with diffusion probabilistic model",
2023, with the flags of the published README; the denoiser is that of Dhariwal and
Nichol, "Diffusion models beat GANs on image synthesis", 2021. The calibration map has
its own loss. The denoiser's loss does not reach the highway network; in v1 the
calibration's loss reaches the denoiser, through the gates.

Left out of v1: the published code also adds the highway's bottleneck to the denoiser's,
through a convolution drawn anew in every forward pass, so that it cannot be trained and
two identical calls differ. Without it, the highway of v1 acts on the denoiser in
training only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Real

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.blocks import (
    GroupNorm,
    check_size,
    conv,
    timestep_embedding,
    upsample_nearest,
)
from biedsnet_jax.networks.medsegdiff_highway import (
    GATES,
    LEVELS,
    Highway,
    highway_widths,
)
from biedsnet_jax.types import Image, Noisy

VERSIONS = ("new", "v1")


class MedSegDiff(nn.Module):
    """Denoiser and highway network; the image is encoded once, then denoised at any
    number of steps.

    In `new`, the first highway widths w_0, w_1 must satisfy 2 w_0 + w_1 = `channels`,
    since the anchor is added to the denoiser's first map: 4 * `highway_channels` unless
    `highway_cap` binds. `v1` has a weight for each frequency of its maps, so it is
    built for one image size; nothing of it can be computed before x_t and t are known.

    Raises BadInput for an unknown version, widths that do not fit together, image sides
    that cannot be halved often enough, and in `v1` for an image that is not
    `image_size` square.
    """

    classes: int = 1  # k
    version: str = "new"  # or "v1"
    image_size: int = 256  # pixels, both sides; `v1` only
    channels: int = 128  # width of the denoiser's first level, a multiple of `groups`
    # width of each level, in units of `channels`
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 2  # per level on the way down; one more on the way up
    # rates (image side / map side) at which self-attention runs
    attention_downsample: tuple[int, ...] = (16,)
    num_heads: int = 1  # of self-attention
    # of the denoiser's norms; of one channel each, they would undo what the time
    # embedding adds
    groups: int = 32
    dropout: float = 0.0  # rate, in the denoiser's residual blocks
    highway_channels: int = 32  # width of the highway's first level
    highway_cap: int = 480  # largest highway width
    highway_dropout: float = 0.5  # rate, in the highway's encoder, of whole channels
    # of the arithmetic; norms' statistics, outputs and weights stay float32
    dtype: DTypeLike = jnp.float32

    predicts_noise = True

    def setup(self):
        self._check_fields()
        self.highway = Highway(
            self.classes,
            self.highway_channels,
            self.highway_cap,
            self.highway_dropout,
            dtype=self.dtype,
        )
        self.denoiser = Denoiser(
            self.classes,
            self.channels,
            self.channel_mult,
            self.num_res_blocks,
            self.attention_downsample,
            self.num_heads,
            self.groups,
            self.dropout,
            dtype=self.dtype,
        )

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise BadInput for an image of (height, width) that it cannot take."""
        multiple = 2 ** max(LEVELS, len(self.channel_mult) - 1)
        check_size(size, multiple=multiple, network="MedSegDiff")
        if self.version == "v1" and size != (self.image_size, self.image_size):
            raise BadInput(
                f"MedSegDiff v1 image of another size than its FF-Parsers, {size[0]}x{size[1]} for {self.image_size}, "
                f"in image_size; resize the images to {self.image_size}, set image_size to a square size of theirs, or "
                f"use version='new', which takes every multiple of {multiple}"
            )

    def encode(self, image: Image, *, train: bool) -> dict[str, Array]:
        """Features of the clean image: `calibration` (a probability),
        `calibration_logits`, `anchor`; none in `v1`.
        """
        self.check_size(image.shape[1:3])
        return {} if self.version == "v1" else self.highway(image, train=train)

    def denoise(
        self,
        features: dict[str, Array],
        x_t: Noisy,
        image: Image,
        t: Real[Array, " b"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "b h w 2*k"], dict[str, Array]]:
        """Predict [eps, variance] of `x_t` at step `t`, k channels each, in float32.

        The second half is raw: (1 + variance) / 2 is v of Nichol and Dhariwal,
        "Improved denoising diffusion probabilistic models", eq 15, which moves log
        variance from the posterior's (0) to beta's (1). `out` carries `calibration` and
        `calibration_logits`, which in `v1` depend on `x_t` and `t`.
        """
        output, maps = self.denoiser(features.get("anchor"), x_t, image, t, train=train)
        if self.version == "v1":
            features = self.highway(image, maps[:GATES], train=train)
        return output, {
            name: features[name] for name in ("calibration", "calibration_logits")
        }

    def __call__(
        self, x_t: Noisy, image: Image, t: Real[Array, " b"], *, train: bool
    ) -> tuple[Float[Array, "b h w 2*k"], dict[str, Array]]:
        return self.denoise(self.encode(image, train=train), x_t, image, t, train=train)

    def _check_fields(self):
        if self.version not in VERSIONS:
            raise BadInput(
                f"unknown MedSegDiff, {self.version!r}, in version; use {' or '.join(map(repr, VERSIONS))}"
            )
        if self.channels % self.groups:
            raise BadInput(
                f"width of MedSegDiff, {self.channels}, channels; use a multiple of {self.groups} (groups)"
            )
        w_0, w_1 = highway_widths(self.highway_channels, self.highway_cap)[:2]
        if self.version == "new" and 2 * w_0 + w_1 != self.channels:
            raise BadInput(
                f"anchor of {2 * w_0 + w_1} channels for a denoiser of {self.channels}, highway_channels="
                f"{self.highway_channels} highway_cap={self.highway_cap}; use highway_channels={self.channels // 4} "
                f"with highway_cap >= {self.channels // 2}, or channels={2 * w_0 + w_1}"
            )
        for mult in self.channel_mult:
            if self.channels * mult % self.num_heads:
                raise BadInput(
                    f"attention heads of MedSegDiff, {self.num_heads}, num_heads; use a divisor of the level width "
                    f"{self.channels * mult}"
                )


class Denoiser(nn.Module):
    """The guided-diffusion U-Net on [image, x_t]; an anchor is added, detached, to its
    first map.

    Returns the output and, finest first, the maps that the strided convolutions leave
    at 1/2, 1/4, ... on the way down. Blocks are numbered through as in
    guided-diffusion: `input_0` is the first convolution, and every later `input_i`
    leaves one skip that one `output_i` consumes.
    """

    classes: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_downsample: tuple[int, ...]
    num_heads: int
    groups: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        anchor: Float[Array, "b h w d"] | None,
        x_t: Noisy,
        image: Image,
        t: Real[Array, " b"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "b h w 2*k"], list[Array]]:
        emb = timestep_embedding(t.astype(jnp.float32), self.channels).astype(
            self.dtype
        )
        emb = nn.Dense(4 * self.channels, dtype=self.dtype, name="time_1")(emb)
        emb = nn.Dense(4 * self.channels, dtype=self.dtype, name="time_2")(
            jax.nn.silu(emb)
        )

        def res(x, level, name):
            width = self.channels * self.channel_mult[level]
            x = ResBlock(
                width, self.groups, self.dropout, self.dtype, name=f"{name}_res"
            )(x, emb, train=train)
            if 2**level in self.attention_downsample:
                x = SelfAttention(
                    self.num_heads, self.groups, self.dtype, name=f"{name}_attention"
                )(x)
            return x

        # [image, x_t]: the noisy mask comes last in the published weights
        h = jnp.concatenate([image.astype(self.dtype), x_t.astype(self.dtype)], axis=-1)
        h = conv(self.channels, use_bias=True, dtype=self.dtype, name="input_0")(h)
        if anchor is not None:
            h = h + jax.lax.stop_gradient(anchor).astype(self.dtype)

        skips, halved = [h], []
        levels = range(len(self.channel_mult))
        for level in levels:
            for _ in range(self.num_res_blocks):
                h = res(h, level, f"input_{len(skips)}")
                skips.append(h)
            if level != levels[-1]:
                h = conv(
                    h.shape[-1],
                    stride=2,
                    use_bias=True,
                    dtype=self.dtype,
                    name=f"input_{len(skips)}_down",
                )(h)
                skips.append(h)
                halved.append(h)

        width = h.shape[-1]
        h = ResBlock(width, self.groups, self.dropout, self.dtype, name="middle_0_res")(
            h, emb, train=train
        )
        h = SelfAttention(
            self.num_heads, self.groups, self.dtype, name="middle_1_attention"
        )(h)
        h = ResBlock(width, self.groups, self.dropout, self.dtype, name="middle_2_res")(
            h, emb, train=train
        )

        i = 0
        for level in reversed(levels):
            for _ in range(self.num_res_blocks + 1):
                h = res(
                    jnp.concatenate([h, skips.pop()], axis=-1), level, f"output_{i}"
                )
                i += 1
            if level != 0:
                h = upsample_nearest(h)
                h = conv(
                    h.shape[-1],
                    use_bias=True,
                    dtype=self.dtype,
                    name=f"output_{i - 1}_up",
                )(h)

        h = jax.nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="out_norm")(h))
        return _zero_conv(2 * self.classes, self.dtype, "out_conv")(h).astype(
            jnp.float32
        ), halved


class ResBlock(nn.Module):
    """GN-SiLU-conv, plus a projection of the time embedding, GN-SiLU-dropout-conv, plus
    the input.
    """

    features: int  # output channels
    groups: int = 32
    dropout: float = 0.0  # rate
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w d"]:
        h = jax.nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_1")(x))
        h = conv(self.features, use_bias=True, dtype=self.dtype, name="conv_1")(h)
        h = (
            h
            + nn.Dense(self.features, dtype=self.dtype, name="time")(jax.nn.silu(emb))[
                :, None, None
            ]
        )
        h = jax.nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_2")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = _zero_conv(self.features, self.dtype, "conv_2")(h)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, use_bias=True, dtype=self.dtype, name="skip")(x)
        return x + h


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel; softmax in float32."""

    heads: int = 1
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        d = c // self.heads
        normed = GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(normed)
        # heads first, then q, k, v within each head: the order of the published weights
        q, k, v = jnp.split(qkv.reshape(b, h * w, self.heads, 3 * d), 3, axis=-1)
        # on both q and k: in half precision their product would lose more
        scale = d**-0.25
        weights = jnp.einsum("bqnd,bknd->bnqk", q * scale, k * scale).astype(
            jnp.float32
        )
        weights = jax.nn.softmax(weights, axis=-1).astype(self.dtype)
        y = jnp.einsum("bnqk,bknd->bqnd", weights, v).reshape(b, h, w, c)
        return x + nn.Dense(
            c, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="project"
        )(y)


def _zero_conv(features: int, dtype, name: str):
    """A convolution that starts at zero, so that a residual block starts as the
    identity.
    """
    return nn.Conv(
        features,
        (3, 3),
        padding=1,
        kernel_init=nn.initializers.zeros,
        dtype=dtype,
        name=name,
    )
