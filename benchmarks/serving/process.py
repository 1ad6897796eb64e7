"""Mode serve in a process of its own, for the scripts that load and attack it."""

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
    program: Sequence[str], workdir: str, folder: Path, *, pattern: str
) -> Iterator[tuple]:
    """Yields the groups of `pattern` in the output of a server, and its process.

    `program` is what Python is given, flags of the server included. The server's
    temporary files go to `tmp` in `folder`, its output to `log`. Raises SystemExit where
    it ends before its output matches `pattern`.
    """
    # The system chooses a free port, which the output names.
    flags = ["--mode=serve", f"--workdir={Path(workdir).absolute()}", "--port=0"]
    log = folder / "log"
    env = os.environ | {"TMPDIR": str(folder / "tmp")}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *program, *flags],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
        )
    try:
        while not (match := re.search(pattern, log.read_text())):
            if process.poll() is not None:
                raise SystemExit(f"The server did not start: {log.read_text()}")
            time.sleep(0.1)
        yield *match.groups(), process
    finally:
        process.kill()
        process.wait()
