"""A mode serve in a process of its own, for the scripts that load and attack one."""

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running(
    line: Sequence[str], *, log: Path, env: Mapping[str, str], says: str
) -> Iterator[tuple[re.Match, subprocess.Popen]]:
    """Start the command `line`, give the match of `says` in its output, and kill it in the end.

    What it prints goes to `log`. Raises SystemExit where it ends before it says so.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            line, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=dict(env)
        )
    try:
        while not (match := re.search(says, log.read_text())):
            if process.poll() is not None:
                raise SystemExit(f"the server did not start: {log.read_text()}")
            time.sleep(0.1)
        yield match, process
    finally:
        process.kill()
        process.wait()
