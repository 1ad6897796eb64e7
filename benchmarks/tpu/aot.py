"""Compiles a program for a TPU slice that is not here, and predicts its step time.

    pip install "jax[tpu]"
    python benchmarks/tpu/aot.py --config=configs/covid.py --config.dtype=bfloat16
        --topology=v5e:2x4 [--program=train] [--per-chip=8 | --total=64] [--output=DIR]
        [--profile=10]
    python benchmarks/tpu/aot.py --table=DIR

It needs no TPU, only its compiler (the wheel libtpu), which takes minutes and gigabytes
for a full-size network. The program is the train step or the sampler that training or
evaluation would run: jitted, the batch split over all chips, the state on each. Nothing
is initialised or run. Topologies: v5e:2x4 (8 chips), v5e:16x16 (256), v5p:4x4x4 (64),
v6e:8x8 (64), ...

- `--per-chip` images on each chip (fixed work per chip), or `--total` over all of them (fixed
  total work);
- `--output` gets one json file a run, named after what was compiled, and beside it the HLO;
  `--table` turns such a folder into Markdown;
- `--profile` lists the operations, arrays and modules that move most bytes through HBM.

A program that does not fit the chip's memory is one line that says by how much. Times
are predictions (cost.py) from published peaks; the compiler's own count of FLOP and
bytes is scaled by how often its loops turn (hlo.py).
"""

import gzip
import os
import re
import sys
import time
from pathlib import Path

# Before jax is imported: the compiler is asked, no device is looked for.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
# Several processes may compile at once.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
from jax.experimental import topologies

from benchmarks import scripts
from benchmarks.tpu import cost, hlo, traffic
from biedsnet_jax.benchmarking import benchmark, roofline
from biedsnet_jax.checkpoints import train_state
from biedsnet_jax.config import build_data, build_model
from biedsnet_jax.config.build_optimizer import make_optimizer
from biedsnet_jax.errors import BadInput, exit_code, reason, shown
from biedsnet_jax.prediction.trained import make_predict
from biedsnet_jax.runtime import devices, files
from biedsnet_jax.training import train_step

PROGRAMS = ("train", "sampler")


def main() -> int:
    arguments, words = _arguments()
    if arguments.table:
        print(cost.table(cost.read(arguments.table)))
        return 0
    chip = cost.chip_of(arguments.topology)
    compiler = cost.compiler_version()
    cfg = scripts.read_config(words)
    mesh = open_mesh(arguments.topology)
    images = arguments.total or arguments.per_chip * mesh.size
    set_batch(cfg, images, mesh)
    result = {
        "topology": arguments.topology,
        "chip": arguments.topology.split(":")[0],
        "chips": mesh.size,
        "program": arguments.program,
        "images": images,
        "per_chip": images // mesh.size,
        "variant": variant(cfg),
    }
    print(", ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    result["versions"] = benchmark.versions() | {"libtpu": compiler}
    compiled, seconds = compile_for(arguments.program, cfg, mesh)
    text = compiled.as_text()
    module = hlo.parse(text)
    result["parameters"] = parameters(cfg)
    result |= seconds | describe(compiled, module, chip, mesh.size)
    result["config"] = benchmark.flat(cfg)
    if arguments.output:
        path = Path(arguments.output) / file_name(result)
        files.write_json(path, result)
        path.with_suffix(".hlo.gz").write_bytes(gzip.compress(text.encode()))
        print(path)
    print(cost.table([result]))
    if arguments.profile:
        print("\n" + traffic.profile(module, arguments.profile))
    return 0


def open_mesh(topology: str) -> jax.sharding.Mesh:
    """The chips of a slice in one row.

    Raises BadInput where the compiler knows no such slice.
    """
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    # jaxlib raises several kinds of error.
    except Exception as error:
        raise BadInput(
            f"The TPU compiler knows no --topology={topology} "
            f"({reason(error, most=80)}). "
            "Use one such as v5e:2x4, v5e:16x16, v5p:4x4x4 or v6e:8x8."
        ) from error
    return devices.make_mesh(list(slice_.devices))


def set_batch(cfg, images: int, mesh) -> None:
    """Sets both batch sizes of a config.

    Raises BadInput where they do not divide over the chips.
    """
    parts = mesh.size * cfg.train.accumulate
    devices.check_divisible(
        images, parts, field="--total or --per-chip", what="chips and parts"
    )
    cfg.train.batch_size = cfg.eval.batch_size = images


def compile_for(
    program: str, cfg, mesh
) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Compiles a program, and times lowering and compiling it.

    Raises BadInput where it does not fit the chip's memory.
    """
    # Shapes alone are lowered, so nothing is initialised.
    make = train_program if program == "train" else sampler_program
    jitted, inputs = make(cfg, mesh)
    # A program from the cache would not be compiled, and compiling is timed.
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    lowered = jitted.lower(*inputs)
    middle = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise BadInput(
            f"{does_not_fit(str(error))} Take fewer images by --per-chip or --total."
        ) from error
    return compiled, {
        "lower_seconds": middle - start,
        "compile_seconds": time.perf_counter() - middle,
    }


def does_not_fit(message: str) -> str:
    """A sentence of what the compiler says about memory."""
    for pattern in (
        r"[Uu]sed (\S+) of (\S+)",
        r"\(([\d.]+\w+)\) exceeds available \w+ \(([\d.]+\w+)\)",
    ):
        if found := re.search(pattern, message):
            return f"The program needs {found[1]} of memory, but a chip has {found[2]}."
    return f"The program does not fit the chip's memory ({shown(message, most=200)})."


def train_program(cfg, mesh) -> tuple:
    """The jitted train step, and the shapes of its arguments."""
    model = build_model.build(cfg)
    optimizer, _ = make_optimizer(cfg.train)
    update = train_step.Update(
        model, optimizer, ema_decay=cfg.train.ema, accumulate=cfg.train.accumulate
    )
    step = train_step.make_train_step(update, mesh)
    state = jax.eval_shape(
        lambda: train_state.create(build_model.init_variables(model, cfg), optimizer)
    )
    batch = {"image": _images(cfg), "mask": _images(cfg, cfg.data.classes)}
    return step, (state, batch, jax.eval_shape(lambda: jax.random.key(0)))


def sampler_program(cfg, mesh) -> tuple:
    """The jitted prediction, all steps and samples, and the shapes of its arguments."""
    model = build_model.build(cfg)
    predict = make_predict(cfg, model, mesh)
    variables = jax.eval_shape(lambda: build_model.init_variables(model, cfg))
    numbers = jax.ShapeDtypeStruct((cfg.eval.batch_size,), "int32")
    return predict, (variables, _images(cfg), numbers)


def describe(compiled, module: hlo.Module, chip: cost.Chip, chips: int) -> dict:
    """What one chip holds and does in one call, and the seconds that should take."""
    reported = roofline.reported_cost(compiled)
    weights = hlo.weights(module)
    found = hlo.collectives(module)
    flop = reported.flop * _with_loops([(w.flop, w.times) for w in weights])
    moved = reported.bytes * _with_loops([(w.bytes, w.times) for w in weights])
    hbm = sum(w.hbm_bytes * w.times for w in weights)
    seconds = cost.collective_seconds(found, chips=chips, chip=chip)
    own = (compiled.cost_analysis() or {}).get("optimal_seconds", -1.0)
    return {
        "memory": memory(compiled) | {"chip_bytes": chip.hbm_bytes},
        "flop": flop,
        "bytes": moved,
        "hbm_bytes": hbm,
        "flop_loops_once": reported.flop,
        "bytes_loops_once": reported.bytes,
        "collectives": sum(times for _, _, times in found),
        "collective_bytes": sum(size * times for _, size, times in found),
        "collective_seconds": seconds,
        "step_seconds": cost.step_seconds(
            flop=flop, moved=moved, collectives=seconds, chip=chip
        ),
        "step_seconds_hbm": cost.step_seconds(
            flop=flop, moved=hbm, collectives=seconds, chip=chip
        ),
        # The compiler's own guess, with each loop's body once. What is negative, or less
        # than the arithmetic alone takes, is no time.
        "optimal_seconds": own if own >= reported.flop / chip.peak else None,
    }


def parameters(cfg) -> int:
    """Number of parameters of the network."""
    model = build_model.build(cfg)
    shapes = jax.eval_shape(lambda: build_model.init_variables(model, cfg))
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


def memory(compiled) -> dict[str, int]:
    """Bytes that the program takes of one chip's HBM."""
    m = compiled.memory_analysis()
    parts = {
        "argument_bytes": m.argument_size_in_bytes,
        "output_bytes": m.output_size_in_bytes,
        # Donated bytes count as argument and as output.
        "donated_bytes": m.alias_size_in_bytes,
        "temporary_bytes": m.temp_size_in_bytes,
        "code_bytes": m.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["donated_bytes"]
    parts["total_bytes"] = total
    # Older versions of jaxlib do not say.
    if peak := getattr(m, "peak_memory_in_bytes", 0):
        parts["peak_bytes"] = peak
    return parts


def variant(cfg) -> str:
    """Network, widths, image size and dtype, for the name of a file."""
    widths = cfg.networks[cfg.network].get("channels", ())
    if not isinstance(widths, tuple):
        widths = (widths,)
    name = "-".join(map(str, (cfg.row or cfg.network, *widths)))
    return f"{name}_{cfg.data.size}px_{cfg.dtype}"


def file_name(result: dict) -> str:
    """Name of the json file of a result, after what was compiled."""
    chips = result["topology"].replace(":", "-")
    return f"{chips}_{result['program']}_{result['images']}_{result['variant']}.json"


def _with_loops(counts):
    """Total with each operation as often as it runs, over that with each once."""
    once = sum(count for count, _ in counts)
    return sum(count * times for count, times in counts) / once if once else 1.0


def _images(cfg, channels=None):
    height, width, own = build_data.image_shape(cfg)
    return jax.ShapeDtypeStruct(
        (cfg.train.batch_size, height, width, channels or own), "float32"
    )


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument(
        "--topology", default="v5e:2x4", help="chip and slice, such as v5e:16x16"
    )
    parser.add_argument("--program", choices=PROGRAMS, default="train")
    parser.add_argument("--per-chip", type=int, default=8, help="images on each chip")
    parser.add_argument(
        "--total",
        type=int,
        default=0,
        help="images over all chips, instead of --per-chip",
    )
    parser.add_argument(
        "--output", help="folder for the json file; made where there is none"
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        help="number of operations, arrays and modules to list",
    )
    parser.add_argument(
        "--table", help="a folder of such files: print the table, compile nothing"
    )
    arguments, words = parser.parse_known_args()
    if arguments.per_chip < 1 or min(arguments.total, arguments.profile) < 0:
        parser.error("--per-chip starts at 1, --total and --profile at 0")
    if arguments.table and words:
        parser.error(f"--table takes no {words[0]}")
    if arguments.output:
        try:
            Path(arguments.output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"--output={arguments.output} cannot be made ({reason(error)}). "
                "Give another folder."
            ) from error
    return arguments, words


if __name__ == "__main__":
    sys.exit(exit_code(main))
