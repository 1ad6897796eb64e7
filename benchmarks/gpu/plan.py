"""What a day on a GPU measures, in order: a command and its result each."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path

from benchmarks.gpu.precision import PRECISIONS
from benchmarks.scripts import ROOT

# Sums on a GPU are then made in the same order each time.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# jax takes three quarters of a GPU's memory unless it is told otherwise.
MEMORY = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
ON_A_CPU = {"JAX_PLATFORMS": "cpu"}

# Seconds that a step of each kind is given before one has been seen.
FIRST_GUESS = {"expected": 180.0, "agreement": 90.0, "speed": 90.0, "torch": 120.0}


@dataclasses.dataclass(frozen=True)
class Step:
    """A command that writes one JSON file; `name` is its key in gpu_day.json."""

    name: str
    kind: str  # steps of a kind take about as long; one of FIRST_GUESS
    command: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name of its result and its log, without an ending."""
        return self.name.replace(", ", "_").replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    out: Path
    words: list[str]  # of the config
    precisions: tuple[str, ...]  # names of PRECISIONS
    batches: tuple[int, ...]
    repeats: int
    root: str | None = None  # data to train on

    @property
    def expected(self) -> Path:
        """The file of the CPU's values."""
        return self.out / "expected.npz"

    @property
    def workdir(self) -> Path:
        """The workdir of the training."""
        return self.out / "run"

    def text(self, step: Step) -> str:
        """A step's command as one gives it, in a checkout and with DIR for the folder."""
        words = [f"{name}={value}" for name, value in step.environment.items()]
        text = shlex.join([*words, "python", *step.command[1:]])
        return text.replace(f"{ROOT}{os.sep}", "").replace(str(self.out), "DIR")

    def result(self, step: Step) -> Path:
        """The file that a step writes."""
        return self.out / "results" / f"{step.file_name}.json"


def steps(asked: Asked) -> list[Step]:
    """Every step, the most valuable first."""
    first, *others = asked.batches
    names = asked.precisions
    found = [agreement(asked, name) for name in names]
    found += [speed(asked, name, first) for name in names]
    found += [torch(asked, name, first) for name in names]
    found += [speed(asked, name, batch) for batch in others for name in names]
    # Training in float32 runs in TF32 unless jax is told otherwise.
    return [*found, *deterministic(asked, first)] if "TF32" in names else found


def deterministic(asked: Asked, batch: int) -> list[Step]:
    """Whether deterministic operations give the same bits twice, and what they cost."""
    flags = filter(None, [os.environ.get("XLA_FLAGS"), DETERMINISTIC])
    environment = {"XLA_FLAGS": " ".join(flags)}
    return [
        agreement(asked, "TF32", of=", deterministic", environment=environment),
        agreement(asked, "TF32", of=", deterministic again", environment=environment),
        speed(asked, "TF32", batch, of=", deterministic", environment=environment),
    ]


def device(asked: Asked) -> Step:
    """Writes which device there is."""
    step = Step("device", "device", [])
    command = _python("gpu/device.py", f"--output={asked.result(step)}")
    return dataclasses.replace(step, command=command)


def expected(asked: Asked) -> Step:
    """Makes the CPU's values, on the CPU."""
    command = _python(
        "gpu/agreement.py", *asked.words, f"--expected={asked.expected}", "--make"
    )
    return Step("expected", "expected", command, ON_A_CPU)


def agreement(
    asked: Asked, precision: str, *, of: str = "", environment: dict | None = None
) -> Step:
    """Compares the device with the CPU's values."""
    name = f"agreement, {precision}{of}"
    step = Step(name, "agreement", [], environment or {})
    command = _python(
        "gpu/agreement.py",
        *asked.words,
        f"--expected={asked.expected}",
        f"--precision={precision}",
        f"--output={asked.result(step)}",
    )
    return dataclasses.replace(step, command=command)


def speed(
    asked: Asked,
    precision: str,
    batch: int,
    *,
    of: str = "",
    environment: dict | None = None,
) -> Step:
    """Times training step and prediction."""
    name = f"speed, {precision}, {batch} images{of}"
    step = Step(name, "speed", [], MEMORY | (environment or {}))
    command = _python(
        "gpu/speed.py",
        *asked.words,
        f"--precision={precision}",
        f"--batch={batch}",
        f"--repeats={asked.repeats}",
        f"--output={asked.result(step)}",
    )
    return dataclasses.replace(step, command=command)


def torch(asked: Asked, precision: str, batch: int) -> Step:
    """Times the same network in PyTorch, through torch.compile, in turns with ours."""
    step = Step(f"torch, {precision}, {batch} images", "torch", [])
    command = _python(
        "beside_torch/run.py",
        *asked.words,
        *PRECISIONS[precision].torch_words,
        f"--batch={batch}",
        f"--repeats={asked.repeats}",
        f"--output={asked.result(step)}",
    )
    return dataclasses.replace(step, command=command)


def training(asked: Asked) -> Step:
    """Trains from where the workdir stands."""
    command = [
        sys.executable,
        "-m",
        "biedsnet_jax.main",
        *asked.words,
        f"--config.data.root={asked.root}",
        f"--workdir={asked.workdir}",
    ]
    return Step("training", "training", command, _at_the_root())


def _at_the_root() -> dict[str, str]:
    """What lets Python find this checkout from any folder."""
    found = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(found)}


def _python(script: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / script), *flags]
