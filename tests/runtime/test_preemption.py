"""Signals: at once outside the loop, at the end of a step inside it; real processes."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT

from biedsnet_jax.errors import Preempted
from biedsnet_jax.runtime.preemption import Watch

SIGNALS = [
    ("SIGTERM", "SIGTERM", 0),
    ("SIGINT", "Ctrl-C", 130),
    ("SIGHUP", "SIGHUP", 129),
]


@pytest.fixture(autouse=True)
def usual_signals():
    """Default handlers; a shell in whose background tests run has signals ignored."""
    usual = dict.fromkeys(("SIGTERM", "SIGHUP"), signal.SIG_DFL)
    usual["SIGINT"] = signal.default_int_handler
    before = {name: signal.signal(signal.Signals[name], usual[name]) for name in usual}
    yield
    for name, handler in before.items():
        signal.signal(signal.Signals[name], handler)


def send(name: str) -> None:
    signal.raise_signal(signal.Signals[name])


@pytest.mark.parametrize(("sent", "called", "code"), SIGNALS)
def test_outside_the_loop_it_stops_at_once_and_the_handler_is_put_back(
    sent, called, code
):
    before = signal.getsignal(signal.Signals[sent])
    says = f"Stopped by {called} before its first step"
    with pytest.raises(Preempted, match=says) as caught, Watch():
        send(sent)
    assert caught.value.code == code
    assert signal.getsignal(signal.Signals[sent]) == before


@pytest.mark.parametrize(("sent", "called", "code"), SIGNALS)
def test_in_the_loop_it_stops_after_the_step(sent, called, code):
    steps = []
    says = f"Stopped by {called} at step 3"
    with (
        pytest.raises(Preempted, match=says) as caught,
        Watch() as watch,
        watch.loop("after"),
    ):
        for step in range(1, 9):
            if step == 3:
                send(sent)
            steps.append(step)
            if watch.reached(step):
                raise watch.stopped(f"at step {step}")
    assert steps == [1, 2, 3] and caught.value.code == code


def test_after_the_last_step_it_stops_at_the_end_of_the_loop():
    with pytest.raises(Preempted, match="SIGTERM after step 8"), Watch() as watch:
        with watch.loop("after step 8"):
            assert not watch.reached(8)
            send("SIGTERM")
        pytest.fail("went on to the test")


@pytest.mark.parametrize(("sent", "called", "code"), SIGNALS)
def test_after_the_loop_the_message_names_how_the_run_stands(sent, called, code):
    says = "after step 8. Tests again."
    with (
        pytest.raises(Preempted, match=f"Stopped by {called} {says}"),
        Watch() as watch,
    ):
        with watch.loop(says):
            assert not watch.reached(8)
        send(sent)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_what_is_ignored_at_the_start_stays_ignored(name):
    """nohup ignores SIGHUP, and a shell SIGINT for what runs in its background."""
    signal.signal(signal.Signals[name], signal.SIG_IGN)
    with Watch() as watch, watch.loop("after"):
        send(name)
        assert not watch.reached(1)
    assert signal.getsignal(signal.Signals[name]) == signal.SIG_IGN


def test_the_first_signal_names_the_end():
    says = "Stopped by SIGTERM after"
    with (
        pytest.raises(Preempted, match=says) as caught,
        Watch() as watch,
        watch.loop("after"),
    ):
        for name in ("SIGTERM", "SIGHUP", "SIGINT"):
            send(name)
    assert caught.value.code == 0


def test_no_library_takes_it_for_a_fault():
    assert not issubclass(Preempted, Exception)


# --- processes ------------------------------------------------------------------------------------

TWICE = """
import signal, time
from biedsnet_jax.runtime.preemption import Watch
signal.signal(signal.SIGINT, signal.default_int_handler)
with Watch() as watch, watch.loop("after"):
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
        if watch.reached(1):
            print("reached", flush=True)
            time.sleep(600)
"""


def test_a_second_ctrl_c_quits_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", TWICE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in ("ready\n", "reached\n"):
            assert process.stdout.readline() == line
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().startswith("biedsnet: Stopped at once by a second Ctrl-C.")


def toy(workdir: Path) -> list[str]:
    line = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        "--config=configs/phantom.py:unet,toy",
    ]
    usual = (
        "eval.every=0",
        "log.every=1",
        "checkpoint.every=1000000",
        "train.steps=1000000",
        "log.tensorboard=False",
    )
    fields = [f"--config.{field}" for field in usual]
    return [*line, f"--workdir={workdir}", *fields]


def wait_for_steps(workdir: Path, process, steps: int) -> None:
    """Waits until so many steps are logged, five minutes at most."""
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and path.read_text().count("\n") >= steps):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_terminal_that_is_gone_costs_no_step(tmp_path):
    """A laptop is closed: SIGHUP comes, and the terminal can no longer be written."""
    ours, theirs = pty.openpty()
    own = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", own, *toy(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    with process:
        try:
            wait_for_steps(tmp_path, process, 3)
        finally:
            os.close(ours)
        assert process.wait(120) == 129
    (step,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert step >= 3
    assert (tmp_path / "checkpoints" / str(step) / "checksums.json").is_file()
    steps = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == step
