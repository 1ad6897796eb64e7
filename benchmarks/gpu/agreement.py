"""Compares what a network computes on this device with what a CPU computed.

    JAX_PLATFORMS=cpu python benchmarks/gpu/agreement.py --config=... --expected=FILE.npz --make
    python benchmarks/gpu/agreement.py --config=... --expected=FILE.npz --precision=TF32
        --output=FILE.json

The first command keeps what the CPU computes, in float32. The second one computes the
same in one precision, and says how far it is off:

- logits of one pass, and loss of one training step: the largest difference as a share
  of the largest value;
- gradient of that step: the difference of its norms, parameter by parameter, as a share
  of the whole norm;
- probability: the mean difference of a sample of the config's sampler.

Weights and images are random, the same on every machine. Each program runs twice, so
that the result also says whether it repeats its bits. `digest` tells two processes
apart.
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import scripts
from benchmarks.gpu import precision
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.errors import BadInput, exit_code
from biedsnet_jax.runtime import devices, files

# Largest differences of a correct program. Rounding grows on the way through the
# network, most of all in the gradient and step after step of a sampler. On a CPU a toy
# UNet in bfloat16 is off by 5e-3, 7e-4, 2e-1 and 2e-4; TF32 has three more bits.
LIMITS = {
    "float32": {
        "logits": 1e-4,
        "loss": 1e-4,
        "gradient": 3e-3,
        "probability": 1e-3,
    },
    "TF32": {"logits": 2e-2, "loss": 5e-3, "gradient": 6e-2, "probability": 1e-2},
    "bfloat16": {"logits": 1e-1, "loss": 3e-2, "gradient": 3e-1, "probability": 5e-2},
}
IMAGES = 2


def main() -> int:
    arguments, cfg = _arguments()
    devices.enable_compile_cache(cfg.compile_cache)
    expected = Path(arguments.expected)
    fields = precision.fields_of(cfg)
    if arguments.make:
        precision.apply("float32", cfg)
        keep(expected, fields, make_compute(cfg)())
        return 0
    ours = read(expected, fields)
    precision.apply(arguments.precision, cfg)
    result = precision.machine(arguments.precision, devices.make_mesh())
    result |= compare(cfg, ours, LIMITS[arguments.precision])
    scripts.show(result, None)
    files.write_json(Path(arguments.output), result)
    return 0


def compare(cfg, expected: dict, limits: dict[str, float]) -> dict:
    """How far this device is off, and whether it repeats its bits."""
    compute = make_compute(cfg)
    found = compute()
    again = compute()
    off = differences(found, expected)
    return {
        # JSON has no NaN.
        "differences": {
            name: value if math.isfinite(value) else None for name, value in off.items()
        },
        "limits": limits,
        "agrees": all(off[name] <= limits[name] for name in limits),
        "repeats": _digest(found) == _digest(again),
        "digest": _digest(found),
    }


def make_compute(cfg) -> Callable[[], dict[str, np.ndarray]]:
    """A function that computes the values, and compiles when it is first called.

    They are logits, loss, norms of the gradient by parameter, and probability.
    """
    model = build_model.build(cfg)
    variables = jax.device_put(random_variables(model, cfg))
    batch = random_batch(cfg)
    key = jax.random.key(1)

    @jax.jit
    def one_pass(variables, inputs):
        return model.network.apply(variables, *inputs, train=False)[0]

    @jax.jit
    @jax.value_and_grad
    def training(params, variables, batch):
        held = {**variables, "params": params}
        return model.loss(held, batch, key, train=True)[0]

    @jax.jit
    def sample(variables, image):
        keys = jax.random.split(key, len(image))
        return model.predict(variables, image, keys, ensemble=1)[0]

    def compute():
        logits = one_pass(variables, _inputs(cfg, batch))
        loss, gradient = training(variables["params"], variables, batch)
        norms = [jnp.linalg.norm(leaf.ravel()) for leaf in jax.tree.leaves(gradient)]
        values = {
            "logits": logits,
            "loss": loss,
            "gradient": norms,
            "probability": sample(variables, batch["image"]),
        }
        return {name: np.asarray(x, np.float32) for name, x in values.items()}

    return compute


def differences(found: dict, expected: dict) -> dict[str, float]:
    """The differences that the module's docstring describes."""
    off = {name: np.abs(found[name] - expected[name]) for name in found}
    norm = np.linalg.norm(expected["gradient"])
    return {
        "logits": float(off["logits"].max() / np.abs(expected["logits"]).max()),
        "loss": float(off["loss"] / np.abs(expected["loss"])),
        "gradient": float(np.linalg.norm(off["gradient"]) / norm),
        "probability": float(off["probability"].mean()),
    }


def random_variables(model, cfg) -> dict:
    """Random weights of the network's shapes, drawn without the device.

    No scale, bias or running statistic is left at 0 or 1, where a mistake would hide.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: build_model.init_variables(model, cfg))

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = math.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 10
        return rng.normal(0.0, fan_in**-0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_batch(cfg) -> dict[str, np.ndarray]:
    """Images of noise, and masks of which a tenth is foreground."""
    rng = np.random.default_rng(1)
    height, width, channels = build_data.image_shape(cfg)
    mask = rng.random((IMAGES, height, width, cfg.data.classes)) > 0.9
    return {
        "image": rng.random((IMAGES, height, width, channels), np.float32),
        "mask": mask.astype(np.float32),
    }


def keep(path: Path, fields: dict, values: dict[str, np.ndarray]) -> None:
    """Writes the values with the fields they are of, whole or not at all."""
    config = np.asarray(json.dumps(fields, sort_keys=True))
    with files.whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, config=config, **values)


def read(path: Path, fields: dict) -> dict[str, np.ndarray]:
    """The values that a CPU computed. Raises BadInput for those of another config."""
    try:
        with np.load(path) as kept:
            values = dict(kept)
        config = str(values.pop("config"))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"--expected={path} cannot be read. Make it by --make, on a CPU."
        ) from error
    if config != json.dumps(fields, sort_keys=True):
        raise BadInput(
            f"--expected={path} is of another config. Make one of this config by --make."
        )
    return values


def _inputs(cfg, batch):
    """What one pass of the network takes: the image, and for a denoiser x_t and t."""
    if not build_model.is_denoiser(cfg):
        return (batch["image"],)
    rng = np.random.default_rng(2)
    *shape, channels = batch["mask"].shape
    if cfg.diffusion.self_condition:
        channels *= 2
    x_t = rng.normal(size=(*shape, channels)).astype(np.float32)
    # One early time, where x_t is nearly the mask, and the last one, where it is noise.
    last = cfg.diffusion.timesteps - 1
    t = np.array([last // 99, last], np.int32)
    return x_t, batch["image"], t


def _digest(values: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(values[name].tobytes())
    return digest.hexdigest()[:16]


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--expected", required=True, help="npz file of the CPU's values"
    )
    parser.add_argument("--make", action="store_true", help="make that file, here")
    parser.add_argument("--precision", choices=precision.PRECISIONS, default="float32")
    parser.add_argument("--output", help="json file, without --make")
    arguments, words = parser.parse_known_args()
    if not arguments.make and not arguments.output:
        parser.error("give --make or --output")
    return arguments, scripts.read_config(words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
