"""The training step: gradient of the segmenter's loss, AdamW, moving average.

A step whose loss or gradient is not finite changes nothing but the counters, so that
one bad batch cannot spoil a run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Num
from ml_collections import ConfigDict

from biedsnet_jax.checkpoints.train_state import TrainState
from biedsnet_jax.runtime import devices
from biedsnet_jax.training.packing import Packing
from biedsnet_jax.types import Batch, PRNGKey

Metrics = dict[str, Num[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Update:
    """One update: a segmenter's loss, an optimizer, the parameters' moving average."""

    segmenter: Any
    optimizer: optax.GradientTransformation
    ema_decay: float
    accumulate: int = 1  # parts a batch is cut into
    # Whether the step takes a fourth input: variables, by collection, that the loss
    # reads beside its own and no step changes.
    fixed: bool = False
    # Tree of booleans like the parameters, true for those that no step changes; None
    # where all are trained.
    frozen: Any = None

    def __call__(self, state: TrainState, grads: Any, batch_stats: Any) -> TrainState:
        """The state after the optimizer's step; the step number stays.

        Gradients, parameters and moments may be packed, all alike, where nothing is
        frozen.
        """
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(
            state,
            params=params,
            batch_stats=batch_stats,
            ema_params=self._averaged(state, params),
            opt_state=opt_state,
            bad_steps=jnp.zeros_like(state.bad_steps),
        )

    def held(self, params: Any) -> Any:
        """The parameters, of which the frozen ones have no gradient."""
        if self.frozen is None:
            return params
        return self._unless_frozen(params, jax.tree.map(jax.lax.stop_gradient, params))

    def _averaged(self, state, params):
        ema = _moving_average(state.ema_params, params, self.ema_decay, state.step)
        # The mean of equal numbers may differ from them by rounding.
        return self._unless_frozen(ema, state.ema_params)

    def _unless_frozen(self, tree, of_frozen):
        """`tree`, with the leaves of `of_frozen` where a parameter is frozen."""
        if self.frozen is None:
            return tree
        return jax.tree.map(
            lambda is_frozen, x, y: y if is_frozen else x, self.frozen, tree, of_frozen
        )


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh, over whose devices the batches of training divide.

    Raises BadInput where they do not.
    """
    mesh = devices.make_mesh(fsdp=config.parallel.fsdp)
    parts = config.train.accumulate
    what = "devices"
    if parts > 1:
        what = f"parts ({mesh.size} devices, train.accumulate={parts})"
    devices.check_divisible(
        config.train.batch_size,
        mesh.size * parts,
        field="train.batch_size",
        what=what,
    )
    return mesh


def make_train_step(
    update: Update, mesh: Mesh, *, state_sharding: Any = None
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The jitted `step(state, batch, key) -> (state, metrics)`, which donates the state.

    `key` is the run's; the step number is folded in here. `state_sharding` is that of
    each array of the state, None where all are whole on every device.
    """
    either = one_or_other(mesh.devices.flat[0].platform)

    def step(
        state: TrainState, batch: Batch, key: PRNGKey, others: dict | None = None
    ) -> tuple[TrainState, Metrics]:
        # The step's own key, so that a resumed run draws as an unbroken one does.
        key = jax.random.fold_in(key, state.step)
        grads, batch_stats, metrics = _gradients(
            update, state, batch, key, others or {}
        )
        packing = Packing(
            state.params,
            state_sharding and state_sharding.params,
            apart=update.frozen is not None,
        )
        grad_norm = optax.global_norm(packing.pack(grads))
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)

        def change(state, grads, batch_stats):
            return update(state, packing.pack(grads), batch_stats)

        new_state = packing.unpack(
            either(finite, change, _skip, packing.pack(state), grads, batch_stats)
        )
        metrics |= {
            "grad_norm": grad_norm,
            "bad_steps": new_state.bad_steps,
            "skipped_steps": new_state.skipped_steps,
        }
        return dataclasses.replace(new_state, step=state.step + 1), metrics

    everywhere = devices.replicated(mesh)
    of_state = state_sharding or everywhere
    shardings = (of_state, devices.batch_sharding(mesh), everywhere)
    if update.fixed:
        # None leaves the variables where they lie.
        shardings += (None,)
    return jax.jit(
        step,
        in_shardings=shardings,
        out_shardings=(of_state, everywhere),
        donate_argnums=0,
    )


def _skip(state, grads, batch_stats):
    """The state after a step that was not finite: only the counters change."""
    return dataclasses.replace(
        state,
        bad_steps=state.bad_steps + 1,
        skipped_steps=state.skipped_steps + 1,
    )


def one_or_other(platform: str) -> Callable[..., Any]:
    """The function `either(true, f, g, *operands)`: f's result where `true`, else g's.

    A branch on CPU and TPU, since XLA fuses nothing across one. Without it each small
    array's gradient would be computed and rounded anew inside the packed one, and the
    whole update inside each array that is cut out of it. A selection on GPU, where the
    host would wait for the device to know which branch to launch.
    """

    def select(true, f, g, *operands):
        return jax.tree.map(
            lambda x, y: jnp.where(true, x, y), f(*operands), g(*operands)
        )

    return select if platform == "gpu" else jax.lax.cond


def _gradients(update, state, batch, key, others):
    """(gradient, batch_stats, metrics), means over equal parts of the batch.

    The `accumulate` parts go one after another, to save memory.
    """
    accumulate = update.accumulate

    def part(batch_stats, part_and_key):
        part, key = part_and_key

        def loss(params):
            held = update.held(params)
            variables = {"params": held, "batch_stats": batch_stats, **others}
            return update.segmenter.loss(variables, part, key, train=True)

        with_gradient = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, batch_stats)), grads = with_gradient(state.params)
        return batch_stats, (grads, {"loss": value, **metrics})

    if accumulate == 1:
        batch_stats, (grads, metrics) = part(state.batch_stats, (batch, key))
        return grads, batch_stats, metrics
    # Every accumulate-th example, so that each part still spans all devices.
    parts = jax.tree.map(
        lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )

    def add(carry, part_and_key):
        batch_stats, total = carry
        batch_stats, new = part(batch_stats, part_and_key)
        return (batch_stats, jax.tree.map(jnp.add, total, new)), None

    keys = jax.random.split(key, accumulate)
    first = jax.tree.map(lambda x: x[0], parts)
    _, shapes = jax.eval_shape(part, state.batch_stats, (first, keys[0]))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (batch_stats, total), _ = jax.lax.scan(
        add, (state.batch_stats, zero), (parts, keys)
    )
    grads, metrics = jax.tree.map(lambda x: x / accumulate, total)
    return grads, batch_stats, metrics


def _moving_average(ema, params, decay, step):
    """A moving average whose decay grows up to `decay`.

    It begins as a plain mean of the first steps, so that short runs are not judged on
    their first weights.
    """
    step = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)
