"""Locks of a folder: between processes, in one, after a kill, without file locks."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from refusals import refused

from biedsnet_jax.runtime.lock import Lock, wait

HOLD = """
import pathlib, sys, time
from biedsnet_jax.runtime.lock import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_process_is_refused_with_the_name_of_the_first(tmp_path, other):
    host = os.uname().nodename
    refused(
        lambda: Lock(tmp_path),
        tmp_path,
        f"process {other.pid} on host {host}",
        "--workdir",
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_frees_it(tmp_path, other, number):
    other.send_signal(number)
    other.wait()
    with Lock(tmp_path) as lock:
        assert lock.held


def test_two_in_one_process_are_two(tmp_path):
    with Lock(tmp_path):
        refused(
            lambda: Lock(tmp_path, another="--output"),
            f"process {os.getpid()}",
            "--output",
        )
        with Lock(tmp_path, name=".other"):
            pass
    with Lock(tmp_path) as again:
        assert again.held


def test_a_file_of_rubbish_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\0not json")
    with Lock(tmp_path) as lock:
        assert lock.held


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_all_the_same(
    tmp_path, monkeypatch, number
):
    def flock(descriptor, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Lock(tmp_path) as lock:
        assert not lock.held


def test_a_folder_that_cannot_be_written(tmp_path):
    refused(lambda: Lock(Path("/sys/kernel")), "/sys/kernel", "--workdir")
    refused(lambda: Lock(tmp_path / "gone"), tmp_path / "gone")


def test_waiting_ends_when_the_holder_does(tmp_path, other):
    messages = []

    def say(text):
        messages.append(text)
        other.kill()

    with wait(tmp_path, name=".lock", say=say) as lock:
        assert lock.held
    (message,) = messages
    assert str(other.pid) in message and str(tmp_path) in message
    with wait(tmp_path, name=".lock", say=say):
        # Nobody holds the lock any more.
        assert len(messages) == 1
