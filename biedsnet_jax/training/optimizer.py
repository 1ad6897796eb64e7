"""The optimizer of a config: AdamW behind a clip of the global norm, with a learning
rate by step.
"""

import optax
from ml_collections import ConfigDict


def make_optimizer(
    train: ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer that the section `train` of a config asks for, and its learning
    rate by step.

    The rate warms up linearly, then falls along a cosine to `final_fraction` of its
    peak.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if train.warmup_steps else train.learning_rate,
        peak_value=train.learning_rate,
        warmup_steps=train.warmup_steps,
        decay_steps=max(train.steps, train.warmup_steps + 1),
        end_value=train.learning_rate * train.final_fraction,
    )
    adamw = optax.adamw(schedule, weight_decay=train.weight_decay)
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), adamw), schedule
