"""Compares BIEDSNet here and in plain PyTorch: same weights, same device.

    python benchmarks/beside_torch/run.py --config=configs/covid.py:cpu [--repeats=10] [--batch=8]
        [--samples=5] [--lineage-steps=10] [--tf32] [--output=FILE.json]
        [--config.dtype=bfloat16 ...]

It needs PyTorch, which nothing else here does: `pip install torch`. On a CPU it runs in
channels_last; on a GPU (with jax[cuda12] and a CUDA build of torch) also through
torch.compile, and in autocast where dtype is bfloat16.

First, in float32, both are compared. The exit code is 1 if the logits of any head or
the training loss differ by more than 1e-4 of the largest value, or the gradient (by
norm) or a prediction by more than 3e-2: through ReLUs, and step after step, float32's
rounding grows to 1e-2 in a correct program. Then they are timed in turns, each after
two untimed calls. Do nothing else on the machine: PyTorch's threads wait for one
another, so other work slows them out of proportion.

- training step: joint loss with side heads, clipped gradient, AdamW, EMA, on `--batch` images;
- denoising step: the network behind its encoder, one image;
- prediction: one image encoded once, `--samples` samples of the config's sampler, their mean;
- lineage's prediction: our prediction beside PyTorch's as the reference implementation does it,
  DDPM through all T steps, encoding in each. It is extrapolated from `--lineage-steps` steps of
  one sample, and marked so (0: all are run).

Images are noise and weights random. Our training step also skips non-finite updates;
PyTorch's does not.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

# PyTorch wants some of the GPU's memory, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import scripts
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.errors import BadInput, exit_code
from biedsnet_jax.runtime import devices
from biedsnet_jax.training import train_step

try:
    import torch

    from benchmarks.beside_torch.equal import (
        differences,
        load_variables,
        noise_batch,
        random_variables,
        to_torch,
    )
    from benchmarks.beside_torch.method import Predictor, Trainer, sampler_rows
    from benchmarks.beside_torch.network import BIEDSNet
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = None

LIMITS = {"logits": 1e-4, "loss": 1e-4, "gradient": 3e-2, "prediction": 3e-2}
UNTIMED = 2

Call = Callable[[], object]


def main() -> int:
    arguments, cfg = _arguments()
    device = _device(cfg)
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
    }
    # TF32's rounding would hide a mistake.
    _set_precision(device, tf32=False)
    report["differences"] = differences(cfg, variables, network, device)
    report["tf32"] = _set_precision(device, tf32=arguments.tf32)
    for name, value in report.items():
        print(f"{name}: {_text(value)}", flush=True)
    report["rows"] = measure(cfg, variables, network, device, arguments)
    print(_table(report["rows"]))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")
    unequal = [
        name
        for name, difference in report["differences"].items()
        if not difference <= LIMITS[name]
    ]
    if unequal:
        print(f"NOT equal: {', '.join(unequal)}")
        return 1
    print("equal")
    return 0


def measure(cfg, variables, network, device, arguments) -> list[dict]:
    """Times both programs, a row for each thing; seconds are listed call by call."""
    batch = noise_batch(cfg, arguments.batch or cfg.train.batch_size)
    images = len(batch["image"])
    image = noise_batch(cfg, 1)["image"]
    samples = arguments.samples
    repeats = arguments.repeats
    ours = Ours(cfg, variables)
    theirs = PyTorch(cfg, network, device)
    timesteps = cfg.diffusion.timesteps
    steps = min(arguments.lineage_steps, timesteps)
    # DDPM's T steps take minutes, and each takes the same time.
    if steps:
        lineage = theirs.lineage(image, 1, steps)
        scale = samples * timesteps / steps
        how = f"extrapolated from {steps} steps"
    else:
        lineage = theirs.lineage(image, samples)
        scale = 1
        how = "all run"
    step = in_turns(repeats, ours.training_step(batch), theirs.training_step(batch))
    denoise = in_turns(
        repeats, ours.denoising_step(image), theirs.denoising_step(image)
    )
    *predict, chain = in_turns(
        repeats,
        ours.prediction(image, samples),
        theirs.prediction(image, samples),
        lineage,
    )
    sampling = f"{samples} x {cfg.sampler.steps} {cfg.sampler.method}"
    chain = [scale * t for t in chain]
    return [
        _row(f"training step, {images} images", *step),
        _row("denoising step", *denoise),
        _row(f"prediction, {sampling}", *predict),
        _row(f"lineage's, {samples} x {timesteps}, {how}", predict[0], chain),
    ]


def in_turns(repeats: int, *calls: Call) -> list[list[float]]:
    """Seconds of each call, `repeats` times, after `UNTIMED` calls of each.

    The order turns around from one turn to the next, so that none always goes first.
    """
    times = [[] for _ in calls]
    order = list(zip(calls, times))
    for turn in range(-UNTIMED, repeats):
        order.reverse()
        for call, seconds in order:
            start = time.perf_counter()
            call()
            if turn >= 0:
                seconds.append(time.perf_counter() - start)
    return times


class Ours:
    """Our program, as calls that return when the work is done."""

    def __init__(self, cfg, variables: dict):
        self.cfg = cfg
        self.variables = jax.device_put(variables)
        self.model = build_model.build(cfg)

    def training_step(self, batch: dict) -> Call:
        """A call that trains on `batch`."""
        optimizer, _ = make_optimizer(self.cfg.train)
        mesh = devices.make_mesh(jax.devices()[:1])
        update = train_step.Update(self.model, optimizer, ema_decay=self.cfg.train.ema)
        step = train_step.make_train_step(update, mesh)
        # The step donates its state, so it gets a copy of the variables.
        state = train_state.create(jax.tree.map(jnp.copy, self.variables), optimizer)
        state = jax.device_put(state, devices.replicated(mesh))
        # The batch is on the device before the clock starts, as PyTorch's is.
        batch = devices.put_batch(batch, mesh)
        key = jax.random.key(0)

        def call():
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, batch, key))
            return metrics

        return call

    def denoising_step(self, image: np.ndarray) -> Call:
        """A call that denoises an image whose features are there."""
        network = self.model.network
        image = jax.device_put(image)

        @jax.jit
        def encode(variables, image):
            return network.apply(variables, image, train=False, method=network.encode)

        @jax.jit
        def step(variables, *inputs):
            method = network.denoise
            return network.apply(variables, *inputs, train=False, method=method)[0]

        # The encoder runs once an image, so it is not part of the step.
        features = encode(self.variables, image)
        shape = (*image.shape[:3], self.cfg.data.classes)
        x_t = jax.random.normal(jax.random.key(0), shape)
        t = jnp.full(1, self.cfg.diffusion.timesteps // 2)
        return lambda: jax.block_until_ready(
            step(self.variables, features, x_t, image, t)
        )

    def prediction(self, image: np.ndarray, samples: int) -> Call:
        """A call that predicts the mean of `samples` samples."""
        keys = jax.random.split(jax.random.key(0), 1)
        image = jax.device_put(image)

        @jax.jit
        def predict(variables, image, keys):
            return self.model.predict(variables, image, keys, ensemble=samples).mean(0)

        return lambda: jax.block_until_ready(predict(self.variables, image, keys))


class PyTorch:
    """PyTorch's program, as the same calls."""

    def __init__(self, cfg, network, device):
        self.cfg = cfg
        self.network = network
        self.device = device
        self.predictor = Predictor(network, cfg, device)

    def training_step(self, batch: dict) -> Call:
        """A call that trains on `batch`."""
        trainer = Trainer(self.network, self.cfg, self.device)
        image = to_torch(batch["image"], self.device)
        mask = to_torch(batch["mask"], self.device)
        return self._done(lambda: trainer.update(image, mask))

    def denoising_step(self, image: np.ndarray) -> Call:
        """A call that denoises an image whose features are there."""
        image = to_torch(image, self.device)
        features = self.predictor.encode(image)
        x_t = self._noise(image)
        t = torch.full((1,), self.cfg.diffusion.timesteps // 2, device=self.device)
        return self._done(lambda: self.predictor.denoise(features, x_t, image, t))

    def prediction(self, image: np.ndarray, samples: int) -> Call:
        """A call that predicts the mean of `samples` samples."""
        image = to_torch(image, self.device)
        plan = sampler_rows(self.cfg)

        def predict():
            noise = [self._noise(image) for _ in range(samples)]
            return self.predictor.predict(image, noise, plan)

        return self._done(predict)

    def lineage(
        self, image: np.ndarray, samples: int, steps: int | None = None
    ) -> Call:
        """A call of DDPM's first `steps` (None: all T), encoding the image in each."""
        image = to_torch(image, self.device)
        plan = sampler_rows(self.cfg, lineage=True)[:steps]

        def sample():
            for _ in range(samples):
                self.predictor.sample(self._noise(image), image, plan, None)

        return self._done(sample)

    def _noise(self, image):
        shape = (len(image), self.cfg.data.classes, *image.shape[2:])
        noise = torch.randn(shape, device=self.device)
        return noise.to(memory_format=torch.channels_last)

    def _done(self, work):
        def call():
            work()
            # A GPU works on after the call has returned.
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        return call


def _row(name, ours, theirs):
    return {
        "name": name,
        "ours_s": ours,
        "torch_s": theirs,
        "ratio": statistics.median(theirs) / statistics.median(ours),
    }


def _text(value):
    if isinstance(value, dict):
        return ", ".join(f"{name} {x:.1e}" for name, x in value.items())
    return value


def _table(rows):
    def cell(seconds):
        ms = [1e3 * t for t in seconds]
        return f"{statistics.median(ms):.4g} ({min(ms):.4g} to {max(ms):.4g})"

    lines = [["ms: median (least to most)", "ours", "PyTorch", "PyTorch / ours"]]
    lines += [
        [row["name"], cell(row["ours_s"]), cell(row["torch_s"]), f"{row['ratio']:.2f}"]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _device(cfg) -> "torch.device":
    """PyTorch's name of the device JAX runs on.

    Raises BadInput where the two cannot be compared.
    """
    if torch is None:
        raise BadInput("PyTorch is not installed. Run pip install torch.")
    diffusion = cfg.network == "biedsnet" and build_model.draws_samples(cfg)
    if not diffusion or cfg.loss.name != "joint":
        raise BadInput(
            f"--config has network={cfg.network}, method={cfg.method} and "
            f"loss.name={cfg.loss.name}, which the PyTorch program does not have. "
            "Use biedsnet as diffusion with the joint loss."
        )
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
            "torch_threads": torch.get_num_threads(),
        }
    return {**names, "python": platform.python_version(), **versions}


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
        "--tf32",
        action="store_true",
        help="on a GPU: time float32 with TF32 products, both sides",
    )
    parser.add_argument(
        "--output", help="json file for all that is printed, and every timed call"
    )
    arguments, rest = parser.parse_known_args()
    if (
        min(arguments.repeats, arguments.samples) < 1
        or min(arguments.batch, arguments.lineage_steps) < 0
    ):
        parser.error(
            "--repeats and --samples start at 1, --batch and --lineage-steps at 0"
        )
    return arguments, scripts.read_config(rest)


if __name__ == "__main__":
    sys.exit(exit_code(main))
