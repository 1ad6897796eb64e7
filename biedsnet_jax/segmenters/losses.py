"""Losses of a batch.

Every loss keeps the batch axis, so that a padded example can be left out. All are
finite on empty and on full masks.

The paper's joint diffusion and segmentation loss, of logits l, p = sigmoid(l) and mask
y, has the weights of docs/paper.md:

    joint(l, y) = SmoothL1_beta(p, y) + Dice(p, y) + 0.5 BCE(l, y)

Under multi-layer supervision it is sum_i w_i joint(l_i, y) over the final and the side
heads.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from biedsnet_jax.errors import BadInput
from biedsnet_jax.types import Logits, Mask

PerExample = Float[Array, " b"]
LossFn = Callable[[Logits, Mask], PerExample]


def smooth_l1(p: Mask, y: Mask, *, beta: float = 1.0) -> PerExample:
    """Mean over pixels of d^2 / (2 beta) where d = |p - y| < beta, else d - beta / 2.

    Source: Girshick 2015.
    """
    d = jnp.abs(p - y)
    return _pixel_mean(jnp.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta))


def mse(p: Mask, y: Mask) -> PerExample:
    """Mean squared error over pixels and classes."""
    return _pixel_mean(jnp.square(p - y))


def bce(logits: Logits, y: Mask) -> PerExample:
    """Mean binary cross entropy over pixels and classes: log(1 + exp(l)) - l y."""
    # From logits and not from p, so that it stays finite where p rounds to 0 or 1.
    return _pixel_mean(jax.nn.softplus(logits) - logits * y)


def dice(p: Mask, y: Mask, *, smooth: float = 1.0) -> PerExample:
    """Mean over classes of 1 - (2 sum p y + smooth) / (sum p + sum y + smooth)."""
    # `smooth` keeps the loss finite where neither p nor y has a pixel.
    overlap = jnp.sum(p * y, axis=(1, 2))
    total = jnp.sum(p + y, axis=(1, 2))
    return jnp.mean(1.0 - (2.0 * overlap + smooth) / (total + smooth), axis=-1)


def joint(
    logits: Logits,
    y: Mask,
    *,
    smooth_l1_beta: float = 1.0,
    dice_smooth: float = 1.0,
    dice_weight: float = 1.0,
    bce_weight: float = 0.5,
) -> PerExample:
    """The paper's joint diffusion and segmentation loss for one head."""
    p = jax.nn.sigmoid(logits)
    overlap = dice_weight * dice(p, y, smooth=dice_smooth)
    return smooth_l1(p, y, beta=smooth_l1_beta) + overlap + bce_weight * bce(logits, y)


def mse_only(logits: Logits, y: Mask) -> PerExample:
    """MSE of p, which stands in for `joint` in ablation rows 1 to 3."""
    return mse(jax.nn.sigmoid(logits), y)


def dice_bce(
    logits: Logits,
    y: Mask,
    *,
    dice_smooth: float = 1e-5,
    dice_weight: float = 1.0,
    bce_weight: float = 0.5,
) -> PerExample:
    """Weighted Dice and BCE, the loss of the direct networks.

    The defaults are those of UNet++'s and UNeXt's authors.
    """
    overlap = dice(jax.nn.sigmoid(logits), y, smooth=dice_smooth)
    return dice_weight * overlap + bce_weight * bce(logits, y)


LOSSES = {"joint": joint, "mse": mse_only, "dice_bce": dice_bce}


def supervised(
    loss: LossFn, heads: Sequence[Logits], y: Mask, weights: Sequence[float]
) -> PerExample:
    """Weighted sum of `loss` over heads, final head first.

    A single head counts fully whatever its weight. Raises BadInput unless several heads
    have a weight each.
    """
    if len(heads) == 1:
        return loss(heads[0], y)
    if len(heads) != len(weights):
        raise BadInput(
            f"loss.supervision_weights has {len(weights)} weights for {len(heads)} heads. "
            "Give one weight a head, the final head's first."
        )
    return sum(w * loss(logits, y) for w, logits in zip(weights, heads))


def _pixel_mean(x):
    return jnp.mean(x, axis=(1, 2, 3))
