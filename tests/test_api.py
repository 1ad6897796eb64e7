"""Tests the names of `import biedsnet_jax as bj`, and that each does what a mode does."""

import ast
import importlib
import json
import shutil
import subprocess
import sys

import bright_model
import numpy as np
import pytest
import rules
from places import ROOT
from refusals import refused

import biedsnet_jax as bj
from biedsnet_jax.config import run_config


def offered():
    """What the package imports for type checkers alone, as name -> module."""
    tree = ast.parse((ROOT / "biedsnet_jax" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in block.body for alias in node.names}


@pytest.fixture
def workdir(tmp_path):
    """A trained run of the made-up model."""
    with bright_model.in_place():
        yield bright_model.write_workdir(tmp_path / "bright")


# --- names ---


def test_the_import_loads_no_library():
    code = "import sys, biedsnet_jax; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {"jax", "flax", "numpy", "ml_collections", "absl", "matplotlib"}
    assert "biedsnet_jax" in loaded, done.stderr
    assert not loaded & heavy


def test_each_name_is_what_a_type_checker_sees():
    modules = offered()
    assert set(bj.__all__) == {*modules, "__version__"}
    assert set(bj.__all__) <= set(dir(bj))
    for name, module in modules.items():
        assert getattr(bj, name) is getattr(importlib.import_module(module), name)


def test_every_function_has_types_and_a_docstring():
    for name in ("load", "train", "evaluate", "get_config"):
        function = getattr(bj, name)
        assert function.__doc__
        assert "return" in function.__annotations__


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="segment"):
        _ = bj.segment


# --- configs ---


def test_a_config_by_name_variants_and_fields():
    config = bj.get_config("phantom:unet,toy", {"train.steps": 7, "seed": 5})
    assert (config.network, config.data.size) == ("unet", 32)
    assert (config.train.steps, config.seed) == (7, 5)


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("fantom", {}, ["fantom", "phantom"]),
        ("phantom:tiny", {}, ["tiny", "toy"]),
        ("phantom", {"train.step": 1}, ["train.step", "train.steps"]),
        ("phantom", {"train.steps": "many"}, ["train.steps", "many", "int"]),
        ("phantom", {"train": 1}, ["train is 1", "section", "train.accumulate"]),
    ],
)
def test_a_wrong_config_is_refused(name, fields, says):
    refused(lambda: bj.get_config(name, fields), *says)


# --- models ---


def test_a_loaded_model_predicts_by_the_fields_that_are_given(workdir):
    image = np.zeros((16, 16), np.float32)
    image[4:8, 5:10] = 1
    found = bj.load(workdir, {"threshold": 0.3})(image)
    assert found.threshold == 0.3
    assert (found.mask[0, ..., 0] == (image > 0)).all()
    # The made-up model is sure to 0.8 at least, and to 0.9 at most.
    assert not bj.load(workdir, {"threshold": 0.95})(image).mask.any()


def test_a_loaded_model_applies_the_rules_of_its_workdir(workdir, tmp_path):
    own = shutil.copytree(workdir, tmp_path / "own")
    cfg = run_config.load(own)
    image = np.zeros((16, 16), np.float32)
    image[4:8, 5:10] = 1
    image[12, 12] = 1
    expected = image > 0
    # The made-up model is sure to 0.8 at least where it is bright, to 0.2 at most elsewhere.
    rules.write(own, cfg, thresholds=(0.95,))
    assert not bj.load(own)(image).mask.any()
    assert not bj.load(own)(image).label_map.any()
    rules.write(own, cfg, smallest=(2.0,), largest=(True,))
    expected[12, 12] = False
    found = bj.load(own)(image)
    np.testing.assert_array_equal(found.mask[0, ..., 0], expected)
    np.testing.assert_array_equal(found.label_map[0], expected)
    plain = bj.load(own, {"postprocess": False})(image)
    np.testing.assert_array_equal(plain.mask[0, ..., 0], image > 0)


def test_a_field_that_the_training_fixed_is_refused(workdir):
    refused(lambda: bj.load(workdir, {"data.size": 32}), workdir, "data.size", 16, 32)


def test_a_folder_without_a_run_is_refused(tmp_path):
    refused(lambda: bj.load(tmp_path / "none"), tmp_path / "none", "config.json")


@pytest.mark.slow
def test_training_and_evaluating_write_what_they_return(tmp_path):
    # Eight devices share a batch.
    fields = {"compile_cache": "", "train.batch_size": 8, "eval.batch_size": 8}
    config = bj.get_config("phantom:unet,toy", fields)
    results = bj.train(config, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["checkpoint_step"] == written["checkpoint_step"] == 4
    assert (tmp_path / "run" / "report.html").exists()

    again = bj.evaluate(tmp_path / "run", {"threshold": 0.9})
    assert again["threshold"] == 0.9
    assert again["cases"] == results["cases"]


def test_a_workdir_of_no_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: bj.train("phantom:toy", ""), "workdir is empty")
    refused(lambda: bj.load(""), "workdir is empty")
    assert list(tmp_path.iterdir()) == []


def test_a_config_is_found_by_a_path_object(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from configs import phantom\nget_config = lambda: phantom.get_config('toy')\n"
    )
    assert bj.get_config(path, {"seed": 5}).seed == 5
