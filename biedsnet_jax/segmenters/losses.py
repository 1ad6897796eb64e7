"""Losses of a batch.

Every loss keeps the batch axis, so that a padded example can be left out. All are
finite on empty and on full masks. `known`, shaped as the mask, is 1 where a pixel's truth
in a class is known and 0 elsewhere: means and sums are over known pixels alone, and an
example of which nothing is known has the loss 0. None: all is known.

The paper's joint diffusion and segmentation loss, of logits l, p = sigmoid(l) and mask
y, has the weights of docs/paper.md:

    joint(l, y) = SmoothL1_beta(p, y) + Dice(p, y) + 0.5 BCE(l, y)

Under multi-layer supervision it is sum_i w_i joint(l_i, y) over the final and the side
heads.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from biedsnet_jax.errors import BadInput
from biedsnet_jax.types import Logits, Mask

PerExample = Float[Array, " b"]
# (logits, mask), and `known` by name where it is not None.
LossFn = Callable[..., PerExample]


def smooth_l1(
    p: Mask, y: Mask, *, beta: float = 1.0, known: Mask | None = None
) -> PerExample:
    """Mean over pixels of d^2 / (2 beta) where d = |p - y| < beta, else d - beta / 2.

    Source: Girshick 2015.
    """
    d = jnp.abs(p - y)
    error = jnp.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta)
    return known_mean(error, known)


def mse(p: Mask, y: Mask, *, known: Mask | None = None) -> PerExample:
    """Mean squared error over pixels and classes."""
    return known_mean(jnp.square(p - y), known)


def bce(logits: Logits, y: Mask, *, known: Mask | None = None) -> PerExample:
    """Mean binary cross entropy over pixels and classes: log(1 + exp(l)) - l y."""
    # From logits and not from p, so that it stays finite where p rounds to 0 or 1.
    return known_mean(jax.nn.softplus(logits) - logits * y, known)


def dice(
    p: Mask, y: Mask, *, smooth: float = 1.0, known: Mask | None = None
) -> PerExample:
    """Mean over classes of 1 - (2 sum p y + smooth) / (sum p + sum y + smooth).

    Classes of which nothing is known are left out of the mean.
    """
    if known is not None:
        p = p * known
        y = y * known
    # `smooth` keeps the loss finite where neither p nor y has a pixel.
    overlap = jnp.sum(p * y, axis=(1, 2))
    total = jnp.sum(p + y, axis=(1, 2))
    loss = 1.0 - (2.0 * overlap + smooth) / (total + smooth)
    if known is None:
        return jnp.mean(loss, axis=-1)
    there = jnp.any(known > 0, axis=(1, 2))
    return jnp.sum(loss * there, axis=-1) / jnp.maximum(jnp.sum(there, axis=-1), 1)


def joint(
    logits: Logits,
    y: Mask,
    *,
    smooth_l1_beta: float = 1.0,
    dice_smooth: float = 1.0,
    dice_weight: float = 1.0,
    bce_weight: float = 0.5,
    known: Mask | None = None,
) -> PerExample:
    """The paper's joint diffusion and segmentation loss for one head."""
    p = jax.nn.sigmoid(logits)
    overlap = dice_weight * dice(p, y, smooth=dice_smooth, known=known)
    error = smooth_l1(p, y, beta=smooth_l1_beta, known=known)
    return error + overlap + bce_weight * bce(logits, y, known=known)


def mse_only(logits: Logits, y: Mask, *, known: Mask | None = None) -> PerExample:
    """MSE of p, which stands in for `joint` in ablation rows 1 to 3."""
    return mse(jax.nn.sigmoid(logits), y, known=known)


def dice_bce(
    logits: Logits,
    y: Mask,
    *,
    dice_smooth: float = 1e-5,
    dice_weight: float = 1.0,
    bce_weight: float = 0.5,
    known: Mask | None = None,
) -> PerExample:
    """Weighted Dice and BCE, the loss of the direct networks.

    The defaults are those of UNet++'s and UNeXt's authors.
    """
    overlap = dice(jax.nn.sigmoid(logits), y, smooth=dice_smooth, known=known)
    return dice_weight * overlap + bce_weight * bce(logits, y, known=known)


LOSSES = {"joint": joint, "mse": mse_only, "dice_bce": dice_bce}


def supervised(
    loss: LossFn,
    heads: Sequence[Logits],
    y: Mask,
    weights: Sequence[float],
    known: Mask | None = None,
) -> PerExample:
    """Weighted sum of `loss` over heads, final head first, all at the mask's size.

    A single head counts fully whatever its weight. Raises BadInput unless several heads
    have a weight each.
    """
    # A loss of one's own need not know of `known` while all is known.
    if known is not None:
        loss = functools.partial(loss, known=known)
    if len(heads) == 1:
        return loss(heads[0], y)
    if len(heads) != len(weights):
        raise BadInput(
            f"loss.supervision_weights has {len(weights)} weights for {len(heads)} heads. "
            "Give one weight a head, the final head's first."
        )
    return sum(w * loss(logits, y) for w, logits in zip(weights, heads))


def known_mean(x: Float[Array, "b h w k"], known: Mask | None = None) -> PerExample:
    """Mean of an example's values over known pixels and classes; 0 where none is."""
    if known is None:
        return jnp.mean(x, axis=(1, 2, 3))
    total = jnp.sum(x * known, axis=(1, 2, 3))
    return total / jnp.maximum(jnp.sum(known, axis=(1, 2, 3)), 1)
