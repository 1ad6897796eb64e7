"""The comparison of settings on validation cases, and its table."""

import json
import subprocess
import sys

import absl_flags
import pytest
from case_folders import cfg_of, write
from places import ROOT
from refusals import refused

from benchmarks import choices
from benchmarks.choices import Setting
from biedsnet_jax.errors import Diverged
from biedsnet_jax.prediction import ensembles
from biedsnet_jax.training import train

CASES = [f"p{n}" for n in range(10)]


@pytest.fixture(autouse=True)
def own_flags(monkeypatch):
    monkeypatch.setattr("sys.argv", ["choices.py"])
    absl_flags.forget()
    yield
    absl_flags.forget()


def words(root):
    absl_flags.forget()
    config = f"--config={ROOT / 'configs' / 'folder.py'}:unet,toy"
    # The tests have eight devices.
    batch = ["--config.train.batch_size=8", "--config.eval.batch_size=8"]
    return [config, f"--config.data.root={root}", "--config.compile_cache=", *batch]


def test_a_deal_keeps_the_test_and_validates_on_no_case_twice(tmp_path):
    write(tmp_path, CASES)
    dealt = choices.deal(cfg_of(tmp_path, split__fractions=(0.6, 0.2, 0.2)))
    tests = {sides["test"] for sides in dealt}
    assert len(dealt) == 2 and len(tests) == 1
    first, second = (set(sides["val"]) for sides in dealt)
    assert first and second and not first & second
    for sides in dealt:
        assert sorted(sum(sides.values(), ())) == CASES
    # The same command deals the same cases.
    assert choices.deal(cfg_of(tmp_path, split__fractions=(0.6, 0.2, 0.2))) == dealt


def test_too_few_cases_for_two_validations_are_refused(tmp_path):
    write(tmp_path, CASES[:5])
    fields = {"split__fractions": (0.2, 0.5, 0.3)}
    refused(lambda: choices.deal(cfg_of(tmp_path, **fields)), "split.fractions")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data.fitt": "pad"}, "data.fit"),
        ({"data.fit": "bad"}, "bad"),
        ({"train.learning_rate": "fast"}, "fast"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_trained(tmp_path, fields, says):
    write(tmp_path / "data", CASES)
    settings = [Setting("as it is", {}), Setting("wrong", fields)]
    command = words(tmp_path / "data")
    refused(lambda: choices.compare(settings, command, tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["pad", ": --config.seed=1", "a: --seed=1", "a: x", "a: --models=0"]
)
def test_what_is_no_setting(monkeypatch, capsys, text):
    monkeypatch.setattr("sys.argv", ["choices.py", "--out=x", f"--setting={text}"])
    with pytest.raises(SystemExit):
        choices.main()
    assert "--setting" in capsys.readouterr().err


def test_what_is_done_is_not_done_again_and_the_table_is_right(tmp_path, monkeypatch):
    """By hand: 0.5 and 0.25 against 0.25 and 0.25 are 0.125 more in the mean."""
    write(tmp_path / "data", CASES)
    trained = []

    def fit(config, workdir):
        trained.append((config.data.fit, config.seed, config.split.val))
        if config.data.target == "share" and config.seed:
            raise Diverged("not finite")
        return config, None

    def score(config, data, folder):
        dice = 0.5 if config.data.fit == "pad" and not config.seed else 0.25
        return {"dice": dice, "hd95": 2.0 + config.seed, "in_mm": False}

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(choices, "score", score)
    settings = [Setting("as it is", {}), Setting("pad", {"data.fit": "pad"})]
    out = tmp_path / "out"
    first = choices.compare(settings, words(tmp_path / "data"), out)
    assert [one[:2] for one in trained] == [
        ("squash", 0),
        ("squash", 1),
        ("pad", 0),
        ("pad", 1),
    ]
    assert trained[0][2] == trained[2][2] != trained[1][2]
    lines = first.splitlines()
    assert lines[-2].startswith("| as it is | nothing | 0.2500 | 0.2500 | - | 2.50 |")
    row = "| pad | data.fit=pad | 0.5000 | 0.2500 | +0.1250 | 2.50 |"
    assert lines[-1].startswith(row)
    # Another setting joins, and diverges with its second seed.
    settings.append(Setting("share", {"data.target": "share"}))
    more = choices.compare(settings, words(tmp_path / "data"), out)
    assert len(trained) == 6
    row = "| share | data.target=share | 0.2500 | 0.0000 | -0.1250 | - |"
    assert more.splitlines()[-1].startswith(row)
    assert (out / "choices.md").read_text() == more
    assert len(json.loads((out / "choices.json").read_text())) == 6
    # Another config is trained anew.
    choices.compare(settings[:1], [*words(tmp_path / "data"), "--config.row=b"], out)
    assert len(trained) == 8


def test_what_only_predicts_takes_the_models_of_the_first(tmp_path, monkeypatch):
    write(tmp_path / "data", CASES)
    trained = []

    def fit(config, workdir):
        trained.append("/".join(workdir.split("/")[-2:]))
        return workdir[-1], None

    def together(workdirs, config):
        return "+".join(workdir.name[-1] for workdir in workdirs)

    def score(model, data, folder):
        trained.append(f"{model} scored in {folder.name}")
        return {"dice": 0.5, "hd95": 2.0, "in_mm": False}

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(ensembles, "load", together)
    monkeypatch.setattr(choices, "score", score)
    settings = [
        Setting("first", {"data.fit": "pad"}),
        Setting("mirror", {"sampler.mirror": "lr"}),
        Setting("two", {}, models=2),
    ]
    text = choices.compare(settings, words(tmp_path / "data"), tmp_path / "out")
    assert trained == [
        "first/seed0", "0 scored in first", "first/seed1", "1 scored in first",
        "first/seed0", "0 scored in mirror", "first/seed1", "1 scored in mirror",
        "first/seed0", "first/seed2", "0+2 scored in two",
        "first/seed1", "first/seed3", "1+3 scored in two",
    ]  # fmt: skip
    assert "| two | 2 models |" in text


@pytest.mark.slow
def test_a_whole_comparison_leaves_the_test_cases_alone(tmp_path):
    """Their files hold no pictures: whoever decodes one fails."""
    root = write(tmp_path / "data", CASES)
    tested = choices.deal(cfg_of(root, split__fractions=(0.5, 0.25, 0.25)))[0]["test"]
    for case in tested:
        for kind in ("images", "masks"):
            for path in (root / kind / case).iterdir():
                path.write_bytes(b"no picture")
    command = [sys.executable, ROOT / "benchmarks" / "choices.py"]
    command += [*words(root), f"--out={tmp_path / 'out'}", "--setting=as it is:"]
    command += ["--setting=mirrored: --models=2 --config.sampler.mirror=lr"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "choices.md").read_text()
    assert text in done.stdout
    for name, models in (("as_it_is", 1), ("mirrored", 2)):
        for seed in (0, 1):
            folder = tmp_path / "out" / "as_it_is" / f"seed{seed}"
            scored = folder / "validation" / name / "results.json"
            results = json.loads(scored.read_text())
            assert not set(results["cases"]) & set(tested)
            assert f"{results['standard']['dice']['mean']:.4f}" in text
            assert len(results.get("members", [0])) == models
            assert ("mirror" in results) == (models == 2)
            assert not (folder / "results.json").exists()


def test_the_values_of_a_setting_are_those_of_flags(tmp_path):
    shared = cfg_of(tmp_path)
    fields = {
        "data.window": "(-1250.,250.)",
        "data.fit": "pad",
        "eval.lesions": "True",
        "train.learning_rate": "1e-3",
        "split.test": "('p1',)",
        "data.name": "7",
    }
    config = choices.config_of(shared, Setting("a", fields))
    assert config.data.window == (-1250.0, 250.0)
    assert (config.data.fit, config.eval.lesions) == ("pad", True)
    assert (config.train.learning_rate, config.data.name) == (1e-3, "7")
    assert config.split.test == ("p1",)
