"""Checkpoints of a workdir: training state, the config it belongs to, and the step of
the data stream, by Orbax.

Saves are asynchronous and become visible only when complete, on the disk and with their
checksums, so a run killed at any moment restarts from the last complete one, after a
power cut too. Kept are the latest ones and the best by validation Dice. Damaged ones
are set aside, in favour of the one before; a save that a full disk stops is said and
cleared away. Any layout of devices and processes restores another's. One process at a
time writes: it holds the lock of the workdir.
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
# seconds that processes wait for one another in a save
_PATIENCE = 300
# in what a checkpoint says of itself, beside Orbax's own
_SUMS = "array_sums"
# the file of that, in which Orbax writes once more as it commits
_ABOUT = "_CHECKPOINT_METADATA"


class _Durable(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A step's folder while it is written; named when all is on the disk, with
    checksums.
    """

    async def finalize(self):
        await asyncio.to_thread(
            checksums.write, pathlib.Path(self.get()), leave_out=(_ABOUT,)
        )
        await super().finalize()
        await asyncio.to_thread(_sync_commit, pathlib.Path(self.get_final()))


def _sync_commit(folder: pathlib.Path) -> None:
    """Bring what the commit wrote, and the name, to the disk before an older step is
    removed.
    """
    for path in folder.iterdir():
        if path.is_file():
            files.sync(path)
    files.sync_folder(folder)
    files.sync_folder(folder.parent)


class Checkpoints:
    """The folder `checkpoints/` of one workdir. Use as a context manager: leaving waits
    for the last save.

    `warn` hears a line about each damaged checkpoint and each save that failed. Of
    several processes all call the same methods in the same order. The first of them
    holds the lock of the workdir until the end; `lock` is one that the caller holds
    already, and goes on holding. Raises BadInput where another process holds it.
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
        self._keep, self._warn = (keep_latest, keep_best), warn
        # the step of the save under way
        self._saving: int | None = None
        with contextlib.ExitStack() as held:
            if processes.is_first():
                with files.writing(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    files.sync_folder(self.folder.parent)
                if lock is None:
                    held.enter_context(Lock(self.folder.parent))
                self._sweep()
                for step in checkpoint_folder.steps(self.folder):
                    if what := checkpoint_folder.damage(self.folder / str(step)):
                        warn(checkpoint_folder.set_aside(self.folder, step, what))
            processes.barrier("checkpoint folder")
            _hush()
            self._folder_is = files.identity(self.folder)
            self._manager = self._open()
            self._held = held.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with self._held:
            # else there is nothing to wait for
            if files.identity(self.folder) == self._folder_is:
                self._settle()
                self._manager.close()

    def save(
        self, state: TrainState, *, config: dict, val_dice: float | None = None
    ) -> None:
        """Write `state` under its step, in the background; a step already there is left
        as it is.

        A full disk is said, by `warn`, and no more. Raises BadInput where the folder is
        gone or refuses to be written.
        """
        step = int(state.step)
        self._settle()
        if step in self._manager.all_steps():
            return
        # Orbax would make it anew, and the run be in two places
        if files.identity(self.folder) != self._folder_is:
            raise BadInput(
                f"folder gone, step {step} not saved, {self.folder}; bring it back, the same command goes on"
            )
        self._sweep()
        meta = {"data_step": step, "config": config}
        self._saving = step
        with self._failing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                metrics={} if val_dice is None else {checkpoint_folder.SCORE: val_dice},
                custom_metadata={_SUMS: array_sums.of(state)},
            )

    def latest_step(self) -> int | None:
        """The last complete step, None in a fresh workdir."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest validation Dice (the later one of equals); the latest
        where none was validated.
        """
        return checkpoint_folder.best_step(self.folder, self._manager.all_steps())

    def restore(self, step: int, like: TrainState, mesh: Mesh) -> TrainState:
        """The state of `step`, on the devices of `mesh`; `like` gives structure and
        shapes.

        `like` holds arrays or not. A step without checksums gets them now that it is
        read. Raises BadInput where it is not what was saved.
        """
        state, what = self._read(step, like, mesh)
        if what:
            raise BadInput(
                f"The checkpoint of step {step} is not what was saved: {what}. "
                f"Restore {self.folder / str(step)} from a copy, or take it away."
            )
        return state

    def restore_latest(self, like: TrainState, mesh: Mesh) -> TrainState | None:
        """The latest state that can be read, None in a fresh workdir; later ones that
        cannot are set aside.

        Raises BadInput where there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: list[tuple[int, str]] = []
        for step in steps:
            try:
                state, what = self._read(step, like, mesh)
            # a library's, of many kinds
            except Exception as error:
                state, what = None, reason(error)
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
            raise BadInput(
                f"no checkpoint can be read, step {damaged[0][0]}: {damaged[0][1]}, {self.folder}; restore one from a "
                "copy, or start again in another --workdir"
            )
        return None

    def wait(self, *, saved: int | None = None) -> None:
        """Until the last save is complete, or has failed. Raises BadInput where step
        `saved` is not the latest then.
        """
        self._settle()
        last = self.latest_step()
        if saved is not None and last != saved:
            kept = "none is complete" if last is None else f"the last is of step {last}"
            raise BadInput(
                f"checkpoint of step {saved} not saved, {kept}, {self.folder}; make room, the same command goes on"
            )

    def _open(self):
        latest, best = self._keep
        keep = [
            policies.LatestN(n=latest),
            policies.BestN(n=best, get_metric_fn=checkpoint_folder.score),
        ]
        several = jax.process_count() > 1
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            # The policy decides, but without this Orbax writes no metrics for a later
            # process to read.
            best_fn=checkpoint_folder.score,
            create=False,
            # `_sweep` does it: Orbax's own goes on in the background, and breaks where
            # both do.
            cleanup_tmp_directories=False,
            enable_async_checkpointing=True,
            temporary_path_class=_Durable,
            async_options=ocp.AsyncOptions(timeout_secs=_PATIENCE),
            # Named, so that Orbax waits through the coordinator, which has a limit, and
            # not by collectives that would come between the training's.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                active_processes=set(range(jax.process_count())) if several else None
            ),
        )
        return ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)

    def _read(self, step, like, mesh):
        """(the state of a step, what is wrong with it); where nothing is, it gets
        checksums.
        """
        args = ocp.args.StandardRestore(_abstract(like, mesh))
        state = self._manager.restore(step, args=ocp.args.Composite(state=args)).state
        folder = self.folder / str(step)
        if checksums.are_there(folder):
            return state, None
        what = _unproven(self._manager, step, state, self._warn)
        if what is None and processes.is_first():
            with files.writing(folder):
                checksums.write(folder)
        return state, what

    def _settle(self):
        """Wait for the save under way. On every process the same is known of it then."""
        if self._saving is None:
            return
        with self._failing(self._saving):
            self._manager.wait_until_finished()
        self._saving = None

    @contextlib.contextmanager
    def _failing(self, step):
        """What a save raises, of a full disk, becomes a warning; its leftovers are
        cleared away.
        """
        try:
            yield
        except Exception as error:
            self._saving = None
            last = max(checkpoint_folder.steps(self.folder), default=None)
            kept = (
                "no checkpoint is complete"
                if last is None
                else f"the checkpoint of step {last} is intact"
            )
            if not files.is_full(error):
                raise BadInput(
                    f"cannot write step {step}, {reason(error)}, {self.folder}; {kept}, the same command goes on"
                ) from error
            self._warn(
                f"warning: disk full, step {step} not saved, {self.folder}; {kept}, training goes on"
            )
            # the same error once more
            with contextlib.suppress(Exception):
                self._manager.close()
            self._sweep()
            self._manager = self._open()

    def _sweep(self):
        """Remove what killed and failed saves left; writes that outlive them may leave
        some more.
        """
        if processes.is_first():
            for leftover in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)


def best_step(workdir: str | pathlib.Path) -> int:
    """The step that `restore_variables` reads. Raises BadInput when the workdir has no
    complete checkpoint.
    """
    return _some_best_step(pathlib.Path(workdir).absolute() / "checkpoints")


def restore_variables(
    workdir: str | pathlib.Path, like: TrainState, mesh: Mesh
) -> tuple[dict[str, Any], int]:
    """EMA parameters and batch statistics of the best checkpoint, and its step; nothing
    else is read.

    A damaged one is passed over with a warning. Raises BadInput when the workdir has no
    complete checkpoint.
    """
    folder, damaged = pathlib.Path(workdir).absolute() / "checkpoints", {}
    while True:
        step = _some_best_step(folder, damaged)
        variables, what = _read_variables(folder, step, like, mesh)
        if what is None:
            return variables, step
        damaged[step] = what


def _read_variables(folder, step, like, mesh):
    """(EMA parameters and batch statistics of a step, what is wrong with them)"""
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
                what = _unproven(manager, step, state, processes.say)
    except Exception as error:
        raise BadInput(
            f"checkpoint that cannot be read, {reason(error)}, {folder / str(step)}; restore it, or take it away"
        ) from error
    return {"params": state["ema_params"], "batch_stats": state["batch_stats"]}, what


def _some_best_step(folder, known=None):
    """The best step but for those `known` to be damaged; a warning names all damaged
    ones.
    """
    step, damaged = checkpoint_folder.best_undamaged(folder, known)
    if step is None:
        what = "no checkpoint undamaged" if damaged else "no complete checkpoint"
        raise BadInput(
            f"{what}, in {folder}; train first, with --mode=train and this --workdir"
        )
    for other, what in damaged.items():
        processes.say(
            f"warning: damaged checkpoint of step {other}, {what}, {folder}; step {step} is used"
        )
    return step


def _unproven(manager, step, state, warn):
    """What of a state that was read without checksums is not as saved; None where
    nothing is.

    An earlier version's is taken as it is, with a warning.
    """
    try:
        with _unlogged():
            expected = (manager.metadata(step).custom_metadata or {}).get(_SUMS)
    # a library's, of many kinds
    except Exception:
        expected = None
    if expected is not None:
        what = array_sums.difference(state, expected)
        return what and f"{checksums.NAME} missing and {what}"
    if processes.is_first():
        warn(
            f"warning: The checkpoint of step {step} in {manager.directory} is of an earlier "
            "version, without checksums. Whether a byte of it has changed since it was written cannot be told."
        )
    return None


def _abstract(tree, mesh):
    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape, tree, state_sharding(tree, mesh))


@contextlib.contextmanager
def _unlogged():
    """Without Orbax's words of the items that it was not told how to restore, for
    nobody asked.
    """
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _hush():
    """Keep what is raised from being logged as well, at great length, by Orbax and its
    event loop.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable


def _unraisable(what):
    # SIGTERM came in a callback: the next step hears of it
    if isinstance(what.exc_value, Preempted):
        return
    # of writes that outlive a failed save
    if str(what.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(what)
