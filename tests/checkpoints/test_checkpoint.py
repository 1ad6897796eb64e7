"""Checkpoints: bits survive, the latest and the best are kept whichever process asks,
evaluation reads the best EMA.
"""

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
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime import devices
from biedsnet_jax.runtime.lock import Lock

CONFIG = {"network": "toy", "train": {"steps": 3}}


@pytest.fixture(scope="module")
def mesh():
    return devices.make_mesh()


def state(step: int, mesh) -> train_state.TrainState:
    """A state with every kind of leaf, its values a function of the step that float32
    does not hold exactly.
    """
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


def save_all(workdir, mesh, dice: dict[int, float | None], **keep) -> None:
    with checkpoint.Checkpoints(workdir, **keep) as checkpoints:
        for step, value in dice.items():
            checkpoints.save(state(step, mesh), config=CONFIG, val_dice=value)


def steps(workdir) -> list[int]:
    """The complete steps on disk; anything else in the folder fails."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_state_comes_back_bit_for_bit_though_its_buffers_were_donated(tmp_path, mesh):
    donating = jax.jit(
        lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), donate_argnums=0
    )
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.best_step() is None
        unsaved, saved = state(5, mesh), state(5, mesh)
        donating(unsaved)
        # of `saved`, a save that runs may still hold the buffers
        assert unsaved.params["conv"]["kernel"].is_deleted()
        expected = bits(saved)
        checkpoints.save(saved, config=CONFIG)
        # while the save is still being written
        changed = donating(saved)
        assert bits(changed) != expected
        checkpoints.wait()
        restored = checkpoints.restore(5, changed, mesh)
        assert bits(restored) == expected
        assert all(
            x.sharding.is_equivalent_to(devices.replicated(mesh), x.ndim)
            for x in jax.tree.leaves(restored)
        )
    # a later process, which knows shapes alone
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        shapes = jax.eval_shape(lambda: state(0, mesh))
        assert (
            bits(checkpoints.restore(checkpoints.latest_step(), shapes, mesh))
            == expected
        )


def test_restored_arrays_may_be_donated(tmp_path, mesh):
    save_all(tmp_path, mesh, {1: None})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, state(0, mesh), mesh)
    after = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)(
        restored
    )
    assert int(after.step) == 2


@pytest.mark.parametrize(
    ("dice", "kept", "best"),
    [
        ({1: 0.2, 2: 0.6, 3: 0.4}, [2, 3], 2),
        ({1: 0.2, 2: 0.6, 3: None, 4: None}, [2, 4], 2),
        # of equals the later
        ({1: 0.6, 2: 0.2, 3: 0.6, 4: 0.1}, [3, 4], 3),
        # never validated: the latest
        ({1: None, 2: None}, [2], 2),
        # a Dice of 0 is a validation
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


def test_a_checkpoint_says_its_config_and_the_step_of_the_data(tmp_path, mesh):
    save_all(tmp_path, mesh, {4: 0.25})
    folder = tmp_path / "checkpoints" / "4"
    assert json.loads((folder / "meta" / "metadata").read_text()) == {
        "data_step": 4,
        "config": CONFIG,
    }
    assert json.loads((folder / "metrics" / "metrics").read_text()) == {
        "val_dice": 0.25
    }


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


# --- bad disks -------------------------------------------------------------------------------------------------------


def spoil(folder, how: str) -> None:
    """Damage a step as a bad disk, a full one or a user does."""
    # arrays and their index
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


def restored(workdir, mesh) -> tuple[train_state.TrainState | None, list[str]]:
    """The latest state, and the warnings."""
    said = []
    with checkpoint.Checkpoints(
        workdir, keep_latest=2, warn=said.append
    ) as checkpoints:
        return checkpoints.restore_latest(state(0, mesh), mesh), said


@pytest.mark.parametrize(
    ("how", "sums"),
    # without sums as a kill before they were written leaves it
    [
        ("bit", True),
        ("cut", True),
        ("cut", False),
        ("gone", True),
        ("gone", False),
        ("metrics", False),
    ],
)
def test_of_a_damaged_latest_the_one_before_is_used_and_training_goes_on(
    tmp_path, mesh, how, sums
):
    save_all(tmp_path, mesh, {4: None, 8: None}, keep_latest=2)
    spoil(tmp_path / "checkpoints" / "8", how)
    if not sums:
        (tmp_path / "checkpoints" / "8" / "checksums.json").unlink()
    found, said = restored(tmp_path, mesh)
    assert bits(found) == bits(state(4, mesh))
    (line,) = said
    assert (
        "damaged checkpoint of step 8" in line
        and "now step 4" in line
        and str(tmp_path) in line
    )
    assert steps(tmp_path) == [4] and [
        p.name for p in (tmp_path / "damaged_checkpoints").iterdir()
    ] == ["8"]
    save_all(tmp_path, mesh, {6: None, 8: None}, keep_latest=2)
    assert restored(tmp_path, mesh)[1] == [] and steps(tmp_path) == [6, 8]


def test_where_none_can_be_read_nothing_is_moved_and_the_error_says_why(tmp_path, mesh):
    save_all(tmp_path, mesh, {4: None})
    spoil(tmp_path / "checkpoints" / "4", "cut")
    (tmp_path / "checkpoints" / "4" / "checksums.json").unlink()
    refused(
        lambda: restored(tmp_path, mesh),
        "no checkpoint can be read, step 4",
        str(tmp_path),
    )
    assert steps(tmp_path) == [4]


def test_evaluation_passes_over_a_damaged_best_and_changes_nothing(
    tmp_path, mesh, capsys
):
    save_all(tmp_path, mesh, {2: 0.5, 4: 0.9, 6: 0.1}, keep_latest=3)
    spoil(tmp_path / "checkpoints" / "4", "bit")
    variables, step = checkpoint.restore_variables(tmp_path, state(0, mesh), mesh)
    assert step == 2 and bits(variables) == bits(state(2, mesh).ema_variables)
    said = capsys.readouterr().err
    assert "damaged checkpoint of step 4" in said and "step 2 is used" in said
    assert steps(tmp_path) == [2, 4, 6]


@pytest.fixture
def small_disk():
    """`small_disk(True)`: no file may grow beyond a few hundred bytes, which libraries
    meet as a full disk.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 if on else soft, hard))

    yield limit
    limit(False)


def test_a_full_disk_costs_a_checkpoint_and_no_more(tmp_path, mesh, small_disk):
    said = []
    with checkpoint.Checkpoints(
        tmp_path, keep_latest=2, warn=said.append
    ) as checkpoints:
        checkpoints.save(state(2, mesh), config=CONFIG)
        checkpoints.wait(saved=2)
        small_disk(True)
        checkpoints.save(state(4, mesh), config=CONFIG)
        refused(
            lambda: checkpoints.wait(saved=4),
            "checkpoint of step 4 not saved",
            "the last is of step 2",
        )
        small_disk(False)
        checkpoints.save(state(6, mesh), config=CONFIG)
        checkpoints.wait(saved=6)
    # nothing of the broken one takes room
    assert steps(tmp_path) == [2, 6]
    (line,) = said
    assert (
        "disk full, step 4 not saved" in line
        and "step 2 is intact, training goes on" in line
    )
    assert bits(restored(tmp_path, mesh)[0]) == bits(state(6, mesh))


def test_a_folder_that_vanishes_is_an_error_and_is_not_made_anew(tmp_path, mesh):
    def vanish():
        with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(state(2, mesh), config=CONFIG)
            checkpoints.wait()
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            checkpoints.save(state(4, mesh), config=CONFIG)

    refused(vanish, "folder gone, step 4 not saved", str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


# --- for evaluation --------------------------------------------------------------------------------------------------


def test_restore_variables_gives_the_best_checkpoints_ema(tmp_path, mesh):
    save_all(tmp_path, mesh, {1: 0.1, 2: 0.8, 3: 0.3, 4: None})
    # neither is read
    like = dataclasses.replace(
        jax.eval_shape(lambda: state(0, mesh)), params={}, opt_state=()
    )
    variables, step = checkpoint.restore_variables(tmp_path, like, mesh)
    assert step == 2
    assert bits(variables) == bits(state(2, mesh).ema_variables)
    assert bits(variables["params"]) != bits(state(2, mesh).params)


def test_no_complete_checkpoint_is_bad_input_and_makes_no_folder(tmp_path, mesh):
    with pytest.raises(
        BadInput, match=r"no complete checkpoint, in .*/run/checkpoints; train first"
    ):
        checkpoint.restore_variables(tmp_path / "run", state(0, mesh), mesh)
    assert list(tmp_path.iterdir()) == []


# --- without checksums ---------------------------------------------------------------------------


def large(step: int, mesh) -> train_state.TrainState:
    """A state of random bits, which compression leaves as they are: the files hold
    their bytes.
    """
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
    with checkpoint.Checkpoints(workdir, keep_latest=2) as checkpoints:
        for step, value in dice.items():
            checkpoints.save(large(step, mesh), config=CONFIG, val_dice=value)


def change_byte(folder, array) -> None:
    """Turn a bit of an array's own bytes, which no index of Orbax's covers."""
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
    said = []
    with checkpoint.Checkpoints(
        tmp_path, keep_latest=2, warn=said.append
    ) as checkpoints:
        found = checkpoints.restore_latest(large(0, mesh), mesh)
    assert bits(found) == bits(large(4, mesh))
    (line,) = said
    assert "checkpoint of step 8, checksums.json missing and " in line
    assert "changed" in line and "now step 4" in line
    assert steps(tmp_path) == [4]


def test_a_checkpoint_that_lost_its_checksums_gets_them_once_it_is_read_whole(
    tmp_path, mesh
):
    save_large(tmp_path, mesh, {4: None})
    sums = tmp_path / "checkpoints" / "4" / "checksums.json"
    before = json.loads(sums.read_text())
    sums.unlink()
    said = []
    with checkpoint.Checkpoints(tmp_path, warn=said.append) as checkpoints:
        assert bits(checkpoints.restore_latest(large(0, mesh), mesh)) == bits(
            large(4, mesh)
        )
    after = json.loads(sums.read_text())
    assert before.items() <= after.items() and said == []
    change_byte(sums.parent, large(4, mesh).params["kernel"])
    with checkpoint.Checkpoints(tmp_path, warn=said.append) as checkpoints:
        assert checkpoints.restore_latest(large(0, mesh), mesh) is None
    assert "damaged checkpoint of step 4" in said[0] and "changed" in said[0]


def of_an_earlier_version(folder) -> None:
    """No sums of either kind, as before they were written."""
    (folder / "checksums.json").unlink()
    about = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    assert about["custom_metadata"].pop("array_sums")
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(about))


def test_an_earlier_versions_checkpoint_is_used_and_that_is_said_once(
    tmp_path, mesh, capsys
):
    save_large(tmp_path, mesh, {4: 0.5})
    of_an_earlier_version(tmp_path / "checkpoints" / "4")
    variables, step = checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)
    assert step == 4 and bits(variables["params"]) == bits(large(4, mesh).ema_params)
    assert (
        capsys.readouterr().err.count("is of an earlier version, without checksums")
        == 1
    )
    said = []
    for _ in range(2):
        with checkpoint.Checkpoints(tmp_path, warn=said.append) as checkpoints:
            assert bits(checkpoints.restore_latest(large(0, mesh), mesh)) == bits(
                large(4, mesh)
            )
    (line,) = said
    assert "step 4" in line and "earlier version" in line


@pytest.mark.parametrize("earlier", [False, True])
def test_a_checkpoint_without_checksums_is_read_without_the_librarys_words(
    tmp_path, mesh, earlier
):
    save_large(tmp_path, mesh, {4: 0.5})
    folder = tmp_path / "checkpoints" / "4"
    of_an_earlier_version(folder) if earlier else (folder / "checksums.json").unlink()
    log, level, said = logging.getLogger("absl"), logging.getLogger("absl").level, []
    heard = logging.Handler()
    heard.emit = lambda record: said.append(record.getMessage())
    # Opening a workdir to write, as above, keeps Orbax quiet. A process that evaluates
    # does not.
    log.setLevel(logging.WARNING)
    log.addHandler(heard)
    try:
        checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)
        log.warning("the last")
    finally:
        log.removeHandler(heard)
        log.setLevel(level)
    assert said == ["the last"]


def test_evaluation_passes_over_one_that_is_not_what_was_saved(tmp_path, mesh, capsys):
    save_large(tmp_path, mesh, {4: 0.9, 8: 0.1})
    folder = tmp_path / "checkpoints" / "4"
    (folder / "checksums.json").unlink()
    # It lost its sums alone.
    assert checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)[1] == 4
    change_byte(folder, large(4, mesh).ema_params["kernel"])
    variables, step = checkpoint.restore_variables(tmp_path, large(0, mesh), mesh)
    assert step == 8 and bits(variables["params"]) == bits(large(8, mesh).ema_params)
    said = capsys.readouterr().err
    assert "damaged checkpoint of step 4" in said and "step 8 is used" in said


def test_a_single_step_that_is_asked_for_is_refused_where_it_is_not_what_was_saved(
    tmp_path, mesh
):
    save_large(tmp_path, mesh, {4: None})
    folder = tmp_path / "checkpoints" / "4"
    (folder / "checksums.json").unlink()
    change_byte(folder, large(4, mesh).params["kernel"])
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        like = large(0, mesh)
        refused(
            lambda: checkpoints.restore(4, like, mesh),
            "step 4 is not what was saved",
            folder,
        )
        refused(
            lambda: checkpoints.restore_latest(like, mesh),
            "no checkpoint can be read, step 4",
        )


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
    said = []
    with checkpoint.Checkpoints(
        tmp_path, keep_latest=2, warn=said.append
    ) as checkpoints:
        found = checkpoints.restore_latest(large(0, mesh), mesh)
    assert bits(found) == bits(large(4 if said else 8, mesh))
    assert len(said) == (name == "meta/metadata")


# --- kills and power cuts in a save --------------------------------------------------------------

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
    assert (
        subprocess.run(
            line, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}
        ).returncode
        == 9
    )
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        assert "tmp" in folder.name or (folder / "checksums.json").is_file()
    made = train_state.create(
        {"params": {"w": jnp.zeros(64)}, "batch_stats": {}}, optax.identity()
    )
    said = []
    with checkpoint.Checkpoints(
        tmp_path / "run", keep_latest=2, warn=said.append
    ) as checkpoints:
        found = checkpoints.restore_latest(
            jax.device_put(made, devices.replicated(mesh)), mesh
        )
    assert int(found.step) == latest and said == []
    assert found.params["w"].tolist() == list(range(64))


def test_every_file_is_on_the_disk_before_its_step_has_its_name(
    tmp_path, mesh, monkeypatch
):
    """And its folder before an older step is removed."""
    synced, order, fsync = {}, [], os.fsync

    def note(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = (status.st_mtime_ns, status.st_size)
        order.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))

    monkeypatch.setattr(os, "fsync", note)
    save_large(tmp_path, mesh, {4: None})
    (folder,) = (tmp_path / "checkpoints").iterdir()
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert len(found) > 5
    for path in found:
        status = path.stat()
        assert synced[status.st_ino] == (status.st_mtime_ns, status.st_size), path
    last = max(
        number for number, (_, path) in enumerate(order) if path.startswith(str(folder))
    )
    assert ("fsync", str(folder.parent)) in order[last:]


# --- two writers ---------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path, mesh):
    with checkpoint.Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(state(2, mesh), config=CONFIG)
        holder = f"process {os.getpid()}"
        refused(lambda: checkpoint.Checkpoints(tmp_path), tmp_path, holder, "--workdir")
        checkpoints.wait(saved=2)
        # readers may
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
