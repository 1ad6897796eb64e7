"""BIEDSNet in plain PyTorch, with the modules' names of `biedsnet_jax.networks`, so
that its weights load by name.

Our own code, written from the paper's equations as the Flax network was. Maps are "b c
h w" in channels_last memory. Norms and pooled differences are float32 under autocast,
as they are in ours.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biedsnet_jax.errors import BadInput

# the other fields: any value
SUPPORTED = {
    "bffm": (True,),
    "attention": ("parallel",),
    "norm": ("group",),
    "groups": (16,),
}


class BIEDSNet(nn.Module):
    """`encode(image)`, `denoise(features, x_t, image, t)`, and both; fields as in
    `biedsnet_jax.networks.biedsnet`.
    """

    def __init__(self, *, image_channels: int, classes: int, **fields):
        super().__init__()
        for name, values in SUPPORTED.items():
            if fields.pop(name) not in values:
                wanted = " or ".join(map(repr, values))
                raise BadInput(
                    f"not in the PyTorch network, config.networks.biedsnet.{name}; use {wanted}"
                )
        edge_fields = {
            name: fields.pop(name)
            for name in ("dconv", "count_include_pad", "reduction")
        }
        self.condition = ConditionEncoder(
            image_channels, fields["channels"][:-1], **edge_fields
        )
        self.denoiser = Denoiser(image_channels, classes, **fields)

    def encode(self, image: Tensor) -> list[Tensor]:
        return self.condition(image)

    def denoise(
        self, features: list[Tensor], x_t: Tensor, image: Tensor, t: Tensor
    ) -> list[Tensor]:
        """Logits at full size: the final head's, then the side heads' from level 2 on."""
        return self.denoiser(features, x_t, image, t)

    def forward(self, x_t: Tensor, image: Tensor, t: Tensor) -> list[Tensor]:
        return self.denoise(self.encode(image), x_t, image, t)


class ConditionEncoder(nn.Module):
    """One BFFM a level, a 2x2 maximum pool between levels."""

    def __init__(self, image_channels: int, channels: tuple[int, ...], **fields):
        super().__init__()
        before = (image_channels, *channels[:-1])
        for level, (c_in, width) in enumerate(zip(before, channels), start=1):
            self.add_module(f"level_{level}", BFFM(c_in, width, **fields))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for level in self.children():
            x = level(F.max_pool2d(features[-1], 2) if features else x)
            features.append(x)
        return features


class BFFM(nn.Module):
    """Equations 1 to 4: "b c_in h w" -> "b width h w"."""

    def __init__(
        self,
        c_in: int,
        width: int,
        *,
        dconv: str,
        count_include_pad: bool,
        reduction: int,
    ):
        super().__init__()
        self.count_include_pad = count_include_pad
        self.conv_1, self.norm_1 = conv(c_in, width), nn.BatchNorm2d(width)
        self.conv_2, self.norm_2 = conv(width, width), nn.BatchNorm2d(width)
        squeezed = max(1, 4 * width // reduction)
        self.squeeze = conv(4 * width, squeezed, 1, bias=True)
        self.excite = conv(squeezed, 4 * width, 1, bias=True)
        self.lineage = dconv == "lineage"
        inner = 4 * width
        if self.lineage:
            inner = width
            self.reduce = conv(4 * width, width, 1, bias=True)
            self.norm_3 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.pointwise = conv(inner, width, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_1(self.conv_1(x)))
        x = F.relu(self.norm_2(self.conv_2(x)))
        x = torch.cat([x, *(self._boundary(x, window) for window in (3, 5, 7))], dim=1)
        weights = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(weights)
        if self.lineage:
            return self.pointwise(self.norm_3(self.depthwise(F.relu(self.reduce(x)))))
        return self.pointwise(self.depthwise(x))

    def _boundary(self, x, window):
        # the difference of nearly equal numbers
        fine = x.float()
        mean = F.avg_pool2d(
            fine, window, 1, window // 2, count_include_pad=self.count_include_pad
        )
        return (fine - mean).type_as(x)


class Denoiser(nn.Module):
    """The U of ADRBs; condition feature i joins level i after its blocks."""

    def __init__(
        self,
        image_channels: int,
        classes: int,
        *,
        channels: tuple[int, ...],
        blocks_per_level: int,
        residual: str,
        attention_per: str,
        second_skip: bool,
        supervision: bool,
    ):
        super().__init__()
        self.second_skip, self.depth = second_skip, len(channels)
        common = {
            "blocks": blocks_per_level,
            "emb": 4 * channels[0],
            "residual": residual,
            "per": attention_per,
        }
        self.time = TimeEmbedding(channels[0])
        self.stem = conv(image_channels + classes, channels[0] // 2, bias=True)
        c_in = channels[0] // 2
        for level, width in enumerate(channels, start=1):
            self._add_level(f"encoder_{level}", c_in, width, second=False, **common)
            c_in = 2 * width
        for level, width in reversed(list(enumerate(channels[:-1], start=1))):
            self.add_module(f"up_{level}", CGR(channels[level], width))
            self._add_level(
                f"decoder_{level}", 3 * width, width, second=second_skip, **common
            )
            if level == 1 or supervision:
                self.add_module(f"head_{level}", conv(width, classes, 1, bias=True))

    def _add_level(self, name, c_in, width, *, blocks, emb, residual, per, second):
        # Blocks are children of the denoiser and not of a level, as in the Flax tree.
        for i in range(1, blocks + 1):
            inputs = c_in if i == 1 else 2 * width if i == 2 and second else width
            self.add_module(
                f"{name}_block_{i}",
                ADRB(inputs, width, emb, residual, attention=per == "block"),
            )
        if per == "level":
            self.add_module(f"{name}_attention", Attention(width))
        self.blocks_per_level = blocks

    def forward(
        self, features: list[Tensor], x_t: Tensor, image: Tensor, t: Tensor
    ) -> list[Tensor]:
        emb = F.relu(self.time(t))
        h, skips, heads = self.stem(torch.cat([image, x_t], dim=1)), [], []
        for level in range(1, self.depth + 1):
            h = F.max_pool2d(h, 2) if level > 1 else h
            h, second = self._level(f"encoder_{level}", h, emb)
            if level < self.depth:
                h = torch.cat([h, features[level - 1]], dim=1)
                skips.append((h, second))
        for level in range(self.depth - 1, 0, -1):
            skip, second = skips[level - 1]
            h = getattr(self, f"up_{level}")(
                F.interpolate(h, scale_factor=2.0, mode="nearest")
            )
            h = torch.cat([h, skip], dim=1)
            h, _ = self._level(
                f"decoder_{level}", h, emb, second if self.second_skip else None
            )
            if head := getattr(self, f"head_{level}", None):
                heads.insert(0, head(h).float())
        size = x_t.shape[2:]
        return [
            heads[0],
            *(
                F.interpolate(side, size, mode="bilinear", align_corners=False)
                for side in heads[1:]
            ),
        ]

    def _level(self, name, h, emb, second=None):
        """Blocks in a row; their result and that of the second one."""
        for i in range(1, self.blocks_per_level + 1):
            if i == 2 and second is not None:
                h = torch.cat([h, second], dim=1)
            h = getattr(self, f"{name}_block_{i}")(h, emb)
            if i <= 2:
                after_second = h
        if attention := getattr(self, f"{name}_attention", None):
            h = attention(h)
        return h, after_second


class ADRB(nn.Module):
    """Equation 5 and its attention; `emb` comes behind its ReLU."""

    def __init__(
        self, c_in: int, width: int, emb: int, residual: str, *, attention: bool
    ):
        super().__init__()
        self.linear = nn.Linear(emb, width)
        self.cgr_1, self.cgr_2 = CGR(c_in, width), CGR(width, width)
        if residual == "cgr":
            self.cgr_skip = CGR(c_in, width)
        elif c_in != width:
            self.conv_skip = conv(c_in, width, bias=True)
        self.attention = Attention(width) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.cgr_2(self.cgr_1(x) + self.linear(emb)[:, :, None, None])
        skip = getattr(self, "cgr_skip", None) or getattr(self, "conv_skip", None)
        h = h + (skip(x) if skip else x)
        return self.attention(h) if self.attention else h


class CGR(nn.Module):
    """3x3 convolution, group norm, ReLU."""

    def __init__(self, c_in: int, width: int):
        super().__init__()
        self.conv = conv(c_in, width)
        self.norm = nn.GroupNorm(math.gcd(16, width), width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        # autocast leaves a norm's result in float32
        return F.relu(self.norm(x).type_as(x))


class Attention(nn.Module):
    """Channel attention (mean and maximum through one MLP) and spatial attention, in
    parallel and added.
    """

    def __init__(self, width: int):
        super().__init__()
        squeezed = max(1, width // 16)
        self.squeeze, self.excite = (
            nn.Linear(width, squeezed),
            nn.Linear(squeezed, width),
        )
        self.spatial = conv(width, 1, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = (
            self.excite(F.relu(self.squeeze(pooled)))
            for pooled in (x.mean((2, 3)), x.amax((2, 3)))
        )
        return x * (
            torch.sigmoid(mean + largest)[:, :, None, None]
            + torch.sigmoid(self.spatial(x))
        )


class TimeEmbedding(nn.Module):
    """Sinusoid [cos, sin], dense, ReLU, dense."""

    def __init__(self, width: int):
        super().__init__()
        self.dense_1, self.dense_2 = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, 4 * width),
        )
        half = width // 2
        frequencies = torch.exp(
            -math.log(10_000.0) * torch.arange(half, dtype=torch.float32) / half
        )
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float()[:, None] * self.frequencies
        return self.dense_2(
            F.relu(self.dense_1(torch.cat([angles.cos(), angles.sin()], dim=-1)))
        )


def conv(c_in: int, c_out: int, kernel: int = 3, *, bias: bool = False) -> nn.Conv2d:
    """A convolution to the same size."""
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=bias)
