"""Users without a home folder (a container, cron), or whose cache cannot be written."""

import os
import subprocess
import sys

import jax
import pytest
from no_home import leave_homeless
from places import ROOT
from refusals import refused

from biedsnet_jax.config import build_data
from biedsnet_jax.data.sources import tfds
from biedsnet_jax.runtime import devices
from configs import nifti


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """The cache folder of a user without a home, who stands in `tmp_path`."""
    leave_homeless(monkeypatch, tmp_path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / f"biedsnet_jax_{os.getuid()}"


@pytest.fixture
def compile_cache(monkeypatch):
    """`compile_cache()` is where jax keeps programs: nowhere at first, as in a new process."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)


def test_caches_lie_in_the_temporary_folder(homeless, compile_cache, capsys):
    devices.enable_compile_cache("auto")
    assert compile_cache() == f"{homeless}/xla" and capsys.readouterr().err == ""
    assert build_data.cache_folder(nifti.get_config()) == homeless / "slices"


@pytest.mark.parametrize("path", ["~", "~/cache", "~nobody_at_all/cache"])
def test_a_home_that_is_not_known_is_refused_in_every_field(
    homeless, compile_cache, path
):
    c = nifti.get_config("unet,toy")
    c.data.update(cache_dir=path, root=path)
    refused(lambda: build_data.cache_folder(c), path, "not known")
    refused(lambda: build_data.open_data(c), path, "not known")
    refused(lambda: devices.enable_compile_cache(path), path, "not known")
    refused(lambda: tfds.find("set", path), path, "not known")
    assert not (homeless.parent / "~").exists()


def test_tfds_own_folder_is_in_the_home(homeless, monkeypatch):
    refused(lambda: tfds.find("set", ""), "data.tfds.data_dir", "home folder")
    monkeypatch.setenv("TFDS_DATA_DIR", str(homeless))
    refused(lambda: tfds.find("set", ""), "data.tfds.name", homeless)


def test_a_tilde_in_a_field_is_the_home(monkeypatch, tmp_path, compile_cache):
    monkeypatch.setenv("HOME", str(tmp_path))
    c = nifti.get_config()
    c.data.cache_dir = "~/slices"
    assert build_data.cache_folder(c) == tmp_path / "slices"
    devices.enable_compile_cache("~/xla")
    assert compile_cache() == f"{tmp_path}/xla"
    refused(lambda: tfds.find("set", "~/sets"), f"{tmp_path}/sets")
    c.data.root = "~/gone"
    refused(lambda: build_data.open_data(c), f"{tmp_path}/gone", "data.root")


@pytest.mark.parametrize("folder", ["file/xla", "file", "/sys/kernel/xla"])
def test_a_compile_cache_that_cannot_be_written_is_warned_of_once_and_not_used(
    tmp_path, compile_cache, capsys, folder
):
    (tmp_path / "file").touch()
    before = compile_cache()
    devices.enable_compile_cache(str(tmp_path / folder))
    assert compile_cache() == before
    err = capsys.readouterr().err
    assert err.startswith("biedsnet: The compile cache ") and err.count("\n") == 1
    assert str(tmp_path / folder) in err and "compile_cache" in err


def test_a_home_that_cannot_be_written_stops_nothing(
    tmp_path, monkeypatch, compile_cache, capsys
):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/sys/kernel")
    devices.enable_compile_cache("auto")
    assert "/sys/kernel/.cache/biedsnet_jax/xla" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_run_without_a_home(tmp_path):
    program = (
        "import os, pwd, sys\n"
        "def unknown(number): raise KeyError(number)\n"
        "pwd.getpwuid = unknown\n"
        "from biedsnet_jax import main\n"
        "sys.exit(main.run(sys.argv))\n"
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "XDG_CACHE_HOME")
    }
    environment |= {"JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path)}
    flags = [
        "--config=configs/phantom.py:unet,toy",
        f"--workdir={tmp_path}/run",
        "--quiet",
    ]
    line = [sys.executable, "-c", program, *flags]
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / f"biedsnet_jax_{os.getuid()}" / "xla").is_dir()
