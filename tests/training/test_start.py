"""Runs that start from weights, and finished runs that go on for more steps."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from refusals import refused
from untrained import untrained

from biedsnet_jax.training import run_log, train
from configs import phantom


def config(chosen="toy,unet", **fields):
    c = phantom.get_config(chosen)
    c.data.size = 16
    c.train.update(batch_size=8, steps=4)
    c.eval.update(batch_size=8, every=0)
    c.log.tensorboard = False
    c.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    c.compile_cache = ""
    return c


def tuned(source, **fields):
    return config(data__classes=2, init__source=str(source), **fields)


def saved(workdir, step):
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.device_get(
            checkpointer.restore(workdir / "checkpoints" / str(step) / "state")
        )


def stop_after(step, monkeypatch, cfg, workdir):
    """Trains and stops at a log line, as Ctrl-C does."""
    write = run_log.RunLog.write

    def stop(log, number, scalars):
        write(log, number, scalars)
        if number == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            train.fit(cfg, str(workdir))


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("source") / "run", config())


@pytest.mark.slow
def test_a_start_from_weights_resumes_bit_for_bit_though_they_are_gone(
    source, tmp_path, monkeypatch, capsys
):
    moved = tmp_path / "source"
    shutil.copytree(source, moved)
    cfg = tuned(moved, init__freeze=("conv0_0",))
    train.fit(cfg, str(tmp_path / "unbroken"))
    assert "params/final/kernel" in capsys.readouterr().out
    # Stopped before the first checkpoint that is due, and again after it.
    stop_after(1, monkeypatch, tuned(moved, **FROZEN), tmp_path / "broken")
    assert steps(tmp_path / "broken") == [0]
    shutil.rmtree(moved)
    stop_after(3, monkeypatch, tuned(moved, **FROZEN), tmp_path / "broken")
    train.fit(tuned(moved, **FROZEN), str(tmp_path / "broken"))
    unbroken, broken = (saved(tmp_path / name, 4) for name in ("unbroken", "broken"))
    jax.tree.map(np.testing.assert_array_equal, broken, unbroken)

    of_source = saved(source, 0)["ema_params"]
    for tree in ("params", "ema_params"):
        # Frozen parameters are those of the source, and of the others some have moved.
        jax.tree.map(
            np.testing.assert_array_equal,
            unbroken[tree]["conv0_0"],
            of_source["conv0_0"],
        )
        moved_by = np.abs(
            unbroken[tree]["conv1_0"]["conv1"]["kernel"]
            - of_source["conv1_0"]["conv1"]["kernel"]
        )
        assert 0 < moved_by.max() < 5 * cfg.train.learning_rate


FROZEN = {"init__freeze": ("conv0_0",), "log__every": 1}


@pytest.mark.slow
def test_a_finished_run_goes_on_for_more_steps_by_the_cosine_of_all(
    tmp_path, monkeypatch, capsys
):
    for name in ("unbroken", "broken"):
        train.fit(config(), str(tmp_path / name))
    capsys.readouterr()
    more = {"train__steps": 12, "log__every": 1}
    train.fit(config(**more), str(tmp_path / "unbroken"))
    said = capsys.readouterr().out
    assert "train.steps is 12, was 4" in said
    lines = (tmp_path / "unbroken" / "metrics.jsonl").read_text().splitlines()
    rates = {line["step"]: line["learning_rate"] for line in map(json.loads, lines)}
    # Warmed up after one step, then a cosine from 0.002 to a hundredth of it at 12.
    for step in range(5, 13):
        cosine = 0.5 * (1 + np.cos(np.pi * (step - 1 - 1) / (12 - 1)))
        expected = 0.002 * (0.99 * cosine + 0.01)
        assert rates[step] == pytest.approx(expected, rel=1e-4)

    stop_after(7, monkeypatch, config(**more), tmp_path / "broken")
    train.fit(config(**more), str(tmp_path / "broken"))
    unbroken, broken = (saved(tmp_path / name, 12) for name in ("unbroken", "broken"))
    jax.tree.map(np.testing.assert_array_equal, broken, unbroken)
    refused(
        lambda: train.fit(config(), str(tmp_path / "broken")), "train.steps is 12 there"
    )


@pytest.mark.slow
def test_a_start_that_cannot_be_leaves_nothing_behind(source, tmp_path):
    new = tmp_path / "new"

    def fit(cfg):
        return lambda: train.fit(cfg, str(new))

    gone = tmp_path / "gone"
    refused(fit(tuned(gone)), gone)
    refused(fit(config("toy", init__source=str(source))), "init.source", "biedsnet")
    refused(fit(tuned(source, init__freeze=("nothing",))), "init.freeze", "nothing")
    refused(fit(config(init__freeze=("conv0_0",))), "init.freeze", "init.source")
    assert not new.exists()
