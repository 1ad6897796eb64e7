"""Runs scripts that call `python`, for which a stand-in writes down its calls."""

import json
import os
import pathlib
import subprocess
from collections.abc import Callable
from typing import Any


def caller(
    folder: pathlib.Path, source: str
) -> Callable[..., tuple[subprocess.CompletedProcess, list[Any]]]:
    """Makes `call(script, *words, **environment)`, which runs a script in `folder`.

    It gives the finished process and what the stand-in of this source has written into
    the file CALLS of its environment, a line of JSON a call.
    """
    stand_in = folder / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text(source)
    stand_in.chmod(0o755)
    log = folder / "calls"

    def call(script, *words, **environment):
        log.write_text("")
        path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [script, *words],
            cwd=folder,
            env={**os.environ, "PATH": path, "CALLS": str(log), **environment},
            capture_output=True,
            text=True,
        )
        return done, [json.loads(line) for line in log.read_text().splitlines()]

    return call
