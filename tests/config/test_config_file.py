"""Configs are found by name from anywhere, by path, and by files of the user's own."""

import importlib.util
import shutil
import sys

import pytest
from places import ROOT
from refusals import refused

from biedsnet_jax.config import config_file
from biedsnet_jax.config.fields import flat
from configs import covid, phantom

OWN = """\
from configs import covid

def get_config(chosen=None):
    c = covid.get_config(chosen)
    c.row = "own"
    return c
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder as the working folder, where `configs` cannot be imported."""
    monkeypatch.chdir(tmp_path)
    here = [path for path in sys.path if path not in ("", ".", str(ROOT))]
    monkeypatch.setattr(sys, "path", here)
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_names_are_the_files_that_make_a_config():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert set(config_file.names()) == files - {"default", "variants"}


@pytest.mark.parametrize(
    "name",
    ["covid:unet,cpu", "configs/covid.py:unet,cpu", "./configs/covid.py:unet,cpu"],
)
def test_a_name_stands_for_the_projects_file_from_anywhere(elsewhere, name):
    expected = flat(covid.get_config("unet,cpu"))
    assert flat(config_file.get_config(name)) == expected
    assert config_file.find(name) == f"{ROOT}/configs/covid.py:unet,cpu"


def test_a_file_that_exists_wins(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "covid.py").write_text(OWN)
    assert config_file.get_config("configs/covid.py:unet").row == "own"
    # The file imports the project's `covid`, not itself.
    assert config_file.get_config("configs/covid.py:unet").network == "unet"


def test_a_folder_of_a_configs_name_is_not_taken_for_it(elsewhere):
    (elsewhere / "phantom").mkdir()
    assert config_file.get_config("phantom").data.source == "phantom"


def test_a_users_file_imports_the_projects_and_leaves_no_trace(elsewhere):
    (elsewhere / "mine.py").write_text(OWN)
    before = list(sys.path)
    c = config_file.get_config(f"{elsewhere}/mine.py:cpu")
    assert (c.row, c.data.size) == ("own", covid.get_config("cpu").data.size)
    assert sys.path == before and "configs" not in sys.modules


def test_another_package_called_configs_is_kept(elsewhere, monkeypatch):
    theirs = type(sys)("configs")
    theirs.__path__ = [str(elsewhere)]
    monkeypatch.setitem(sys.modules, "configs", theirs)
    (elsewhere / "mine.py").write_text(OWN)
    assert config_file.get_config("mine.py").row == "own"
    assert sys.modules["configs"] is theirs
    assert "configs.covid" not in sys.modules


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("phantm", "phantom, "),
        ("covd:cpu", "covid, "),
        ("configs/niftii.py", "nifti, "),
        ("elsewhere/phantom.py", "phantom, "),
        ("default", "folder"),
        ("variants", "nifti"),
    ],
)
def test_an_unknown_name_lists_the_names_there_are(elsewhere, name, nearest):
    refused(lambda: config_file.get_config(name), name.split(":")[0], nearest)
    refused(lambda: config_file.find(name), *config_file.names())


def test_an_unknown_variant_is_refused():
    refused(lambda: config_file.get_config("phantom:unett"), "unett", "unet")


def test_once_installed_the_folder_lies_in_the_package(tmp_path):
    """A wheel has no checkout beside it."""
    package = tmp_path / "biedsnet_jax"
    shutil.copytree(ROOT / "configs", package / "configs")
    (package / "config").mkdir()
    (package / "config" / "config_file.py").write_text(
        (ROOT / "biedsnet_jax" / "config" / "config_file.py").read_text()
    )
    spec = importlib.util.spec_from_file_location(
        "installed", package / "config" / "config_file.py"
    )
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    assert installed.folder() == package / "configs"
    assert flat(installed.get_config("phantom")) == flat(phantom.get_config())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config():\n    pass\n", "None"),
        ("def get_config():\n    return {'seed': 1}\n", "seed"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("x = 1\n", "get_config"),
    ],
)
def test_a_file_that_makes_no_config_is_refused(tmp_path, text, says):
    (tmp_path / "own.py").write_text(text)
    refused(lambda: config_file.get_config(f"{tmp_path}/own.py"), "own.py", says)
