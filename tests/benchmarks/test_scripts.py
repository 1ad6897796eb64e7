"""Every script of benchmarks/ has one smallest run as a process.

Their own tests, and those of tests/serving, look at what they compute.
"""

import importlib.util
import json
import os
import subprocess
import sys

import evaluated_workdir
import pytest
from PIL import Image
from places import ROOT
from untrained import toy, untrained

# Run by a test of their own here.
ELSEWHERE = {
    "choices.py": "test_choices.py",
    "gpu/agreement.py": "test_gpu_day.py",
    "gpu/device.py": "test_gpu_day.py",
    "gpu/speed.py": "test_gpu_day.py",
    "gpu_day.py": "test_gpu_day.py",
    "quality_vs_steps.py": "test_quality_vs_steps.py",
    "soak/power.py": "test_soak.py",
    "tables/results_page.py": "test_results_page.py",
}


def run(script, *arguments, codes=(0,)) -> str:
    """Runs a script as a user does; gives what it printed."""
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode in codes, done.stderr
    return done.stdout


def test_every_script_has_a_run():
    here = (ROOT / "tests" / "benchmarks" / "test_scripts.py").read_text()
    for path in (ROOT / "benchmarks").rglob("*.py"):
        name = path.relative_to(ROOT / "benchmarks").as_posix()
        if 'if __name__ == "__main__"' in path.read_text():
            assert f'run("{name}"' in here or name in ELSEWHERE, name


@pytest.mark.slow
def test_threshold_baseline():
    out = run("threshold_baseline.py", "--config=configs/phantom.py:toy")
    assert "best threshold" in out and "best band" in out


def test_readme_picture(tmp_path):
    evaluated_workdir.write(tmp_path / "run")
    picture = tmp_path / "picture.png"
    run("readme_picture.py", f"--workdir={tmp_path}/run", f"--output={picture}")
    with Image.open(picture) as made:
        assert len(made.convert("P").getcolors()) > 50


@pytest.mark.slow
def test_search(tmp_path):
    trial = {"row": "unet", "fields": {"train.steps": 9}, "choice": False}
    trial |= {"seconds": 1.0, "dice": {"3": 0.25}}
    for fold in (0, 1):
        (tmp_path / f"fold{fold}.json").write_text(json.dumps([trial]))
    assert "0.2500" in run("tables/search.py", f"--out={tmp_path}", "--report")
    assert (tmp_path / "settings.txt").exists()


@pytest.mark.slow
def test_predictions_for_a_tpu():
    assert "v5e:16x16" in run("tpu/aot.py", "--table=results/tpu")


@pytest.mark.slow
def test_overfit():
    """A step is too few to learn a slice by heart, which is exit code 1."""
    assert "1 steps, 0 not finite" in run("overfit.py", "unet", "--steps=1", codes=[1])


@pytest.mark.slow
def test_input_pipeline():
    """The speed of so small volumes may be too low, which is exit code 1."""
    config = "--config=configs/nifti.py:unet,toy"
    out = run("input_pipeline.py", "--shape=16,16,4", config, codes=[0, 1])
    assert "first" in out and "step" in out and "GiB" in out


@pytest.mark.slow
def test_augmentation():
    """A busy machine may be too slow, which is exit code 1."""
    small = ["--batches=2", "--variant=unet,toy"]
    out = run("augmentation.py", *small, codes=[0, 1])
    assert "nnunet" in out and "step" in out


@pytest.mark.slow
def test_soak(tmp_path):
    arguments = ["--kills=1", "--terms=0", "--steps=10"]
    run("soak/soak.py", *arguments, f"--output={tmp_path}/soak.json")
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["kills"] == report["survived"] == 1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "run"
    return untrained(folder, toy(sampler__steps=1, compile_cache=""))


@pytest.mark.slow
def test_load_of_the_server(workdir):
    pytest.importorskip("uvicorn", reason="no uvicorn: pip install uvicorn")
    run("serving/load.py", f"--workdir={workdir}", "--uploads=2", "--clients=1")


@pytest.mark.slow
def test_attack_on_the_server(workdir):
    pytest.importorskip("uvicorn", reason="no uvicorn: pip install uvicorn")
    small = ["--uploads=1", "--silent=1", "--seconds=2"]
    # How fast it answers beside other tests is not asked here: exit code 1.
    run("../tests/helpers/attack.py", f"--workdir={workdir}", *small, codes=[0, 1])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="no torch: pip install torch"
)
def test_beside_torch(tmp_path):
    small = ["--repeats=1", "--batch=1", "--samples=1", "--lineage-steps=1"]
    fields = ["--config.data.size=16", "--config.sampler.steps=1"]
    output = f"--output={tmp_path}/torch.json"
    run("beside_torch/run.py", "--config=configs/covid.py:cpu", *fields, *small, output)
    assert json.loads((tmp_path / "torch.json").read_text())
