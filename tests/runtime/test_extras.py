"""A missing package is one sentence with the command that installs it, where it is used."""

import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from places import ROOT
from refusals import refused

from biedsnet_jax.config import build_data
from biedsnet_jax.runtime import extras
from biedsnet_jax.training import train
from configs import covid, phantom

CORE = (
    "prediction.predict",
    "evaluation.evaluate",
    "exporting.export",
    "importing.import_weights",
    "reporting.report",
    "benchmarking.benchmark",
    "training.train",
    "serving.serve",
)


def packages(extra: str) -> list[str]:
    return [name.partition(".")[0] for name in extras.PACKAGES[extra]]


@pytest.mark.parametrize("extra", extras.PACKAGES)
def test_a_hidden_package_is_named_with_its_extra(monkeypatch, extra):
    for package in packages(extra):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            install = f"pip install 'biedsnet_jax[{extra}]'"
            refused(
                lambda: extras.need(extra, "This"), f"This needs {package},", install
            )
            assert not extras.is_installed(extra)


def test_what_is_installed_is_not_asked_for():
    extras.need("train", "Training")
    assert extras.is_installed("train")


@pytest.mark.parametrize("extra", extras.PACKAGES)
def test_the_extra_brings_the_package(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {
        Requirement(line).name.lower().replace("-", "_")
        for line in project["optional-dependencies"][extra]
    }
    assert {package.lower() for package in packages(extra)} <= brought


@pytest.mark.parametrize("package", packages("train"))
def test_training_refuses_before_anything_is_written(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    c = phantom.get_config("unet,toy")
    refused(lambda: train.train(c, str(tmp_path / "run")), f"Training needs {package},")
    assert not (tmp_path / "run").exists()


def test_a_source_of_tfds_refuses(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    c = covid.get_config("tfds")
    refused(lambda: build_data.open_source(c), "data.source=tfds", "[tfds]")


def test_no_mode_needs_an_extra_to_be_imported():
    hidden = [package for extra in extras.PACKAGES for package in packages(extra)]
    code = "import sys, importlib\n"
    code += f"sys.modules.update(dict.fromkeys({hidden}))\n"
    code += f"for name in {CORE}: importlib.import_module('biedsnet_jax.' + name)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
