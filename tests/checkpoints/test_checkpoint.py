"""Checkpoints: bits survive, the latest and the best are kept, damage is found."""

import dataclasses
import json
import logging
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import ROOT
from refusals import refused

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.runtime import devices
from biedsnet_jax.runtime.lock import Lock

CONFIG = {"network": "toy", "train": {"steps": 3}}


@pytest.fixture(scope="module")
def mesh():
    return devices.make_mesh()


def state(step: int, mesh) -> train_state.TrainState:
    """A state with every kind of leaf, whose values follow from the step."""
    rng = np.random.default_rng(step)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)},
        "odd": jnp.asarray([jnp.nan, jnp.inf, -0.0, 1e-42], jnp.float32) + 0,
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    stats = {"norm": {"mean": jnp.asarray(rng.normal(size=4), jnp.float32)}}
    made = train_state.create(
        {"params": params, "batch_stats": stats}, optax.adamw(1e-3)
    )
    ema = jax.tree.map(lambda x: 3 * x, params)
    made = dataclasses.replace(
        made, step=jnp.int32(step), ema_params=ema, skipped_steps=jnp.int32(step + 7)
    )
    return jax.device_put(made, devices.replicated(mesh))


def bits(tree) -> list[tuple]:
    """Path, type, shape and bytes of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return [
        (jax.tree_util.keystr(path), x.dtype.name, x.shape, np.asarray(x).tobytes())
        for path, x in leaves
    ]


def save_all(workdir, mesh, dice: dict[int, float | None], *, made=state, **keep):
    """Saves a state of each step under its validation Dice."""
    with checkpoint.Checkpoints(workdir, **keep) as checkpoints:
        for step, value in dice.items():
            checkpoints.save(made(step, mesh), config=CONFIG, val_dice=value)


def steps(workdir) -> list[int]:
    """Complete steps on disk; anything else in the folder is an error."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_state_comes_back_bit_for_bit_though_its_buffers_were_donated(tmp_path, mesh):
    donating = jax.jit(
        lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), donate_argnums=0
    )
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.best_step() is None
        unsaved, saved = state(5, mesh), state(5, mesh)
        donating(unsaved)
        # Not asked of `saved`, whose buffers a running save may still hold.
        assert unsaved.params["conv"]["kernel"].is_deleted()
        expected = bits(saved)
        checkpoints.save(saved, config=CONFIG)
        # The save is still under way.
        changed = donating(saved)
        assert bits(changed) != expected
        checkpoints.wait()
        restored = checkpoints.restore(5, changed, mesh)
        assert bits(restored) == expected
        for x in jax.tree.leaves(restored):
            assert x.sharding.is_equivalent_to(devices.replicated(mesh), x.ndim)
    # A later process knows shapes alone.
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        shapes = jax.eval_shape(lambda: state(0, mesh))
        assert bits(checkpoints.restore(5, shapes, mesh)) == expected


def test_restored_arrays_may_be_donated(tmp_path, mesh):
    save_all(tmp_path, mesh, {1: None})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, state(0, mesh), mesh)
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    assert int(double(restored).step) == 2


@pytest.mark.parametrize(
    ("dice", "kept", "best"),
    [
        ({1: 0.2, 2: 0.6, 3: 0.4}, [2, 3], 2),
        ({1: 0.2, 2: 0.6, 3: None, 4: None}, [2, 4], 2),
        # Of equals it is the later.
        ({1: 0.6, 2: 0.2, 3: 0.6, 4: 0.1}, [3, 4], 3),
        # None was validated, so it is the latest.
        ({1: None, 2: None}, [2], 2),
        # A Dice of 0 is a validation.
        ({1: 0.0, 2: None}, [1, 2], 1),
        ({1: 0.1, 2: 0.9}, [2], 2),
    ],
)
def test_the_latest_and_the_best_are_kept(tmp_path, mesh, dice, kept, best):
    save_all(tmp_path, mesh, dice)
    assert steps(tmp_path) == kept
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (max(dice), best)


def test_a_later_process_still_keeps_the_best(tmp_path, mesh):
    save_all(tmp_path, mesh, {1: 0.9, 2: 0.1})
    save_all(tmp_path, mesh, {3: None})
    save_all(tmp_path, mesh, {4: 0.5, 5: 0.4})
    assert steps(tmp_path) == [1, 5]


def test_how_many_are_kept_is_a_choice(tmp_path, mesh):
    dice = {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.1}
    save_all(tmp_path / "a", mesh, dice, keep_latest=2, keep_best=2)
    save_all(tmp_path / "b", mesh, dice, keep_latest=1, keep_best=0)
    assert steps(tmp_path / "a") == [1, 2, 4, 5] and steps(tmp_path / "b") == [5]


@pytest.mark.parametrize(
    ("dice", "best"), [({1: 0.6, 2: 0.6, 3: 0.1}, 2), ({1: None, 2: None, 3: None}, 3)]
)
def test_of_equals_the_later_is_best(tmp_path, mesh, dice, best):
    save_all(tmp_path, mesh, dice, keep_latest=3)
    with checkpoint.Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        assert checkpoints.best_step() == best
    assert checkpoint.restore_variables(tmp_path, state(0, mesh), mesh)[1] == best


def test_a_step_saved_twice_is_left_as_it_is(tmp_path, mesh):
    first = state(3, mesh)
    second = dataclasses.replace(
        first, params=jax.tree.map(jnp.zeros_like, first.params)
    )
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first, config=CONFIG, val_dice=0.5)
        checkpoints.save(second, config=CONFIG, val_dice=0.7)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(second, config=CONFIG)
        checkpoints.wait()
        assert bits(checkpoints.restore(3, first, mesh)) == bits(first)


def test_a_checkpoint_holds_its_config_and_the_step_of_the_data(tmp_path, mesh):
    save_all(tmp_path, mesh, {4: 0.25})
    folder = tmp_path / "checkpoints" / "4"
    meta = json.loads((folder / "meta" / "metadata").read_text())
    assert meta == {"data_step": 4, "config": CONFIG}
    metrics = json.loads((folder / "metrics" / "metrics").read_text())
    assert metrics == {"val_dice": 0.25}


def test_what_a_kill_left_of_a_save_is_neither_seen_nor_kept(tmp_path, mesh):
    save_all(tmp_path, mesh, {4: None})
    partial = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    (partial / "state").mkdir(parents=True)
    _, step = checkpoint.restore_variables(tmp_path, state(0, mesh), mesh)
    assert step == 4
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 4
        checkpoints.save(state(8, mesh), config=CONFIG)
    assert steps(tmp_path) == [8]


# --- bad disks -----------------------------------------------------------------------


def spoil(folder, how: str) -> None:
    """Damages a step as a bad disk, a full one or a user does."""
    # Arrays and their index.
    for path in (folder / "state").glob("**/d/*"):
        data = bytearray(path.read_bytes())
        if how == "bit":
            data[len(data) // 2] ^= 16
            path.write_bytes(data)
        elif how == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif how == "gone":
            path.unlink()
    if how == "metrics":
        (folder / "metrics" / "metrics").write_text("{")


def restored(workdir, mesh, like=None):
    """The latest state, and the warnings."""
    like = state(0, mesh) if like is None else like
    warnings = []
    with checkpoint.Checkpoints(
        workdir, keep_latest=2, warn=warnings.append
    ) as checkpoints:
        return checkpoints.restore_latest(like, mesh), warnings


def check_warning(line, *parts):
    """Asserts that a line is a warning with every part."""
    assert line.startswith("warning: ") and "\n" not in line
    for part in parts:
        assert str(part) in line


@pytest.mark.parametrize(
    ("how", "sums"),
    # Without sums, as a kill before they were written leaves it.
    [
        ("bit", True),
        ("cut", True),
        ("cut", False),
        ("gone", True),
        ("gone", False),
        ("metrics", False),
    ],
)
def test_a_damaged_latest_is_set_aside_for_the_one_before(tmp_path, mesh, how, sums):
    save_all(tmp_path, mesh, {4: None, 8: None}, keep_latest=2)
    spoil(tmp_path / "checkpoints" / "8", how)
    if not sums:
        (tmp_path / "checkpoints" / "8" / "checksums.json").unlink()
    found, warnings = restored(tmp_path, mesh)
    assert bits(found) == bits(state(4, mesh))
    (line,) = warnings
    check_warning(line, "step 8", "step 4", tmp_path / "damaged_checkpoints")
    assert steps(tmp_path) == [4]
    assert [p.name for p in (tmp_path / "damaged_checkpoints").iterdir()] == ["8"]
    save_all(tmp_path, mesh, {6: None, 8: None}, keep_latest=2)
    assert restored(tmp_path, mesh)[1] == [] and steps(tmp_path) == [6, 8]


def test_where_none_can_be_read_nothing_is_moved(tmp_path, mesh):
    save_all(tmp_path, mesh, {4: None})
    spoil(tmp_path / "checkpoints" / "4", "cut")
    (tmp_path / "checkpoints" / "4" / "checksums.json").unlink()
    refused(lambda: restored(tmp_path, mesh), "step 4", tmp_path, "--workdir")
    assert steps(tmp_path) == [4]


def test_evaluation_passes_over_a_damaged_best_and_changes_nothing(
    tmp_path, mesh, capsys
):
    save_all(tmp_path, mesh, {2: 0.5, 4: 0.9, 6: 0.1}, keep_latest=3)
    spoil(tmp_path / "checkpoints" / "4", "bit")
    variables, step = checkpoint.restore_variables(tmp_path, state(0, mesh), mesh)
    assert step == 2 and bits(variables) == bits(state(2, mesh).ema_variables)
    check_passed_over(capsys, 4, used=2)
    assert steps(tmp_path) == [2, 4, 6]


def check_passed_over(capsys, damaged, *, used):
    """Asserts that one warning on stderr names the damaged step and the used one."""
    (line,) = capsys.readouterr().err.splitlines()
    line = line.removeprefix("biedsnet: ")
    check_warning(line, f"step {damaged}", f"Step {used} is used")


@pytest.fixture
def small_disk():
    """`small_disk(True)` limits files to a few hundred bytes, which acts as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 if on else soft, hard))

    yield limit
    limit(False)


def test_a_full_disk_costs_a_checkpoint_and_no_more(tmp_path, mesh, small_disk):
    warnings = []
    with checkpoint.Checkpoints(
        tmp_path, keep_latest=2, warn=warnings.append
    ) as checkpoints:
        checkpoints.save(state(2, mesh), config=CONFIG)
        checkpoints.wait(saved=2)
        small_disk(True)
        checkpoints.save(state(4, mesh), config=CONFIG)
        says = ("step 4", tmp_path, "step 2", "Make room")
        refused(lambda: checkpoints.wait(saved=4), *says)
        small_disk(False)
        checkpoints.save(state(6, mesh), config=CONFIG)
        checkpoints.wait(saved=6)
    # Nothing of the broken one takes room.
    assert steps(tmp_path) == [2, 6]
    (line,) = warnings
    check_warning(line, "step 4", tmp_path, "step 2 is intact")
    assert bits(restored(tmp_path, mesh)[0]) == bits(state(6, mesh))


def test_a_folder_that_vanishes_is_an_error_and_is_not_made_anew(tmp_path, mesh):
    def vanish():
        with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(state(2, mesh), config=CONFIG)
            checkpoints.wait()
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            checkpoints.save(state(4, mesh), config=CONFIG)

    refused(vanish, "step 4", tmp_path / "run", "Bring it back")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


# --- for evaluation ------------------------------------------------------------------


def test_restore_variables_gives_the_best_checkpoints_ema(tmp_path, mesh):
    save_all(tmp_path, mesh, {1: 0.1, 2: 0.8, 3: 0.3, 4: None})
    # Neither parameters nor optimizer are read.
    shapes = jax.eval_shape(lambda: state(0, mesh))
    like = dataclasses.replace(shapes, params={}, opt_state=())
    variables, step = checkpoint.restore_variables(tmp_path, like, mesh)
    assert step == 2
    assert bits(variables) == bits(state(2, mesh).ema_variables)
    assert bits(variables["params"]) != bits(state(2, mesh).params)


def test_no_complete_checkpoint_is_bad_input_and_makes_no_folder(tmp_path, mesh):
    def restore():
        checkpoint.restore_variables(tmp_path / "run", state(0, mesh), mesh)

    refused(restore, tmp_path / "run" / "checkpoints", "Train first", "--workdir")
    assert list(tmp_path.iterdir()) == []


# --- without checksums ---------------------------------------------------------------


def large(step: int, mesh) -> train_state.TrainState:
    """A state of random bits, which do not compress, so that files hold their bytes."""
    rng = np.random.default_rng(step)

    def drawn():
        return jnp.asarray(rng.integers(0, 2**32, 4096, np.uint32))

    made = train_state.create(
        {"params": {"kernel": drawn()}, "batch_stats": {}}, optax.trace(0.9)
    )
    trace, ema = jax.tree.map(lambda _: drawn(), made.opt_state), {"kernel": drawn()}
    made = dataclasses.replace(
        made, step=jnp.int32(step), ema_params=ema, opt_state=trace
    )
    return jax.device_put(made, devices.replicated(mesh))


def save_large(workdir, mesh, dice: dict[int, float | None]) -> None:
    save_all(workdir, mesh, dice, made=large, keep_latest=2)


def change_byte(folder, array) -> None:
    """Turns a bit of an array's own bytes, which no index of Orbax covers."""
    part = np.asarray(array).reshape(-1)[100:108].tobytes()
    (path,) = [
        path
        for path in folder.rglob("*")
        if path.is_file() and part in path.read_bytes()
    ]
    data = bytearray(path.read_bytes())
    data[data.index(part) + 2] ^= 16
    path.write_bytes(data)


def arrays(state: train_state.TrainState) -> dict:
    trace = jax.tree.leaves(state.opt_state)[0]
    return {"params": state.params, "ema": state.ema_params, "optimizer": trace}


@pytest.mark.parametrize("which", ["params", "ema", "optimizer"])
def test_a_changed_byte_never_comes_back_as_other_numbers(tmp_path, mesh, which):
    save_large(tmp_path, mesh, {4: None, 8: None})
    folder = tmp_path / "checkpoints" / "8"
    (folder / "checksums.json").unlink()
    change_byte(folder, jax.tree.leaves(arrays(large(8, mesh))[which])[0])
    found, warnings = restored(tmp_path, mesh, large(0, mesh))
    assert bits(found) == bits(large(4, mesh))
    (line,) = warnings
    check_warning(line, "step 8", "checksums.json", "changed", "step 4")
    assert steps(tmp_path) == [4]


def test_a_checkpoint_that_lost_its_checksums_gets_them_once_it_is_read_whole(
    tmp_path, mesh
):
    save_large(tmp_path, mesh, {4: None})
    sums = tmp_path / "checkpoints" / "4" / "checksums.json"
    before = json.loads(sums.read_text())
    sums.unlink()
    found, warnings = restored(tmp_path, mesh, large(0, mesh))
    assert bits(found) == bits(large(4, mesh)) and warnings == []
    after = json.loads(sums.read_text())
    assert before.items() <= after.items()
    change_byte(sums.parent, large(4, mesh).params["kernel"])
    found, warnings = restored(tmp_path, mesh, large(0, mesh))
    assert found is None
    check_warning(warnings[0], "step 4", "changed")


def of_an_earlier_version(folder) -> None:
    """Removes sums of both kinds, as before they were written."""
    (folder / "checksums.json").unlink()
    about = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    assert about["custom_metadata"].pop("array_sums")
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(about))


def test_an_earlier_versions_checkpoint_is_used_with_one_warning(
    tmp_path, mesh, capsys
):
    save_large(tmp_path, mesh, {4: 0.5})
    of_an_earlier_version(tmp_path / "checkpoints" / "4")
    variables, step = checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)
    assert step == 4 and bits(variables["params"]) == bits(large(4, mesh).ema_params)
    (line,) = capsys.readouterr().err.splitlines()
    check_warning(line.removeprefix("biedsnet: "), "step 4", "earlier version")
    for count in (1, 0):
        found, warnings = restored(tmp_path, mesh, large(0, mesh))
        assert bits(found) == bits(large(4, mesh)) and len(warnings) == count
        for line in warnings:
            check_warning(line, "step 4", "earlier version")


@pytest.mark.parametrize("earlier", [False, True])
def test_a_checkpoint_without_checksums_is_read_without_orbaxs_warnings(
    tmp_path, mesh, earlier
):
    save_large(tmp_path, mesh, {4: 0.5})
    folder = tmp_path / "checkpoints" / "4"
    if earlier:
        of_an_earlier_version(folder)
    else:
        (folder / "checksums.json").unlink()
    log, messages = logging.getLogger("absl"), []
    level, handler = log.level, logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    # Opening a workdir to write, as above, silences Orbax; evaluation does not.
    log.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)
        log.warning("the last")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert messages == ["the last"]


def test_evaluation_passes_over_one_that_is_not_what_was_saved(tmp_path, mesh, capsys):
    save_large(tmp_path, mesh, {4: 0.9, 8: 0.1})
    folder = tmp_path / "checkpoints" / "4"
    (folder / "checksums.json").unlink()
    # It has lost nothing but its sums.
    assert checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)[1] == 4
    change_byte(folder, large(4, mesh).ema_params["kernel"])
    variables, step = checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)
    assert step == 8 and bits(variables["params"]) == bits(large(8, mesh).ema_params)
    check_passed_over(capsys, 4, used=8)


def test_a_single_step_that_is_not_what_was_saved_is_refused(tmp_path, mesh):
    save_large(tmp_path, mesh, {4: None})
    folder = tmp_path / "checkpoints" / "4"
    (folder / "checksums.json").unlink()
    change_byte(folder, large(4, mesh).params["kernel"])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        like = large(0, mesh)
        says = ("step 4", folder, "from a copy")
        refused(lambda: checkpoints.restore(4, like, mesh), *says)
        says = ("step 4", folder.parent, "--workdir")
        refused(lambda: checkpoints.restore_latest(like, mesh), *says)


@pytest.mark.parametrize(
    "name",
    [
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
        "meta/metadata",
        ".partial_checksums.json",
    ],
)
@pytest.mark.parametrize("content", [b"", b"\0" * 400, b"\xff{"])
def test_files_that_hold_no_arrays_may_be_spoilt(tmp_path, mesh, name, content):
    """Either the step comes back as it was, or the one before it with a warning."""
    save_large(tmp_path, mesh, {4: None, 8: None})
    (tmp_path / "checkpoints" / "8" / name).write_bytes(content)
    found, warnings = restored(tmp_path, mesh, large(0, mesh))
    assert bits(found) == bits(large(4 if warnings else 8, mesh))
    assert len(warnings) == (1 if name == "meta/metadata" else 0)


# --- kills and power cuts in a save --------------------------------------------------

DIE = """
import dataclasses, os, sys
import jax.numpy as jnp, optax
from biedsnet_jax.checkpoints import checkpoint, checksums, train_state

workdir, moment = sys.argv[1:]
made = train_state.create({"params": {"w": jnp.arange(64.0)}, "batch_stats": {}}, optax.identity())
with checkpoint.Checkpoints(workdir, keep_latest=2) as checkpoints:
    checkpoints.save(dataclasses.replace(made, step=jnp.int32(1)), config={})
    checkpoints.wait(saved=1)
    write = checksums.write

    def die_before_sums(folder, **options):
        os._exit(9)

    def die_after_sums(folder, **options):
        write(folder, **options)
        os._exit(9)

    def die_after_commit(folder):
        os._exit(9)

    if moment == "commit":
        checkpoint.files.sync_folder = lambda folder: os._exit(9) if folder.name == "2" else None
    else:
        checksums.write = {"before": die_before_sums, "after": die_after_sums}[moment]
    checkpoints.save(dataclasses.replace(made, step=jnp.int32(2)), config={})
    checkpoints.wait(saved=2)
"""


@pytest.mark.parametrize(
    ("moment", "latest"), [("before", 1), ("after", 1), ("commit", 2)]
)
def test_a_kill_at_any_moment_leaves_no_step_without_checksums(
    tmp_path, mesh, moment, latest
):
    line = [sys.executable, "-c", DIE, tmp_path / "run", moment]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.run(line, cwd=ROOT, env=environment).returncode == 9
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        assert "tmp" in folder.name or (folder / "checksums.json").is_file()
    made = train_state.create(
        {"params": {"w": jnp.zeros(64)}, "batch_stats": {}}, optax.identity()
    )
    like = jax.device_put(made, devices.replicated(mesh))
    found, warnings = restored(tmp_path / "run", mesh, like)
    assert int(found.step) == latest and warnings == []
    assert found.params["w"].tolist() == list(range(64))


def test_every_file_is_on_the_disk_before_its_step_has_its_name(
    tmp_path, mesh, monkeypatch
):
    """Its folder is on the disk too, before an older step is removed."""
    synced, order, fsync = {}, [], os.fsync

    def note(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = (status.st_mtime_ns, status.st_size)
        order.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", note)
    save_large(tmp_path, mesh, {4: None})
    (folder,) = (tmp_path / "checkpoints").iterdir()
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) > 5
    for path in found:
        status = path.stat()
        assert synced[status.st_ino] == (status.st_mtime_ns, status.st_size), path
    numbers = [n for n, path in enumerate(order) if path.startswith(str(folder))]
    assert str(folder.parent) in order[numbers[-1] :]


# --- two writers ---------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path, mesh):
    with checkpoint.Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(state(2, mesh), config=CONFIG)
        holder = f"process {os.getpid()}"
        refused(lambda: checkpoint.Checkpoints(tmp_path), tmp_path, holder, "--workdir")
        checkpoints.wait(saved=2)
        # Readers may go on.
        assert checkpoint.restore_variables(tmp_path, state(0, mesh), mesh)[1] == 2
    save_all(tmp_path, mesh, {4: None}, keep_latest=2)
    assert steps(tmp_path) == [2, 4]


def test_a_lock_that_the_caller_holds_serves_and_stays(tmp_path, mesh):
    with Lock(tmp_path) as lock:
        with checkpoint.Checkpoints(tmp_path, lock=lock) as checkpoints:
            checkpoints.save(state(2, mesh), config=CONFIG)
        assert lock.held
        refused(lambda: checkpoint.Checkpoints(tmp_path), tmp_path)
    assert steps(tmp_path) == [2]


def test_what_goes_wrong_at_the_start_frees_the_lock(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    refused(lambda: checkpoint.Checkpoints(tmp_path), tmp_path / "checkpoints")
    with Lock(tmp_path) as lock:
        assert lock.held
