"""Checkpoints of a workdir: training state, the config it belongs to, and the step of the data stream, by Orbax.

Saves are asynchronous and become visible only when complete, so a run killed at any moment restarts from the last
complete one. Kept are the latest and the best by validation Dice.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from biedsnet_jax.parallel import replicated
from biedsnet_jax.train_state import TrainState
from biedsnet_jax.types import BadInput

_ITEMS = ("state", "meta")
_SCORE = "val_dice"


class Checkpoints:
    """The folder `checkpoints/` of one workdir. Use as a context manager: leaving waits for the last save."""

    def __init__(self, workdir: str | pathlib.Path, *, keep_latest: int = 1, keep_best: int = 1):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        keep = [policies.LatestN(n=keep_latest), policies.BestN(n=keep_best, get_metric_fn=_score)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=_score,  # the policy decides, but without this Orbax writes no metrics for a later process to read
            cleanup_tmp_directories=True,  # what a kill left of a save
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._manager.close()

    def save(self, state: TrainState, *, config: dict, val_dice: float | None = None) -> None:
        """Write `state` under its step, in the background; a step already there is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        meta = {"data_step": step, "config": config}
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
            metrics={} if val_dice is None else {_SCORE: val_dice},
        )

    def latest_step(self) -> int | None:
        """The last complete step, None in a fresh workdir."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation Dice (the later one of equals); the latest where none was validated."""
        return _best_step(self._manager)

    def restore(self, step: int, like: TrainState, mesh: Mesh) -> TrainState:
        """The state of `step`, onto every device of `mesh`; `like` gives structure and shapes, arrays or not."""
        abstract = _abstract(like, mesh)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state

    def wait(self) -> None:
        """Until the last save is complete."""
        self._manager.wait_until_finished()


def best_step(workdir: str | pathlib.Path) -> int:
    """The step that `restore_variables` reads. Raises BadInput when the workdir has no complete checkpoint."""
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    with _reader(folder) as manager:
        return _some_best_step(manager, folder)


def restore_variables(workdir: str | pathlib.Path, like: TrainState, mesh: Mesh) -> tuple[dict[str, Any], int]:
    """EMA parameters and batch statistics of the best checkpoint, and its step; nothing else is read.

    Raises BadInput when the workdir has no complete checkpoint.
    """
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    abstract = _abstract({"ema_params": like.ema_params, "batch_stats": like.batch_stats}, mesh)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
    with _reader(folder) as manager:
        step = _some_best_step(manager, folder)
        state = manager.restore(step, args=ocp.args.Composite(state=args)).state
    return {"params": state["ema_params"], "batch_stats": state["batch_stats"]}, step


def _reader(folder):
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False), item_names=_ITEMS)


def _some_best_step(manager, folder):
    step = _best_step(manager)
    if step is None:
        raise BadInput(f"no complete checkpoint, in {folder}; train first, with --mode=train and this --workdir")
    return step


def _best_step(manager):
    return max(manager.all_steps(), key=lambda step: (_score(manager.metrics(step)), step), default=None)


def _score(metrics):
    """Validation Dice; below any where there was no validation."""
    return (metrics or {}).get(_SCORE, -1.0)


def _abstract(tree, mesh):
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
