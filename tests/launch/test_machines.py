"""The launchers of clusters and of the cloud, with a stand-in for what they call.

The stand-in of gcloud runs a command as the machine would, in a folder of this one.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from places import ROOT

LAUNCH = ROOT / "launch"
CLOUD = ["tpu_vm.sh", "gpu_vm.sh"]
RUN = ["configs/covid.py", "/shared/run", "--config.split.test=('a b',)"]
TRAINING = [
    "biedsnet_jax.main",
    "--config=configs/covid.py",
    "--workdir=/shared/run",
    "--config.split.test=('a b',)",
]
# Where MACHINE is set, it is the home folder of the machine. Nothing is installed there.
STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
home = os.environ.get("MACHINE")
if not home:
    sys.exit()
if "ssh" in words:
    (command,) = [word[10:] for word in words if word.startswith("--command=")]
    if "pip" not in command:
        sys.exit(subprocess.run(["bash", "-c", command], cwd=home).returncode)
elif "scp" in words:
    paths = [word for word in words[words.index("scp") + 1:] if word[0] != "-"]
    paths = [path.replace("biedsnet:", home + "/", 1) for path in paths]
    sys.exit(subprocess.run(["cp", "-r", *paths]).returncode)
"""
# Trains until SIGTERM, or ends at once with the code in --code.
PYTHON = f"""#!{sys.executable}
import pathlib, signal, sys, time
def stop(*_):
    print("checkpoint written", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
flags = dict(word.split("=", 1) for word in sys.argv[3:])
workdir = pathlib.Path(flags["--workdir"])
workdir.mkdir(parents=True, exist_ok=True)
(workdir / "flags").write_text(repr(sys.argv[2:]))
print("begun", flush=True)
if "--code" in flags:
    sys.exit(int(flags["--code"]))
time.sleep(60)
"""


@pytest.fixture
def launch(tmp_path):
    """`launch(script, *words, **environment)` gives its output and the calls it made."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("gcloud", "srun"):
        (tools / name).write_text(STAND_IN)
        (tools / name).chmod(0o755)
    log = tmp_path / "calls"

    def call(script, *words, code=0, **environment):
        log.write_text("")
        line = ["bash", script if script == "-c" else LAUNCH / script, *words]
        done = subprocess.run(
            line,
            cwd=tmp_path,
            env=os.environ
            | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "CALLS": str(log)}
            | {"TMPDIR": str(tmp_path)}
            | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done, [json.loads(text) for text in log.read_text().splitlines()]

    return call


@pytest.fixture
def machine(tmp_path):
    """The home folder of a machine on which everything is installed."""
    home = tmp_path / "machine"
    (home / "biedsnet").mkdir(parents=True)
    python = home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    yield home
    pid = home / "biedsnet" / "run.pid"
    if pid.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("script", CLOUD)
@pytest.mark.parametrize("step", ["create", "delete"])
def test_a_machine_of_the_cloud_comes_and_goes_by_name(launch, script, step):
    _, (call,) = launch(script, step, NAME="mine", TYPE="large")
    assert call[0] == "gcloud" and {step, "mine"} <= set(call)
    assert any(word.endswith("=large") for word in call) == (step == "create")


STEPS = [
    ["create"],
    ["data", "tools"],
    ["run", *RUN],
    ["logs"],
    ["stop"],
    ["fetch", "my runs/it's"],
    ["delete"],
]


@pytest.mark.parametrize("script", CLOUD)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[0])
def test_what_a_dry_run_prints_is_what_a_run_calls(launch, tmp_path, script, step):
    printed, calls = launch(script, *step, DRY_RUN="1")
    assert printed.stdout and calls == []
    assert not (tmp_path / "runs").exists()
    _, by_hand = launch("-c", printed.stdout)
    _, expected = launch(script, *step)
    assert by_hand == expected


@pytest.fixture
def project(tmp_path):
    """A checkout with the launchers, an edited file and a new one."""
    folder = tmp_path / "project"
    shutil.copytree(LAUNCH, folder / "launch")
    (folder / "edited").write_text("before")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (folder / "edited").write_text("after")
    (folder / "new").touch()
    return folder


@pytest.mark.parametrize("script", CLOUD)
def test_edits_are_copied_and_new_files_are_told(launch, machine, project, script):
    done, _ = launch(project / "launch" / script, "install", MACHINE=str(machine))
    assert (machine / "biedsnet" / "edited").read_text() == "after"
    assert not (machine / "biedsnet" / "new").exists() and "new" in done.stderr
    assert (project / "edited").read_text() == "after"


@pytest.mark.parametrize("script", CLOUD)
def test_what_a_dry_install_prints_is_what_an_install_calls(
    launch, tmp_path, project, script
):
    printed, calls = launch(project / "launch" / script, "install", DRY_RUN="1")
    assert calls == [] and not (tmp_path / "biedsnet.tar.gz").exists()
    _, by_hand = launch("-c", printed.stdout)
    _, expected = launch(project / "launch" / script, "install")
    # The archive has another name there, and is gone after a real install.
    (there,) = {word for call in by_hand for word in call if word.startswith("/")}
    (here,) = {word for call in expected for word in call if word.startswith("/")}
    assert there == str(tmp_path / "biedsnet.tar.gz")
    assert os.path.exists(there) and not os.path.exists(here)
    renamed = [[there if word == here else word for word in call] for call in expected]
    assert by_hand == renamed


@pytest.mark.parametrize("script", CLOUD)
def test_data_go_there_and_results_come_back(launch, tmp_path, machine, script):
    (tmp_path / "my data" / "images").mkdir(parents=True)
    done, _ = launch(script, "data", "my data/", MACHINE=str(machine))
    assert "--config.data.root=data/my data" in done.stderr
    assert (machine / "biedsnet" / "data" / "my data" / "images").is_dir()
    run = ["run", "covid", "runs/a b", "--x=('c d',)", "--code=0"]
    done, _ = launch(script, *run, MACHINE=str(machine))
    assert done.stdout == "begun\n"
    launch(script, "fetch", "runs/a b", MACHINE=str(machine))
    words = ["biedsnet_jax.main", "--config=covid", "--workdir=runs/a b", *run[3:]]
    assert (tmp_path / "runs" / "a b" / "flags").read_text() == repr(words)
    launch(script, "fetch", "~/biedsnet/runs/a b", "to", MACHINE=str(machine))
    assert (tmp_path / "to" / "a b" / "flags").exists()


@pytest.mark.parametrize("script", CLOUD)
def test_the_exit_code_of_a_run_comes_back(launch, machine, script):
    launch(script, "run", "covid", "w", "--code=2", MACHINE=str(machine), code=2)
    launch(script, "logs", MACHINE=str(machine), code=2)


def test_a_run_outlives_its_connection_until_it_is_stopped(launch, tmp_path, machine):
    launch("gpu_vm.sh", "logs", MACHINE=str(machine), code=2)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "watched"),
        "MACHINE": str(machine),
    }
    watching = subprocess.Popen(
        ["bash", LAUNCH / "gpu_vm.sh", "run", "covid", "w"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under nohup the tests ignore it, and what they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert watching.stdout.readline() == "begun\n"
    # The laptop is closed.
    os.killpg(watching.pid, signal.SIGHUP)
    assert watching.wait(60) == -signal.SIGHUP
    pid = int((machine / "biedsnet" / "run.pid").read_text())
    os.kill(pid, 0)
    done, _ = launch("gpu_vm.sh", "run", "covid", "w", MACHINE=str(machine), code=2)
    assert "a run is going on" in done.stderr
    done, _ = launch("gpu_vm.sh", "stop", MACHINE=str(machine))
    assert done.stdout == "checkpoint written\n"
    done, _ = launch("gpu_vm.sh", "logs", MACHINE=str(machine))
    assert done.stdout == "begun\ncheckpoint written\n"


@pytest.mark.parametrize("script", CLOUD)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data", "gone"], "DIR is gone"),
        (["data"], "DIR is missing"),
        (["run", "covid"], "CONFIG or WORKDIR is missing"),
        (["fetch"], "WORKDIR is missing"),
    ],
)
def test_wrong_words_start_nothing(launch, script, words, says):
    done, calls = launch(script, *words, code=2)
    assert says in done.stderr and calls == []


def test_slurm_starts_the_training_in_every_task(launch):
    _, (call,) = launch("slurm.sbatch", *RUN)
    assert call == ["srun", "--kill-on-bad-exit=1", "python", "-m", *TRAINING]


def test_slurm_starts_an_image_by_apptainer(launch, tmp_path):
    _, (call,) = launch("slurm.sbatch", *RUN, IMAGE="/shared/biedsnet.sif")
    at = call.index("/shared/biedsnet.sif")
    assert call[:4] == ["srun", "--kill-on-bad-exit=1", "apptainer", "exec"]
    assert call[at + 1 :] == ["python", "-m", *TRAINING]
    assert "--nv" in call[:at] and f"--bind={tmp_path}" in call[:at]


@pytest.fixture
def jobset():
    return yaml.safe_load((LAUNCH / "k8s-jobset.yaml").read_text())


def test_the_jobset_does_not_repeat_a_mistake(jobset):
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    (of_pods,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert of_pods["action"] == "FailJob"
    assert of_pods["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }


def test_the_batch_of_the_jobset_divides_over_its_chips(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    chips = spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    flags = dict(flag.split("=", 1) for flag in container["args"])
    assert chips == 16
    assert int(flags["--config.train.batch_size"]) % chips == 0


@pytest.mark.parametrize(
    ("stopped", "ends", "code"), [(False, 0, 0), (False, 2, 2), (True, None, 1)]
)
def test_the_jobset_gives_the_code_of_a_run_and_1_of_a_stopped_one(
    jobset, tmp_path, stopped, ends, code
):
    (job,) = jobset["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    words = [f"--workdir={tmp_path}/w"] + ([] if stopped else [f"--code={ends}"])
    pod = subprocess.Popen(
        [*container["command"], *words],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert pod.stdout.readline() == "begun\n"
    if stopped:
        pod.send_signal(signal.SIGTERM)
    assert pod.wait(30) == code
