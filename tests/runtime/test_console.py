"""Streams that are closed, or whose reader is gone, end no command and spoil no file."""

import os
import subprocess
import sys

import pytest
from places import ROOT

MAIN = [sys.executable, "-m", "biedsnet_jax.main"]
# What a command prints on its way, and a file that it writes.
PRINTS = """
import os, sys
from biedsnet_jax.runtime import console
console.keep_streams()
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for _ in range(3):
    console.tell("lost", sys.stdout)
    print("lost", file=sys.stderr)
os.write(file, str(file).encode())
"""


def pipe_without_reader() -> int:
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "code"), [(["--helpfields"], 0), (["--mode=report"], 2)]
)
def test_a_reader_that_is_gone_changes_no_exit_code(words, code, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    for streams in ({"stdout": True}, {"stdout": True, "stderr": True}):
        gone = {name: pipe_without_reader() for name in streams}
        there = {"stderr": subprocess.PIPE} | gone
        done = subprocess.run([*MAIN, *words], cwd=ROOT, env=environment, **there)
        for writer in gone.values():
            os.close(writer)
        assert done.returncode == code
        assert b"BrokenPipe" not in (done.stderr or b"")


@pytest.mark.parametrize(
    "streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "> >(true)", "> >(true) 2>&1"]
)
def test_a_command_goes_on_without_its_streams(streams, tmp_path):
    line = f'sleep 0.1; exec "$@" {streams}'
    line = ["bash", "-c", line, "bash", sys.executable, "-c", PRINTS]
    done = subprocess.run([*line, tmp_path / "file"], cwd=ROOT)
    assert done.returncode == 0
    # Libraries print to the numbers of the streams, to 2 above all.
    assert int((tmp_path / "file").read_text()) > 2
