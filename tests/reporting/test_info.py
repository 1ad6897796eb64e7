"""What mode info says of a workdir, compared with the files that it was made of."""

import json
import shutil

import evaluated_workdir
import pytest
from refusals import refused

from biedsnet_jax.config import run_config
from biedsnet_jax.networks import DENOISERS
from biedsnet_jax.reporting import info
from configs import phantom


@pytest.fixture
def workdir(tmp_path):
    """A run of a BIEDSNet with two checkpoints of its 210 steps, and no test yet."""
    folder = tmp_path / "a run"
    folder.mkdir()
    run_config.save(phantom.get_config(), folder / "config.json")
    for step, dice in ((40, 0.7), (80, 0.6)):
        metrics = folder / "checkpoints" / str(step) / "metrics"
        metrics.mkdir(parents=True)
        (metrics / "metrics").write_text(json.dumps({"val_dice": dice}))
    return folder


@pytest.fixture
def tested(workdir, tmp_path):
    """The same run with the results of a test."""
    evaluated_workdir.write(tmp_path / "results")
    (tmp_path / "results" / "config.json").unlink(missing_ok=True)
    shutil.copytree(tmp_path / "results", workdir, dirs_exist_ok=True)
    return workdir


def test_a_run_that_is_under_way(workdir):
    facts = info.describe(workdir)
    assert (facts["network"], facts["data"]) == ("biedsnet", "phantom")
    assert (facts["step"], facts["best_step"], facts["steps"]) == (80, 40, 210)
    assert facts["sampler"]["ensemble"] == phantom.get_config().sampler.ensemble
    assert facts["scores"] is None
    assert list(facts["next"]) == ["train on", "score", "predict"]
    assert facts["next"]["score"] == f"biedsnet evaluate --workdir='{workdir}'"


def test_a_run_that_was_tested(tested):
    facts, results = (
        info.describe(tested),
        json.loads((tested / "results.json").read_text()),
    )
    dice = results["standard"]["dice"]
    assert facts["scores"]["dice"] == {"mean": dice["mean"], "ci95": dice["ci95"]}
    assert facts["sampler"] == results["sampler"]
    assert facts["tested"]["n_cases"] == results["n_cases"]
    assert "report" in facts["next"] and "score" not in facts["next"]


def test_a_run_without_a_checkpoint_is_begun_again(workdir):
    shutil.rmtree(workdir / "checkpoints")
    facts = info.describe(workdir)
    assert facts["step"] is None and list(facts["next"]) == ["train"]


def test_what_is_printed(tested, capsys):
    info.run(str(tested), as_json=True)
    assert json.loads(capsys.readouterr().out) == info.describe(tested)
    info.run(str(tested), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    mean = info.describe(tested)["scores"]["dice"]["mean"]
    assert any(line.startswith("Dice") and f"{mean:.3f}" in line for line in lines)
    assert any("80 of 210" in line for line in lines)


def test_one_pass_has_no_sampler(workdir):
    run_config.save(phantom.get_config("unet"), workdir / "config.json")
    assert info.describe(workdir)["sampler"] is None
    run_config.save(phantom.get_config("direct"), workdir / "config.json")
    assert info.describe(workdir)["sampler"] is None
    assert info.DENOISERS == DENOISERS


def test_no_run(tmp_path):
    refused(lambda: info.describe(tmp_path), tmp_path, "config.json", "folder of a run")
    refused(lambda: info.describe(tmp_path / "gone"), "gone", "config.json")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "[" * 100_000),
        ("results.json", "{}"),
        ("slices.csv", ""),
        ("checkpoints/80/metrics/metrics", "[]"),
        ("checkpoints/80/metrics/metrics", "{"),
    ],
)
def test_a_damaged_file_is_named(tested, file, text):
    (tested / file).write_text(text)
    refused(lambda: info.describe(tested), tested / file.split("/")[0])
