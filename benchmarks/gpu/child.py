"""Runs a command as a process that ends in time."""

import dataclasses
import os
import subprocess
import time
from pathlib import Path

# Characters at the end of a log that are looked at for what went wrong.
_TAIL = 20_000


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    seconds: float
    # Whether it was asked to end, since its time was over.
    stopped: bool
    # The end of what it printed.
    text: str


def run(
    command: list[str],
    *,
    seconds: float,
    grace: float,
    log: Path,
    environment: dict[str, str],
) -> Ended:
    """Runs a command, and writes what it prints to `log`.

    After `seconds` it gets SIGTERM, as from a scheduler, and after `grace` more it is
    killed. No process is left behind, also where this one is interrupted.
    """
    start = time.monotonic()
    stopped = False
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            _end(process, grace)
    return Ended(
        code=process.returncode,
        seconds=time.monotonic() - start,
        stopped=stopped,
        text=log.read_text(errors="replace")[-_TAIL:],
    )


def is_out_of_memory(text: str) -> bool:
    """Whether jax or PyTorch says so in a message."""
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def _end(process, grace):
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
