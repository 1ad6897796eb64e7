"""Training and sampling in plain PyTorch: the joint loss, AdamW with EMA, samplers.

It does what `mask_diffusion.Diffusion` and `train_step` do. On a GPU the network's passes
go through autocast to bfloat16 where asked; on a CPU they do not.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biedsnet_jax.config import build_model
from biedsnet_jax.diffusion import process, sampler


@dataclasses.dataclass(frozen=True)
class Setting:
    """How PyTorch runs a program, of which the fastest way is not known beforehand."""

    # Where maps lie in memory: "channels_last" or "contiguous".
    layout: str
    # Whether the network's passes go through torch.compile.
    compiled: bool
    # CPU threads of an operation.
    threads: int

    def __str__(self) -> str:
        how = "compiled" if self.compiled else "eager"
        return f"{self.layout}, {how}, threads={self.threads}"

    @property
    def memory_format(self) -> torch.memory_format:
        """PyTorch's name of the layout."""
        if self.layout == "channels_last":
            return torch.channels_last
        return torch.contiguous_format

    def place(self, network: nn.Module, device: torch.device) -> nn.Module:
        """A copy of a network on a device, so that `network` stays as it was loaded."""
        return copy.deepcopy(network).to(device, memory_format=self.memory_format)

    def prepare(self, function: Callable) -> Callable:
        """The function as it is, or compiled at its first call."""
        return torch.compile(function, dynamic=False) if self.compiled else function

    def to_torch(self, x: np.ndarray, device: torch.device) -> Tensor:
        """A "b h w c" array as a "b c h w" tensor of this layout."""
        x = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))
        return x.to(device, memory_format=self.memory_format)


class Predictor:
    """Samples masks with a trained network."""

    def __init__(self, network: nn.Module, cfg, device: torch.device, setting: Setting):
        self.network = setting.place(network, device).eval()
        self.device = device
        self.setting = setting
        self.autocast = _autocast(cfg, device)
        self.mask_range = cfg.diffusion.mask_range
        self.mask_scale = cfg.diffusion.mask_scale
        self._encode = setting.prepare(self.network.encode)
        self._denoise = setting.prepare(self.network.denoise)

    @torch.inference_mode()
    def encode(self, image: Tensor) -> list[Tensor]:
        """Condition features of an image."""
        with self.autocast:
            return self._encode(image)

    @torch.inference_mode()
    def denoise(
        self, features: list[Tensor], x_t: Tensor, image: Tensor, t: Tensor
    ) -> list[Tensor]:
        """Logits of the final head, then of the side heads."""
        with self.autocast:
            return self._denoise(features, x_t, image, t)

    @torch.inference_mode()
    def sample(
        self, x_t: Tensor, image: Tensor, plan: Iterable, features: list[Tensor] | None
    ) -> Tensor:
        """Probabilities from noise, by rows (t, a, b, c, sigma) of `sampler.Plan`.

        Without features, every step encodes the image. x_0 lies in the config's mask
        range; x_next = a x_t + b x_0 + c x_0' + sigma noise, x_0' the last prediction.
        """
        x_0 = torch.zeros_like(x_t)
        for t, a, b, c, sigma in plan:
            times = torch.full((len(x_t),), t, device=self.device)
            encoded = self.encode(image) if features is None else features
            logits = self.denoise(encoded, x_t, image, times)[0]
            probability = torch.sigmoid(logits)
            x_0_prev = x_0
            x_0 = process.encode_mask(
                probability, mask_range=self.mask_range, mask_scale=self.mask_scale
            )
            x_t = a * x_t + b * x_0 + c * x_0_prev
            # Only random samplers draw, and none of them in its last step.
            if sigma:
                x_t = x_t + sigma * torch.randn_like(x_t)
        return process.decode_mask(
            x_t, mask_range=self.mask_range, mask_scale=self.mask_scale
        )

    @torch.inference_mode()
    def predict(self, image: Tensor, noise: Iterable[Tensor], plan: list) -> Tensor:
        """The mean of one sample per draw of noise; the image is encoded once."""
        features = self.encode(image)
        samples = [self.sample(x_T, image, plan, features) for x_T in noise]
        return torch.stack(samples).mean(0)


class Trainer:
    """Trains a network, with AdamW and an EMA of its weights."""

    def __init__(self, network: nn.Module, cfg, device: torch.device, setting: Setting):
        self.network = setting.place(network, device).train()
        self.cfg = cfg
        self.device = device
        self.setting = setting
        self.autocast = _autocast(cfg, device)
        self.parameters = list(self.network.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.step = 0
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=cfg.train.learning_rate,
            weight_decay=cfg.train.weight_decay,
            fused=True,
        )
        alpha_bar = build_model.make_schedule(cfg).alpha_bar
        self.alpha = torch.tensor(alpha_bar**0.5, dtype=torch.float32, device=device)
        sigma = (1.0 - alpha_bar) ** 0.5
        self.sigma = torch.tensor(sigma, dtype=torch.float32, device=device)
        self._forward = setting.prepare(self.network.forward)

    def loss(self, image: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Weighted joint loss of all heads at x_t."""
        fields = self.cfg.diffusion
        x_0 = process.encode_mask(
            y, mask_range=fields.mask_range, mask_scale=fields.mask_scale
        )
        # x_t of each example at its own time, as `process.q_sample` draws it.
        alpha, sigma = (x[t][:, None, None, None] for x in (self.alpha, self.sigma))
        x_t = alpha * x_0 + sigma * noise
        with self.autocast:
            heads = self._forward(x_t, image, t)
        weights = self.cfg.loss.supervision_weights if len(heads) > 1 else (1.0,)
        return sum(
            w * joint(logits, y, self.cfg.loss)
            for w, logits in zip(weights, heads, strict=True)
        )

    def update(self, image: Tensor, y: Tensor) -> Tensor:
        """Takes one step at random times and noise, and returns the loss."""
        t = torch.randint(len(self.alpha), (len(y),), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss(image, y, t, torch.randn_like(y))
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.cfg.train.clip_norm)
        self.optimizer.step()
        # At first the average follows the weights, as in `train_step`.
        decay = min(self.cfg.train.ema, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            # One call for all parameters, as the optimizer's own.
            torch._foreach_lerp_(self.ema, self.parameters, 1.0 - decay)
        self.step += 1
        return value.detach()


def sampler_rows(cfg, *, lineage: bool = False) -> list[tuple]:
    """Rows (t, a, b, c, sigma) of the config's sampler, a step each.

    With `lineage` they are the reference implementation's: DDPM through every time.
    """
    sampling = build_model.make_sampling(cfg)
    if lineage:
        sampling = dataclasses.replace(
            sampling, steps=cfg.diffusion.timesteps, method="ddpm"
        )
    plan = sampler.make_plan(build_model.make_schedule(cfg), sampling)
    # Without the first column, the number of the step.
    return list(zip(*(values.tolist() for values in plan[1:])))


def joint(logits: Tensor, y: Tensor, fields) -> Tensor:
    """Mean of `losses.joint` over a batch: SmoothL1 + Dice + BCE."""
    p = torch.sigmoid(logits)
    overlap = (p * y).sum((2, 3))
    total = (p + y).sum((2, 3))
    dice = 1.0 - (2.0 * overlap + fields.dice_smooth) / (total + fields.dice_smooth)
    smooth = F.smooth_l1_loss(p, y, beta=fields.smooth_l1_beta)
    bce = F.binary_cross_entropy_with_logits(logits, y)
    return smooth + fields.dice_weight * dice.mean() + fields.bce_weight * bce


def _autocast(cfg, device):
    half = device.type == "cuda" and cfg.dtype == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)
