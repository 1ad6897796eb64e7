"""A mode serve in a process of its own, for the scripts that load and attack one."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.scripts import ROOT


@contextlib.contextmanager
def serving(
    program: Sequence[str], workdir: str, folder: Path, *, says: str
) -> Iterator[tuple]:
    """What `says` finds in the output of a server of `workdir`, and its process, killed
    in the end.

    `program` is what Python is given, flags of the server included. Its temporary files
    go to `tmp` in `folder`, what it prints to `log`. Raises SystemExit where it ends
    before it says so.
    """
    flags = ["--mode=serve", f"--workdir={Path(workdir).absolute()}", "--port=0"]
    log, env = folder / "log", os.environ | {"TMPDIR": str(folder / "tmp")}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *program, *flags],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
        )
    try:
        while not (match := re.search(says, log.read_text())):
            if process.poll() is not None:
                raise SystemExit(f"the server did not start: {log.read_text()}")
            time.sleep(0.1)
        yield *match.groups(), process
    finally:
        process.kill()
        process.wait()
