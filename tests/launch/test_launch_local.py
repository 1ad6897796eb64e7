"""`launch/local.sh` starts processes, ends them together and starts them again.

A stand-in for `python` records what it was called with. The scripts of all launchers are
parsed; tests/launch/test_machines.py runs the others.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from places import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# It writes its flags to CALLS/<process>.<attempt>. The words of EXITS_<process> are the exit
# codes of its attempts; "wait" waits for SIGTERM.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time
if sys.argv[1] == "-c":
    sys.exit(print(4321))
flags = dict(argument.split("=", 1) for argument in sys.argv[3:] if "=" in argument)
process, calls = flags.get("--process_id", "0"), pathlib.Path(os.environ["CALLS"])
attempt = len(list(calls.glob(f"{{process}}.*")))
def stop(*_):
    pathlib.Path(calls, f"stopped.{{process}}").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(calls, f"{{process}}.{{attempt}}").write_text(" ".join(sys.argv[1:]))
seen = {{"cwd": os.getcwd()}}
for name in ("CUDA_VISIBLE_DEVICES", "PYTHONPATH"):
    seen[name] = os.environ.get(name)
pathlib.Path(calls).with_name(f"seen.{{process}}").write_text(json.dumps(seen))
while len(list(calls.glob(f"*.{{attempt}}"))) < int(flags.get("--num_processes", 1)):
    time.sleep(0.01)
code = os.environ.get(f"EXITS_{{process}}", "0 0 0 0").split()[attempt]
if code == "wait":
    time.sleep(60)
elif int(code) > 128:
    os.kill(os.getpid(), int(code) - 128)
sys.exit(int(code))
"""


@pytest.fixture
def local(tmp_path):
    """`local(*words, EXITS_0="137 0")` gives the process; calls are in tmp_path/calls."""
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    (tmp_path / "calls").mkdir()
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"

    def call(*arguments, **exits):
        environment = {
            **os.environ,
            "PATH": path,
            "CALLS": str(tmp_path / "calls"),
            **exits,
        }
        line = [LAUNCH / "local.sh", *arguments]
        # A shell cannot trap signals that it inherits as ignored, as in the background
        # and under nohup.
        return subprocess.Popen(
            line,
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )

    return call


def _heed_signals():
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def calls(tmp_path) -> dict[str, str]:
    """The arguments of each call by its process.attempt."""
    return {
        path.name: path.read_text() for path in sorted((tmp_path / "calls").iterdir())
    }


@pytest.mark.parametrize(
    "arguments",
    [["c.py", "run", "--seed=1"], ["--config=c.py", "--workdir=run", "--seed=1"]],
)
@pytest.mark.parametrize("n", [[], ["1"], ["3"]])
def test_every_process_has_the_flags_and_its_number(local, tmp_path, n, arguments):
    assert local(*n, *arguments).wait(300) == 0
    flags = "-m biedsnet_jax.main --config=c.py --workdir=run --seed=1"
    together = [
        f" --coordinator=localhost:4321 --num_processes=3 --process_id={i}"
        for i in range(3)
    ]
    several = n == ["3"]
    assert calls(tmp_path) == {
        f"{i}.0": flags + (together[i] if several else "")
        for i in range(3 if several else 1)
    }


@pytest.mark.parametrize(
    ("exits", "code", "attempts"),
    [
        # 137 is SIGKILL, 139 a crash.
        ("137 139 0", 0, 3),
        ("137 137 137 0", 137, 3),
        # A mistake would only be made again.
        ("2", 2, 1),
        ("1", 1, 1),
    ],
)
def test_what_is_killed_starts_again(local, tmp_path, exits, code, attempts):
    run = local("c.py", "run", EXITS_0=exits)
    assert run.wait(300) == code
    assert len(calls(tmp_path)) == attempts


def test_one_that_is_killed_takes_the_others_with_it_and_all_start_again(
    local, tmp_path
):
    assert local("2", "c.py", "run", EXITS_0="wait 0", EXITS_1="137 0").wait(300) == 0
    assert sorted(calls(tmp_path)) == ["0.0", "0.1", "1.0", "1.1"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_and_nothing_starts_again(local, tmp_path, how):
    run = local("2", "c.py", "run", EXITS_0="wait", EXITS_1="wait")
    while len(calls(tmp_path)) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(how)
    assert run.wait(300) == 0
    assert sorted(calls(tmp_path)) == ["0.0", "1.0", "stopped.0", "stopped.1"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("n", [1, 2])
def test_it_waits_where_the_signal_goes_to_the_whole_group_as_from_a_terminal(
    local, tmp_path, n, how
):
    run = local(f"{n}", "c.py", "run", EXITS_0="wait", EXITS_1="wait")
    while len(calls(tmp_path)) < n:
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, how)
    assert run.wait(300) == 0
    assert sorted(call for call in calls(tmp_path) if "stopped" in call) == [
        f"stopped.{i}" for i in range(n)
    ]


def nvidia(tmp_path, count):
    """Writes a stand-in for nvidia-smi that lists `count` GPUs."""
    lines = "".join(f"GPU {i}: NVIDIA H200 (UUID: GPU-{i}a)\\n" for i in range(count))
    path = tmp_path / "bin" / "nvidia-smi"
    path.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    path.chmod(0o755)


def seen(tmp_path, name) -> list:
    """A variable of the environment of each process, in order, or its folder."""
    return [
        json.loads(path.read_text())[name] for path in sorted(tmp_path.glob("seen.*"))
    ]


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ("4,5", ["4", "5"]),
        ("7,2,3", ["7", "2"]),
        (" 4 , 5 ", ["4", "5"]),
        ("GPU-8f3a-01,GPU-22,GPU-9", ["GPU-8f3a-01", "GPU-22"]),
        ("MIG-1f/1/0,MIG-GPU-2/5/0", ["MIG-1f/1/0", "MIG-GPU-2/5/0"]),
        ("3,1,-1,0", ["3", "1"]),
        ("", ["", ""]),
        ("-1", ["-1", "-1"]),
        ("NoDevFiles", ["NoDevFiles", "NoDevFiles"]),
    ],
)
def test_processes_share_the_gpus_that_were_given(local, tmp_path, given, devices):
    nvidia(tmp_path, 8)
    assert local("2", "c.py", "run", CUDA_VISIBLE_DEVICES=given).wait(300) == 0
    assert seen(tmp_path, "CUDA_VISIBLE_DEVICES") == devices


def test_one_process_has_all_gpus_that_were_given(local, tmp_path):
    nvidia(tmp_path, 8)
    assert local("c.py", "run", CUDA_VISIBLE_DEVICES="4,5").wait(300) == 0
    assert seen(tmp_path, "CUDA_VISIBLE_DEVICES") == ["4,5"]


@pytest.mark.parametrize(
    ("there", "devices"), [(2, ["0", "1"]), (0, ["0", "1"]), (None, [None, None])]
)
def test_without_a_choice_gpus_are_numbered_from_0(
    local, tmp_path, monkeypatch, there, devices
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if there is not None:
        nvidia(tmp_path, there)
    elif shutil.which("nvidia-smi"):
        pytest.skip("this machine has NVIDIA's tools")
    assert local("2", "c.py", "run").wait(300) == 0
    assert seen(tmp_path, "CUDA_VISIBLE_DEVICES") == devices


@pytest.mark.parametrize(
    ("n", "given", "says"),
    [
        ("3", "4,5", "N is 3, and CUDA_VISIBLE_DEVICES=4,5 names 2. Start 2 or fewer."),
        ("2", "GPU-8f3a", "CUDA_VISIBLE_DEVICES=GPU-8f3a names 1. Start 1"),
        ("4", "3,1,-1,0", "names 2"),
        ("9", None, "N is 9, and this machine has 8 GPUs. Start 8 or fewer."),
        ("0", None, "N is 0, the number of processes. Give 1 or more."),
    ],
)
def test_more_processes_than_gpus_are_refused_in_one_line(
    local, tmp_path, monkeypatch, n, given, says
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia(tmp_path, 8)
    run = local(
        n, "c.py", "run", **({} if given is None else {"CUDA_VISIBLE_DEVICES": given})
    )
    _, err = run.communicate(timeout=300)
    assert run.returncode == 2 and not calls(tmp_path)
    assert err.startswith("launch: ") and err.count("\n") == 1 and says in err


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (
            ["configs/phantom.py:unet,toy", "runs/mine"],
            "--config=configs/phantom.py:unet,toy",
        ),
        (
            ["--config=configs/covid.py", "--workdir=runs/mine"],
            "--config=configs/covid.py",
        ),
        (
            ["--config", "configs/covid.py", "--workdir=runs/mine"],
            "--config configs/covid.py",
        ),
        (["mine.py:cpu", "runs/mine"], "--config=mine.py:cpu"),
        (["my configs/a.py", "runs/mine"], "--config=my configs/a.py"),
    ],
)
def test_paths_are_those_of_the_users_folder(local, tmp_path, arguments, first):
    (tmp_path / "my configs").mkdir()
    for name in ("mine.py", "my configs/a.py"):
        (tmp_path / name).touch()
    assert local(*arguments, "--config.data.root=data").wait(300) == 0
    said = f"-m biedsnet_jax.main {first} --workdir=runs/mine --config.data.root=data"
    assert calls(tmp_path) == {"0.0": said}
    assert seen(tmp_path, "cwd") == [str(tmp_path)]
    assert seen(tmp_path, "PYTHONPATH")[0].split(os.pathsep)[0] == str(LAUNCH.parent)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["2"], ["c.py"]])
def test_usage(local, tmp_path, arguments):
    run = local(*arguments)
    assert run.wait(300) == 2 and not calls(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""
    checker = shutil.which(
        "shellcheck",
        path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    # The extra `test` brings it.
    if checker:
        done = subprocess.run([checker, script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gpu_vm.sh", "slurm.sbatch"])
def test_launchers_without_arguments_say_how(script):
    done = subprocess.run([LAUNCH / script], capture_output=True, text=True)
    assert done.returncode != 0 and (
        "launch/" in done.stdout or "config" in done.stderr
    )


def test_the_jobset_is_whole():
    jobset = yaml.safe_load((LAUNCH / "k8s-jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (
        spec["completionMode"] == "Indexed"
        and spec["parallelism"] == spec["completions"]
    )
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    rows, columns = map(
        int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    )
    assert (
        rows * columns
        == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    )
    shell = subprocess.run(
        ["bash", "-n", "-c", container["command"][2]], capture_output=True
    )
    assert shell.stderr == b"" and all(
        flag.startswith("--") for flag in container["args"]
    )
