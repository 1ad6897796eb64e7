"""The optimizer: AdamW on gradients clipped by global norm, with a schedule."""

import optax
from ml_collections import ConfigDict


def make_optimizer(
    train: ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, learning rate by step) for the section `train` of a config.

    The rate rises linearly, then falls along a cosine to `final_fraction` of its peak.
    """
    # Without warm-up steps optax would take the first step at rate 0.
    initial = 0.0 if train.warmup_steps else train.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=initial,
        peak_value=train.learning_rate,
        warmup_steps=train.warmup_steps,
        decay_steps=max(train.steps, train.warmup_steps + 1),
        end_value=train.learning_rate * train.final_fraction,
    )
    adamw = optax.adamw(schedule, weight_decay=train.weight_decay)
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), adamw), schedule
