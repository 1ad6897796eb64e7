"""BIEDSNet in plain PyTorch, so that the Flax network's weights load by name.

It is our own code, written from the paper's equations as the Flax network was, with the
names of `biedsnet_jax.networks`. Maps are "b c h w". Norms and pooled differences are
float32 under autocast, as they are in ours.

It has every field of `config.networks.biedsnet`. Only `fold` makes no difference here: it
is another order of the same sums, for TPUs.
"""

import math

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class BIEDSNet(nn.Module):
    """The network of `config.networks.biedsnet`, given as `fields`."""

    def __init__(self, *, image_channels: int, classes: int, fields: ConfigDict):
        super().__init__()
        self.condition = ConditionEncoder(image_channels, fields)
        self.denoiser = Denoiser(image_channels, classes, fields)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Condition features of an image, full size first."""
        return self.condition(image)

    def denoise(
        self, features: list[Tensor], x_t: Tensor, image: Tensor, t: Tensor
    ) -> list[Tensor]:
        """Logits at full size: the final head's, then those of levels 2, 3, ..."""
        return self.denoiser(features, x_t, image, t)

    def forward(self, x_t: Tensor, image: Tensor, t: Tensor) -> list[Tensor]:
        return self.denoise(self.encode(image), x_t, image, t)


class ConditionEncoder(nn.Module):
    """One BFFM a level, a 2x2 maximum pool between levels."""

    def __init__(self, image_channels: int, fields: ConfigDict):
        super().__init__()
        c_in = image_channels
        for level, width in enumerate(fields.channels[:-1], start=1):
            self.add_module(f"level_{level}", BFFM(c_in, width, fields))
            c_in = width

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        # The children are the levels, in the order in which they were added.
        for level in self.children():
            if features:
                x = F.max_pool2d(x, 2)
            x = level(x)
            features.append(x)
        return features


class BFFM(nn.Module):
    """Equations 1 to 4: "b c_in h w" -> "b width h w"."""

    def __init__(self, c_in: int, width: int, fields: ConfigDict):
        super().__init__()
        self.count_include_pad = fields.count_include_pad
        self.conv_1 = conv(c_in, width)
        self.norm_1 = nn.BatchNorm2d(width)
        self.conv_2 = conv(width, width)
        self.norm_2 = nn.BatchNorm2d(width)
        self.edges = fields.bffm
        if not self.edges:
            return
        squeezed = max(1, 4 * width // fields.reduction)
        self.squeeze = conv(4 * width, squeezed, 1, bias=True)
        self.excite = conv(squeezed, 4 * width, 1, bias=True)
        # The reference implementation goes to c channels before the depthwise convolution.
        self.lineage = fields.dconv == "lineage"
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
        if not self.edges:
            return x
        boundaries = [self._boundary(x, window) for window in (3, 5, 7)]
        x = torch.cat([x, *boundaries], dim=1)
        pooled = x.mean((2, 3), keepdim=True)
        weights = self.excite(F.relu(self.squeeze(pooled)))
        x = x * torch.sigmoid(weights)
        if self.lineage:
            x = F.relu(self.reduce(x))
            x = self.norm_3(self.depthwise(x))
            return self.pointwise(x)
        return self.pointwise(self.depthwise(x))

    def _boundary(self, x, window):
        # In half precision the difference of nearly equal numbers loses its digits.
        fine = x.float()
        mean = F.avg_pool2d(
            fine,
            window,
            stride=1,
            padding=window // 2,
            count_include_pad=self.count_include_pad,
        )
        return (fine - mean).type_as(x)


class Denoiser(nn.Module):
    """The U of ADRBs; condition feature i joins encoder i before or after its blocks."""

    def __init__(self, image_channels: int, classes: int, fields: ConfigDict):
        super().__init__()
        channels = fields.channels
        self.depth = len(channels)
        self.blocks_per_level = fields.blocks_per_level
        self.second_skip = fields.second_skip
        self.joins_before = fields.condition_joins == "before"
        self.remat = fields.remat
        self.time = TimeEmbedding(channels[0])
        c_in = channels[0] // 2
        # Image and noisy mask enter side by side.
        self.stem = conv(image_channels + classes, c_in, bias=True)
        for level, width in enumerate(channels, start=1):
            # The deepest level has no condition feature.
            if self.joins_before and level < self.depth:
                c_in += width
            self._add_level(f"encoder_{level}", c_in, width, width, fields)
            # A feature that joins behind the blocks is read by the next level.
            c_in = width if self.joins_before else 2 * width
        for level in range(len(channels) - 1, 0, -1):
            width = channels[level - 1]
            self.add_module(f"up_{level}", CGR(channels[level], width, fields))
            # The level below and the skip, which may hold a condition feature.
            first = 2 * width if self.joins_before else 3 * width
            second = 2 * width if fields.second_skip else width
            self._add_level(f"decoder_{level}", first, second, width, fields)
            if level == 1 or fields.supervision:
                self.add_module(f"head_{level}", conv(width, classes, 1, bias=True))

    def _add_level(self, name, first, second, width, fields):
        """Adds blocks whose first and second one read `first` and `second` channels.

        They are children of the denoiser and not of a level, as in the Flax tree.
        """
        inputs = [first, second, *[width] * fields.blocks_per_level]
        for i in range(fields.blocks_per_level):
            self.add_module(f"{name}_block_{i + 1}", ADRB(inputs[i], width, fields))
        if fields.attention_per == "level" and fields.attention != "none":
            self.add_module(f"{name}_attention", Attention(width, fields.attention))

    def forward(
        self, features: list[Tensor], x_t: Tensor, image: Tensor, t: Tensor
    ) -> list[Tensor]:
        emb = F.relu(self.time(t))
        h = self.stem(torch.cat([image, x_t], dim=1))
        skips = []
        heads = []
        for level in range(1, self.depth + 1):
            if level > 1:
                h = F.max_pool2d(h, 2)
            has_feature = level < self.depth
            if has_feature and self.joins_before:
                h = torch.cat([h, features[level - 1]], dim=1)
            h, second = self._level(f"encoder_{level}", h, emb)
            if has_feature and not self.joins_before:
                h = torch.cat([h, features[level - 1]], dim=1)
            if has_feature:
                skips.append((h, second if self.second_skip else None))
        for level in range(self.depth - 1, 0, -1):
            skip, second = skips[level - 1]
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = torch.cat([getattr(self, f"up_{level}")(h), skip], dim=1)
            h, _ = self._level(f"decoder_{level}", h, emb, second)
            if head := getattr(self, f"head_{level}", None):
                heads.insert(0, head(h).float())
        # Levels come deepest first, heads are listed full size first.
        final, *side = heads
        size = x_t.shape[2:]
        resized = [F.interpolate(head, size, mode="bilinear") for head in side]
        return [final, *resized]

    def _level(self, name, h, emb, second=None):
        """Results of a level, and of its second (or only) block."""
        for i in range(1, self.blocks_per_level + 1):
            if i == 2 and second is not None:
                h = torch.cat([h, second], dim=1)
            block = getattr(self, f"{name}_block_{i}")
            if self.remat and self.training:
                h = checkpoint(block, h, emb, use_reentrant=False)
            else:
                h = block(h, emb)
            if i <= 2:
                after_second = h
        if attention := getattr(self, f"{name}_attention", None):
            h = attention(h)
        return h, after_second


class ADRB(nn.Module):
    """Equation 5 and its attention; `emb` comes behind its ReLU."""

    def __init__(self, c_in: int, width: int, fields: ConfigDict):
        super().__init__()
        self.linear = nn.Linear(4 * fields.channels[0], width)
        self.cgr_1 = CGR(c_in, width, fields)
        self.cgr_2 = CGR(width, width, fields)
        if fields.residual == "cgr":
            self.cgr_skip = CGR(c_in, width, fields)
        elif c_in != width:
            self.conv_skip = conv(c_in, width, bias=True)
        self.attention = None
        if fields.attention_per == "block" and fields.attention != "none":
            self.attention = Attention(width, fields.attention)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.linear(emb)[:, :, None, None]
        h = self.cgr_2(self.cgr_1(x) + shift)
        skip = getattr(self, "cgr_skip", None) or getattr(self, "conv_skip", None)
        h = h + (skip(x) if skip else x)
        if self.attention:
            return self.attention(h)
        return h


class CGR(nn.Module):
    """3x3 convolution, group or batch norm, ReLU."""

    def __init__(self, c_in: int, width: int, fields: ConfigDict):
        super().__init__()
        self.conv = conv(c_in, width)
        if fields.norm == "batch":
            self.norm = nn.BatchNorm2d(width)
        else:
            # Narrow levels have widths that the number of groups does not divide.
            self.norm = nn.GroupNorm(math.gcd(fields.groups, width), width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        # Autocast leaves a norm's result in float32.
        return F.relu(self.norm(x).type_as(x))


class Attention(nn.Module):
    """Channel attention (mean and maximum through one MLP) and spatial attention.

    In order "parallel" both weigh x, and are added; in "sequential" the spatial one is
    computed from what the channel weights leave.
    """

    def __init__(self, width: int, order: str):
        super().__init__()
        self.order = order
        squeezed = max(1, width // 16)
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)
        self.spatial = conv(width, 1, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        mean = self._mlp(x.mean((2, 3)))
        largest = self._mlp(x.amax((2, 3)))
        channel = torch.sigmoid(mean + largest)[:, :, None, None]
        if self.order == "parallel":
            return x * (channel + self._spatial(x))
        x = x * channel
        return x * self._spatial(x)

    def _spatial(self, x):
        return torch.sigmoid(self.spatial(x))

    def _mlp(self, pooled):
        return self.excite(F.relu(self.squeeze(pooled)))


class TimeEmbedding(nn.Module):
    """Sinusoid [cos, sin], dense, ReLU, dense."""

    def __init__(self, width: int):
        super().__init__()
        self.dense_1 = nn.Linear(width, 4 * width)
        self.dense_2 = nn.Linear(4 * width, 4 * width)
        half = width // 2
        channels = torch.arange(half, dtype=torch.float32)
        exponents = -math.log(10_000.0) * channels / half
        # The frequencies are no weights, so they stay out of the state.
        self.register_buffer("frequencies", torch.exp(exponents), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float()[:, None] * self.frequencies
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        x = F.relu(self.dense_1(sinusoid))
        return self.dense_2(x)


def conv(c_in: int, c_out: int, kernel: int = 3, *, bias: bool = False) -> nn.Conv2d:
    """A convolution to the same size."""
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=bias)
