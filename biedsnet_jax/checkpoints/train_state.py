"""The training state: what training carries from step to step.

It holds arrays and nothing else, so that it jits, donates and saves as one tree.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

Tree = Any
# An int32 scalar. Its type is not checked, since jax also makes states of shapes and of
# shardings.
Counter = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state after `step` updates."""

    step: Counter  # batches seen, skipped ones included
    params: Tree
    batch_stats: Tree  # running means of batch norm; empty where a network has none
    ema_params: Tree  # what evaluation uses
    opt_state: Tree
    bad_steps: Counter  # non-finite steps in a row, up to now
    skipped_steps: Counter  # non-finite steps altogether

    @property
    def ema_variables(self) -> dict[str, Tree]:
        """The variables to predict with."""
        return {"params": self.ema_params, "batch_stats": self.batch_stats}


def create(
    variables: dict[str, Tree],
    optimizer: optax.GradientTransformation = optax.identity(),  # noqa: B008
) -> TrainState:
    """The state before the first step; without an optimizer, enough to predict."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        # A copy, since two names for one buffer cannot both be donated.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        bad_steps=jnp.zeros((), jnp.int32),
        skipped_steps=jnp.zeros((), jnp.int32),
    )
