"""Mode benchmark: times the training step and predict of a config on made-up input.

It also measures compile time, memory, FLOP and bytes, and how near a step comes to the
least time that the device allows (`roofline.py`). Nothing is read but a config, and a
baseline if given.
"""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable

import jax
import numpy as np

from biedsnet_jax.benchmarking import baseline, roofline, timing
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_data, build_model, fields
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction.trained import make_predict
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import macs
from biedsnet_jax.training import train_step

# Sides of the matrices and bytes copied: enough to fill the device, and few enough to
# take seconds.
CEILINGS = {"cpu": ((512, 1024, 2048), 2**28), "other": ((2048, 4096, 8192), 2**30)}


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with its inputs, and one device's part of both."""

    name: str
    batch: int  # images over all devices
    jitted: Callable
    inputs: tuple
    # The same function on a mesh of one device, and the shapes of that device's part.
    alone: Callable
    alone_inputs: tuple
    # Whether the first result is the next first input, which is donated.
    carries: bool


def run(
    cfg, *, output: str | None, compare: str | None, repeats: int, command: str
) -> dict:
    """Measures a config, prints a table and the changes since `compare`.

    Writes the result to `output` and returns it. Raises BadInput, before anything
    compiles, for a config that does not fit and for a baseline that is damaged or of
    another device or config.
    """
    check_config(cfg)
    if repeats < 1:
        raise BadInput(
            f"--repeats is {repeats}, which is too few. Use 1 or more, such as 7."
        )
    mesh = train_step.make_mesh(cfg)
    result = {
        "command": command,
        "device": device(mesh),
        "versions": versions(),
        "config": flat(cfg),
    }
    old = baseline.read_baseline(compare, result) if compare else None
    path = baseline.output_path(output) if output else None

    # Compiling is timed, so no cache may serve, not even one that the environment sets.
    jax.config.update("jax_enable_compilation_cache", False)
    # Before the ceilings, whose large arrays would count as peak memory.
    measured = [measure(program, repeats) for program in programs(cfg, mesh)]
    sizes, copy_bytes = CEILINGS.get(result["device"]["platform"], CEILINGS["other"])
    ceilings = roofline.measure_ceilings(
        {"float32", cfg.dtype}, sizes=sizes, copy_bytes=copy_bytes, repeats=repeats
    )
    result["repeats"] = repeats
    result["ceilings"] = {
        "matmul_flop_per_second": ceilings.matmul,
        "copy_bytes_per_second": ceilings.copy,
    }
    result["programs"] = {
        name: times | against(cost, times, ceilings) for name, times, cost in measured
    }

    print(baseline.table(result))
    if old:
        print("\n" + "\n".join(baseline.changes(result, old)))
    if path:
        baseline.write(path, result)
    return result


def programs(cfg, mesh) -> list[Program]:
    """Predict and training step of modes evaluate and train, on random images."""
    model = build_model.build(cfg)
    optimizer, _ = make_optimizer(cfg.train)
    one = devices.make_mesh(jax.devices()[:1])

    def fresh():
        return train_state.create(build_model.init_variables(model, cfg), optimizer)

    state_shape = jax.eval_shape(fresh)
    sharding = devices.state_sharding(state_shape, mesh)
    state = jax.jit(fresh, out_shardings=sharding).lower().compile(devices.RUN_ONCE)()
    # Copied, since the training step donates the state.
    variables = jax.tree.map(lambda x: x.copy(), state.ema_variables)

    def update(mesh):
        step = train_step.Update(
            model, optimizer, ema_decay=cfg.train.ema, accumulate=cfg.train.accumulate
        )
        return train_step.make_train_step(
            step, mesh, state_sharding=devices.state_sharding(state_shape, mesh)
        )

    batch, part = _inputs(cfg, cfg.train.batch_size, mesh)
    key = jax.device_put(jax.random.key(cfg.seed), devices.replicated(mesh))
    train = Program(
        "train step",
        cfg.train.batch_size,
        update(mesh),
        inputs=(state, _only(batch, "image", "mask"), key),
        alone=update(one),
        alone_inputs=(state_shape, _only(part, "image", "mask"), key),
        carries=True,
    )
    size = devices.divisible(cfg.eval.batch_size, mesh)
    batch, part = _inputs(cfg, size, mesh)
    predict = Program(
        "predict",
        size,
        make_predict(cfg, model, mesh),
        inputs=(variables, batch["image"], batch["index"]),
        alone=make_predict(cfg, model, one),
        alone_inputs=(state_shape.ema_variables, part["image"], part["index"]),
        carries=False,
    )
    return [predict, train]


def measure(program: Program, repeats: int) -> tuple[str, dict, roofline.Cost]:
    """(name, fields that need no ceilings, cost) of a program."""
    start = time.perf_counter()
    lowered = program.jitted.lower(*program.inputs)
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    timed = timing.measure(_caller(program, compiled), repeats=repeats)
    peak, source = memory()
    cost = roofline.program_cost(compiled, program.alone, *program.alone_inputs)
    return program.name, timing.summary(timed, program.batch) | {
        "batch": program.batch,
        "lower_seconds": middle - start,
        "compile_seconds": end - middle,
        "program_bytes": _program_bytes(compiled),
        "peak_bytes": peak,
        "peak_bytes_of": source,
        "flop": cost.flop,
        "bytes": cost.bytes,
        "flop_loops_once": roofline.reported_cost(compiled).flop,
        "flop_products": _products(program.alone, *program.alone_inputs),
    }, cost  # fmt: skip


def against(cost: roofline.Cost, times: dict, ceilings: roofline.Ceilings) -> dict:
    """A program's roofline fields, None where its cost is unknown."""
    least = roofline.roofline(cost, peak=ceilings.peak(), copy=ceilings.copy)
    if least is None:
        return dict.fromkeys(("roofline_milliseconds", "bound", "fraction"))
    seconds, bound = least
    return {
        "roofline_milliseconds": 1e3 * seconds,
        "bound": bound,
        "fraction": 1e3 * seconds / times["milliseconds"]["median"],
    }


def device(mesh) -> dict:
    """Platform, kind and count of the devices, which a baseline must share."""
    return {
        "platform": mesh.devices.flat[0].platform,
        "kind": devices.device_kind(mesh),
        "count": mesh.size,
    }


def versions() -> dict:
    """Versions of Python and of the libraries that decide speed."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


def flat(cfg) -> dict:
    """{"data.size": 256, ...}, with tuples as lists, since JSON has no tuples."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in fields.flat(cfg).items()
    }


def memory() -> tuple[int | None, str]:
    """(bytes, "device"): peak of the fullest device up to now.

    Where devices do not tell it: (largest resident size, "process").
    """
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    if peaks := [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]:
        return max(peaks), "device"
    try:
        # Imported here, since Windows has no such module.
        import resource
    except ImportError:
        return None, "not known"
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process"


def _caller(program, compiled):
    """A function that calls a program, with its last result if it carries that."""
    inputs = list(program.inputs)

    def call():
        result = compiled(*inputs)
        if program.carries:
            inputs[0], result = result
        return result

    return call


def _program_bytes(compiled):
    """Bytes of arguments, results and temporaries on a device, None where unknown."""
    try:
        memory = compiled.memory_analysis()
        # An array that is both argument and result counts once.
        return (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def _products(fn, *args):
    """FLOP of convolutions and matrix products as written, None where unknown.

    That is twice the multiply-adds of `macs.py`.
    """
    try:
        return 2 * macs.count_macs(fn, *args)
    except ValueError:
        # The program has a loop of unknown length.
        return None


def _inputs(cfg, count, mesh):
    """(a batch over all devices, the shapes of one device's part of it)."""
    rng = np.random.default_rng(cfg.seed)
    height, width, channels = build_data.image_shape(cfg)
    rows = count // jax.process_count()
    image = rng.random((rows, height, width, channels), np.float32)
    mask = rng.random((rows, height, width, cfg.data.classes)) < 0.1
    arrays = {
        "image": image,
        "mask": mask.astype(np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }
    part = {
        k: jax.ShapeDtypeStruct((count // mesh.size, *x.shape[1:]), x.dtype)
        for k, x in arrays.items()
    }
    return devices.put_batch(arrays, mesh), part


def _only(values, *names):
    return {name: values[name] for name in names}
