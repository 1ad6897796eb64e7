"""Tests that a server's folder is removed after it, also after a kill, and no sooner."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from places import ROOT

from biedsnet_jax.serving import folder as serve_folder

_HOLD = """
from biedsnet_jax.serving import folder
with folder.temporary() as place:
    (place / "job").mkdir()
    (place / "job" / "upload").write_text("private")
    print(place, flush=True)
    input()
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The system's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def other(root):
    """`other()` starts another server, and returns its process and its folder."""
    processes = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_it_is_gone_at_the_end(root):
    with serve_folder.temporary() as folder:
        assert folder.parent == root
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "job").mkdir()
        (folder / "job" / "upload").write_text("private")
    assert list(root.iterdir()) == []


def test_it_is_gone_after_an_error(root):
    with pytest.raises(KeyError), serve_folder.temporary() as folder:
        (folder / "upload").write_text("private")
        raise KeyError
    assert list(root.iterdir()) == []


def test_what_a_killed_server_left_is_removed_and_what_a_living_one_has_is_not(
    root, other
):
    (killed, left), (_, kept) = other(), other()
    assert serve_folder.clear_stale() == 0
    assert left.exists()
    assert kept.exists()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (left / "job" / "upload").exists()
    assert serve_folder.clear_stale() == 1
    assert not left.exists()
    assert (kept / "job" / "upload").read_text() == "private"
    assert [path.name for path in root.iterdir()] == [kept.name]


def test_its_own_is_not_stale(root):
    with serve_folder.temporary() as folder:
        assert serve_folder.clear_stale() == 0
        assert folder.exists()


def old(folder, hours):
    """Makes a folder of an earlier version, without a lock, and with an old upload."""
    folder.mkdir()
    (folder / "upload").write_text("private")
    then = time.time() - hours * 3600
    os.utime(folder / "upload", (then, then))
    return folder


@pytest.mark.parametrize(
    ("hours", "gone"), [(0, False), (23, False), (25, True), (999, True)]
)
def test_a_folder_without_a_lock_is_stale_after_a_day(root, hours, gone):
    folder = old(root / f"{serve_folder.PREFIX}x", hours)
    assert serve_folder.clear_stale() == gone
    assert folder.exists() == (not gone)


def test_what_only_looks_like_a_servers_folder_stays(root, tmp_path_factory):
    elsewhere = old(tmp_path_factory.mktemp("elsewhere") / "data", 99)
    (root / f"{serve_folder.PREFIX}link").symlink_to(elsewhere)
    (root / f"{serve_folder.PREFIX}file").write_text("x")
    (root / f"{serve_folder.PREFIX}empty").mkdir()
    old(root / "biedsnet_other", 99)
    assert serve_folder.clear_stale() == 0
    assert len(list(root.iterdir())) == 4
    assert (elsewhere / "upload").exists()


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)
def test_another_users_folder_stays(root):
    folder = old(root / f"{serve_folder.PREFIX}x", 99)
    os.chown(folder, 12345, 12345)
    assert serve_folder.clear_stale() == 0
    assert folder.exists()


@pytest.mark.slow
def test_it_goes_while_others_write_into_it(root):
    """When a server leaves at once, nothing appears again under the folder's name."""
    ended = threading.Event()
    with serve_folder.temporary() as folder:

        def write():
            number = 0
            while not ended.is_set():
                number += 1
                try:
                    (folder / str(number)).mkdir()
                    (folder / str(number) / "upload").write_text("private")
                except OSError:
                    continue

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        serve_folder.remove_open()
        time.sleep(0.1)
        ended.set()
        for thread in threads:
            thread.join()
    assert list(root.iterdir()) == []
