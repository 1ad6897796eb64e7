"""Times the training step and the prediction of a config in one precision.

    python benchmarks/gpu/speed.py --config=... --precision=TF32 --batch=8 --output=FILE.json
        [--repeats=7]

It measures what mode benchmark does, on one device. A program that does not fit the
device's memory is a result too: it says so, and the other program is still measured.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax

from benchmarks import scripts
from benchmarks.gpu import precision
from benchmarks.gpu.child import is_out_of_memory
from biedsnet_jax.benchmarking import benchmark, roofline
from biedsnet_jax.errors import exit_code, reason
from biedsnet_jax.runtime import devices, files


def main() -> int:
    arguments, cfg = _arguments()
    precision.apply(arguments.precision, cfg)
    cfg.train.batch_size = arguments.batch
    cfg.eval.batch_size = arguments.batch
    mesh = devices.make_mesh(jax.devices()[:1])
    result = precision.machine(arguments.precision, mesh)
    result |= measure(cfg, mesh, arguments.repeats)
    scripts.show(result, None)
    files.write_json(Path(arguments.output), result)
    return 0


def measure(cfg, mesh, repeats: int) -> dict:
    """Fields of both programs and the ceilings, as mode benchmark has them.

    A program without enough memory has the field "out_of_memory", with the reason.
    """
    # Compiling is timed, so no cache may serve.
    jax.config.update("jax_enable_compilation_cache", False)
    measured = [_measured(each, repeats) for each in benchmark.programs(cfg, mesh)]
    platform = mesh.devices.flat[0].platform
    sizes, copy_bytes = benchmark.CEILINGS.get(platform, benchmark.CEILINGS["other"])
    ceilings = roofline.measure_ceilings(
        {"float32", cfg.dtype}, sizes=sizes, copy_bytes=copy_bytes, repeats=repeats
    )
    return {
        "batch": cfg.train.batch_size,
        "repeats": repeats,
        "ceilings": {
            "matmul_flop_per_second": ceilings.matmul,
            "copy_bytes_per_second": ceilings.copy,
        },
        "programs": {
            name: _with_roofline(fields, cost, ceilings)
            for name, fields, cost in measured
        },
    }


def _measured(program, repeats):
    try:
        return benchmark.measure(program, repeats)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(str(error)):
            raise
        return program.name, {"out_of_memory": reason(error)}, None


def _with_roofline(fields, cost, ceilings):
    if cost is None:
        return fields
    return fields | benchmark.against(cost, fields, ceilings)


def _arguments():
    parser = scripts.make_parser(__doc__)
    parser.add_argument("--precision", choices=precision.PRECISIONS, required=True)
    parser.add_argument("--batch", type=int, required=True, help="images a call")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats")
    parser.add_argument("--output", required=True, help="json file")
    arguments, words = parser.parse_known_args()
    if min(arguments.batch, arguments.repeats) < 1:
        parser.error("--batch and --repeats start at 1")
    return arguments, scripts.read_config(words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
