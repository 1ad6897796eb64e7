"""The optimizer: AdamW on gradients clipped by global norm, with a schedule."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def make_optimizer(
    train: ConfigDict, *, frozen: Any = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, learning rate by step) for the section `train` of a config.

    `frozen` is a tree of booleans like the parameters, true where weight decay may not
    move one; their gradients are to be zero. None where all are trained.
    """
    schedule = make_schedule(train)
    decayed = None if frozen is None else jax.tree.map(lambda x: not x, frozen)
    adamw = optax.adamw(schedule, weight_decay=train.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), adamw), schedule


def make_schedule(train: ConfigDict) -> optax.Schedule:
    """Learning rate by step for the section `train` of a config.

    The rate rises linearly, then falls along a cosine to `final_fraction` of its peak at
    step `train.steps`.
    """
    # Without warm-up steps optax would take the first step at rate 0.
    initial = 0.0 if train.warmup_steps else train.learning_rate
    return optax.warmup_cosine_decay_schedule(
        init_value=initial,
        peak_value=train.learning_rate,
        warmup_steps=train.warmup_steps,
        decay_steps=max(train.steps, train.warmup_steps + 1),
        end_value=train.learning_rate * train.final_fraction,
    )
