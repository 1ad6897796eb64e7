"""The search for settings chooses well, and trains each trial once."""

import json
import pathlib
import types

import pytest
from refusals import refused

from benchmarks.tables import search
from biedsnet_jax.errors import Diverged
from biedsnet_jax.training import train
from configs import phantom


def tried(row, dice, choice=False, **fields):
    """Makes a trial whose validations at steps 10, 20, ... gave these values of Dice."""
    fields = {name.replace("__", "."): value for name, value in fields.items()} | {
        "train.steps": 20,
        "eval.every": 10,
    }
    steps = {str(10 * i): value for i, value in enumerate(dice, start=1)}
    return {
        "row": row,
        "variant": "cpu",
        "fields": fields,
        "choice": choice,
        "seconds": 1.0,
        "dice": steps,
    }


FOLDS = [
    [
        # The best validation counts, not the last.
        tried("unet", [0.5, 0.4], train__learning_rate=0.002),
        tried("unet", [0.3, 0.45], train__learning_rate=0.006),
        # It diverged.
        tried("unet", [], train__learning_rate=0.06),
        tried("biedsnet", [0.2, 0.3], train__learning_rate=0.002),
        tried("biedsnet", [0.2, 0.4], train__learning_rate=0.002, augment__scale=0.25),
        tried(
            "paper",
            [0.9] * 4 + [0.5, 0.6, 0.7, 0.6],
            choice=True,
            train__learning_rate=0.002,
        ),
        tried(
            "paper",
            [],
            choice=True,
            train__learning_rate=0.002,
            diffusion__schedule="cosine",
        ),
    ],
    [
        tried("unet", [0.1, 0.2], train__learning_rate=0.002),
        tried("unet", [0.1, 0.3], train__learning_rate=0.006),
        tried(
            "paper",
            [0.9] * 4 + [0.2, 0.2, 0.2, 0.4],
            choice=True,
            train__learning_rate=0.002,
        ),
    ],
]
STEPS = "--config.train.steps=20 --config.eval.every=10"


def test_each_fold_has_the_settings_of_its_own_best_validation():
    whole = f"0 --config.train.learning_rate=0.002 --config.augment.scale=0.25 {STEPS}"
    unet = [
        f"unet {i} --config.train.learning_rate={rate} {STEPS}"
        for i, rate in enumerate((0.002, 0.006))
    ]
    ablation = (
        "direct",
        "no_bffm",
        "no_attention",
        "row1",
        "row2",
        "row3",
        "row4",
        "row5",
    )
    assert search.settings(FOLDS) == [
        f"biedsnet {whole}",
        *unet,
        *(f"{row} {whole}" for row in ablation),
    ]


def test_the_report_lists_every_trial_and_leaves_the_settings(tmp_path, capsys):
    for fold, trials in enumerate(FOLDS):
        (tmp_path / f"fold{fold}.json").write_text(json.dumps(trials))
    assert search.report(tmp_path) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "=" in line]
    assert rows == [
        "| unet | learning_rate=0.002 | 20 | **0.5000, 10** | 0.2000, 20 | 0.3500 |",
        "| unet | learning_rate=0.006 | 20 | 0.4500, 20 | **0.3000, 20** | 0.3750 |",
        "| unet | learning_rate=0.06 | 20 | 0.0000, 0 | - | - |",
        "| biedsnet | learning_rate=0.002 | 20 | 0.3000, 20 | - | - |",
        "| biedsnet | learning_rate=0.002 scale=0.25 | 20 | **0.4000, 20** | - | - |",
        # Of eight validations the last four count.
        "| learning_rate=0.002 | 20 | 0.6000 | 0.2500 | 0.4250 |",
        "| learning_rate=0.002 schedule=cosine | 20 | 0.0000 | - | - |",
    ]
    assert (tmp_path / "settings.txt").read_text().splitlines() == search.settings(
        FOLDS
    )
    unchanged = [
        [*trials, tried("paper", [0.9] * 4 + [0.3] * 4, train__learning_rate=1e-3)]
        for trials in FOLDS
    ]
    assert search.choices_table(unchanged).rows[0] == [
        "learning_rate=0.001",
        "20",
        "0.3000",
        "0.3000",
        "0.3000",
    ]
    (tmp_path / "fold1.json").unlink()
    refused(lambda: search.report(tmp_path), str(tmp_path), "both folds")
    (tmp_path / "fold1.json").write_text("[{")
    refused(lambda: search.report(tmp_path), str(tmp_path / "fold1.json"))


@pytest.fixture
def toy(monkeypatch):
    """Makes trials two steps on made-up slices.

    `fitted` lists the learning rates of what was trained, `tested` where a network was
    tested.
    """
    seen = types.SimpleNamespace(fitted=[], tested=[])

    def config_of(chosen, fields, root, fold):
        assert (root, fold) == ("data", 1)
        row, size = chosen.split(",")
        assert size == "quarter"
        c = phantom.get_config(f"{row},toy")
        c.train.update(batch_size=8, warmup_steps=0)
        c.eval.batch_size, c.log.tensorboard = 8, False
        c.update_from_flattened_dict(fields)
        return c

    def fit(cfg, workdir, real=train.fit):
        seen.fitted.append(cfg.train.learning_rate)
        return real(cfg, workdir)

    monkeypatch.setattr(search, "config_of", config_of)
    monkeypatch.setattr(search, "MOST_STEPS", 2)
    monkeypatch.setattr(search, "VALIDATIONS", 2)
    monkeypatch.setattr(search, "RATES", [{"train.learning_rate": 1e-3}])
    monkeypatch.setattr(search, "STRONGER", {"train.learning_rate": 2e-3})
    monkeypatch.setattr(train, "fit", fit)
    test = "biedsnet_jax.evaluation.evaluate.evaluate"

    def tested(model, workdir, *_, **__):
        seen.tested.append((workdir, model.step))

    monkeypatch.setattr(test, tested)
    return seen


@pytest.mark.slow
def test_trials_are_trained_once_and_the_chosen_one_alone_is_tested(tmp_path, toy):
    fields = search.Search("data", tmp_path, 1, "quarter").row("unet")
    trials, workdir = (
        json.loads((tmp_path / "fold1.json").read_text()),
        tmp_path / "unet" / "seed0" / "fold1",
    )
    assert (
        [trial["fields"]["train.learning_rate"] for trial in trials]
        == [1e-3, 2e-3]
        == toy.fitted[:2]
    )
    assert all(set(trial["dice"]) == {"1", "2"} for trial in trials)
    assert fields == search.chosen(trials, "unet")["fields"]
    assert [where for where, _ in toy.tested] == [workdir]
    assert (
        json.loads((workdir / "config.json").read_text())["train"]["learning_rate"]
        == fields["train.learning_rate"]
    )
    words = (workdir / "command.txt").read_text().split()
    assert words[3:8] == [
        "--config=configs/covid.py:unet,quarter",
        "--config.seed=0",
        "--config.split.folds=2",
        "--config.split.fold=1",
        "--config.train.steps=2",
    ]
    # The weights of the other trial are gone.
    assert not (tmp_path / "fold1").exists() or not any((tmp_path / "fold1").iterdir())

    (workdir / "results.json").write_text("{}")
    del toy.fitted[:], toy.tested[:]
    assert search.Search("data", tmp_path, 1, "quarter").row("unet") == fields
    assert (toy.fitted, toy.tested) == ([], [])


@pytest.mark.slow
def test_a_trial_that_diverges_has_no_dice_and_is_not_run_again(
    tmp_path, toy, monkeypatch
):
    def diverge(cfg, workdir):
        raise Diverged("loss not finite")

    monkeypatch.setattr(train, "fit", diverge)
    done = search.Search("data", tmp_path, 1, "quarter").trial(
        "unet", {"train.steps": 2}
    )
    assert done["dice"] == {} and json.loads((tmp_path / "fold1.json").read_text()) == [
        done
    ]
    monkeypatch.setattr(train, "fit", None)
    assert (
        search.Search("data", tmp_path, 1, "quarter").trial("unet", {"train.steps": 2})
        == done
    )


def test_the_flags_say_what_is_tried(tmp_path, monkeypatch):
    """Nothing is trained: each fit leaves one validation."""
    tested = []

    def fit(cfg, workdir):
        assert cfg.data.root == "data" and cfg.split.fold == 1
        line = json.dumps({"step": cfg.train.steps, "val_dice": 0.5})
        (pathlib.Path(workdir) / "metrics.jsonl").write_text(line)

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train, "train", lambda cfg, workdir: tested.append(cfg.network))
    words = ["x", "--root=data", f"--out={tmp_path}", "--fold=1", "--variant=quarter"]
    monkeypatch.setattr("sys.argv", [*words, "--rows=unet,unext"])
    assert search.main() == 0
    assert tested == ["unet", "unext"]
    monkeypatch.setattr("sys.argv", [*words, "--choices"])
    assert search.main() == 0
    trials = json.loads((tmp_path / "fold1.json").read_text())
    of_paper = [trial["choice"] for trial in trials if trial["row"] == "paper"]
    assert of_paper == [False, *[True] * len(search.CHOICES)]


def test_a_trials_config_is_that_of_its_row_fold_and_fields():
    fields = search.budget("medsegdiff", "cpu") | {
        "loss.supervision_weights": [0.4, 0.3, 0.3]
    }
    c = search.config_of("medsegdiff,cpu", fields, "data", 1)
    assert (c.network, c.data.root, c.split.folds, c.split.fold) == (
        "medsegdiff",
        "data",
        2,
        1,
    )
    assert (c.train.steps, c.eval.every, c.checkpoint.every) == (400, 50, 50)
    assert c.loss.supervision_weights == (0.4, 0.3, 0.3)
    assert (c.networks.medsegdiff.num_res_blocks, c.sampler.steps) == (1, 20)
    c = search.config_of(
        "medsegdiff,quarter", search.budget("medsegdiff", "quarter"), "data", 1
    )
    assert (c.train.steps, c.networks.medsegdiff.num_res_blocks, c.sampler.steps) == (
        160,
        2,
        5,
    )
    for variant in ("quarter", "cpu"):
        c = search.config_of(
            f"unet,{variant}", search.budget("unet", variant), "data", 0
        )
        assert c.train.steps == 1600 and c.networks.unet.channels[-1] == 128


def test_trials_of_two_variants_do_not_share_a_folder(tmp_path):
    (tmp_path / "fold0.json").write_text(json.dumps(FOLDS[0]))
    refused(
        lambda: search.Search("data", tmp_path, 0, "quarter"),
        "trials of another variant, cpu",
        "fold0.json",
    )
    search.Search("data", tmp_path, 0, "cpu")
    search.Search("data", tmp_path, 1, "quarter")
