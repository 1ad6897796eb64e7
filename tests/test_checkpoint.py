"""Checkpoints: bits survive, the latest and the best are kept whichever process asks, evaluation reads the best EMA."""

import dataclasses
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from refusals import refused

from biedsnet_jax import checkpoint, parallel, train_state
from biedsnet_jax.types import BadInput

CONFIG = {"network": "toy", "train": {"steps": 3}}


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


def state(step: int, mesh) -> train_state.TrainState:
    """A state with every kind of leaf, its values a function of the step that float32 does not hold exactly."""
    rng = np.random.default_rng(step)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)},
        "odd": jnp.asarray([jnp.nan, jnp.inf, -0.0, 1e-42], jnp.float32) + 0,
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    stats = {"norm": {"mean": jnp.asarray(rng.normal(size=4), jnp.float32)}}
    made = train_state.create({"params": params, "batch_stats": stats}, optax.adamw(1e-3))
    ema = jax.tree.map(lambda x: 3 * x, params)
    made = dataclasses.replace(made, step=jnp.int32(step), ema_params=ema, skipped_steps=jnp.int32(step + 7))
    return jax.device_put(made, parallel.replicated(mesh))


def bits(tree) -> list[tuple]:
    """Path, type, shape and bytes of every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return [(jax.tree_util.keystr(path), x.dtype.name, x.shape, np.asarray(x).tobytes()) for path, x in leaves]


def save_all(workdir, mesh, dice: dict[int, float | None], **keep) -> None:
    with checkpoint.Checkpoints(workdir, **keep) as checkpoints:
        for step, value in dice.items():
            checkpoints.save(state(step, mesh), config=CONFIG, val_dice=value)


def steps(workdir) -> list[int]:
    """The complete steps on disk; anything else in the folder fails."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_a_state_comes_back_bit_for_bit_though_its_buffers_were_donated(tmp_path, mesh):
    donating = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), donate_argnums=0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.best_step() is None
        unsaved, saved = state(5, mesh), state(5, mesh)
        donating(unsaved)
        assert unsaved.params["conv"]["kernel"].is_deleted()  # of `saved`, a save that runs may still hold the buffers
        expected = bits(saved)
        checkpoints.save(saved, config=CONFIG)
        changed = donating(saved)  # while the save is still being written
        assert bits(changed) != expected
        checkpoints.wait()
        restored = checkpoints.restore(5, changed, mesh)
        assert bits(restored) == expected
        assert all(x.sharding.is_equivalent_to(parallel.replicated(mesh), x.ndim) for x in jax.tree.leaves(restored))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:  # a later process, which knows shapes alone
        shapes = jax.eval_shape(lambda: state(0, mesh))
        assert bits(checkpoints.restore(checkpoints.latest_step(), shapes, mesh)) == expected


def test_restored_arrays_may_be_donated(tmp_path, mesh):
    save_all(tmp_path, mesh, {1: None})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(1, state(0, mesh), mesh)
    after = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)(restored)
    assert int(after.step) == 2


@pytest.mark.parametrize(
    ("dice", "kept", "best"),
    [
        ({1: 0.2, 2: 0.6, 3: 0.4}, [2, 3], 2),
        ({1: 0.2, 2: 0.6, 3: None, 4: None}, [2, 4], 2),
        ({1: 0.6, 2: 0.2, 3: 0.6, 4: 0.1}, [3, 4], 3),  # of equals the later
        ({1: None, 2: None}, [2], 2),  # never validated: the latest
        ({1: 0.0, 2: None}, [1, 2], 1),  # a Dice of 0 is a validation
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


@pytest.mark.parametrize(("dice", "best"), [({1: 0.6, 2: 0.6, 3: 0.1}, 2), ({1: None, 2: None, 3: None}, 3)])
def test_of_equals_the_later_is_best(tmp_path, mesh, dice, best):
    save_all(tmp_path, mesh, dice, keep_latest=3)
    with checkpoint.Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        assert checkpoints.best_step() == best
    assert checkpoint.restore_variables(tmp_path, state(0, mesh), mesh)[1] == best


def test_a_step_saved_twice_is_left_as_it_is(tmp_path, mesh):
    first = state(3, mesh)
    second = dataclasses.replace(first, params=jax.tree.map(jnp.zeros_like, first.params))
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
    assert json.loads((folder / "meta" / "metadata").read_text()) == {"data_step": 4, "config": CONFIG}
    assert json.loads((folder / "metrics" / "metrics").read_text()) == {"val_dice": 0.25}


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
    for path in (folder / "state").glob("**/d/*"):  # arrays and their index
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
    with checkpoint.Checkpoints(workdir, keep_latest=2, warn=said.append) as checkpoints:
        return checkpoints.restore_latest(state(0, mesh), mesh), said


@pytest.mark.parametrize(
    ("how", "sums"),
    # without sums as a kill before they were written leaves it
    [("bit", True), ("cut", True), ("cut", False), ("gone", True), ("gone", False), ("metrics", False)],
)
def test_of_a_damaged_latest_the_one_before_is_used_and_training_goes_on(tmp_path, mesh, how, sums):
    save_all(tmp_path, mesh, {4: None, 8: None}, keep_latest=2)
    spoil(tmp_path / "checkpoints" / "8", how)
    if not sums:
        (tmp_path / "checkpoints" / "8" / "checksums.json").unlink()
    found, said = restored(tmp_path, mesh)
    assert bits(found) == bits(state(4, mesh))
    (line,) = said
    assert "damaged checkpoint of step 8" in line and "now step 4" in line and str(tmp_path) in line
    assert steps(tmp_path) == [4] and [p.name for p in (tmp_path / "damaged_checkpoints").iterdir()] == ["8"]
    save_all(tmp_path, mesh, {6: None, 8: None}, keep_latest=2)
    assert restored(tmp_path, mesh)[1] == [] and steps(tmp_path) == [6, 8]


def test_where_none_can_be_read_nothing_is_moved_and_the_error_says_why(tmp_path, mesh):
    save_all(tmp_path, mesh, {4: None})
    spoil(tmp_path / "checkpoints" / "4", "cut")
    (tmp_path / "checkpoints" / "4" / "checksums.json").unlink()
    refused(lambda: restored(tmp_path, mesh), "no checkpoint can be read, step 4", str(tmp_path))
    assert steps(tmp_path) == [4]


def test_evaluation_passes_over_a_damaged_best_and_changes_nothing(tmp_path, mesh, capsys):
    save_all(tmp_path, mesh, {2: 0.5, 4: 0.9, 6: 0.1}, keep_latest=3)
    spoil(tmp_path / "checkpoints" / "4", "bit")
    variables, step = checkpoint.restore_variables(tmp_path, state(0, mesh), mesh)
    assert step == 2 and bits(variables) == bits(state(2, mesh).ema_variables)
    said = capsys.readouterr().err
    assert "damaged checkpoint of step 4" in said and "step 2 is used" in said
    assert steps(tmp_path) == [2, 4, 6]


@pytest.fixture
def small_disk():
    """`small_disk(True)`: no file may grow beyond a few hundred bytes, which libraries meet as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 if on else soft, hard))

    yield limit
    limit(False)


def test_a_full_disk_costs_a_checkpoint_and_no_more(tmp_path, mesh, small_disk):
    said = []
    with checkpoint.Checkpoints(tmp_path, keep_latest=2, warn=said.append) as checkpoints:
        checkpoints.save(state(2, mesh), config=CONFIG)
        checkpoints.wait(saved=2)
        small_disk(True)
        checkpoints.save(state(4, mesh), config=CONFIG)
        refused(lambda: checkpoints.wait(saved=4), "checkpoint of step 4 not saved", "the last is of step 2")
        small_disk(False)
        checkpoints.save(state(6, mesh), config=CONFIG)
        checkpoints.wait(saved=6)
    assert steps(tmp_path) == [2, 6]  # nothing of the broken one takes room
    (line,) = said
    assert "disk full, step 4 not saved" in line and "step 2 is intact, training goes on" in line
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
    like = dataclasses.replace(jax.eval_shape(lambda: state(0, mesh)), params={}, opt_state=())  # neither is read
    variables, step = checkpoint.restore_variables(tmp_path, like, mesh)
    assert step == 2
    assert bits(variables) == bits(state(2, mesh).ema_variables)
    assert bits(variables["params"]) != bits(state(2, mesh).params)


def test_no_complete_checkpoint_is_bad_input_and_makes_no_folder(tmp_path, mesh):
    with pytest.raises(BadInput, match=r"no complete checkpoint, in .*/run/checkpoints; train first"):
        checkpoint.restore_variables(tmp_path / "run", state(0, mesh), mesh)
    assert list(tmp_path.iterdir()) == []
