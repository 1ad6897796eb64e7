"""What mode benchmark keeps and shows: strict JSON, the table on screen, and a baseline
read back and compared.
"""

import json
import math
import pathlib

from biedsnet_jax.benchmarking import timing
from biedsnet_jax.config import known_fields, run_config
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files

# Fields that change neither program, so that a baseline may have others.
_FREE = tuple(
    name for name in run_config.FREE if name not in ("eval.", "sampler.", "fusion")
)
_NOT_KNOWN = "not known"


def output_path(name: str) -> pathlib.Path:
    """Where the JSON goes. Raises BadInput where it cannot, before the measuring."""
    path = pathlib.Path(name)
    if path.is_dir():
        raise BadInput(
            f"a folder, {name}, in --output; give the JSON file to write, such as {path / 'bench.json'}"
        )
    if not path.parent.is_dir():
        raise BadInput(f"no such folder, {path.parent}, in --output; make it first")
    try:
        files.check_replaceable(path)
        files.check_writable(path.parent)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written: {reason(error)}. Give another --output."
        ) from error
    return path


def write(path: pathlib.Path, result: dict) -> None:
    """Write the result, atomically."""
    try:
        files.write_json(path, result)
    except OSError as error:
        raise BadInput(
            f"cannot write, {reason(error)}, {path}; give another --output"
        ) from error


def read_baseline(name: str, here: dict) -> dict:
    """A result written before. Raises BadInput unless it is whole and of `here`'s
    "device" and "config".
    """
    fix = "in --compare; give what --mode=benchmark wrote to --output"
    try:
        old = json.loads(pathlib.Path(name).read_text(), parse_constant=_refuse)
        medians = [
            p["milliseconds"][k]
            for p in old["programs"].values()
            for k in ("median", "spread")
        ]
        whole = (
            medians
            and all(math.isfinite(x) and x >= 0 for x in medians)
            and all(medians[::2])
        )
        whole = whole and all(math.isfinite(x) for x in _speeds(old))
        device, fields = dict(old["device"]), dict(old["config"])
    except OSError as error:
        raise BadInput(f"no baseline, {reason(error)}, {name} {fix}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise BadInput(f"no benchmark's result, or damaged, {name}, {fix}")
    for what in ("platform", "kind", "count"):
        if device.get(what) != here["device"][what]:
            there, ours = shown(device.get(what)), here["device"][what]
            raise BadInput(
                f"baseline of another device, {what} {there} there and {ours} here, {name}; measure one here"
            )
    ours = json.loads(json.dumps(here["config"]))
    for field in sorted(fields.keys() | ours.keys()):
        used = known_fields.is_used(field, fields) or known_fields.is_used(field, ours)
        if (
            used
            and not field.startswith(_FREE)
            and fields.get(field) != ours.get(field)
        ):
            there = shown(repr(fields.get(field)))
            raise BadInput(
                f"baseline of another config, {field} is {there} there and {ours.get(field)!r} here, {name}; "
                "measure one with this config"
            )
    return old


def changes(new: dict, old: dict) -> list[str]:
    """A line on each program of both results, those that got slower in capitals, and
    one on the device itself.

    Where the device's own speed differs too, it may have been busy or throttled, and
    the program be the same.
    """
    shared = [name for name in new["programs"] if name in old["programs"]]
    milliseconds = [
        (n, new["programs"][n]["milliseconds"], old["programs"][n]["milliseconds"])
        for n in shared
    ]
    (product, copy), (was_product, was_copy) = _speeds(new), _speeds(old)
    device = f"the device itself: best product {product:,.0f} GFLOP/s, was {was_product:,.0f}; "
    device += f"copy {copy:,.1f} GB/s, was {was_copy:,.1f}"
    return [timing.change(*one) for one in milliseconds] + [device]


def ceiling_fields(ceilings) -> dict:
    """Of one device: FLOP/s by dtype and size of the matrices, bytes/s."""
    by_dtype = {
        d: {str(size): rate for size, rate in by_size.items()}
        for d, by_size in ceilings.matmul.items()
    }
    return {"matmul_flop_per_second": by_dtype, "copy_bytes_per_second": ceilings.copy}


def table(result: dict) -> str:
    """The result for the screen: ceilings in a line each, then a column a program."""
    device, rates = result["device"], result["ceilings"]["matmul_flop_per_second"]
    lines = [
        f"{device['count']} x {device['kind']}, jax {result['versions']['jax']}, {result['repeats']} repeats"
    ]
    for dtype, by_size in rates.items():
        each = ", ".join(
            f"{rate / 1e9:,.0f} at {size}" for size, rate in by_size.items()
        )
        lines.append(f"matrix product, {dtype}: {each} GFLOP/s")
    lines.append(f"copy: {result['ceilings']['copy_bytes_per_second'] / 1e9:,.1f} GB/s")
    rows = [["", *result["programs"]]] + [
        [name, *map(cell, result["programs"].values())] for name, cell in _ROWS.items()
    ]
    return "\n".join([*lines, "", *_aligned(rows)])


def _speeds(result):
    """GFLOP/s of the best product, GB/s of the copy."""
    ceilings = result["ceilings"]
    products = [
        rate
        for by_size in ceilings["matmul_flop_per_second"].values()
        for rate in by_size.values()
    ]
    return max(products) / 1e9, ceilings["copy_bytes_per_second"] / 1e9


def _aligned(rows):
    """First column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:])),
            ]
        ).rstrip()
        for row in rows
    ]


def _plain(name, scale=1.0, digits=".4g"):
    return lambda p: _NOT_KNOWN if p[name] is None else format(p[name] / scale, digits)


def _with_spread(name):
    return lambda p: f"{_rounded(p[name]['median'])} +- {_rounded(p[name]['spread'])}"


def _rounded(value):
    """Three digits, never as 1e+02."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_ROWS = {
    "images a call": lambda p: str(p["batch"]),
    "milliseconds, median +- spread": _with_spread("milliseconds"),
    "images/s, median +- spread": _with_spread("images_per_second"),
    "lower, s": _plain("lower_seconds", digits=".2f"),
    "compile, s": _plain("compile_seconds", digits=".2f"),
    "peak memory so far, MiB": lambda p: (
        f"{_plain('peak_bytes', 2**20, ',.0f')(p)} ({p['peak_bytes_of']})"
    ),
    "memory of the program, MiB a device": _plain("program_bytes", 2**20, ",.0f"),
    "GFLOP a device": _plain("flop", 1e9),
    "GFLOP of convolutions and products as written": _plain("flop_products", 1e9),
    "GB a device": _plain("bytes", 1e9),
    "roofline, milliseconds": _plain("roofline_milliseconds"),
    "bound by": lambda p: p["bound"] or _NOT_KNOWN,
    "fraction of the roofline": _plain("fraction", digits=".1%"),
}


def _refuse(constant):
    raise ValueError(constant)
