"""Checkpoints of a workdir, by Orbax: training state, config and step of the data.

Saves are asynchronous. A checkpoint becomes visible when it is complete, on the disk and
with checksums, so that a run restarts from the last complete one after a kill or a power
cut. The latest ones and the best by validation Dice are kept. A damaged one is set aside
and the one before is used; a save that fails for a full disk is removed, with a warning.
Any layout of devices and processes restores another's. One process at a time writes: it
holds the lock of the workdir.
"""

import asyncio
import contextlib
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from biedsnet_jax.checkpoints import array_sums, checkpoint_folder, checksums
from biedsnet_jax.checkpoints.train_state import TrainState
from biedsnet_jax.errors import BadInput, Preempted, reason
from biedsnet_jax.runtime import files, processes
from biedsnet_jax.runtime.devices import state_sharding
from biedsnet_jax.runtime.lock import Lock

_ITEMS = ("state", "meta")
# Seconds that processes wait for one another in a save.
_TIMEOUT = 300
# Key of `array_sums` in a checkpoint's metadata.
_SUMS = "array_sums"
# The file of these metadata. It has no checksum, since Orbax writes it again at commit.
_METADATA = "_CHECKPOINT_METADATA"


class _Durable(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A step's folder while it is written.

    It gets its name once all of it is on the disk, with checksums.
    """

    async def finalize(self):
        await asyncio.to_thread(
            checksums.write, pathlib.Path(self.get()), leave_out=(_METADATA,)
        )
        await super().finalize()
        await asyncio.to_thread(_sync_commit, pathlib.Path(self.get_final()))


def _sync_commit(folder: pathlib.Path) -> None:
    """Brings the commit and the folder's name to the disk."""
    # Only then may an older step be removed.
    for path in folder.iterdir():
        if path.is_file():
            files.sync(path)
    files.sync_folder(folder)
    files.sync_folder(folder.parent)


class Checkpoints:
    """The folder `checkpoints/` of one workdir.

    It is a context manager: leaving it waits for the last save. `warn` gets a line about
    each damaged checkpoint and each save that failed. All processes call the same
    methods in the same order. The first one holds the lock of the workdir until the end;
    `lock` is one that the caller holds already and keeps. Raises BadInput where another
    process holds it.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep_latest: int = 1,
        keep_best: int = 1,
        warn: Callable[[str], None] = processes.say,
        lock: Lock | None = None,
    ):
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._warn = warn
        # Step of the save under way.
        self._saving: int | None = None
        with contextlib.ExitStack() as held:
            if processes.is_first():
                with files.writing(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    files.sync_folder(self.folder.parent)
                if lock is None:
                    held.enter_context(Lock(self.folder.parent))
                self._remove_leftovers()
                for step in checkpoint_folder.steps(self.folder):
                    if what := checkpoint_folder.damage(self.folder / str(step)):
                        warn(checkpoint_folder.set_aside(self.folder, step, what))
            processes.barrier("checkpoint folder")
            _silence_libraries()
            self._identity = files.identity(self.folder)
            self._manager = self._open()
            self._held = held.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with self._held:
            # Without the folder there is nothing to wait for.
            if files.identity(self.folder) == self._identity:
                self._finish_save()
                self._manager.close()

    def save(
        self, state: TrainState, *, config: dict, val_dice: float | None = None
    ) -> None:
        """Writes `state` in the background, unless there is a checkpoint of its step.

        A full disk is a warning. Raises BadInput where the folder is gone or cannot be
        written.
        """
        step = int(state.step)
        self._finish_save()
        if step in self._manager.all_steps():
            return
        # Orbax would make the folder anew, and the run would be in two places.
        if files.identity(self.folder) != self._identity:
            raise BadInput(
                f"{self.folder} is gone, so step {step} was not saved. Bring it back; the "
                "same command then goes on."
            )
        self._remove_leftovers()
        meta = {"data_step": step, "config": config}
        self._saving = step
        with self._handle_failure(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                metrics={} if val_dice is None else {checkpoint_folder.SCORE: val_dice},
                custom_metadata={_SUMS: array_sums.of(state)},
            )

    def latest_step(self) -> int | None:
        """The last complete step; None in a fresh workdir."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation Dice, else the latest; None without any.

        Of equal ones it is the later.
        """
        return checkpoint_folder.best_step(self.folder, self._manager.all_steps())

    def restore(self, step: int, like: TrainState, mesh: Mesh) -> TrainState:
        """Restores the state of `step` on the devices of `mesh`.

        `like` gives structure and shapes, with arrays or without. A step without
        checksums gets them now that it is read. Raises BadInput where the state is not
        what was saved.
        """
        state, what = self._read(step, like, mesh)
        if what:
            raise BadInput(
                f"The checkpoint of step {step} is not what was saved: {what}. Restore "
                f"{self.folder / str(step)} from a copy, or take it away."
            )
        return state

    def restore_latest(self, like: TrainState, mesh: Mesh) -> TrainState | None:
        """Restores the latest state that can be read; None in a fresh workdir.

        Later ones, which cannot be read, are set aside. Raises BadInput where there are
        checkpoints but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[tuple[int, str]] = []
        for step in steps:
            try:
                state, what = self._read(step, like, mesh)
            # Orbax raises exceptions of many kinds.
            except Exception as error:
                what = reason(error)
            if what:
                damaged.append((step, what))
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
            latest, what = damaged[0]
            raise BadInput(
                f"No checkpoint in {self.folder} can be read; the one of step {latest}: "
                f"{what}. Restore one from a copy, or start again in another --workdir."
            )
        return None

    def wait(self, *, saved: int | None = None) -> None:
        """Waits until the last save is complete or has failed.

        Raises BadInput where step `saved` is not the latest then.
        """
        self._finish_save()
        last = self.latest_step()
        if saved is not None and last != saved:
            kept = "none is complete" if last is None else f"the last is of step {last}"
            raise BadInput(
                f"The checkpoint of step {saved} was not saved to {self.folder}: {kept}. "
                "Make room; the same command then goes on."
            )

    def _open(self):
        keep = [
            policies.LatestN(n=self._keep_latest),
            policies.BestN(n=self._keep_best, get_metric_fn=checkpoint_folder.score),
        ]
        several = jax.process_count() > 1
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            # The policy decides what is kept, but without this Orbax writes no metrics
            # for a later process.
            best_fn=checkpoint_folder.score,
            create=False,
            # `_remove_leftovers` does it. Orbax's own cleaning goes on in the background
            # and fails where both clean.
            cleanup_tmp_directories=False,
            enable_async_checkpointing=True,
            temporary_path_class=_Durable,
            async_options=ocp.AsyncOptions(timeout_secs=_TIMEOUT),
            # With named processes Orbax waits through the coordinator, which has a time
            # limit, not by collectives, which would mix with those of training.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=set(range(jax.process_count())) if several else None
            ),
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)

    def _read(self, step, like, mesh):
        """Restores a step; returns its state, and what is wrong with it or None.

        A sound step without checksums gets them.
        """
        args = ocp.args.StandardRestore(_abstract(like, mesh))
        state = self._manager.restore(step, args=ocp.args.Composite(state=args)).state
        folder = self.folder / str(step)
        if checksums.are_there(folder):
            return state, None
        what = _difference(self._manager, step, state, self._warn)
        if what is None and processes.is_first():
            with files.writing(folder):
                checksums.write(folder)
        return state, what

    def _finish_save(self):
        """Waits for the save under way, until every process knows how it ended."""
        if self._saving is None:
            return
        with self._handle_failure(self._saving):
            self._manager.wait_until_finished()
        self._saving = None

    @contextlib.contextmanager
    def _handle_failure(self, step):
        """Turns a full disk in a save into a warning, other errors into BadInput."""
        try:
            yield
        except Exception as error:
            self._saving = None
            last = max(checkpoint_folder.steps(self.folder), default=None)
            kept = "No checkpoint is complete."
            if last is not None:
                kept = f"The checkpoint of step {last} is intact."
            if not files.is_full(error):
                raise BadInput(
                    f"Step {step} cannot be written to {self.folder}: {reason(error)}. "
                    f"{kept} The same command goes on."
                ) from error
            self._warn(
                f"warning: The disk is full, so step {step} was not saved to "
                f"{self.folder}. {kept} Training goes on."
            )
            # Closing raises the same error again.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._remove_leftovers()
            self._manager = self._open()

    def _remove_leftovers(self):
        """Removes what killed and failed saves left."""
        # Writes that outlive a failed save may leave more, which the next call removes.
        if processes.is_first():
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)


def best_step(workdir: str | pathlib.Path) -> int:
    """The step that `restore_variables` reads.

    Raises BadInput where the workdir has no complete checkpoint.
    """
    return _best_step(pathlib.Path(workdir).absolute() / "checkpoints")


def restore_variables(
    workdir: str | pathlib.Path, like: TrainState, mesh: Mesh
) -> tuple[dict[str, Any], int]:
    """Restores EMA parameters and batch statistics of the best checkpoint, and its step.

    Nothing else is read. A damaged checkpoint is passed over with a warning. Raises
    BadInput where the workdir has no complete checkpoint.
    """
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    damaged: dict[int, str] = {}
    while True:
        step = _best_step(folder, damaged)
        variables, what = _read_variables(folder, step, like, mesh)
        if what is None:
            return variables, step
        damaged[step] = what


def _read_variables(folder, step, like, mesh):
    """Reads a step's EMA parameters and batch statistics, and what is wrong or None."""
    abstract = _abstract(
        {"ema_params": like.ema_params, "batch_stats": like.batch_stats}, mesh
    )
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    args = ocp.args.PyTreeRestore(
        abstract, restore_args=restore_args, partial_restore=True
    )
    reading = ocp.CheckpointManagerOptions(create=False)
    what = None
    try:
        with ocp.CheckpointManager(
            folder, options=reading, item_names=_ITEMS
        ) as manager:
            state = manager.restore(step, args=ocp.args.Composite(state=args)).state
            if not checksums.are_there(folder / str(step)):
                what = _difference(manager, step, state, processes.say)
    except Exception as error:
        raise BadInput(
            f"The checkpoint {folder / str(step)} cannot be read: {reason(error)}. Restore "
            "it from a copy, or take it away."
        ) from error
    return {"params": state["ema_params"], "batch_stats": state["batch_stats"]}, what


def _best_step(folder, known=None):
    """The best undamaged step, with a warning about each damaged one.

    `known` says what is wrong with steps that are known to be damaged.
    """
    step, damaged = checkpoint_folder.best_undamaged(folder, known)
    if step is None:
        what = "undamaged" if damaged else "complete"
        raise BadInput(
            f"{folder} has no {what} checkpoint. Train first, with --mode=train and this "
            "--workdir."
        )
    for other, what in damaged.items():
        processes.say(
            f"warning: The checkpoint of step {other} in {folder} is damaged: {what}. Step "
            f"{step} is used."
        )
    return step


def _difference(manager, step, state, warn):
    """What of a state that was read without checksums is not as saved, or None.

    A state of an earlier version is taken as it is, with a warning.
    """
    try:
        with _orbax_silenced():
            expected = (manager.metadata(step).custom_metadata or {}).get(_SUMS)
    # Orbax raises exceptions of many kinds.
    except Exception:
        expected = None
    if expected is not None:
        what = array_sums.difference(state, expected)
        return what and f"{checksums.NAME} is missing and {what}"
    if processes.is_first():
        warn(
            f"warning: The checkpoint of step {step} in {manager.directory} is of an "
            "earlier version, without checksums. Whether it is as it was written cannot be "
            "told."
        )
    return None


def _abstract(tree, mesh):
    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, state_sharding(tree, mesh))


@contextlib.contextmanager
def _orbax_silenced():
    """Silences Orbax's warnings about items that it was not told how to restore."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _silence_libraries():
    """Keeps Orbax and its event loop from also logging, at length, what they raise."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable


def _report_unraisable(unraisable):
    # SIGTERM came in a callback; the next step ends the run.
    if isinstance(unraisable.exc_value, Preempted):
        return
    # Writes that outlive a failed save raise this.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
