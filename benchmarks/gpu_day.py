"""Measures all that waits for a GPU in so many minutes, then trains in what is left.

    JAX_PLATFORMS=cpu python benchmarks/gpu_day.py --out=DIR --expect
    python benchmarks/gpu_day.py --out=DIR --minutes=9 [--root=IMAGES] [--config=...]
    python benchmarks/gpu_day.py --out=DIR --rows

The first command is optional: it makes DIR/expected.npz on any machine without a GPU,
so that the GPU need not wait for a CPU. The second one goes through these steps:

 1. device: which one, its memory, versions. It stops where jax sees no GPU.
 2. expected: what a CPU computes, unless DIR has it.
 3. agreement: logits, loss, gradient and probability against the CPU's, in bfloat16,
    TF32 and float32, within the limits of benchmarks/gpu/agreement.py.
 4. speed: training step and prediction of the first of `--batches` in each precision,
    with memory and seconds to compile. What does not fit the memory is a result.
 5. torch: beside_torch/run.py with torch.compile in each precision, where PyTorch is.
 6. speed of the other batches.
 7. deterministic: whether deterministic operations give the same bits in two processes,
    and what they cost.
 8. training: the config on `--root`, from where DIR/run stands. It ends by SIGTERM in
    time for its checkpoint.

Each step is a process of its own, so that neither its memory nor its end is another's.
It starts only if it fits into what is left: by its own last try, else by the longest of
its kind, else by a guess. It ends when the minutes do. Each result goes into
DIR/gpu_day.json at once, with its command, device and versions. The same command on
another day does what is missing, then trains on; `--rows` prints the rows of
RESULTS.md. With JAX_PLATFORMS=cpu all of it runs on a CPU.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from benchmarks import scripts
from benchmarks.gpu import child, plan, precision, record, rows
from benchmarks.scripts import ROOT
from biedsnet_jax.checkpoints import checkpoint_folder
from biedsnet_jax.errors import BadInput, exit_code, shown
from biedsnet_jax.runtime import files

# Seconds that the training has to end after SIGTERM, its checkpoint included.
GRACE = 40.0
# The same of a step, which has nothing to save.
STEP_GRACE = 5.0
# Seconds of training under which starting it costs more than it brings.
LEAST_TRAINING = 60.0

Run = Callable[..., child.Ended]


def main() -> int:
    start = time.monotonic()
    arguments, words = _arguments()
    out = Path(arguments.out)
    if arguments.rows:
        print(rows.text(record.read(out)))
        return 0
    # This process only starts others, and must leave them the GPU.
    jax.config.update("jax_platforms", "cpu")
    cfg = scripts.read_config(words)
    if cfg.compile_cache == "auto":
        # A later day may be on another machine, with nothing but DIR.
        words.append(f"--config.compile_cache={out.absolute() / 'compiled'}")
    asked = plan.Asked(
        out=out.absolute(),
        words=words,
        precisions=arguments.precisions,
        batches=arguments.batches,
        repeats=arguments.repeats,
        root=arguments.root,
    )
    # So that the process under way is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    end = start + 60.0 * arguments.minutes
    day = Day(asked, precision.fields_of(cfg), end)
    if arguments.expect:
        day.expect()
        return 0
    day.run()
    print(rows.text(day.record))
    return 0


class Day:
    """One day: what it was asked for, what is known so far, how much time is left."""

    def __init__(
        self,
        asked: plan.Asked,
        fields: dict,
        end: float,
        *,
        execute: Run = child.run,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.asked = asked
        self.record = record.read(asked.out)
        self._end = end
        self._execute = execute
        self._clock = clock
        record.check_same(self.record, "config", fields, asked.out)
        with files.writing(asked.out, another="--out"):
            (asked.out / "results").mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds that are left."""
        return self._end - self._clock()

    def run(self) -> None:
        """Goes through all steps, as the module's docstring has them.

        Raises BadInput where there is no GPU, or another one than before.
        """
        self._begin()
        self.expect()
        for step in plan.steps(self.asked):
            if not record.is_final(self.record, step.name):
                self._try(step)
        self.train()

    def expect(self) -> None:
        """Makes the CPU's values where they are missing."""
        step = plan.expected(self.asked)
        if self.asked.expected.exists():
            return
        ended = self._start(step)
        if ended is not None:
            status = "done" if self.asked.expected.exists() else _how_it_failed(ended)
            self._note(step, _entry(ended, status))

    def measure(self, step: plan.Step) -> None:
        """Takes a step, if it fits into what is left."""
        result = self.asked.result(step)
        result.unlink(missing_ok=True)
        ended = self._start(step)
        if ended is None:
            return
        # A comparison that finds a difference has a result, and exit code 1.
        if ended.code in (0, 1) and result.exists():
            values = json.loads(result.read_text())
            self._note(step, _entry(ended, "done") | {"result": values})
        else:
            self._note(step, _entry(ended, _how_it_failed(ended)))

    def train(self) -> None:
        """Trains from where the workdir stands, until little is left."""
        if not self.asked.root:
            return _say("training: not started, since --root is missing")
        workdir = self.asked.workdir
        if (workdir / "results.json").exists():
            return _say("training: finished")
        seconds = self.left() - GRACE
        if seconds < LEAST_TRAINING:
            return _say(f"training: not started, {max(0, self.left()):.0f} s are left")
        before = _saved_step(workdir)
        step = plan.training(self.asked)
        _say(f"training: from step {before}, for {seconds:.0f} s")
        ended = self._execute(
            step.command,
            seconds=seconds,
            # The rest is for what is printed after it.
            grace=GRACE - STEP_GRACE,
            log=self._log(step),
            environment=step.environment,
        )
        after = _saved_step(workdir)
        entry = _entry(ended, "done" if ended.code == 0 else _how_it_failed(ended))
        entry |= {"command": self.asked.text(step), "date": _now()}
        entry |= {"from_step": before, "to_step": after}
        entry |= {"steps_per_second": _steps_per_second(workdir)}
        self.record["training"].append(entry)
        record.write(self.asked.out, self.record)
        _say(f"training: {entry['status']}, at step {after}")

    def _begin(self):
        """Notes the day and its device."""
        step = plan.device(self.asked)
        result = self.asked.result(step)
        result.unlink(missing_ok=True)
        ended = self._run(step)
        if ended.code or not result.exists():
            raise BadInput(
                f"jax does not start here: {_last_line(ended.text)}. "
                "Install jax for this GPU, such as jax[cuda12]."
            )
        found = json.loads(result.read_text())
        if found["device"]["platform"] == "cpu" and not _wants_cpu():
            raise BadInput(
                "jax sees no GPU here, only a CPU. Install jax for the GPU, such as "
                "jax[cuda12], or set JAX_PLATFORMS=cpu to try the command on the CPU."
            )
        record.check_same(self.record, "device", found["device"], self.asked.out)
        day = {"date": _now(), "seconds": round(self.left()), "commit": _commit()}
        self.record["days"].append(day | found)
        record.write(self.asked.out, self.record)

    def _try(self, step):
        """Takes a step that has what it needs beside the device."""
        if step.kind == "torch" and not _has_torch():
            self._note(step, {"status": "missing", "error": "PyTorch is missing."})
        elif step.kind == "agreement" and not self.asked.expected.exists():
            _say(f"{step.name}: not started, since the CPU's values are missing")
        else:
            self.measure(step)

    def _start(self, step):
        """Runs a step that fits into what is left; None where it does not."""
        guess = plan.FIRST_GUESS[step.kind]
        needed = record.seconds_needed(self.record, step, guess)
        if needed > self._left_for_a_step():
            _say(f"{step.name}: not started, {needed:.0f} s may be needed")
            return None
        return self._run(step)

    def _run(self, step):
        _say(step.name)
        return self._execute(
            step.command,
            seconds=max(1.0, self._left_for_a_step()),
            grace=STEP_GRACE,
            log=self._log(step),
            environment=step.environment,
        )

    def _left_for_a_step(self):
        """Seconds that are left, without those of the training's last checkpoint."""
        return self.left() - (GRACE if self.asked.root else STEP_GRACE)

    def _log(self, step):
        return self.asked.out / "logs" / f"{step.file_name}.log"

    def _note(self, step, entry):
        """Keeps how a step ended, and writes it at once."""
        self.record["steps"][step.name] = {
            "kind": step.kind,
            "command": self.asked.text(step),
            "date": _now(),
        } | entry
        record.write(self.asked.out, self.record)
        _say(f"{step.name}: {entry['status']}")


def _entry(ended: child.Ended, status: str) -> dict:
    entry = {"status": status, "seconds": round(ended.seconds, 1), "code": ended.code}
    if status != "done":
        entry["error"] = _last_line(ended.text)
    return entry


def _how_it_failed(ended):
    # A process that was stopped may have printed anything.
    if ended.stopped:
        return "out of time"
    return "out of memory" if child.is_out_of_memory(ended.text) else "failed"


def _last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return shown(lines[-1], most=300) if lines else "nothing was printed"


def _saved_step(workdir):
    return max(checkpoint_folder.steps(workdir / "checkpoints"), default=0)


def _steps_per_second(workdir):
    """What the training logged last, None where it logged nothing."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return None
    found = re.findall(r'"steps_per_second": ([\d.e+-]+)', path.read_text())
    return float(found[-1]) if found else None


def _has_torch():
    return importlib.util.find_spec("torch") is not None


def _wants_cpu():
    return os.environ.get("JAX_PLATFORMS") == "cpu"


def _commit():
    """The commit of this checkout, None where git does not say."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _say(text):
    print(text, flush=True)


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder for all results")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this day")
    parser.add_argument("--root", help="data folder of the config, to train on")
    parser.add_argument(
        "--precisions",
        type=_precisions,
        default=tuple(precision.PRECISIONS),
        help="some of bfloat16, TF32 and float32, comma-separated",
    )
    parser.add_argument(
        "--batches",
        type=_batches,
        default=(8, 16, 32, 64),
        help="images a call, comma-separated; the first one counts most",
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats")
    parser.add_argument("--expect", action="store_true", help="make expected.npz alone")
    parser.add_argument("--rows", action="store_true", help="print the rows alone")
    arguments, words = parser.parse_known_args()
    if arguments.repeats < 1 or not arguments.minutes > 0:
        parser.error("--repeats starts at 1, --minutes above 0")
    if arguments.root and not Path(arguments.root).is_dir():
        raise BadInput(
            f"--root={arguments.root} is no folder. Give the images' folder."
        )
    if not any(word.startswith("--config=") for word in words):
        words.insert(0, f"--config={ROOT / 'configs' / 'covid.py'}")
    return arguments, words


def _precisions(text):
    names = tuple(text.split(","))
    if not set(names) <= set(precision.PRECISIONS):
        known = ", ".join(precision.PRECISIONS)
        raise argparse.ArgumentTypeError(f"precisions are some of {known}")
    return names


def _batches(text):
    batches = tuple(int(word) for word in text.split(","))
    if min(batches) < 1:
        raise argparse.ArgumentTypeError("batches start at 1")
    return batches


if __name__ == "__main__":
    sys.exit(exit_code(main))
