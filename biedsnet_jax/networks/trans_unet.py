"""TransUNet (Chen et al. 2021, arXiv:2102.04306), R50-ViT-B/16.

A ResNet gives a map at 1/16 of the size, whose pixels x_p are a transformer's tokens:

    z_0   = [E x_1; ...; E x_n] + E_pos         (1)
    z'_l  = MSA(LN(z_{l-1})) + z_{l-1}          (2)
    z_l   = MLP(LN(z'_l)) + z'_l                (3)

The decoder doubles the size four times. The first three times it joins the ResNet's
maps at 1/8, 1/4 and 1/2. Weights of the ResNet are standardised (Qiao et al. 2019) and
followed by group norm. Padding and epsilons follow the authors' PyTorch, so its weights
can be imported.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.blocks import (
    Features,
    OtherFeatures,
    batch_norm,
    check_size,
    conv,
    resize_bilinear,
)
from biedsnet_jax.types import Image, Logits

# Pixels a side of one token.
PATCH = 16

Tokens = Float[Array, "b n c"]


class TransUNet(nn.Module):
    """The whole network, built for one image size.

    Its table of positions has one row a token. Raises BadInput for an image that is not
    `image_size` square, a size that is not a multiple of 16, or a `resnet_width` that
    is not a multiple of `groups`.
    """

    # Number of foreground classes, k.
    classes: int = 1
    # Side of the image in pixels.
    image_size: int = 256
    # Channels of a token.
    hidden: int = 768
    # Hidden units of a transformer layer's MLP.
    mlp: int = 3072
    # Attention heads of a transformer layer.
    heads: int = 12
    # Transformer layers.
    layers: int = 12
    # Bottleneck blocks of the ResNet's stages, at 1/4, 1/8 and 1/16 of the size.
    resnet_units: tuple[int, ...] = (3, 4, 9)
    # Channels of the ResNet at 1/2 of the size, a multiple of `groups`. The stages have 4,
    # 8 and 16 times as many.
    resnet_width: int = 64
    # Groups of the ResNet's norms.
    groups: int = 32
    # Channels of the decoder's levels, from 1/8 of the size to full size.
    decoder: tuple[int, ...] = (256, 128, 64, 16)
    # Dropout rate in the transformer.
    dropout: float = 0.1
    # One channel in becomes three, as the authors do for ImageNet weights.
    repeat_gray: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raises BadInput for a size or a width that the network cannot take."""
        if self.groups < 1 or self.resnet_width % self.groups:
            raise BadInput(
                f"TransUNet's resnet_width={self.resnet_width} is no multiple of "
                f"groups={self.groups}. Use a multiple, or set groups to a divisor of it."
            )
        check_size(size, multiple=PATCH, network="TransUNet")
        if size != (self.image_size, self.image_size):
            raise BadInput(
                f"TransUNet has image_size={self.image_size}, but an image is "
                f"{size[0]}x{size[1]}. Resize images to {self.image_size}, or set "
                "image_size to a square size of theirs."
            )

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        if self.repeat_gray and image.shape[-1] == 1:
            image = jnp.tile(image, 3)
        resnet = ResNet(
            self.resnet_units,
            self.resnet_width,
            self.groups,
            dtype=self.dtype,
            name="resnet",
        )
        x, skips = resnet(image)

        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        z = nn.Dense(self.hidden, dtype=self.dtype, name="embed")(x)
        position = self.param(
            "position_embeddings", nn.initializers.zeros_init(), (1, h * w, self.hidden)
        )
        # (1)
        z = z + position.astype(self.dtype)
        z = nn.Dropout(self.dropout, deterministic=not train)(z)
        for i in range(self.layers):
            layer = EncoderLayer(
                self.heads,
                self.mlp,
                self.dropout,
                dtype=self.dtype,
                name=f"encoder_{i}",
            )
            z = layer(z, train=train)
        z = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="encoder_norm")(z)

        z = z.reshape(b, h, w, self.hidden)
        x = self._conv_norm_relu(z, 512, "decoder_in", train)
        for i, width in enumerate(self.decoder):
            x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
            if i < len(skips):
                x = jnp.concatenate([x, skips[i]], axis=-1)
            for j in (1, 2):
                x = self._conv_norm_relu(x, width, f"decoder_{i}_{j}", train)
        logits = conv(
            self.classes,
            use_bias=True,
            dtype=self.dtype,
            name="head",
        )(x)
        return logits.astype(jnp.float32), {}

    def _conv_norm_relu(self, x, width, name, train):
        x = conv(width, dtype=self.dtype, name=f"{name}_conv")(x)
        return jax.nn.relu(batch_norm(train, dtype=self.dtype, name=f"{name}_norm")(x))


class EncoderLayer(nn.Module):
    """Equations (2) and (3)."""

    heads: int
    mlp: int
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Tokens, *, train: bool) -> Tokens:
        # (2)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="attention_norm")(z)
        z = self._attention(y) + z
        # (3)
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="ffn_norm")(z)
        y = self._dense(self.mlp, "fc1")(y)
        y = jax.nn.gelu(y, approximate=False)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = self._dense(z.shape[-1], "fc2")(y)
        return nn.Dropout(self.dropout, deterministic=not train)(y) + z

    def _attention(self, z):
        b, n, c = z.shape
        q, k, v = (
            self._dense(c, name)(z).reshape(b, n, self.heads, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum(
            "bihd,bjhd->bhij",
            q * q.shape[-1] ** -0.5,
            k,
            preferred_element_type=jnp.float32,
        )
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        z = jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(b, n, c)
        return self._dense(c, "out")(z)

    def _dense(self, features, name):
        return nn.Dense(
            features,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            name=name,
        )


class ResNet(nn.Module):
    """The first three stages of a ResNet-50 with standardised weights and group norm.

    image "b h w c" -> features at 1/16, and the maps at 1/8, 1/4 and 1/2 that the
    decoder joins, in that order.
    """

    units: tuple[int, ...]  # bottlenecks of each stage
    width: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Image
    ) -> tuple[Float[Array, "b h//16 w//16 c2"], list[OtherFeatures]]:
        root = StandardisedConv(
            self.width,
            kernel=7,
            stride=2,
            dtype=self.dtype,
            name="root_conv",
        )
        norm = nn.GroupNorm(
            self.groups,
            epsilon=1e-6,
            dtype=self.dtype,
            name="root_gn",
        )
        x = jax.nn.relu(norm(root(image)))
        maps = [x]
        # Unpadded, as the authors do it: the map is one pixel short of 1/4.
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        for stage, units in enumerate(self.units):
            for unit in range(units):
                halves = stage > 0 and unit == 0
                block = Bottleneck(
                    self.width * 2**stage,
                    self.groups,
                    stride=2 if halves else 1,
                    dtype=self.dtype,
                    name=f"block{stage + 1}_unit{unit + 1}",
                )
                x = block(x)
            if stage < len(self.units) - 1:
                short = image.shape[1] // (4 * 2**stage) - x.shape[1]
                maps.append(jnp.pad(x, ((0, 0), (0, short), (0, short), (0, 0))))
        return x, maps[::-1]


class Bottleneck(nn.Module):
    """relu(x + f(x)), where f is 1x1, 3x3, 1x1 convolutions to 4 `width` channels.

    Each convolution has a group norm.
    """

    width: int
    groups: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h2 w2 c2"]:
        wide = 4 * self.width
        y = jax.nn.relu(self._conv_norm(x, self.width, 1, 1, 1))
        y = jax.nn.relu(self._conv_norm(y, self.width, 3, self.stride, 2))
        y = self._conv_norm(y, wide, 1, 1, 3)
        if y.shape != x.shape:
            x = StandardisedConv(
                wide,
                kernel=1,
                stride=self.stride,
                dtype=self.dtype,
                name="conv_proj",
            )(x)
            # A group a channel, and PyTorch's default epsilon: the authors' own
            # exception.
            x = nn.GroupNorm(
                wide,
                epsilon=1e-5,
                dtype=self.dtype,
                name="gn_proj",
            )(x)
        return jax.nn.relu(x + y)

    def _conv_norm(self, x, features, kernel, stride, number):
        conv = StandardisedConv(
            features,
            kernel=kernel,
            stride=stride,
            dtype=self.dtype,
            name=f"conv{number}",
        )
        norm = nn.GroupNorm(
            self.groups, epsilon=1e-6, dtype=self.dtype, name=f"gn{number}"
        )
        return norm(conv(x))


class StandardisedConv(nn.Module):
    """Convolution without bias whose kernel has mean 0 and variance 1 per output."""

    features: int
    kernel: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h2 w2 c2"]:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        variance = jnp.var(kernel, axis=(0, 1, 2), keepdims=True)
        kernel = (kernel - mean) * jax.lax.rsqrt(variance + 1e-5)
        pad = self.kernel // 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
