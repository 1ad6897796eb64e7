"""The search for settings: its choice on trials made by hand, and two trials at toy size, stopped and resumed."""

import importlib.util
import json
from pathlib import Path

import pytest
from refusals import refused

from biedsnet_jax.errors import Diverged
from configs import phantom

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "search.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("search", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tried(row, dice, **fields):
    """A trial whose validations gave these values of Dice, at steps 10, 20, ..."""
    fields = {name.replace("__", "."): value for name, value in fields.items()}
    steps = {str(10 * i): value for i, value in enumerate(dice, start=1)}
    return {"row": row, "fields": fields, "steps": 20, "seconds": 1.0, "dice": steps}


FOLDS = [
    [
        tried("unet", [0.5, 0.4], train__learning_rate=0.002),  # the best validation counts, not the last
        tried("unet", [0.3, 0.45], train__learning_rate=0.006),
        tried("unet", [], train__learning_rate=0.06),  # diverged
        tried("biedsnet", [0.2, 0.3], train__learning_rate=0.002),
        tried("biedsnet", [0.2, 0.4], train__learning_rate=0.002, augment__scale=0.25),
        tried("biedsnet", [0.9, 0.9], train__learning_rate=0.002, diffusion__schedule="cosine"),  # no setting
    ],
    [tried("unet", [0.1, 0.2], train__learning_rate=0.002), tried("unet", [0.1, 0.3], train__learning_rate=0.006)],
]


def test_each_fold_takes_the_settings_of_its_own_best_validation_and_the_ablation_those_of_the_whole(script):
    lines = script.settings(FOLDS)
    whole = "0 --config.train.learning_rate=0.002 --config.augment.scale=0.25"
    unet = ["unet 0 --config.train.learning_rate=0.002", "unet 1 --config.train.learning_rate=0.006"]
    assert lines == [
        f"biedsnet {whole}",
        *unet,
        *(f"{row} {whole}" for row in ("direct", "row1", "row2", "row3", "row4", "row5")),
    ]


def test_the_report_lists_every_trial_and_leaves_the_settings(script, tmp_path, capsys):
    for fold, trials in enumerate(FOLDS):
        (tmp_path / f"fold{fold}.json").write_text(json.dumps(trials))
    assert script.report(tmp_path) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| unet", "| biedsnet"))]
    assert rows == [
        "| unet | learning_rate=0.002 | 0.5000, 10 | 0.2000, 20 | 0.3500 |",
        "| unet | learning_rate=0.006 | 0.4500, 20 | 0.3000, 20 | 0.3750 |",
        "| unet | learning_rate=0.06 | 0.0000, 0 | - | - |",
        "| biedsnet | learning_rate=0.002 | 0.3000, 20 | - | - |",
        "| biedsnet | learning_rate=0.002 scale=0.25 | 0.4000, 20 | - | - |",
        "| biedsnet | learning_rate=0.002 schedule=cosine | 0.9000, 10 | - | - |",
    ]
    assert (tmp_path / "settings.txt").read_text().splitlines() == script.settings(FOLDS)
    (tmp_path / "fold1.json").unlink()
    refused(lambda: script.report(tmp_path), "no trial of each fold", str(tmp_path))
    (tmp_path / "fold1.json").write_text("[{")
    refused(lambda: script.report(tmp_path), "damaged file", str(tmp_path / "fold1.json"))


def test_trials_are_trained_once_on_validation_cases_alone(script, tmp_path, monkeypatch):
    def toy(row, fields, root, fold, steps):
        assert (root, fold) == ("data", 1)
        c = phantom.get_config(f"{row},toy")
        c.train.update(steps=steps, batch_size=8, warmup_steps=0)
        c.eval.update(every=2, batch_size=8)
        c.log.tensorboard = False
        c.update_from_flattened_dict(fields)
        return c

    monkeypatch.setattr(script, "config_of", toy)
    monkeypatch.setattr("biedsnet_jax.evaluate.evaluate", lambda *inputs, **fields: pytest.fail("tested"))
    monkeypatch.setattr(script, "RATES", [{"train.learning_rate": 1e-3}])
    monkeypatch.setattr(script, "STRONGER", {"augment.scale": 0.25})
    rate = {"train.learning_rate": 1e-3}
    assert script.Search("data", tmp_path, 1, 4).settings("unet") in (rate, rate | {"augment.scale": 0.25})
    trials = json.loads((tmp_path / "fold1.json").read_text())
    assert [trial["fields"] for trial in trials] == [rate, rate | {"augment.scale": 0.25}]
    assert set(trials[0]["dice"]) == {"2", "4"}
    assert not any((tmp_path / "fold1" / "unet").iterdir())  # checkpoints are not kept

    monkeypatch.setattr("biedsnet_jax.trainer.fit", lambda *inputs: pytest.fail("trained again"))
    script.Search("data", tmp_path, 1, 4).settings("unet")
    assert json.loads((tmp_path / "fold1.json").read_text()) == trials


def test_a_trial_that_diverges_has_no_dice_and_is_not_run_again(script, tmp_path, monkeypatch):
    def diverge(cfg, workdir):
        raise Diverged("loss not finite")

    monkeypatch.setattr(script, "config_of", lambda *fields: None)
    monkeypatch.setattr("biedsnet_jax.trainer.fit", diverge)
    done = script.Search("data", tmp_path, 0, 4).trial("unet", {"train.learning_rate": 1e3})
    assert done["dice"] == {} and json.loads((tmp_path / "fold0.json").read_text()) == [done]
    monkeypatch.setattr("biedsnet_jax.trainer.fit", None)
    assert script.Search("data", tmp_path, 0, 4).trial("unet", {"train.learning_rate": 1e3}) == done


def test_a_trials_config_is_that_of_its_row_fold_and_fields(script):
    c = script.config_of("medsegdiff", {"loss.supervision_weights": [0.4, 0.3, 0.3]}, "data", 1, 120)
    assert (c.network, c.data.root, c.split.folds, c.split.fold) == ("medsegdiff", "data", 2, 1)
    assert (c.train.steps, c.eval.every, c.eval.val_images) == (120, 60, 0)
    assert c.loss.supervision_weights == (0.4, 0.3, 0.3)
