"""TransUNet (Chen et al. 2021, arXiv:2102.04306), R50-ViT-B/16: ResNet, transformer,
cascaded upsampler.

    z_0   = [E x_1; ...; E x_n] + E_pos         x_p a pixel of the ResNet's map at 1/16     (paper, eq. 1)
    z'_l  = MSA(LN(z_{l-1})) + z_{l-1}          (2)
    z_l   = MLP(LN(z'_l)) + z'_l                (3)

The decoder doubles the size four times and, the first three, joins the ResNet's maps at
1/8, 1/4 and 1/2. Weights of the ResNet are standardised (Qiao et al. 2019) and followed
by group norm. Padding and epsilons follow the authors' PyTorch, so its weights can be
imported.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from biedsnet_jax.errors import BadInput
from biedsnet_jax.networks.blocks import (
    Features,
    batch_norm,
    check_size,
    conv,
    resize_bilinear,
)
from biedsnet_jax.types import Image, Logits

# pixels a side of one token
PATCH = 16

Tokens = Float[Array, "b n c"]


class TransUNet(nn.Module):
    """The whole network; its table of positions has one row a token, so it is built for
    one image size.

    Raises `BadInput` for an image that is not `image_size` square, a size that is not a
    multiple of 16, or a `resnet_width` that is not one of `groups`.
    """

    classes: int = 1  # k, foreground classes
    image_size: int = 256  # pixels, both sides
    hidden: int = 768  # channels of a token
    mlp: int = 3072  # hidden units
    heads: int = 12
    layers: int = 12
    resnet_units: tuple[int, ...] = (3, 4, 9)  # bottlenecks at 1/4, 1/8 and 1/16
    # channels at 1/2; a stage gives 4, 8, 16 times as many. A multiple of the groups
    resnet_width: int = 64
    groups: int = 32  # of the ResNet's group norms
    decoder: tuple[int, ...] = (256, 128, 64, 16)
    dropout: float = 0.1
    # one channel in becomes three, as the authors do for ImageNet weights
    repeat_gray: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise BadInput for an image of (height, width) that it cannot take, or a
        width without whole groups.
        """
        if self.groups < 1 or self.resnet_width % self.groups:
            raise BadInput(
                f"width of TransUNet's ResNet, {self.resnet_width}, in resnet_width; use a multiple of groups, "
                f"{self.groups}, or set groups to a divisor of it"
            )
        check_size(size, multiple=PATCH, network="TransUNet")
        if size != (self.image_size, self.image_size):
            raise BadInput(
                f"TransUNet image of another size than its positions, {size[0]}x{size[1]} for {self.image_size}, in "
                f"image_size; resize the images to {self.image_size}, or set image_size to a square size of theirs"
            )

    @nn.compact
    def __call__(self, image: Image, *, train: bool) -> tuple[Logits, dict]:
        self.check_size(image.shape[1:3])
        x = jnp.tile(image, 3) if self.repeat_gray and image.shape[-1] == 1 else image
        x, skips = ResNet(
            self.resnet_units,
            self.resnet_width,
            self.groups,
            dtype=self.dtype,
            name="resnet",
        )(x)

        b, h, w, _ = x.shape
        z = nn.Dense(self.hidden, dtype=self.dtype, name="embed")(
            x.reshape(b, h * w, -1)
        )
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

        x = self._conv_norm_relu(z.reshape(b, h, w, -1), 512, "decoder_in", train)
        for i, width in enumerate(self.decoder):
            x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
            if i < len(skips):
                x = jnp.concatenate([x, skips[i]], axis=-1)
            for j in (1, 2):
                x = self._conv_norm_relu(x, width, f"decoder_{i}_{j}", train)
        logits = conv(self.classes, use_bias=True, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32), {}

    def _conv_norm_relu(self, x, width: int, name: str, train: bool):
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
        z = (
            self._attention(
                nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="attention_norm")(z)
            )
            + z
        )
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="ffn_norm")(z)
        y = self._dense(self.mlp, "fc1")(y)
        y = nn.Dropout(self.dropout, deterministic=not train)(
            jax.nn.gelu(y, approximate=False)
        )
        y = self._dense(z.shape[-1], "fc2")(y)
        # (3)
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

    def _dense(self, features: int, name: str):
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
    ) -> tuple[Float[Array, "b h//16 w//16 c2"], list[Float[Array, "b _h _w _c"]]]:
        x = StandardisedConv(
            self.width, kernel=7, stride=2, dtype=self.dtype, name="root_conv"
        )(image)
        x = jax.nn.relu(
            nn.GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name="root_gn")(x)
        )
        maps = [x]
        # unpadded: one pixel short of 1/4
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        for stage, units in enumerate(self.units):
            for unit in range(units):
                x = Bottleneck(
                    self.width * 2**stage,
                    self.groups,
                    stride=2 if stage and not unit else 1,
                    dtype=self.dtype,
                    name=f"block{stage + 1}_unit{unit + 1}",
                )(x)
            if stage < len(self.units) - 1:
                short = image.shape[1] // (4 * 2**stage) - x.shape[1]
                maps.append(jnp.pad(x, ((0, 0), (0, short), (0, short), (0, 0))))
        return x, maps[::-1]


class Bottleneck(nn.Module):
    """relu(x + f(x)), f = 1x1, 3x3, 1x1 convolutions to 4 `width` channels, each with
    group norm.
    """

    width: int
    groups: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Float[Array, "b h2 w2 c2"]:
        y = x
        for i, (features, kernel, stride) in enumerate(
            ((self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1)),
            start=1,
        ):
            y = StandardisedConv(
                features,
                kernel=kernel,
                stride=stride,
                dtype=self.dtype,
                name=f"conv{i}",
            )(y)
            y = nn.GroupNorm(
                self.groups, epsilon=1e-6, dtype=self.dtype, name=f"gn{i}"
            )(y)
            y = jax.nn.relu(y) if i < 3 else y
        if y.shape != x.shape:
            x = StandardisedConv(
                4 * self.width,
                kernel=1,
                stride=self.stride,
                dtype=self.dtype,
                name="conv_proj",
            )(x)
            # A group a channel, and PyTorch's default epsilon: the authors' own
            # exception.
            x = nn.GroupNorm(
                4 * self.width, epsilon=1e-5, dtype=self.dtype, name="gn_proj"
            )(x)
        return jax.nn.relu(x + y)


class StandardisedConv(nn.Module):
    """Convolution whose kernel has mean 0 and variance 1 over each output channel; no
    bias.
    """

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
