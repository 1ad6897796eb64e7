"""MedSegDiff: a guided-diffusion denoiser and a highway network on the clean image.

Both published versions are here. h_d is the denoiser's map at 1/2^d, on the way down:

    new   calibration, anchor = highway(I)                             once per image
          eps, variance = denoiser([I, x_t], t; first conv + stop_gradient(anchor))
    v1    eps, variance, h_1, ... = denoiser([I, x_t], t)
          calibration = highway(I; gated by h_1, ..., h_4)             at every step

Wu et al., "MedSegDiff: medical image segmentation with diffusion probabilistic model",
2023, with the flags of the published README; the denoiser is that of Dhariwal and
Nichol, "Diffusion models beat GANs on image synthesis", 2021. The calibration map has
its own loss. The denoiser's loss does not reach the highway network; in v1 the
calibration's loss reaches the denoiser, through the gates.

One thing is left out of v1. The published code also adds the highway's bottleneck to
the denoiser's, through a convolution drawn anew in every forward pass, so that it
cannot be trained and two identical calls differ. Without it, the highway of v1 acts on
the denoiser in training only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Real

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.blocks import (
    Features,
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
    """Denoiser and highway network.

    The image is encoded once, then x_t denoised at any number of steps. In `new`, the
    first highway widths w_0, w_1 must satisfy 2 w_0 + w_1 = `channels`, since the
    anchor is added to the denoiser's first map. That is 4 * `highway_channels` unless
    `highway_cap` binds. `v1` has a weight for each frequency of its maps, so it is
    built for one image size; nothing of it can be computed before x_t and t are known.

    Raises BadInput for an unknown version, widths that do not fit together, image sides
    that cannot be halved often enough, and in `v1` for an image that is not
    `image_size` square.
    """

    # Number of foreground classes, k.
    classes: int = 1
    # Published version: "new" anchors the denoiser, in "v1" the denoiser gates the highway.
    version: str = "new"
    # Side of the image in pixels; "v1" only.
    image_size: int = 256
    # Width of the denoiser's first level in channels, a multiple of `groups`.
    channels: int = 128
    # Width of each level of the denoiser, in units of `channels`.
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    # Residual blocks of each level on the way down; one more on the way up.
    num_res_blocks: int = 2
    # Self-attention runs where the image is this many times as wide as the map.
    attention_downsample: tuple[int, ...] = (16,)
    # Heads of self-attention.
    num_heads: int = 1
    # Groups of the denoiser's norms. With one channel each they would undo what the time
    # embedding adds.
    groups: int = 32
    # Dropout rate in the denoiser's residual blocks.
    dropout: float = 0.0
    # Width of the highway's first level in channels.
    highway_channels: int = 32
    # Largest width of the highway in channels.
    highway_cap: int = 480
    # Rate at which the highway's encoder drops whole channels.
    highway_dropout: float = 0.5
    # Type of the arithmetic. Norms' statistics, outputs and weights stay float32.
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
        """Raises BadInput for an image of (height, width) that it cannot take."""
        multiple = 2 ** max(LEVELS, len(self.channel_mult) - 1)
        check_size(size, multiple=multiple, network="MedSegDiff")
        if self.version == "v1" and size != (self.image_size, self.image_size):
            raise BadInput(
                f"MedSegDiff v1 has image_size={self.image_size}, but an image is "
                f"{size[0]}x{size[1]}. Resize images to {self.image_size}, set image_size "
                "to a square size of theirs, or use version='new', which takes every "
                f"multiple of {multiple}."
            )

    def encode(self, image: Image, *, train: bool) -> dict[str, Array]:
        """Features of the clean image, none in `v1`.

        They are `calibration` (a probability), `calibration_logits` and `anchor`.
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
        """Predicts [eps, variance] of `x_t` at step `t`, k channels each, in float32.

        The second half is raw: (1 + variance) / 2 is v of Nichol and Dhariwal,
        "Improved denoising diffusion probabilistic models", eq 15, which moves log
        variance from the posterior's (0) to beta's (1). `out` carries `calibration` and
        `calibration_logits`, which in `v1` depend on `x_t` and `t`.
        """
        output, maps = self.denoiser(features.get("anchor"), x_t, image, t, train=train)
        if self.version == "v1":
            features = self.highway(image, maps[:GATES], train=train)
        out = {name: features[name] for name in ("calibration", "calibration_logits")}
        return output, out

    def __call__(
        self,
        x_t: Noisy,
        image: Image,
        t: Real[Array, " b"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "b h w 2*k"], dict[str, Array]]:
        return self.denoise(self.encode(image, train=train), x_t, image, t, train=train)

    def _check_fields(self):
        if self.version not in VERSIONS:
            raise BadInput(
                f"MedSegDiff has no version {self.version!r}. "
                f"Use {' or '.join(map(repr, VERSIONS))}."
            )
        if self.channels % self.groups:
            raise BadInput(
                f"MedSegDiff's channels={self.channels} is no multiple of "
                f"groups={self.groups}. Use a multiple."
            )
        w_0, w_1 = highway_widths(self.highway_channels, self.highway_cap)[:2]
        anchor = 2 * w_0 + w_1
        if self.version == "new" and anchor != self.channels:
            raise BadInput(
                f"MedSegDiff's highway_channels={self.highway_channels} and "
                f"highway_cap={self.highway_cap} make an anchor of {anchor} channels, but "
                f"the denoiser has channels={self.channels}. "
                f"Use highway_channels={self.channels // 4} with "
                f"highway_cap >= {self.channels // 2}, or channels={anchor}."
            )
        for mult in self.channel_mult:
            width = self.channels * mult
            if width % self.num_heads:
                raise BadInput(
                    f"MedSegDiff's num_heads={self.num_heads} does not divide a level of "
                    f"{width} channels. Use a divisor."
                )


class Denoiser(nn.Module):
    """The guided-diffusion U-Net on [image, x_t].

    An anchor is added, detached, to its first map. Returns the output and, finest
    first, the maps that the strided convolutions leave at 1/2, 1/4, ... on the way
    down. Blocks are numbered through as in guided-diffusion: `input_0` is the first
    convolution, and every later `input_i` leaves one skip that one `output_i` consumes.
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
        emb = timestep_embedding(t.astype(jnp.float32), self.channels)
        emb = emb.astype(self.dtype)
        emb = nn.Dense(4 * self.channels, dtype=self.dtype, name="time_1")(emb)
        emb = jax.nn.silu(emb)
        emb = nn.Dense(4 * self.channels, dtype=self.dtype, name="time_2")(emb)

        # The noisy mask comes last in the published weights.
        h = jnp.concatenate([image.astype(self.dtype), x_t.astype(self.dtype)], axis=-1)
        h = self._conv(h, self.channels, "input_0")
        if anchor is not None:
            h = h + jax.lax.stop_gradient(anchor).astype(self.dtype)

        skips, halved = self._down(h, emb, train)

        h = skips[-1]
        h = self._res(h, emb, h.shape[-1], "middle_0", train)
        h = self._attention(h, "middle_1_attention")
        h = self._res(h, emb, h.shape[-1], "middle_2", train)

        h = self._up(h, skips, emb, train)
        h = jax.nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="out_norm")(h))
        output = _zero_conv(2 * self.classes, self.dtype, "out_conv")(h)
        return output.astype(jnp.float32), halved

    def _down(self, h, emb, train):
        """(all skips, the maps that strided convolutions leave), finest first."""
        skips = [h]
        halved = []
        for level in range(len(self.channel_mult)):
            if level > 0:
                name = f"input_{len(skips)}_down"
                h = self._conv(h, h.shape[-1], name, stride=2)
                skips.append(h)
                halved.append(h)
            for _ in range(self.num_res_blocks):
                h = self._level(h, emb, level, f"input_{len(skips)}", train)
                skips.append(h)
        return skips, halved

    def _up(self, h, skips, emb, train):
        i = 0
        for level in reversed(range(len(self.channel_mult))):
            for _ in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._level(h, emb, level, f"output_{i}", train)
                i += 1
            if level > 0:
                h = upsample_nearest(h)
                h = self._conv(h, h.shape[-1], f"output_{i - 1}_up")
        return h

    def _level(self, x, emb, level, name, train):
        """A residual block, and self-attention where the level has it."""
        x = self._res(x, emb, self.channels * self.channel_mult[level], name, train)
        if 2**level in self.attention_downsample:
            x = self._attention(x, f"{name}_attention")
        return x

    def _res(self, x, emb, width, name, train):
        block = ResBlock(
            width, self.groups, self.dropout, self.dtype, name=f"{name}_res"
        )
        return block(x, emb, train=train)

    def _attention(self, x, name):
        return SelfAttention(self.num_heads, self.groups, self.dtype, name=name)(x)

    def _conv(self, x, width, name, stride=1):
        return conv(
            width,
            stride=stride,
            use_bias=True,
            dtype=self.dtype,
            name=name,
        )(x)


class ResBlock(nn.Module):
    """GN-SiLU-conv, plus the time embedding, GN-SiLU-dropout-conv, plus the input."""

    features: int  # output channels
    groups: int = 32
    dropout: float = 0.0  # rate
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Features, emb: Float[Array, "b e"], *, train: bool
    ) -> Float[Array, "b h w d"]:
        h = jax.nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_1")(x))
        h = conv(
            self.features,
            use_bias=True,
            dtype=self.dtype,
            name="conv_1",
        )(h)
        emb = nn.Dense(self.features, dtype=self.dtype, name="time")(jax.nn.silu(emb))
        h = h + emb[:, None, None]
        h = jax.nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm_2")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = _zero_conv(self.features, self.dtype, "conv_2")(h)
        if x.shape[-1] != self.features:
            x = conv(
                self.features,
                1,
                use_bias=True,
                dtype=self.dtype,
                name="skip",
            )(x)
        return x + h


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel; softmax in float32."""

    heads: int = 1
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, h, w, c = x.shape
        d = c // self.heads
        normed = GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(normed)
        # The published weights hold the heads in turn, each with its q, k and v.
        q, k, v = jnp.split(qkv.reshape(b, h * w, self.heads, 3 * d), 3, axis=-1)
        # Both q and k are scaled: in half precision their product would lose more.
        scale = d**-0.25
        scores = jnp.einsum("bqnd,bknd->bnqk", q * scale, k * scale)
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        y = jnp.einsum("bnqk,bknd->bqnd", weights.astype(self.dtype), v)
        project = nn.Dense(
            c,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="project",
        )
        return x + project(y.reshape(b, h, w, c))


def _zero_conv(features, dtype, name):
    """A convolution that starts at zero: a residual block starts as the identity."""
    return nn.Conv(
        features,
        (3, 3),
        padding=1,
        kernel_init=nn.initializers.zeros,
        dtype=dtype,
        name=name,
    )
