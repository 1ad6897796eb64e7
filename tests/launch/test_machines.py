"""The launchers of clusters and of the cloud, with a stand-in for what they call."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from places import ROOT

LAUNCH = ROOT / "launch"
RUN = ["configs/covid.py", "/shared/run", "--config.split.test=('a b',)"]
TRAINING = [
    "biedsnet_jax.main",
    "--config=configs/covid.py",
    "--workdir=/shared/run",
    "--config.split.test=('a b',)",
]
STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


@pytest.fixture
def launch(tmp_path):
    """`launch(script, *words)` gives the calls that the script made, a list each."""
    for name in ("gcloud", "git", "srun"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "calls"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def call(script, *words):
        log.write_text("")
        environment = os.environ | {"PATH": path, "CALLS": str(log)}
        line = ["bash", LAUNCH / script, *words]
        subprocess.run(line, cwd=tmp_path, env=environment, check=True)
        return [json.loads(text) for text in log.read_text().splitlines()]

    return call


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gpu_vm.sh"])
def test_a_machine_of_the_cloud_trains_with_the_words_it_was_given(launch, script):
    (call,) = launch(script, "run", *RUN)
    (remote,) = [word for word in call if word.startswith("--command=")]
    words = shlex.split(remote.removeprefix("--command="))
    assert words == ["cd", "biedsnet", "&&", "../venv/bin/python", "-m", *TRAINING]


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gpu_vm.sh"])
def test_a_machine_of_the_cloud_gets_the_committed_project(launch, script):
    git, copy, install = launch(script, "install")
    assert git[:2] == ["git", "-C"] and {"archive", "HEAD"} <= set(git)
    assert "scp" in copy
    (remote,) = [word for word in install if word.startswith("--command=")]
    assert "-r biedsnet/requirements.txt" in remote


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gpu_vm.sh"])
@pytest.mark.parametrize("step", ["create", "delete"])
def test_a_machine_of_the_cloud_comes_and_goes_by_name(launch, script, step):
    (call,) = launch(script, step)
    assert call[0] == "gcloud" and {step, "biedsnet"} <= set(call)


def test_slurm_starts_the_training_in_every_task(launch):
    (call,) = launch("slurm.sbatch", *RUN)
    assert call == ["srun", "--kill-on-bad-exit=1", "python", "-m", *TRAINING]
