"""Every script of benchmarks/ has a smallest run as a process, with each of its flags.

Their own tests, and those of tests/serving, look at what they compute.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys

import case_folders
import documented_flags
import evaluated_workdir
import pytest
from PIL import Image
from places import ROOT
from untrained import toy, untrained

# Run, or run with other flags, by a test of their own here.
ELSEWHERE = {
    "choices.py": "test_choices.py",
    "gpu/agreement.py": "test_gpu_day.py",
    "gpu/device.py": "test_gpu_day.py",
    "gpu/speed.py": "test_gpu_day.py",
    "gpu_day.py": "test_gpu_day.py",
    "quality_vs_steps.py": "test_quality_vs_steps.py",
    "soak/power.py": "test_soak.py",
    "tables/results_page.py": "test_results_page.py",
    "tables/search.py": "test_search.py",
    "tpu/aot.py": "test_tpu.py",
}
HERE = ROOT / "tests" / "benchmarks"
# Flags in the help of a script that are the package's, a launch script's or part of the
# value of --setting.
OF_OTHERS = {"--config", "--workdir", "--settings", "--models"}


def run(script, *arguments, codes=(0,)) -> str:
    """Runs a script as a user does; gives what it printed.

    PyTorch gets one thread, since its threads wait for one another on a busy machine.
    """
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode in codes, done.stderr
    return done.stdout


def scripts() -> dict[str, str]:
    """The text of each script of benchmarks/ that is run by itself, by its name."""
    texts = {
        path.relative_to(ROOT / "benchmarks").as_posix(): path.read_text()
        for path in (ROOT / "benchmarks").rglob("*.py")
    }
    main = 'if __name__ == "__main__"'
    return {name: text for name, text in texts.items() if main in text}


def runs_of(name: str) -> str:
    """The text of the tests that run a script."""
    here = (HERE / "test_scripts.py").read_text()
    tests = [
        # With its decorators, whose parameters may be flags.
        ast.unparse(node)
        for node in ast.parse(here).body
        if isinstance(node, ast.FunctionDef)
    ]
    texts = [text for text in tests if f"run('{name}'" in text]
    if name in ELSEWHERE:
        texts.append((HERE / ELSEWHERE[name]).read_text())
    return "\n".join(texts)


@pytest.mark.parametrize("name", scripts())
def test_every_script_has_a_run_with_each_of_its_flags(name):
    runs = runs_of(name)
    assert runs
    flags = documented_flags.flags_of([ROOT / "benchmarks" / name])
    assert {flag for flag in flags if flag not in runs} == set()


@pytest.mark.parametrize("name", scripts())
def test_the_flags_in_the_help_of_a_script_exist(name):
    text = scripts()[name]
    said = set(re.findall(r"--[a-z][\w-]*", ast.get_docstring(ast.parse(text)) or ""))
    own = documented_flags.flags_of([ROOT / "benchmarks" / name])
    assert said <= own | OF_OTHERS


@pytest.mark.slow
def test_threshold_baseline():
    out = run("threshold_baseline.py", "--config=configs/phantom.py:toy")
    assert "best threshold" in out and "best band" in out


def test_readme_picture(tmp_path):
    evaluated_workdir.write(tmp_path / "run")
    picture = tmp_path / "picture.png"
    paths = [f"--workdir={tmp_path}/run", f"--output={picture}"]
    run("readme_picture.py", *paths, "--rows=2")
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
    out = run("overfit.py", "unet", "--steps=1", "--dtype=bfloat16", codes=[1])
    assert "1 steps, 0 not finite" in out


@pytest.mark.slow
def test_input_pipeline(tmp_path):
    """The speed of so small volumes may be too low, which is exit code 1."""
    config = "--config=configs/nifti.py:unet,toy"
    small = ["--shape=16,16,4", "--volumes=3", f"--folder={tmp_path}"]
    out = run("input_pipeline.py", *small, config, codes=[0, 1])
    assert "first" in out and "step" in out and "GiB" in out
    assert len(list((tmp_path / "data" / "images").iterdir())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [True, False])
def test_augmentation(drawn, tmp_path):
    """A busy machine may be too slow, which is exit code 1."""
    small = ["--batches=2", "--variant=unet,toy"]
    if not drawn:
        case_folders.write(tmp_path, "abcd")
        small.append(f"--root={tmp_path}")
    out = run("augmentation.py", *small, codes=[0, 1])
    assert "nnunet" in out and "step" in out


@pytest.mark.slow
def test_soak(tmp_path):
    arguments = ["--kills=1", "--terms=0", "--steps=10", "--seed=1"]
    paths = [f"--folder={tmp_path}/runs", f"--output={tmp_path}/soak.json"]
    (tmp_path / "runs").mkdir()
    run("soak/soak.py", *arguments, *paths)
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["kills"] == report["survived"] == report["seed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["--power-cuts=1", "--images=1"])
def test_soak_with_a_power_cut(loss, tmp_path):
    output = f"--output={tmp_path}/soak.json"
    run("soak/soak.py", loss, "--steps=10", output)
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report.get("survived", report.get("good")) == 1


@pytest.mark.slow
def test_soak_of_memory():
    """The slope of so few steps may be steep, which is exit code 1."""
    out = run("soak/soak.py", "--memory", "--steps=60", codes=[0, 1])
    assert json.loads(out)["samples"] > 1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "run"
    return untrained(folder, toy(sampler__steps=1, compile_cache=""))


@pytest.mark.slow
def test_load_of_the_server(workdir, tmp_path):
    pytest.importorskip("uvicorn", reason="no uvicorn: pip install uvicorn")
    small = ["--uploads=2", "--clients=1", f"--output={tmp_path}/load.json"]
    run("serving/load.py", f"--workdir={workdir}", *small)
    assert json.loads((tmp_path / "load.json").read_text())


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
    """It compares what is equal in both layouts; test_beside_torch has torch.compile."""
    small = ["--repeats=2", "--batch=1", "--samples=1", "--lineage-steps=1"]
    settings = ["--layouts=channels_last,contiguous", "--threads=1", "--compile=off"]
    config = ["--config=configs/covid.py:cpu,toy", "--config.data.size=16"]
    others = ["--trials=1", "--tf32", f"--output={tmp_path}/torch.json"]
    run("beside_torch/run.py", *config, *small, *settings, *others)
    report = json.loads((tmp_path / "torch.json").read_text())
    assert {"device", "cores", "torch_threads", "python", "jax", "torch"} < set(report)
    assert len(report["differences"]) == 2
    assert len(report["rows"]) == 4
    for row in report["rows"]:
        low, high = row["torch"]["quartiles_ms"]
        assert low <= row["torch"]["median_ms"] <= high
        assert row["torch_setting"] in report["differences"]
