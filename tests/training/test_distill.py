"""Mode distill: the loss against slow loops and a closed form, runs, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from places import ROOT
from refusals import refused
from untrained import untrained

from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import run_config
from biedsnet_jax.config import student as student_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.diffusion import schedule
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import losses
from biedsnet_jax.segmenters.consistency import Consistency
from biedsnet_jax.segmenters.mask_diffusion import Diffusion
from biedsnet_jax.training import distill, run_log, train_step
from biedsnet_jax.training import train as trainer
from configs import phantom

NOISES = schedule.linear(100)


class Line(nn.Module):
    """Logits a x_t + b image + c t / 100: a denoiser of three parameters."""

    classes: int = 1

    @nn.compact
    def __call__(self, x_t, image, t, *, train):
        a, b, c = (self.param(name, nn.initializers.zeros, ()) for name in "abc")
        return a * x_t + b * image + c * t[:, None, None, None] / 100.0, {}


def line(a=0.0, b=0.0, c=0.0):
    return {
        "params": {"a": jnp.asarray(a), "b": jnp.asarray(b), "c": jnp.asarray(c)},
        "batch_stats": {},
    }


def consistency(loss, *, mask_range="plus_minus", mask_scale=1.0, **fields):
    def heads_loss(heads, y, _):
        return loss(heads[0], y)

    student = Diffusion(Line(), NOISES, heads_loss, mask_range, mask_scale)
    return Consistency(student, **fields)


def batch_of(count: int):
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(count, 2, 2, 1)), rng.random((count, 2, 2, 1)) < 0.5
    return {
        "image": jnp.asarray(image, jnp.float32),
        "mask": jnp.asarray(mask, jnp.float32),
    }


def draws(key, shape, grid):
    """(n, noise) that the loss draws with `key`."""
    key_n, key_noise, _ = jax.random.split(key, 3)
    return np.asarray(jax.random.randint(key_n, shape[:1], 0, grid)), np.asarray(
        jax.random.normal(key_noise, shape)
    )


# ---- The loss


@pytest.mark.parametrize("truth_weight", [0.0, 0.7])
@pytest.mark.parametrize(
    ("mask_range", "scale", "off"),
    [("plus_minus", 1.0, -1.0), ("plus_minus", 0.5, -0.5), ("zero_one", 1.0, 0.0)],
)
def test_the_loss_is_the_papers_example_by_example(
    mask_range, scale, off, truth_weight
):
    batch, key, grid = batch_of(32), jax.random.key(3), 4
    # x_0 = span p + off
    span = 1.0 if mask_range == "zero_one" else 2.0 * scale
    model = consistency(
        losses.mse_only,
        mask_range=mask_range,
        mask_scale=scale,
        grid=grid,
        truth_weight=truth_weight,
    )
    own, teacher = line(0.4, 0.3, -0.2), line(1.1, -0.5, 0.6)
    got, (metrics, _) = jax.jit(model.loss, static_argnames="train")(
        {**own, "teacher": teacher}, batch, key, train=True
    )

    alpha_bar, times = np.cumprod(1.0 - NOISES.beta), (24, 49, 74, 99)
    numbers, noises = draws(key, batch["mask"].shape, grid)
    assert set(numbers) == {0, 1, 2, 3}

    def f(variables, x, image, t):
        a, b, c = (float(variables["params"][name]) for name in "abc")
        return 1.0 / (1.0 + np.exp(-(a * x + b * image + c * t / 100.0)))

    towards, true = [], []
    for n, eps, image, y in zip(
        numbers, noises, *(np.asarray(batch[name]) for name in ("image", "mask"))
    ):
        t = times[n]
        x_t = (
            np.sqrt(alpha_bar[t]) * (span * y + off) + np.sqrt(1.0 - alpha_bar[t]) * eps
        )
        target = f(teacher, x_t, image, t)
        if n > 0:
            s, x_0 = times[n - 1], span * target + off
            direction = (x_t - np.sqrt(alpha_bar[t]) * x_0) / np.sqrt(
                1.0 - alpha_bar[t]
            )
            x_s = np.sqrt(alpha_bar[s]) * x_0 + np.sqrt(1.0 - alpha_bar[s]) * direction
            target = f(own, x_s, image, s)
        p = f(own, x_t, image, t)
        towards.append(np.mean((p - target) ** 2))
        true.append(np.mean((p - y) ** 2))
    assert float(metrics["consistency"]) == pytest.approx(np.mean(towards), rel=1e-4)
    assert float(metrics["truth"]) == pytest.approx(np.mean(true), rel=1e-4)
    assert float(got) == pytest.approx(
        np.mean(towards) + truth_weight * np.mean(true), rel=1e-4
    )


def test_the_target_is_held_and_only_the_first_time_learns_from_the_teachers_mask():
    """A student of the image alone is consistent, so only n = 1 pulls, to teacher's p.

    Its logits are b image, with image = 1, whatever x_t and t.
    """
    batch = {name: jnp.ones((64, 2, 2, 1)) for name in ("image", "mask")}
    key, grid = jax.random.key(0), 4
    model = consistency(losses.mse_only, grid=grid)

    def loss(both):
        own, teacher = both
        return model.loss({**own, "teacher": teacher}, batch, key, train=True)[0]

    value, (grad, of_teacher) = jax.value_and_grad(loss)((line(b=0.5), line(b=2.0)))
    p, aim = (1.0 / (1.0 + np.exp(-x)) for x in (0.5, 2.0))
    share = np.mean(draws(key, batch["mask"].shape, grid)[0] == 0)
    assert 0 < share < 1
    assert float(value) == pytest.approx(share * (p - aim) ** 2, rel=1e-5)
    assert float(grad["params"]["b"]) == pytest.approx(
        share * 2 * (p - aim) * p * (1 - p), rel=1e-5
    )
    assert all(float(x) == 0.0 for x in jax.tree.leaves(of_teacher))


def test_students_of_the_denoiser_of_one_mask_have_no_loss_when_they_are_it():
    """Where the image is the mask, teacher and student agree from every x_t."""
    batch = batch_of(16)
    batch["image"] = 2.0 * batch["mask"] - 1.0
    exact = line(b=30.0)
    model = consistency(losses.bce, truth_weight=1.0)
    value, (metrics, _) = model.loss(
        {**exact, "teacher": exact}, batch, jax.random.key(1), train=True
    )
    assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["train_dice"]) == pytest.approx(1.0)


def test_the_update_moves_the_student_and_neither_moves_nor_donates_the_teacher():
    mesh, optimizer = devices.make_mesh(), optax.sgd(1.0)
    everywhere = devices.replicated(mesh)
    state = jax.device_put(train_state.create(line(b=0.5), optimizer), everywhere)
    others = jax.device_put({"teacher": line(b=2.0)}, everywhere)
    model = consistency(losses.bce)
    update = train_step.Update(
        model, optimizer, ema_decay=0.9, accumulate=2, fixed=True
    )
    step = train_step.make_train_step(update, mesh)
    batch = devices.put_batch(jax.device_get(batch_of(16)), mesh)
    for _ in range(2):
        state, _ = step(state, batch, jax.random.key(0), others)
    assert float(state.params["b"]) != 0.5
    assert jax.device_get(others["teacher"]) == jax.device_get(line(b=2.0))


# ---- Whole runs


def set_fields(c, fields):
    """Sets fields of a config, whose dots are double underscores."""
    c.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )


def teacher_config(chosen="toy", **fields):
    c = phantom.get_config(chosen)
    c.data.size = 16
    c.train.update(batch_size=8, steps=16)
    # Without these parts there is less to compile.
    c.networks.biedsnet.update(bffm=False, attention="none", second_skip=False)
    c.eval.update(batch_size=8, every=0)
    c.log.tensorboard = False
    set_fields(c, fields)
    c.compile_cache = ""
    return c


def student_of(workdir: Path, **fields):
    c = student_config.get_config(str(workdir))
    set_fields(c, fields)
    return c


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(workdir: Path, step: int) -> dict:
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.device_get(
            checkpointer.restore(workdir / "checkpoints" / str(step) / "state")
        )


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "biedsnet_jax.main", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("teacher") / "run", teacher_config())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher):
    """(folder of two students of four steps, the teacher's files before).

    The second student was stopped after the third step, then resumed.
    """
    before, root = files(teacher), tmp_path_factory.mktemp("students")
    distill.run(student_of(teacher), str(teacher), str(root / "unbroken"))
    write = run_log.RunLog.write

    def stop(log, step, scalars):
        write(log, step, scalars)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log.RunLog, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            distill.run(
                student_of(teacher, log__every=1), str(teacher), str(root / "broken")
            )
    assert [path.name for path in (root / "broken" / "checkpoints").iterdir()] == ["2"]
    distill.run(student_of(teacher), str(teacher), str(root / "broken"))
    return root, before


def test_a_student_is_a_quarter_of_the_training_one_step_and_a_row_of_its_own(teacher):
    c = student_of(teacher)
    check_config(c)
    assert (c.train.steps, c.row) == (4, "biedsnet_distilled")
    assert (c.sampler.steps, c.sampler.method) == (1, "ddim")
    assert c.distill.teacher == str(teacher)
    assert c.train.learning_rate < teacher_config().train.learning_rate


@pytest.mark.slow
def test_a_student_resumes_bit_for_bit_and_its_state_is_that_of_any_run(runs, teacher):
    root, _ = runs
    unbroken, broken = (saved(root / name, 4) for name in ("unbroken", "broken"))
    jax.tree.map(np.testing.assert_array_equal, broken, unbroken)
    assert set(unbroken) == set(saved(teacher, 0))
    assert (root / "broken" / "slices.csv").read_text() == (
        root / "unbroken" / "slices.csv"
    ).read_text()


@pytest.mark.slow
def test_a_student_starts_as_its_teacher_which_is_left_as_it_was(runs, teacher):
    root, before = runs
    assert files(teacher) == before
    own = jax.tree.leaves(saved(root / "unbroken", 4)["params"])
    of_teacher = jax.tree.leaves(saved(teacher, 0)["ema_params"])
    moved = [np.abs(x - y).max() for x, y in zip(own, of_teacher, strict=True)]
    # Four steps of AdamW, each of at most about the learning rate.
    assert 0.0 < max(moved) < 1.5 * 4 * student_of(teacher).train.learning_rate


@pytest.mark.slow
def test_a_student_goes_on_and_is_scored_in_one_step_from_the_command_line(
    runs, teacher
):
    student = runs[0] / "unbroken"
    # The training is over, so only the test is repeated, here on one device.
    again = run_command("--mode=distill", f"--workdir={teacher}", f"--output={student}")
    assert "going on from step 4" in again.stdout
    assert f"{student}/results.json" in again.stdout
    run_command("--mode=evaluate", f"--workdir={student}")
    results = json.loads((student / "results.json").read_text())
    assert (results["row"], results["sampler"]["steps"]) == ("biedsnet_distilled", 1)


# ---- What is refused


def test_a_teacher_that_is_none(tmp_path):
    def distilled(teacher):
        run_config.save(teacher, tmp_path / "config.json")
        distill.run(student_of(tmp_path), str(tmp_path), str(tmp_path / "new"))

    refused(lambda: student_of(tmp_path / "none"), tmp_path / "none")
    refused(lambda: distilled(teacher_config("toy,unet")), "unet")
    refused(lambda: distilled(teacher_config("toy,direct")), "direct")
    refused(lambda: distilled(teacher_config("toy,medsegdiff")), "medsegdiff")
    conditioned = teacher_config(diffusion__self_condition=True)
    refused(lambda: distilled(conditioned), "diffusion.self_condition")
    refused(lambda: distilled(teacher_config()), "checkpoint")
    refused(
        lambda: distill.run(teacher_config(), str(tmp_path), str(tmp_path / "new")),
        "--config",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("output", [None, "", ".", "other", "sibling"])
def test_an_output_that_is_no_place_for_it(teacher, tmp_path, output):
    where = output and str((teacher if output == "." else tmp_path) / output)
    (tmp_path / "other").mkdir()
    run_config.save(teacher_config(), tmp_path / "other" / "config.json")
    (tmp_path / "sibling").mkdir()
    run_config.save(
        student_of(teacher, distill__grid=3, distill__step=0),
        tmp_path / "sibling" / "config.json",
    )
    before = files(tmp_path)
    named = ["distill.grid"] if output == "sibling" else ["--output", where or ""]
    refused(lambda: distill.run(student_of(teacher), str(teacher), where), *named)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"distill.grid": 1}, ["distill.grid is 1.", "from 2 to 1000"]),
        ({"distill.grid": 1001}, ["distill.grid is 1001."]),
        ({"distill.truth_weight": -1.0}, ["distill.truth_weight is -1.0."]),
        (
            {"networks.biedsnet.channels": (8, 24)},
            ["networks.", "(8, 24)", "(8, 16)"],
        ),
        (
            {"diffusion.schedule": "cosine"},
            ["diffusion.schedule", "'cosine'", "'linear'"],
        ),
    ],
)
def test_a_field_that_cannot_be(teacher, tmp_path, fields, says):
    cfg = student_of(teacher)
    cfg.update_from_flattened_dict(fields)
    refused(lambda: distill.run(cfg, str(teacher), str(tmp_path / "new")), *says)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_teacher_that_is_gone_or_has_changed(teacher, tmp_path):
    (tmp_path / "student").mkdir()

    def trained_with(**fields):
        cfg = student_of(teacher, **fields)
        run_config.save(cfg, tmp_path / "student" / "config.json")
        trainer.train(cfg, str(tmp_path / "student"))

    gone = str(tmp_path / "gone")
    refused(lambda: trained_with(distill__teacher=gone), gone)
    refused(lambda: trained_with(distill__step=7), str(teacher), "7", "--output")
