"""What `mask_diffusion.Diffusion` and `train_step` do, in plain PyTorch: the joint
loss, AdamW with EMA, sampling.

On a GPU the network's passes go through torch.compile, and autocast to bfloat16 where
asked; on a CPU neither.
"""

import copy
import dataclasses
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biedsnet_jax.config import build_model
from biedsnet_jax.diffusion import process, sampler


class Predictor:
    """A trained network and how masks are sampled with it."""

    def __init__(self, network: nn.Module, cfg, device: torch.device):
        self.network = _place(copy.deepcopy(network), device).eval()
        self.device, self.autocast = device, _autocast(cfg, device)
        self.ranges = {
            "mask_range": cfg.diffusion.mask_range,
            "mask_scale": cfg.diffusion.mask_scale,
        }
        self._encode, self._denoise = (
            _compiled(f, device) for f in (self.network.encode, self.network.denoise)
        )

    @torch.inference_mode()
    def encode(self, image: Tensor) -> list[Tensor]:
        with self.autocast:
            return self._encode(image)

    @torch.inference_mode()
    def denoise(
        self, features: list[Tensor], x_t: Tensor, image: Tensor, t: Tensor
    ) -> Tensor:
        """Logits of the final head."""
        with self.autocast:
            return self._denoise(features, x_t, image, t)[0]

    @torch.inference_mode()
    def sample(
        self, x_t: Tensor, image: Tensor, plan: Iterable, features: list[Tensor] | None
    ) -> Tensor:
        """Probabilities from noise, by rows (t, a, b, c, sigma) of `sampler`; encodes
        in every step without features.

        Masks start as +-s or {0, 1}; x_next = a x_t + b x_0 + c x_0' + sigma noise,
        x_0' the last prediction.
        """
        x_0 = torch.zeros_like(x_t)
        for t, a, b, c, sigma in plan:
            times = torch.full((len(x_t),), t, device=self.device)
            encoded = self.encode(image) if features is None else features
            logits = self.denoise(encoded, x_t, image, times)
            x_0_prev, x_0 = (
                x_0,
                process.encode_mask(torch.sigmoid(logits), **self.ranges),
            )
            x_t = a * x_t + b * x_0 + c * x_0_prev
            if sigma:
                x_t = x_t + sigma * torch.randn_like(x_t)
        return process.decode_mask(x_t, **self.ranges)

    @torch.inference_mode()
    def predict(self, image: Tensor, noise: Iterable[Tensor], plan: list) -> Tensor:
        """The mean of one sample per draw of noise; the image is encoded once."""
        features = self.encode(image)
        return torch.stack(
            [self.sample(x_T, image, plan, features) for x_T in noise]
        ).mean(0)


class Trainer:
    """A network in training: weights, optimizer, EMA."""

    def __init__(self, network: nn.Module, cfg, device: torch.device):
        self.network = _place(copy.deepcopy(network), device).train()
        self.cfg, self.device, self.autocast = cfg, device, _autocast(cfg, device)
        self.parameters = list(self.network.parameters())
        self.ema, self.step = [p.detach().clone() for p in self.parameters], 0
        fields = cfg.train
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=fields.learning_rate,
            weight_decay=fields.weight_decay,
            fused=True,
        )
        alpha_bar = build_model.make_schedule(cfg).alpha_bar
        self.alpha, self.sigma = (
            torch.tensor(values**0.5, dtype=torch.float32, device=device)
            for values in (alpha_bar, 1.0 - alpha_bar)
        )
        self._forward = _compiled(self.network.forward, device)

    def loss(self, image: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Weighted joint loss of all heads at x_t."""
        fields = self.cfg.diffusion
        x_0 = process.encode_mask(
            y, mask_range=fields.mask_range, mask_scale=fields.mask_scale
        )
        x_t = (
            self.alpha[t][:, None, None, None] * x_0
            + self.sigma[t][:, None, None, None] * noise
        )
        with self.autocast:
            heads = self._forward(x_t, image, t)
        weights = self.cfg.loss.supervision_weights if len(heads) > 1 else (1.0,)
        return sum(
            w * joint(logits, y, self.cfg.loss)
            for w, logits in zip(weights, heads, strict=True)
        )

    def update(self, image: Tensor, y: Tensor) -> Tensor:
        """One step at times and noise of its own; the loss."""
        t = torch.randint(len(self.alpha), (len(y),), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss(image, y, t, torch.randn_like(y))
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.cfg.train.clip_norm)
        self.optimizer.step()
        decay = min(self.cfg.train.ema, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            # one call, as the optimizer's own
            torch._foreach_lerp_(self.ema, self.parameters, 1.0 - decay)
        self.step += 1
        return value.detach()


def sampler_rows(cfg, *, lineage: bool = False) -> list[tuple]:
    """(t, a, b, c, sigma) of each step of the config's sampler, or of the lineage's:
    DDPM through every time.
    """
    sampling = build_model.make_sampling(cfg)
    if lineage:
        sampling = dataclasses.replace(
            sampling, steps=cfg.diffusion.timesteps, method="ddpm"
        )
    plan = sampler._plan(build_model.make_schedule(cfg), sampling)
    return list(zip(*(values.tolist() for values in plan[1:])))


def joint(logits: Tensor, y: Tensor, fields) -> Tensor:
    """SmoothL1 + Dice + BCE, the mean of a batch; `losses.joint` in PyTorch's own
    functions.
    """
    p = torch.sigmoid(logits)
    overlap, total = (p * y).sum((2, 3)), (p + y).sum((2, 3))
    dice = 1.0 - (2.0 * overlap + fields.dice_smooth) / (total + fields.dice_smooth)
    smooth = F.smooth_l1_loss(p, y, beta=fields.smooth_l1_beta)
    bce = F.binary_cross_entropy_with_logits(logits, y)
    return smooth + fields.dice_weight * dice.mean() + fields.bce_weight * bce


def _place(network, device):
    return network.to(device, memory_format=torch.channels_last)


def _compiled(function, device):
    return torch.compile(function, dynamic=False) if device.type == "cuda" else function


def _autocast(cfg, device):
    half = device.type == "cuda" and cfg.dtype == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)
