"""Mode distill: the loss against slow loops and a closed form, whole runs of a toy
student, and what is refused.
"""

import functools
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

from biedsnet_jax.checkpoints import checkpoint, train_state
from biedsnet_jax.config import build_model, run_config
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
    def heads_loss(heads, y):
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
    """A student b image with image = 1, whatever x_t and t: it is consistent, and only
    n = 1 pulls, to teacher's p.
    """
    batch, key, grid = (
        {name: jnp.ones((64, 2, 2, 1)) for name in ("image", "mask")},
        jax.random.key(0),
        4,
    )
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
    """The image is the mask: from any x_t the answer is it, so teacher and student
    agree along every path.
    """
    batch = batch_of(16)
    batch["image"] = 2.0 * batch["mask"] - 1.0
    exact = line(b=30.0)
    model = consistency(losses.bce, truth_weight=1.0)
    value, (metrics, _) = model.loss(
        {**exact, "teacher": exact}, batch, jax.random.key(1), train=True
    )
    assert float(value) == pytest.approx(0.0, abs=1e-6) and float(
        metrics["train_dice"]
    ) == pytest.approx(1.0)


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


def teacher_config(chosen="toy", **fields):
    c = phantom.get_config(chosen)
    c.update_from_flattened_dict(
        {"data.size": 16, "train.batch_size": 8, "train.steps": 16}
    )
    # less to compile
    c.networks.biedsnet.update(bffm=False, attention="none", second_skip=False)
    c.update_from_flattened_dict(
        {"eval.batch_size": 8, "eval.every": 0, "log.tensorboard": False}
    )
    c.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    c.compile_cache = ""
    return c


def trained(workdir: Path, cfg) -> Path:
    """A workdir as training leaves it, but with random weights."""
    model, rng = build_model.build(cfg), np.random.default_rng(0)

    def draw(path, x):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(
                np.float32
            )
        return np.full(x.shape, path[-1].key == "scale", np.float32)

    shapes = jax.eval_shape(lambda: build_model.init_variables(model, cfg))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(
            train_state.create(variables, optax.identity()), config=cfg.to_dict()
        )
    run_config.save(cfg, workdir / "config.json")
    return workdir


def student_of(workdir: Path, **fields):
    c = student_config.get_config(str(workdir))
    c.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
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
    return trained(tmp_path_factory.mktemp("teacher"), teacher_config())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher):
    """Two students of four steps, the second stopped after the third and gone on with;
    and the teacher's files.
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
    assert (c.train.steps, c.sampler.steps, c.sampler.method, c.row) == (
        4,
        1,
        "ddim",
        "biedsnet_distilled",
    )
    assert (
        c.distill.teacher == str(teacher)
        and c.train.learning_rate < teacher_config().train.learning_rate
    )


def test_a_student_resumes_bit_for_bit_and_its_state_is_that_of_any_run(runs, teacher):
    root, _ = runs
    unbroken, broken = (saved(root / name, 4) for name in ("unbroken", "broken"))
    jax.tree.map(np.testing.assert_array_equal, broken, unbroken)
    assert set(unbroken) == set(saved(teacher, 0))
    assert (root / "broken" / "cases.csv").read_text() == (
        root / "unbroken" / "cases.csv"
    ).read_text()


def test_a_student_starts_as_its_teacher_which_is_left_as_it_was(runs, teacher):
    root, before = runs
    assert files(teacher) == before
    own, of_teacher = (
        saved(root / "unbroken", 4)["params"],
        saved(teacher, 0)["ema_params"],
    )
    moved = jax.tree.leaves(
        jax.tree.map(lambda x, y: float(np.abs(x - y).max()), own, of_teacher)
    )
    # Four steps of AdamW, each of at most about the learning rate.
    assert 0.0 < max(moved) < 1.5 * 4 * student_of(teacher).train.learning_rate


def test_a_student_goes_on_and_is_scored_in_one_step_from_the_command_line(
    runs, teacher
):
    student = runs[0] / "unbroken"
    # The training is over, so only the test is repeated, here on one device.
    again = run_command("--mode=distill", f"--workdir={teacher}", f"--output={student}")
    assert (
        "going on from step 4" in again.stdout
        and f"{student}/results.json" in again.stdout
    )
    run_command("--mode=evaluate", f"--workdir={student}")
    results = json.loads((student / "results.json").read_text())
    assert (results["row"], results["sampler"]["steps"]) == ("biedsnet_distilled", 1)


# ---- What is refused


def test_a_teacher_that_is_none(tmp_path):
    refused(lambda: student_of(tmp_path / "none"), tmp_path / "none", "Train first")
    for chosen, says in [("toy,unet", "network unet with method"), ("toy,direct", "biedsnet with method 'direct'"),
                         ("toy,medsegdiff", "network medsegdiff: it predicts noise")]:  # fmt: skip
        run_config.save(teacher_config(chosen), tmp_path / "config.json")
        refused(
            lambda: distill.run(
                student_of(tmp_path), str(tmp_path), str(tmp_path / "new")
            ),
            says,
        )
    run_config.save(
        teacher_config(diffusion__self_condition=True), tmp_path / "config.json"
    )
    said = "Cannot distill with diffusion.self_condition"
    refused(
        lambda: distill.run(student_of(tmp_path), str(tmp_path), str(tmp_path / "new")),
        said,
    )
    run_config.save(teacher_config(), tmp_path / "config.json")
    refused(
        lambda: distill.run(student_of(tmp_path), str(tmp_path), str(tmp_path / "new")),
        tmp_path / "checkpoints",
    )
    refused(
        lambda: distill.run(teacher_config(), str(tmp_path), str(tmp_path / "new")),
        "no student",
        "--config",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("output", [None, "", ".", "other", "sibling"])
def test_an_output_that_is_no_place_for_it(teacher, tmp_path, output):
    says = {
        None: "no folder",
        "": "no folder",
        ".": "teacher's folder",
        "other": "folder of another run",
    }
    where = output and str((teacher if output == "." else tmp_path) / output)
    (tmp_path / "other").mkdir()
    run_config.save(teacher_config(), tmp_path / "other" / "config.json")
    (tmp_path / "sibling").mkdir()
    run_config.save(
        student_of(teacher, distill__grid=3, distill__step=0),
        tmp_path / "sibling" / "config.json",
    )
    before = files(tmp_path)
    said = says.get(output, "distill.grid is 3 there and 10 here")
    refused(lambda: distill.run(student_of(teacher), str(teacher), where), said)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"distill.grid": 1}, "distill.grid is 1. Use a whole number from 2 to 1000."),
        ({"distill.grid": 1001}, "distill.grid is 1001."),
        ({"distill.truth_weight": -1.0}, "distill.truth_weight is -1.0."),
        (
            {"networks.biedsnet.channels": (8, 24)},
            "networks.biedsnet.channels is (8, 24), but (8, 16) in the teacher",
        ),
        (
            {"diffusion.schedule": "cosine"},
            "diffusion.schedule is 'cosine', but 'linear' in the teacher",
        ),
    ],
)
def test_a_field_that_cannot_be(teacher, tmp_path, fields, says):
    cfg = student_of(teacher)
    cfg.update_from_flattened_dict(fields)
    refused(lambda: distill.run(cfg, str(teacher), str(tmp_path / "new")), says)
    assert not (tmp_path / "new").exists()


def test_a_teacher_that_is_gone_or_has_changed(teacher, tmp_path):
    (tmp_path / "student").mkdir()
    for fields, says in [({"distill.teacher": str(tmp_path / "gone")}, "distill.teacher"),
                         ({"distill.step": 7}, "teacher has changed, best step 0 and not 7")]:  # fmt: skip
        cfg = student_of(teacher)
        cfg.update_from_flattened_dict(fields)
        run_config.save(cfg, tmp_path / "student" / "config.json")
        refused(functools.partial(trainer.train, cfg, str(tmp_path / "student")), says)
