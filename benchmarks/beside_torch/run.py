"""Compares BIEDSNet here and in plain PyTorch: same weights, same device.

    python benchmarks/beside_torch/run.py --config=configs/covid.py:cpu [--repeats=10]
        [--batch=8] [--samples=5] [--lineage-steps=10] [--output=FILE.json]
        [--layouts=channels_last,contiguous] [--compile=off,on] [--threads=N,N]
        [--trials=3] [--tf32] [--config.dtype=bfloat16 ...]

It needs PyTorch, which nothing else here does: `pip install torch`. PyTorch runs in every
combination of `--layouts`, `--compile` (torch.compile, which on a CPU needs a C++ compiler)
and `--threads`. On a GPU (with jax[cuda12] and a CUDA build of torch) it runs in autocast
where dtype is bfloat16.

First, in float32, both are compared, in each layout, compiled and not. If the logits of
any head or the training loss differ by more than 1e-4 of the largest value, or the
gradient (by norm) or a prediction by more than 3e-2, nothing is timed and the exit code
is 1. Through ReLUs, and step after step, float32's rounding grows to 1e-2 in a correct
program.

Then both are timed in turns, each after two untimed calls. `--trials` calls of each
setting choose PyTorch's fastest one first, for each row by itself. Do nothing else on the
machine: PyTorch's threads wait for one another, so other work slows them out of
proportion.

- training step: joint loss with side heads, clipped gradient, AdamW, EMA, on `--batch` images;
- denoising step: the network behind its encoder, one image;
- prediction: one image encoded once, `--samples` samples of the config's sampler, their mean;
- lineage's prediction: our prediction beside PyTorch's as the reference implementation does it,
  DDPM through all T steps, encoding in each. It is extrapolated from `--lineage-steps` steps of
  one sample, and marked so (0: all are run).

Images are noise and weights random. Our training step also skips non-finite updates;
PyTorch's does not.
"""

import itertools
import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

# PyTorch wants some of the GPU's memory, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
from absl import flags

from benchmarks import scripts
from benchmarks.beside_torch import timing
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.config.fields import get_field
from biedsnet_jax.errors import BadInput, exit_code
from biedsnet_jax.runtime import devices, memory

try:
    import torch

    from benchmarks.beside_torch.equal import (
        differences,
        load_variables,
        noise_batch,
        random_variables,
    )
    from benchmarks.beside_torch.method import Setting
    from benchmarks.beside_torch.network import BIEDSNet
    from benchmarks.beside_torch.programs import Ours, PyTorch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = None

LIMITS = {"logits": 1e-4, "loss": 1e-4, "gradient": 3e-2, "prediction": 3e-2}
# What PyTorch's program has alone of these fields. It has every field of the network.
ONLY = {
    "network": "biedsnet",
    "loss.name": "joint",
    "diffusion.self_condition": False,
    "sampler.mirror": "",
    "train.accumulate": 1,
}
LAYOUTS = ("channels_last", "contiguous")


def main() -> int:
    # As a training has it; PyTorch's program gets the same.
    memory.keep_freed()
    arguments, cfg = _arguments()
    check_comparable(cfg)
    device = _device()
    settings = _settings(arguments)
    devices.enable_compile_cache(cfg.compile_cache)
    network = BIEDSNet(
        image_channels=build_data.image_shape(cfg)[2],
        classes=cfg.data.classes,
        fields=cfg.networks.biedsnet,
    )
    variables = random_variables(cfg)
    load_variables(network, variables)
    report = {
        "config": flags.FLAGS["config"].config_filename,
        "size": cfg.data.size,
        "dtype": cfg.dtype,
        "parameters": sum(p.numel() for p in network.parameters()),
        **_machine(device),
        "limits": LIMITS,
    }
    _show(report)
    # TF32's rounding would hide a mistake.
    _set_precision(device, tf32=False)
    report["differences"] = {
        str(setting): differences(cfg, variables, network, device, setting)
        for setting in _programs(settings)
    }
    _show(report["differences"])
    unequal = _unequal(report["differences"])
    if not unequal:
        report["tf32"] = _set_precision(device, tf32=arguments.tf32)
        ours = Ours(cfg, variables)
        theirs = [PyTorch(cfg, network, device, setting) for setting in settings]
        report["rows"] = measure(ours, theirs, arguments)
        print(timing.table(report["rows"]))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")
    print(f"NOT equal, so not timed: {', '.join(unequal)}" if unequal else "equal")
    return 1 if unequal else 0


def check_comparable(cfg) -> None:
    """Raises BadInput where PyTorch's program does not have a config's method."""
    for name, value in ONLY.items():
        if get_field(cfg, name) != value:
            raise BadInput(
                f"{name} is {get_field(cfg, name)!r}, which the PyTorch program does not "
                f"have. Use {value!r}."
            )
    if not build_model.draws_samples(cfg):
        raise BadInput(
            f"method is {cfg.method!r}, which the PyTorch program does not have. Use 'auto'."
        )


def measure(ours: "Ours", theirs: "list[PyTorch]", arguments) -> list[dict]:
    """Times both programs, a row for each thing."""
    cfg = ours.cfg
    batch = noise_batch(cfg, arguments.batch or cfg.train.batch_size)
    image = noise_batch(cfg, 1)["image"]
    samples = arguments.samples
    trained = timing.compare(
        f"training step, {len(batch['image'])} images",
        ours.training_step(batch),
        {str(each.setting): each.training_step(batch) for each in theirs},
        trials=arguments.trials,
        repeats=arguments.repeats,
    )
    denoised = timing.compare(
        "denoising step",
        ours.denoising_step(image),
        {str(each.setting): each.denoising_step(image) for each in theirs},
        trials=arguments.trials,
        repeats=arguments.repeats,
    )
    predicted = timing.compare(
        f"prediction, {samples} x {cfg.sampler.steps} {cfg.sampler.method}",
        ours.prediction(image, samples),
        {str(each.setting): each.prediction(image, samples) for each in theirs},
        trials=arguments.trials,
        repeats=arguments.repeats,
    )
    fastest = predicted["torch_setting"]
    program = next(each for each in theirs if str(each.setting) == fastest)
    lineage = _lineage(program, image, predicted["ours"], arguments)
    return [trained, denoised, predicted, lineage]


def _lineage(theirs, image, ours, arguments):
    """The row of the reference implementation's prediction beside ours."""
    samples = arguments.samples
    timesteps = theirs.cfg.diffusion.timesteps
    steps = min(arguments.lineage_steps, timesteps)
    # DDPM's T steps take minutes, and each takes the same time.
    if steps:
        call = theirs.lineage(image, 1, steps)
        scale = samples * timesteps / steps
        how = f"extrapolated from {steps} steps"
    else:
        call = theirs.lineage(image, samples)
        scale = 1
        how = "all run"
    (seconds,) = timing.in_turns(arguments.repeats, call)
    return timing.row(
        f"lineage's, {samples} x {timesteps}, {how}",
        ours,
        timing.summary([scale * s for s in seconds]),
        setting=str(theirs.setting),
    )


def _settings(arguments) -> "list[Setting]":
    """Every combination of the three flags.

    Raises BadInput where torch.compile lacks what it compiles with.
    """
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    has_compiler = any(map(shutil.which, compilers))
    if "on" in arguments.compile and not (has_compiler or torch.cuda.is_available()):
        raise BadInput(
            "--compile has on, but torch.compile finds no C++ compiler. Install g++, or "
            "give --compile=off."
        )
    threads = arguments.threads or [torch.get_num_threads()]
    combined = itertools.product(arguments.layouts, arguments.compile, threads)
    return [Setting(layout, how == "on", count) for layout, how, count in combined]


def _programs(settings):
    """A setting for each program among them, which threads do not change."""
    first = {}
    for setting in settings:
        first.setdefault((setting.layout, setting.compiled), setting)
    return list(first.values())


def _unequal(found):
    """What differs by more than its limit, such as "gradient (contiguous, eager)"."""
    return [
        f"{name} ({setting})"
        for setting, values in found.items()
        for name, difference in values.items()
        # Nor is a NaN equal.
        if not difference <= LIMITS[name]
    ]


def _show(values):
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {x:.1e}" for key, x in value.items())
        print(f"{name}: {value}", flush=True)


def _device() -> "torch.device":
    """PyTorch's name of the device JAX runs on.

    Raises BadInput where the two cannot be compared.
    """
    if torch is None:
        raise BadInput("PyTorch is not installed. Run pip install torch.")
    backend = jax.default_backend()
    if backend == "cpu":
        return torch.device("cpu")
    if backend == "gpu" and torch.cuda.is_available():
        return torch.device("cuda")
    cuda = "has CUDA" if torch.cuda.is_available() else "has no CUDA"
    raise BadInput(
        f"JAX runs on {backend}, and PyTorch {cuda} on this machine. "
        "Set JAX_PLATFORMS=cpu to compare both on the CPU."
    )


def _set_precision(device, *, tf32: bool) -> bool:
    """Sets both programs' products of float32 to TF32 or full; returns which it is.

    TF32 exists on a GPU only.
    """
    tf32 = tf32 and device.type == "cuda"
    precision = "tensorfloat32" if tf32 else "highest"
    jax.config.update("jax_default_matmul_precision", precision)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return tf32


def _machine(device) -> dict:
    packages = ("jax", "jaxlib", "flax", "torch")
    versions = {name: metadata.version(name) for name in packages}
    if device.type == "cuda":
        names = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    else:
        names = {
            "device": devices.processor(),
            "cores": os.cpu_count(),
            "usable_cores": _usable_cores(),
            "torch_threads": torch.get_num_threads(),
        }
    return {**names, "python": platform.python_version(), **versions}


def _usable_cores():
    """Cores that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each")
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        help="images in a training step; 0: the config's",
    )
    parser.add_argument("--samples", type=int, default=5, help="K, of a prediction")
    parser.add_argument(
        "--lineage-steps",
        type=int,
        default=10,
        help="steps to time of the reference implementation's K x T; 0: all",
    )
    parser.add_argument(
        "--layouts",
        type=_some_of(LAYOUTS),
        default=LAYOUTS,
        help="memory layouts of PyTorch to try",
    )
    parser.add_argument(
        "--compile",
        type=_some_of(("off", "on")),
        default=("off", "on"),
        help="whether PyTorch is tried without and with torch.compile",
    )
    parser.add_argument(
        "--threads",
        type=_counts,
        default=(),
        help="numbers of PyTorch's CPU threads to try; as many as it takes by itself",
    )
    parser.add_argument(
        "--trials", type=int, default=3, help="timed calls that choose the setting"
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="on a GPU: time float32 with TF32 products, both sides",
    )
    parser.add_argument(
        "--output", help="json file for all that is printed, and every timed call"
    )
    arguments, rest = parser.parse_known_args()
    from_1 = (arguments.repeats, arguments.samples, arguments.trials)
    if min(from_1) < 1 or min(arguments.batch, arguments.lineage_steps) < 0:
        parser.error(
            "--repeats, --samples and --trials start at 1, --batch and --lineage-steps "
            "at 0"
        )
    return arguments, scripts.read_config(rest)


def _some_of(names):
    """A reader of a flag that holds some of `names`, comma-separated."""

    def words(text: str) -> list[str]:
        chosen = text.split(",")
        if not set(chosen) <= set(names):
            raise ValueError(text)
        return chosen

    words.__name__ = f"some of {','.join(names)}"
    return words


def _counts(text: str) -> list[int]:
    counts = [int(word) for word in text.split(",")]
    if min(counts) < 1:
        raise ValueError(text)
    return counts


if __name__ == "__main__":
    sys.exit(exit_code(main))
