"""Checkpoints of a workdir: training state, the config it belongs to, and the step of the data stream, by Orbax.

Saves are asynchronous and become visible only when complete, so a run killed at any moment restarts from the last
complete one. Kept are the latest ones and the best by validation Dice. Damaged ones are set aside, in favour of the one
before; a save that a full disk stops is said and cleared away. Any layout of devices and processes restores another's.
"""

import contextlib
import logging
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from biedsnet_jax import checkpoint_folder, checksums, files, processes
from biedsnet_jax.errors import Preempted, reason
from biedsnet_jax.parallel import state_sharding
from biedsnet_jax.train_state import TrainState
from biedsnet_jax.types import BadInput

_ITEMS = ("state", "meta")
_PATIENCE = 300  # seconds that processes wait for one another in a save


class Checkpoints:
    """The folder `checkpoints/` of one workdir. Use as a context manager: leaving waits for the last save.

    `warn` hears a line about each damaged checkpoint and each save that failed. Of several processes all call the same
    methods in the same order.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep_latest: int = 1,
        keep_best: int = 1,
        warn: Callable[[str], None] = processes.say,
    ):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep, self._warn = (keep_latest, keep_best), warn
        self._saving: int | None = None  # the step of the save under way
        self._summing = threading.Thread()
        if processes.is_first():
            with checkpoint_folder.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            for step in checkpoint_folder.steps(self.folder):
                if what := checkpoint_folder.damage(self.folder / str(step)):
                    warn(checkpoint_folder.set_aside(self.folder, step, what))
        processes.barrier("checkpoint folder")
        _hush()
        self._folder_is = files.identity(self.folder)
        self._manager = self._open()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if files.identity(self.folder) == self._folder_is:  # else there is nothing to wait for
            self._settle()
            self._manager.close()

    def save(self, state: TrainState, *, config: dict, val_dice: float | None = None) -> None:
        """Write `state` under its step, in the background; a step already there is left as it is.

        A full disk is said, by `warn`, and no more. Raises BadInput where the folder is gone or refuses to be written.
        """
        step = int(state.step)
        self._settle()
        if step in self._manager.all_steps():
            return
        if files.identity(self.folder) != self._folder_is:  # Orbax would make it anew, and the run be in two places
            raise BadInput(
                f"folder gone, step {step} not saved, {self.folder}; bring it back, the same command goes on"
            )
        self._sweep()
        meta = {"data_step": step, "config": config}
        self._saving = step
        with self._failing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
                metrics={} if val_dice is None else {checkpoint_folder.SCORE: val_dice},
            )
        if self._saving is not None and processes.is_first():
            self._summing = threading.Thread(target=self._write_sums, args=(self._manager, step))
            self._summing.start()

    def latest_step(self) -> int | None:
        """The last complete step, None in a fresh workdir."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation Dice (the later one of equals); the latest where none was validated."""
        return checkpoint_folder.best_step(self.folder, self._manager.all_steps())

    def restore(self, step: int, like: TrainState, mesh: Mesh) -> TrainState:
        """The state of `step`, onto the devices of `mesh`; `like` gives structure and shapes, arrays or not."""
        abstract = _abstract(like, mesh)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state

    def restore_latest(self, like: TrainState, mesh: Mesh) -> TrainState | None:
        """The latest state that can be read, None in a fresh workdir; later ones that cannot are set aside.

        Raises BadInput where there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[tuple[int, str]] = []
        for step in steps:
            try:
                state = self.restore(step, like, mesh)
            except Exception as error:  # a library's, of many kinds
                damaged.append((step, reason(error)))
                continue
            if damaged:
                self._manager.close()
                if processes.is_first():
                    for each, what in damaged:
                        self._warn(checkpoint_folder.set_aside(self.folder, each, what))
                processes.barrier("damaged checkpoints")
                self._manager = self._open()
            return state
        if damaged:
            raise BadInput(
                f"no checkpoint can be read, step {damaged[0][0]}: {damaged[0][1]}, {self.folder}; restore one from a "
                "copy, or start again in another --workdir"
            )
        return None

    def wait(self, *, saved: int | None = None) -> None:
        """Until the last save is complete, or has failed. Raises BadInput where step `saved` is not the latest then."""
        self._settle()
        last = self.latest_step()
        if saved is not None and last != saved:
            kept = "none is complete" if last is None else f"the last is of step {last}"
            raise BadInput(
                f"checkpoint of step {saved} not saved, {kept}, {self.folder}; make room, the same command goes on"
            )

    def _open(self):
        latest, best = self._keep
        keep = [policies.LatestN(n=latest), policies.BestN(n=best, get_metric_fn=checkpoint_folder.score)]
        several = jax.process_count() > 1
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            # The policy decides, but without this Orbax writes no metrics for a later process to read.
            best_fn=checkpoint_folder.score,
            create=False,
            cleanup_tmp_directories=True,  # what a kill left of a save
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=_PATIENCE),
            # Named, so that Orbax waits through the coordinator, which has a limit, and not by collectives that would
            # come between the training's.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=set(range(jax.process_count())) if several else None
            ),
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)

    def _settle(self):
        """Wait for the save under way. On every process the same is known of it then."""
        if self._saving is None:
            return
        with self._failing(self._saving):
            self._manager.wait_until_finished()
        if self._summing.ident:
            self._summing.join()
        self._saving = None

    @contextlib.contextmanager
    def _failing(self, step):
        """What a save raises, of a full disk, becomes a warning; its leftovers are cleared away."""
        try:
            yield
        except Exception as error:
            self._saving = None
            if self._summing.ident:
                self._summing.join()
            last = max(checkpoint_folder.steps(self.folder), default=None)
            kept = "no checkpoint is complete" if last is None else f"the checkpoint of step {last} is intact"
            if not files.is_full(error):
                raise BadInput(
                    f"cannot write step {step}, {reason(error)}, {self.folder}; {kept}, the same command goes on"
                ) from error
            self._warn(f"warning: disk full, step {step} not saved, {self.folder}; {kept}, training goes on")
            with contextlib.suppress(Exception):  # the same error once more
                self._manager.close()
            self._sweep()
            self._manager = self._open()

    def _sweep(self):
        """Remove what failed saves left, for the room it takes; writes that outlive them may leave some more."""
        if processes.is_first():
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _write_sums(self, manager, step):
        with contextlib.suppress(Exception):  # said where it is waited for; sums are no necessity
            manager.wait_until_finished()
            checksums.write(self.folder / str(step))


def best_step(workdir: str | pathlib.Path) -> int:
    """The step that `restore_variables` reads. Raises BadInput when the workdir has no complete checkpoint."""
    return _some_best_step(pathlib.Path(workdir).absolute() / "checkpoints")


def restore_variables(workdir: str | pathlib.Path, like: TrainState, mesh: Mesh) -> tuple[dict[str, Any], int]:
    """EMA parameters and batch statistics of the best checkpoint, and its step; nothing else is read.

    A damaged one is passed over with a warning. Raises BadInput when the workdir has no complete checkpoint.
    """
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    step = _some_best_step(folder)
    abstract = _abstract({"ema_params": like.ema_params, "batch_stats": like.batch_stats}, mesh)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
    reading = ocp.CheckpointManagerOptions(create=False)
    try:
        with ocp.CheckpointManager(folder, options=reading, item_names=_ITEMS) as manager:
            state = manager.restore(step, args=ocp.args.Composite(state=args)).state
    except Exception as error:
        raise BadInput(
            f"checkpoint that cannot be read, {reason(error)}, {folder / str(step)}; restore it, or take it away"
        ) from error
    return {"params": state["ema_params"], "batch_stats": state["batch_stats"]}, step


def _some_best_step(folder):
    step, damaged = checkpoint_folder.best_undamaged(folder)
    if step is None:
        what = "no checkpoint undamaged" if damaged else "no complete checkpoint"
        raise BadInput(f"{what}, in {folder}; train first, with --mode=train and this --workdir")
    for other, what in damaged.items():
        processes.say(f"warning: damaged checkpoint of step {other}, {what}, {folder}; step {step} is used")
    return step


def _abstract(tree, mesh):
    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, state_sharding(tree, mesh))


def _hush():
    """Keep what is raised from being logged as well, at great length, by Orbax and its event loop."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable


def _unraisable(what):
    if isinstance(what.exc_value, Preempted):  # SIGTERM came in a callback: the next step hears of it
        return
    if str(what.exc_value) != "Event loop is closed":  # of writes that outlive a failed save
        sys.__unraisablehook__(what)
