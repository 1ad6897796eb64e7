"""The wheel alone runs every command: an empty environment, an empty folder, no HOME.

It takes minutes, most of them for what pip installs.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from packaging.utils import canonicalize_name
from PIL import Image
from places import GOLDEN, ROOT
from safetensors.numpy import save_file

pytestmark = pytest.mark.slow

# What predicting needs no part of.
FOREIGN = {
    "grain", "hypothesis", "matplotlib", "playwright", "pytest", "pydicom", "starlette",
    "tensorboard", "tensorboardx", "tensorflow-datasets", "torch", "uvicorn",
}  # fmt: skip
LOAD = """
import numpy as np, sys
import biedsnet_jax as bj
if hasattr(bj, "load"):
    assert "jax" not in sys.modules
    load = bj.load
else:
    from biedsnet_jax.prediction.predictor import load
prediction = load(sys.argv[1])(np.zeros((2, 40, 30, 1), np.float32))
print(prediction.mask.shape)
"""


class Installed:
    """An environment with the wheel, and the empty folder where its commands run."""

    def __init__(self, folder: Path):
        self.place, self.folder = folder / "venv", folder / "empty"
        self.folder.mkdir()
        venv.create(self.place, with_pip=True, symlinks=True)

    def pip(self, *words: str) -> str:
        """What pip prints."""
        line = [self.place / "bin" / "python", "-m", "pip", *words]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(
        self, program: str, *words: str, code: int = 0
    ) -> subprocess.CompletedProcess:
        """Runs a program of the environment without HOME and PYTHONPATH."""
        environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [self.place / "bin" / program, *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def call(self, *words: str, code: int = 0) -> subprocess.CompletedProcess:
        """Runs the command biedsnet."""
        return self.run("biedsnet", *words, code=code)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    line = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "-w",
        folder,
        ROOT,
    ]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory):
    """The core without extras, and a workdir "imported" of golden weights."""
    installed = Installed(tmp_path_factory.mktemp("core"))
    installed.pip("install", "--quiet", str(wheel))
    with np.load(GOLDEN / "unet_4uiiurz1_w8.npz") as file:
        weights = {name[2:]: file[name] for name in file.files if name.startswith("w:")}
    save_file(weights, installed.folder / "unet.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(pixels).save(installed.folder / "scan.png")
    installed.call(
        "import",
        "--network=unet",
        "--config.networks.unet.channels=(8, 16, 32, 64, 128)",
        "--config.data.size=32",
        "--config.data.source=phantom",
        "--config.data.phantom.n_cases=4",
        "--config.data.phantom.slices_per_case=3",
        "--config.split.fractions=(0.5, 0.25, 0.25)",
        f"--config.compile_cache={installed.folder}/xla",
        "--input=unet.safetensors",
        "--workdir=imported",
    )
    return installed


@pytest.fixture(scope="module")
def trained(core, wheel):
    """The same environment with the extra train, and a workdir "run" trained in it."""
    core.pip("install", "--quiet", f"{wheel}[train]")
    core.call(
        "train",
        "--config=phantom:unet,toy",
        f"--config.compile_cache={core.folder}/xla",
        "--workdir=run",
    )
    return core


def check_mask(folder: Path):
    (mask,) = folder.rglob("*mask*.png")
    assert Image.open(mask).size == (50, 40)


def test_the_core_is_whole_and_has_nothing_foreign(core):
    assert "No broken requirements" in core.pip("check")
    listed = json.loads(core.pip("list", "--format=json"))
    names = {canonicalize_name(package["name"]) for package in listed}
    assert "jax" in names and names.isdisjoint(FOREIGN)


def test_help_version_and_info(core):
    assert "biedsnet predict --workdir=" in core.call("predict", "--help").stdout
    assert core.call("--version").stdout.startswith("biedsnet ")
    assert "data.size = 256" in core.call("train", "--helpfields").stdout
    facts = json.loads(core.call("info", "imported", "--json").stdout)
    assert (facts["network"], facts["step"]) == ("unet", 0)


def test_the_core_scores_predicts_exports_and_is_a_library(core):
    core.call("evaluate", "--workdir=imported")
    results = json.loads((core.folder / "imported" / "results.json").read_text())
    assert (results["checkpoint_step"], results["n_images"]) == (0, 3)
    core.call("predict", "--workdir=imported", "--input=scan.png", "--output=masks")
    check_mask(core.folder / "masks")
    core.call("export", "--workdir=imported", "--output=program")
    assert (core.folder / "program" / "export.json").is_file()
    loaded = core.run("python", "-c", LOAD, "imported")
    assert loaded.stdout == "(2, 40, 30, 1)\n"


def test_the_core_names_what_is_missing(core):
    lines = [
        (("train", "--config=phantom:unet,toy", "--workdir=other"), "train"),
        (("serve", "--workdir=imported"), "serve"),
    ]
    for words, extra in lines:
        error = core.call(*words, code=2).stderr
        assert error.startswith("biedsnet: ") and error.count("\n") == 1, error
        assert f"pip install 'biedsnet_jax[{extra}]'" in error
    assert not (core.folder / "other").exists()


def test_a_config_of_the_users_own(core):
    text = "from configs import folder\nget_config = folder.get_config\n"
    (core.folder / "mine.py").write_text(text)
    error = core.call("train", "--config=mine.py:cpu", "--workdir=other", code=2).stderr
    assert "data.root" in error or "[train]" in error


def test_a_run_is_trained_reported_and_used(trained):
    results = json.loads((trained.folder / "run" / "results.json").read_text())
    assert results["checkpoint_step"] in (2, 4)
    assert any((trained.folder / "run" / "tensorboard").iterdir())
    trained.call("report", "--workdir=run,imported", "--output=report.html")
    assert (trained.folder / "report.html").is_file()
    trained.call("predict", "--workdir=run", "--input=scan.png", "--output=of_run")
    check_mask(trained.folder / "of_run")
    assert "4 of 4" in trained.call("info", "run").stdout
    trained.run("python", "-m", "biedsnet_jax.main", "--mode=info", "--workdir=run")
