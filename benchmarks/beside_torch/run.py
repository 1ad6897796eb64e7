"""BIEDSNet here and in plain PyTorch, same weights, same device: are they equal, and
which is faster?

    python benchmarks/beside_torch/run.py --config=configs/covid.py:cpu [--repeats=10] [--batch=8] [--samples=5]
        [--lineage-steps=10] [--tf32] [--output=FILE.json] [--config.dtype=bfloat16 ...]

Needs PyTorch, which nothing else here does: `pip install torch`. On a CPU it runs in
channels_last; on a GPU (with jax[cuda12] and a CUDA build of torch) also through
torch.compile, and in autocast where dtype is bfloat16.

First, in float32, both are compared: exit code 1 if the logits of any head or the
training loss differ by more than 1e-4 of the largest value, or the gradient (by norm)
or a prediction by more than 3e-2: through ReLUs, and step after step, float32's
rounding grows to 1e-2 in a correct program. Then they are timed in turns, each after
two untimed calls; do nothing else on the machine: PyTorch's threads wait for one
another, so other work slows them out of proportion.

- training step: joint loss with side heads, clipped gradient, AdamW, EMA, on `--batch` images;
- denoising step: the network behind its encoder, one image;
- prediction: one image encoded once, `--samples` samples of the config's sampler, their mean;
- lineage's prediction: PyTorch's as the lineage runs it, DDPM through all T steps, encoding in each, beside our
  prediction. Extrapolated from `--lineage-steps` steps of one sample, and marked so (0: all are run).

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

# PyTorch wants some of the GPU's memory
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import scripts
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.errors import BadInput, exit_code
from biedsnet_jax.runtime import devices
from biedsnet_jax.training import train_step
from biedsnet_jax.training.optimizer import make_optimizer

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


def main() -> int:
    arguments, cfg = _arguments()
    device = _device(cfg)
    devices.enable_compile_cache(cfg.compile_cache)
    fields = cfg.networks.biedsnet.to_dict()
    # how it is computed here, not what
    for name in ("fold", "remat"):
        del fields[name]
    network = BIEDSNet(
        image_channels=build_data.image_shape(cfg)[2],
        classes=cfg.data.classes,
        **fields,
    )
    variables = random_variables(cfg)
    load_variables(network, variables)
    report = {
        "config": flags.FLAGS["config"].config_filename,
        "size": cfg.data.size,
        "dtype": cfg.dtype,
    }
    report |= {
        "parameters": sum(p.numel() for p in network.parameters()),
        **_machine(device),
    }
    _set_precision(device, tf32=False)
    report["differences"] = differences(cfg, variables, network, device)
    report["tf32"] = _set_precision(device, tf32=arguments.tf32)
    print(
        "\n".join(f"{name}: {_text(value)}" for name, value in report.items()),
        flush=True,
    )
    report["rows"] = measure(cfg, variables, network, device, arguments)
    print(_table(report["rows"]))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(report, indent=1) + "\n")
    unequal = [
        name
        for name, difference in report["differences"].items()
        if not difference <= LIMITS[name]
    ]
    print("equal" if not unequal else f"NOT equal: {', '.join(unequal)}")
    return 1 if unequal else 0


def measure(cfg, variables, network, device, arguments) -> list[dict]:
    """A row for each thing timed; seconds of ours and PyTorch's, call by call."""
    batch, image = (
        noise_batch(cfg, arguments.batch or cfg.train.batch_size),
        noise_batch(cfg, 1)["image"],
    )
    images, k = len(batch["image"]), arguments.samples
    ours, theirs = Ours(cfg, variables), PyTorch(cfg, network, device)
    all_steps = k * cfg.diffusion.timesteps
    steps = min(arguments.lineage_steps, cfg.diffusion.timesteps)
    lineage, scale = (
        (theirs.lineage(image, 1, steps), all_steps / steps)
        if steps
        else (theirs.lineage(image, k), 1)
    )
    step = in_turns(
        arguments.repeats, ours.training_step(batch), theirs.training_step(batch)
    )
    denoise = in_turns(
        arguments.repeats, ours.denoising_step(image), theirs.denoising_step(image)
    )
    *predict, chain = in_turns(
        arguments.repeats,
        ours.prediction(image, k),
        theirs.prediction(image, k),
        lineage,
    )
    how = f"extrapolated from {steps} steps" if steps else "all run"
    sampling = f"{k} x {cfg.sampler.steps} {cfg.sampler.method}"
    return [
        _row(f"training step, {images} images", *step),
        _row("denoising step", *denoise),
        _row(f"prediction, {sampling}", *predict),
        _row(
            f"lineage's, {k} x {cfg.diffusion.timesteps}, {how}",
            predict[0],
            [scale * t for t in chain],
        ),
    ]


def in_turns(repeats: int, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call, `repeats` times; who goes first changes from turn to turn."""
    times = [[] for _ in calls]
    for turn in range(-UNTIMED, repeats):
        for i in range(len(calls)) if turn % 2 else reversed(range(len(calls))):
            start = time.perf_counter()
            calls[i]()
            if turn >= 0:
                times[i].append(time.perf_counter() - start)
    return times


class Ours:
    """Calls that return when the work is done."""

    def __init__(self, cfg, variables: dict):
        self.cfg, self.variables, self.model = (
            cfg,
            jax.device_put(variables),
            build_model.build(cfg),
        )

    def training_step(self, batch: dict) -> Callable[[], object]:
        optimizer, _ = make_optimizer(self.cfg.train)
        mesh = devices.make_mesh(jax.devices()[:1])
        step = train_step.make_train_step(
            train_step.Update(self.model, optimizer, ema_decay=self.cfg.train.ema), mesh
        )
        # a copy: the step donates it
        state = train_state.create(jax.tree.map(jnp.copy, self.variables), optimizer)
        state = jax.device_put(state, devices.replicated(mesh))
        batch, key = devices.put_batch(batch, mesh), jax.random.key(0)

        def call():
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, batch, key))
            return metrics

        return call

    def denoising_step(self, image: np.ndarray) -> Callable[[], object]:
        network, image = self.model.network, jax.device_put(image)
        features = jax.jit(
            lambda v, image: network.apply(v, image, train=False, method=network.encode)
        )(self.variables, image)
        step = jax.jit(
            lambda v, *inputs: network.apply(
                v, *inputs, train=False, method=network.denoise
            )[0]
        )
        x_t = jax.random.normal(
            jax.random.key(0), (*image.shape[:3], self.cfg.data.classes)
        )
        t = jnp.full(1, self.cfg.diffusion.timesteps // 2)
        return lambda: jax.block_until_ready(
            step(self.variables, features, x_t, image, t)
        )

    def prediction(self, image: np.ndarray, samples: int) -> Callable[[], object]:
        keys, image = jax.random.split(jax.random.key(0), 1), jax.device_put(image)
        predict = jax.jit(
            lambda v, image, keys: self.model.predict(
                v, image, keys, ensemble=samples
            ).mean(0)
        )
        return lambda: jax.block_until_ready(predict(self.variables, image, keys))


class PyTorch:
    """The same calls."""

    def __init__(self, cfg, network, device):
        self.cfg, self.network, self.device = cfg, network, device
        self.predictor = Predictor(network, cfg, device)

    def training_step(self, batch: dict) -> Callable[[], object]:
        trainer = Trainer(self.network, self.cfg, self.device)
        image, mask = (to_torch(batch[name], self.device) for name in ("image", "mask"))
        return self._done(lambda: trainer.update(image, mask))

    def denoising_step(self, image: np.ndarray) -> Callable[[], object]:
        image = to_torch(image, self.device)
        features, x_t = self.predictor.encode(image), self._noise(image)
        t = torch.full((1,), self.cfg.diffusion.timesteps // 2, device=self.device)
        return self._done(lambda: self.predictor.denoise(features, x_t, image, t))

    def prediction(self, image: np.ndarray, samples: int) -> Callable[[], object]:
        image, plan = to_torch(image, self.device), sampler_rows(self.cfg)
        return self._done(
            lambda: self.predictor.predict(
                image, [self._noise(image) for _ in range(samples)], plan
            )
        )

    def lineage(
        self, image: np.ndarray, samples: int, steps: int | None = None
    ) -> Callable[[], object]:
        """DDPM's first `steps` (None: all T), the image encoded in each."""
        image, plan = (
            to_torch(image, self.device),
            sampler_rows(self.cfg, lineage=True)[:steps],
        )
        return self._done(
            lambda: [
                self.predictor.sample(self._noise(image), image, plan, None)
                for _ in range(samples)
            ]
        )

    def _noise(self, image):
        shape = (len(image), self.cfg.data.classes, *image.shape[2:])
        return torch.randn(shape, device=self.device).to(
            memory_format=torch.channels_last
        )

    def _done(self, work):
        def call():
            result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return result

        return call


def _row(name, ours, theirs):
    return {
        "name": name,
        "ours_s": ours,
        "torch_s": theirs,
        "ratio": statistics.median(theirs) / statistics.median(ours),
    }


def _text(value):
    return (
        ", ".join(f"{name} {x:.1e}" for name, x in value.items())
        if isinstance(value, dict)
        else value
    )


def _table(rows):
    def cell(seconds):
        ms = [1e3 * t for t in (statistics.median(seconds), min(seconds), max(seconds))]
        return "{:.4g} ({:.4g} to {:.4g})".format(*ms)

    lines = [["ms: median (least to most)", "ours", "PyTorch", "PyTorch / ours"]]
    lines += [
        [row["name"], cell(row["ours_s"]), cell(row["torch_s"]), f"{row['ratio']:.2f}"]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip()
        for line in lines
    )


def _device(cfg) -> "torch.device":
    """PyTorch's name of the device JAX runs on. Raises BadInput where the two cannot be
    compared.
    """
    if torch is None:
        raise BadInput(
            "PyTorch not installed, torch, for this benchmark; pip install torch"
        )
    if (
        cfg.network != "biedsnet"
        or not build_model.draws_samples(cfg)
        or cfg.loss.name != "joint"
    ):
        asked = f"{cfg.network}, {cfg.method}, {cfg.loss.name}"
        raise BadInput(
            f"not in the PyTorch program, {asked}, in --config; use BIEDSNet as diffusion with the joint loss"
        )
    backend = jax.default_backend()
    if backend == "cpu":
        return torch.device("cpu")
    if backend == "gpu" and torch.cuda.is_available():
        return torch.device("cuda")
    cuda = "has CUDA" if torch.cuda.is_available() else "has none"
    raise BadInput(
        f"devices differ, jax on {backend}, torch {cuda}, on this machine; set JAX_PLATFORMS=cpu for a CPU"
    )


def _set_precision(device, *, tf32: bool) -> bool:
    """Products of float32 on a GPU in TF32 or in full, on both sides; whether it is
    TF32.
    """
    tf32 = tf32 and device.type == "cuda"
    jax.config.update(
        "jax_default_matmul_precision", "tensorfloat32" if tf32 else "highest"
    )
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    return tf32


def _machine(device) -> dict:
    versions = {
        name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "torch")
    }
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
        help="timed of the lineage's K x T steps; 0: all",
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
