"""For soak.py: a toy training as a process that is started, watched, killed and read."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import scripts

FIELDS = {
    "data.size": 16,
    "networks.biedsnet.channels": (8, 16),
    "networks.biedsnet.blocks_per_level": 1,
    "networks.biedsnet.reduction": 4,
    "loss.supervision_weights": (1.0,),
    "split.fractions": (0.5, 0.17, 0.33),
    "train.batch_size": 4,
    "train.warmup_steps": 10,
    "eval.batch_size": 4,
    "eval.every": 100,
    "sampler.steps": 2,
    "sampler.ensemble": 1,
    "checkpoint.every": 20,
    "checkpoint.keep_latest": 2,
    "log.every": 2,
    "log.tensorboard": False,
}


@dataclass(frozen=True)
class Ended:
    """How a start ended."""

    code: int
    # The signal that was sent, None where the process ended by itself.
    signal: str | None
    finished: bool
    # The last step that was logged before this start.
    before: int | None
    # The step it went on from, 0 if from nothing; None where it did not get so far.
    from_step: int | None
    err: str


@dataclass(frozen=True)
class Moment:
    """When to send a signal: `seconds` after the start, or after so many new steps."""

    seconds: float
    new_steps: int = 0


def write_pictures(data: Path) -> None:
    """Writes six cases of three slices, noise with a bright square each."""
    rng = np.random.default_rng(0)
    for case in "abcdef":
        for slice_ in range(3):
            mask = np.zeros((16, 16), np.uint8)
            top, left = rng.integers(1, 8, 2)
            mask[top : top + 6, left : left + 6] = 255
            image = rng.integers(0, 120, mask.shape).astype(np.uint8) + mask // 2
            for kind, pixels in (("images", image), ("masks", mask)):
                path = data / kind / case / f"{slice_}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)


class Run:
    """A training that can be started again and again, by the same command."""

    def __init__(self, folder: Path, *, steps: int, more: dict | None = None):
        self.folder, self.data, self.steps = folder, folder / "data", steps
        self.fields = FIELDS | (more or {})
        own = {"train.steps": steps, "compile_cache": folder / "compiled"}
        self.fields |= own | {"data.root": self.data}
        self.expected: dict[str, bytes] = {}

    def unbroken(self) -> float:
        """Trains twice undisturbed, and keeps the bits.

        Returns the seconds to the first step once all is compiled.
        """
        write_pictures(self.data)
        for name in ("unbroken", "again"):
            started = self.start(self.folder / name)
            start = time.monotonic()
            started.wait_for(Moment(0, new_steps=1))
            # The second run has all programs compiled, so its seconds count.
            seconds = time.monotonic() - start
            ended = started.end(None, None)
            if not ended.finished:
                raise SystemExit(
                    f"The unbroken run failed, exit code {ended.code}:\n{ended.err}"
                )
        self.expected = self.final_bits(self.folder / "unbroken")
        if self.final_bits(self.folder / "again") != self.expected:
            raise SystemExit("Two unbroken runs differ, so there is nothing to expect.")
        print(f"from start to first step, unbroken: {seconds:.1f} s", flush=True)
        return seconds

    def start(self, workdir: Path, *, file_limit: int | None = None) -> "Started":
        """Starts a process; none of its files may have more bytes than `file_limit`."""
        return Started(self.command(workdir), workdir, self.folder, file_limit)

    def command(self, workdir: Path) -> list[str]:
        """The command that trains in `workdir`."""
        fields = [f"--config.{name}={value}" for name, value in self.fields.items()]
        line = [sys.executable, "-m", "biedsnet_jax.main", "--config=configs/folder.py"]
        return [*line, f"--workdir={workdir}", *fields]

    def final_bits(self, workdir: Path) -> dict[str, bytes]:
        """The bytes of every array of the last checkpoint, by name."""
        import jax
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            folder = workdir / "checkpoints" / str(self.steps) / "state"
            tree = checkpointer.restore(folder.absolute())
        return {
            jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    def watch_memory(self, workdir: Path) -> list[tuple[int, float]]:
        """(step, resident MiB) at each step that an undisturbed run logs."""
        started, points = self.start(workdir), []
        while started.process.poll() is None:
            step = last_step(workdir)
            memory = scripts.resident_mib(started.process.pid)
            if step is not None and memory and (not points or step > points[-1][0]):
                points.append((step, memory))
            time.sleep(0.01)
        ended = started.end(None, None)
        if not ended.finished:
            raise SystemExit(f"The run failed, exit code {ended.code}:\n{ended.err}")
        return points


class Started:
    """A process under way."""

    def __init__(
        self, line: list[str], workdir: Path, logs: Path, file_limit: int | None
    ):
        self.workdir, self.before = workdir, last_step(workdir)
        # Files, since pipes that nobody reads would fill.
        self.logs = logs / "stdout", logs / "stderr"
        with self.logs[0].open("w") as out, self.logs[1].open("w") as err:
            # The same bits are only promised on one kind of device.
            environment = os.environ | {"JAX_PLATFORMS": "cpu"}
            self.process = subprocess.Popen(
                line, cwd=scripts.ROOT, env=environment, stdout=out, stderr=err
            )
        if file_limit:
            resource.prlimit(
                self.process.pid, resource.RLIMIT_FSIZE, (file_limit, file_limit)
            )

    def end(self, moment: Moment | None, how: str | None) -> Ended:
        """Sends the signal `how` at `moment`; without one waits half an hour for the end."""
        sent = None
        try:
            if moment is None:
                self.process.wait(1800)
            elif not self.wait_for(moment):
                sent = how
                self.process.send_signal(signal.Signals[how])
                self.process.wait(120)
        except subprocess.TimeoutExpired:
            # A SIGTERM that is ignored and a hang are failures, as their exit codes tell.
            pass
        finally:
            self.process.kill()
            self.process.wait()
        out, err = (path.read_text() for path in self.logs)
        code = self.process.returncode
        finished = code == 0 and (self.workdir / "results.json").exists()
        return Ended(
            code=code,
            signal=None if finished else sent,
            finished=finished,
            before=self.before,
            from_step=went_from(out),
            err=err,
        )

    def wait_for(self, moment: Moment) -> bool:
        """Waits for a moment, a quarter of an hour at most.

        Returns whether the process ended before it.
        """
        goal = (self.before or 0) + moment.new_steps
        given_up = time.monotonic() + 900
        while (
            moment.new_steps
            and self.process.poll() is None
            and time.monotonic() < given_up
        ):
            if (last_step(self.workdir) or 0) >= goal:
                break
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(moment.seconds)
        return self.process.poll() is not None


def went_from(out: str) -> int | None:
    """The step that a start went on from, as training prints it.

    None where the start did not get so far.
    """
    if match := re.search(r"^going on from step (\d+)", out, re.M):
        return int(match.group(1))
    return 0 if re.search(r"^[\d,]+ parameters$", out, re.M) else None


def steps(workdir: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return [
        int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()
    ]


def last_step(workdir: Path) -> int | None:
    """The last step in metrics.jsonl, None where there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return max(filter(None, map(_step, lines[-3:])), default=None)


def _step(line: bytes) -> int | None:
    """The step of a whole line of metrics.jsonl."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        # A power cut leaves lines that are damaged.
        return None
