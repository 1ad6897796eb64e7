"""Mode benchmark: the train step and predict of a config, timed on this machine's
devices with made-up input.

Besides time: what compiling takes, memory, FLOP and bytes, and how near a step comes to
the least time that the device's own speed allows (`roofline.py`), measured in the same
run. Nothing is read but a config, and a baseline if asked for.
"""

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Callable

import jax
import numpy as np

from biedsnet_jax.benchmarking import baseline as benchmark_files
from biedsnet_jax.benchmarking import roofline, timing
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.config import fields as config_fields
from biedsnet_jax.config.check import check_config
from biedsnet_jax.errors import BadInput
from biedsnet_jax.prediction.trained import make_predict
from biedsnet_jax.runtime import devices
from biedsnet_jax.segmenters import macs
from biedsnet_jax.training import train_step
from biedsnet_jax.training.optimizer import make_optimizer

# Large enough to fill the device, small enough to take seconds: side of the matrices,
# bytes copied.
_CEILINGS = {"cpu": ((512, 1024, 2048), 2**28), "other": ((2048, 4096, 8192), 2**30)}


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with what it is called on, and what one device does of it."""

    name: str
    batch: int  # images over all devices
    jitted: Callable
    inputs: tuple
    alone: Callable  # the same on a mesh of one device,
    alone_inputs: tuple  # and shapes of one device's part
    carries: bool  # the first result is the next first input, which is donated


def run(
    cfg, *, output: str | None, baseline: str | None, repeats: int, command: str
) -> dict:
    """Measure, print a table, write `output`, say what changed since `baseline`;
    returns what `output` holds.

    Raises BadInput for a config that cannot be, and a baseline that is damaged or of
    another device or config, before anything compiles.
    """
    check_config(cfg)
    if repeats < 1:
        raise BadInput(
            f"too few repeats, {repeats}, in --repeats; use 1 or more, such as 7"
        )
    mesh = train_step.make_mesh(cfg)
    result = {
        "command": command,
        "device": device(mesh),
        "versions": versions(),
        "config": flat(cfg),
    }
    old = benchmark_files.read_baseline(baseline, result) if baseline else None
    path = benchmark_files.output_path(output) if output else None

    # compiling is timed; an environment may have set one
    jax.config.update("jax_enable_compilation_cache", False)
    # Before the ceilings, whose arrays would count as peak memory.
    measured = [measure(program, repeats) for program in programs(cfg, mesh)]
    sizes, copy_bytes = _CEILINGS.get(result["device"]["platform"], _CEILINGS["other"])
    ceilings = roofline.measure_ceilings(
        {"float32", cfg.dtype}, sizes=sizes, copy_bytes=copy_bytes, repeats=repeats
    )
    result |= {"repeats": repeats, "ceilings": benchmark_files.ceiling_fields(ceilings)}
    result["programs"] = {
        name: fields | against(cost, fields, ceilings)
        for name, fields, cost in measured
    }

    print(benchmark_files.table(result))
    if old:
        print("\n" + "\n".join(benchmark_files.changes(result, old)))
    if path:
        benchmark_files.write(path, result)
    return result


def programs(cfg, mesh) -> list[Program]:
    """The train step and predict, as modes train and evaluate run them, with random
    images and masks.
    """
    model = build_model.build(cfg)
    optimizer, _ = make_optimizer(cfg.train)
    one = devices.make_mesh(jax.devices()[:1])

    def fresh():
        return train_state.create(build_model.init_variables(model, cfg), optimizer)

    state_shape = jax.eval_shape(fresh)
    sharding = devices.state_sharding(state_shape, mesh)
    state = jax.jit(fresh, out_shardings=sharding).lower().compile(devices.RUN_ONCE)()
    # A copy: the train step donates the state.
    variables = jax.tree.map(lambda x: x.copy(), state.ema_variables)

    def update(mesh):
        step = train_step.Update(
            model, optimizer, ema_decay=cfg.train.ema, accumulate=cfg.train.accumulate
        )
        return train_step.make_train_step(
            step, mesh, state_sharding=devices.state_sharding(state_shape, mesh)
        )

    def predict(mesh):
        return make_predict(cfg, model, mesh)

    batch, part = _inputs(cfg, cfg.train.batch_size, mesh)
    key = jax.device_put(jax.random.key(cfg.seed), devices.replicated(mesh))
    trained = {"inputs": (state, _only(batch, "image", "mask"), key)}
    trained["alone_inputs"] = (state_shape, _only(part, "image", "mask"), key)
    batch, part = _inputs(cfg, cfg.eval.batch_size, mesh)
    asked = {"inputs": (variables, batch["image"], batch["index"])}
    asked["alone_inputs"] = (state_shape.ema_variables, part["image"], part["index"])
    return [
        Program(
            "predict",
            cfg.eval.batch_size,
            predict(mesh),
            alone=predict(one),
            carries=False,
            **asked,
        ),
        Program(
            "train step",
            cfg.train.batch_size,
            update(mesh),
            alone=update(one),
            carries=True,
            **trained,
        ),
    ]


def measure(program: Program, repeats: int) -> tuple[str, dict, roofline.Cost]:
    """(name, everything but what needs the ceilings, cost) of one program."""
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


def against(cost: roofline.Cost, fields: dict, ceilings: roofline.Ceilings) -> dict:
    """A program's roofline fields; None where its cost is not known."""
    least = roofline.roofline(cost, peak=ceilings.peak(), copy=ceilings.copy)
    if least is None:
        return {"roofline_milliseconds": None, "bound": None, "fraction": None}
    milliseconds = 1e3 * least[0]
    fraction = milliseconds / fields["milliseconds"]["median"]
    return {
        "roofline_milliseconds": milliseconds,
        "bound": least[1],
        "fraction": fraction,
    }


def device(mesh) -> dict:
    """What a baseline must share: platform, kind, and how many."""
    return {
        "platform": mesh.devices.flat[0].platform,
        "kind": devices.device_kind(mesh),
        "count": mesh.size,
    }


def versions() -> dict:
    """Of Python and the libraries that decide speed."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


def flat(cfg) -> dict:
    """{"data.size": 256, ...}, with lists for tuples as JSON has them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config_fields.flat(cfg).items()
    }


def memory() -> tuple[int | None, str]:
    """(bytes, whose): the fullest device's peak up to now, else the largest resident
    size of the process.
    """
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    if peaks := [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]:
        return max(peaks), "device"
    try:
        # here, since Windows has none
        import resource
    except ImportError:
        return None, "not known"
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process"


def _caller(program, compiled):
    inputs = list(program.inputs)

    def call():
        result = compiled(*inputs)
        if program.carries:
            inputs[0], result = result
        return result

    return call


def _program_bytes(compiled):
    """Arguments, results and temporaries on one device, an array that is both counted
    once.
    """
    try:
        m = compiled.memory_analysis()
        total = (
            m.argument_size_in_bytes
            + m.output_size_in_bytes
            + m.temp_size_in_bytes
            - m.alias_size_in_bytes
        )
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return total


def _products(fn, *args):
    """FLOP of convolutions and matrix products as the program is written: twice
    `macs.py`'s multiply-adds.
    """
    try:
        return 2 * macs.count_macs(fn, *args)
    # a loop of unknown length
    except ValueError:
        return None


def _inputs(cfg, count, mesh):
    """A batch over all devices, and the shapes of one device's part of it."""
    rng = np.random.default_rng(cfg.seed)
    height, width, channels = build_data.image_shape(cfg)
    mine = count // jax.process_count()
    arrays = {
        "image": rng.random((mine, height, width, channels), np.float32),
        "mask": (rng.random((mine, height, width, cfg.data.classes)) < 0.1).astype(
            np.float32
        ),
        "index": np.arange(mine, dtype=np.int32),
    }
    part = {
        k: jax.ShapeDtypeStruct((count // mesh.size, *x.shape[1:]), x.dtype)
        for k, x in arrays.items()
    }
    return devices.put_batch(arrays, mesh), part


def _only(values, *names):
    return {name: values[name] for name in names}
