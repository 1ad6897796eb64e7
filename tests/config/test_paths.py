"""Paths of flags and fields: an address of a bucket is refused in one line, and a folder
of its name is never made.
"""

import pathlib

import pytest
from absl import flags
from refusals import refused

from biedsnet_jax import main
from biedsnet_jax.config import command_line, network_file, run_config
from biedsnet_jax.config.check import check_config
from biedsnet_jax.config.fields import flat, set_field
from biedsnet_jax.errors import BadInput
from biedsnet_jax.runtime import files
from configs import default, phantom

ADDRESSES = ["gs://bucket/a", "s3://bucket/a", "hdfs://host:9000/a", "https://host/a"]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", ["config", "workdir", "input", "output", "compare"])
def test_an_address_in_a_flag(name, address):
    line = ["main", "--mode=predict", f"--{name}={address}"]
    refused(
        lambda: command_line.with_paths(line, flags.FLAGS),
        f"--{name} is '{address}'",
        "Mount the bucket as a folder",
    )


@pytest.mark.parametrize(
    "address", ["gs://bucket/a", "s3://bucket/a", "https://host/a"]
)
def test_an_address_that_was_made_a_path_object(address):
    refused(lambda: files.expanded(str(pathlib.Path(address))), "an address")


def test_a_config_of_no_name():
    # As --config=$CONFIG is where CONFIG is not set.
    for line in (["--workdir=w"], ["--mode=evaluate", "--workdir=w"]):
        words = ["main", *line, "--config="]
        refused(
            lambda words=words: main.parse_flags(words), "--config is empty", "phantom"
        )


def test_an_unknown_home_of_a_network_file_is_refused_as_elsewhere():
    path = "~nobody_at_all/a.py"
    with pytest.raises(BadInput) as elsewhere:
        files.expanded(path)
    with pytest.raises(BadInput) as here:
        network_file.read(path)
    assert str(here.value) == str(elsewhere.value)


def test_an_address_among_the_workdirs_of_a_report():
    line = ["main", "--mode=report", "--workdir=runs/a,gs://bucket/b"]
    refused(
        lambda: command_line.with_paths(line, flags.FLAGS),
        "--workdir is 'gs://bucket/b'",
    )


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    "name",
    [
        "data.root",
        "data.cache_dir",
        "data.tfds.data_dir",
        "compile_cache",
        "network_file",
        "distill.teacher",
    ],
)
def test_an_address_in_a_field(name, address):
    c = phantom.get_config()
    with c.unlocked():
        set_field(c, name, address)
    refused(lambda: check_config(c), f"{name} is '{address}'", "Mount the bucket")


def test_a_tilde_in_the_other_fields_is_the_home(monkeypatch, tmp_path):
    """tests/runtime/test_no_home.py has the fields of data and caches."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "network.py").write_text("a = 1")
    assert network_file.read("~/network.py") == b"a = 1"
    c = phantom.get_config()
    with c.unlocked():
        set_field(c, "distill.teacher", "~/gone")
    refused(lambda: run_config.check_teacher(c), f"{tmp_path}/gone", "distill.teacher")


def test_every_field_that_is_named_like_a_path_is_one_of_those():
    ends = ("root", "dir", "cache", "file", "folder", "path")
    named = {name for name in flat(default.get_config()) if name.endswith(ends)}
    # Stochastic depth of networks, which drops paths.
    assert {name for name in named if not name.endswith("drop_path")} == {
        "data.root",
        "data.cache_dir",
        "data.tfds.data_dir",
        "compile_cache",
        "network_file",
        # Whether slices are kept in memory.
        "data.cache",
    }


def test_a_workdir_that_is_no_text(tmp_path):
    # What Python makes of a byte that its locale cannot read.
    line = ["main", f"--workdir={tmp_path}/l\udcc3"]
    refused(lambda: command_line.with_paths(line, flags.FLAGS), "--workdir", "LC_ALL")
    line.append("--mode=report")
    assert command_line.with_paths(line, flags.FLAGS) == line


@pytest.mark.parametrize(
    "path",
    ["runs/a:b", "a:b", "C:/runs", "C://runs", "saved.py:/runs/a", "x//y", ":/a"],
)
def test_a_path_with_a_colon_is_a_path(path):
    assert files.expanded(path) == path


@pytest.mark.parametrize(
    "words",
    [
        ["--config=configs/phantom.py:unet,toy", "--workdir=gs://bucket/run"],
        ["--mode=predict", "--workdir=w", "--input=s3://bucket/a.png", "--output=o"],
        ["--mode=report", "--workdir=gs://bucket/run"],
    ],
)
def test_no_folder_of_that_name_is_made(monkeypatch, tmp_path, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main.run(["main", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "bucket" in said
    assert list(tmp_path.iterdir()) == []
