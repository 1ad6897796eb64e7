"""Results of mode benchmark: JSON, table, and comparison with a baseline."""

import json
import math
import pathlib

from biedsnet_jax.benchmarking import timing
from biedsnet_jax.config import known_fields, run_config
from biedsnet_jax.errors import BadInput, reason, shown
from biedsnet_jax.runtime import files

# Prefixes of fields that change neither program, so that a baseline may differ in them.
FREE = tuple(
    name for name in run_config.FREE if name not in ("eval.", "sampler.", "fusion")
)
_COMPARE = "In --compare give what --mode=benchmark wrote to --output."
_NOT_KNOWN = "not known"


def output_path(name: str) -> pathlib.Path:
    """The path of the JSON file. Raises BadInput where it cannot be written."""
    path = pathlib.Path(name)
    if path.is_dir():
        raise BadInput(
            f"--output {name} is a folder. "
            f"Give the JSON file to write, such as {path / 'bench.json'}."
        )
    if not path.parent.is_dir():
        raise BadInput(
            f"--output {name} lies in {path.parent}, which is not a folder. Make it first."
        )
    try:
        files.check_replaceable(path)
        files.check_writable(path.parent)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be written: {reason(error)}. Give another --output."
        ) from error
    return path


def write(path: pathlib.Path, result: dict) -> None:
    """Writes the result, atomically. Raises BadInput where it cannot."""
    with files.writing(path, another="--output"):
        files.write_json(path, result)


def read_baseline(name: str, here: dict) -> dict:
    """A result written before.

    Raises BadInput unless it is whole, and of the "device" and "config" of `here`.
    """
    try:
        old = json.loads(pathlib.Path(name).read_text(), parse_constant=_refuse)
        _check_whole(old)
        there = dict(old["device"])
        fields = dict(old["config"])
    except OSError as error:
        raise BadInput(
            f"The baseline {name} cannot be read: {reason(error)}. {_COMPARE}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(
            f"{name} is damaged, or not the result of a benchmark. {_COMPARE}"
        ) from None
    for what, ours in here["device"].items():
        if there.get(what) != ours:
            raise BadInput(
                f"The baseline {name} is of another device: its {what} is "
                f"{shown(there.get(what))}, here it is {ours}. Measure one here."
            )
    # The round trip turns tuples into lists, as in the file.
    config = json.loads(json.dumps(here["config"]))
    for field in sorted(fields.keys() | config.keys()):
        before = fields.get(field)
        now = config.get(field)
        if before == now or field.startswith(FREE):
            continue
        if known_fields.is_used(field, fields) or known_fields.is_used(field, config):
            raise BadInput(
                f"The baseline {name} is of another config: its {field} is "
                f"{shown(repr(before))}, here it is {now!r}. Measure one with this config."
            )
    return old


def _check_whole(result: dict) -> None:
    """Raises ValueError, KeyError or TypeError for a result that is not whole."""
    times = [program["milliseconds"] for program in result["programs"].values()]
    medians = [each["median"] for each in times]
    spreads = [each["spread"] for each in times]
    if not all(map(math.isfinite, [*medians, *spreads, *_speeds(result)])):
        raise ValueError("not finite")
    # Without a program `min` raises ValueError, too.
    if min(medians) <= 0 or min(spreads) < 0:
        raise ValueError("not positive")


def changes(new: dict, old: dict) -> list[str]:
    """A line for each program of both results, and one for the device itself.

    Where the device's own speed differs, it may have been busy or throttled, and the
    program may be as fast as before.
    """
    lines = []
    for name, program in new["programs"].items():
        if name in old["programs"]:
            was = old["programs"][name]["milliseconds"]
            lines.append(timing.change(name, program["milliseconds"], was))
    (product, copy), (was_product, was_copy) = _speeds(new), _speeds(old)
    lines.append(
        f"the device itself: best product {product:,.0f} GFLOP/s, was "
        f"{was_product:,.0f}; copy {copy:,.1f} GB/s, was {was_copy:,.1f}"
    )
    return lines


def table(result: dict) -> str:
    """The result for the screen: a line for each ceiling, a column for each program."""
    device = result["device"]
    ceilings = result["ceilings"]
    lines = [
        f"{device['count']} x {device['kind']}, jax {result['versions']['jax']}, "
        f"{result['repeats']} repeats"
    ]
    for dtype, by_size in ceilings["matmul_flop_per_second"].items():
        each = ", ".join(
            f"{rate / 1e9:,.0f} at {size}" for size, rate in by_size.items()
        )
        lines.append(f"matrix product, {dtype}: {each} GFLOP/s")
    lines.append(f"copy: {ceilings['copy_bytes_per_second'] / 1e9:,.1f} GB/s")
    rows = [["", *result["programs"]]] + [
        [name, *map(cell, result["programs"].values())] for name, cell in _ROWS.items()
    ]
    return "\n".join([*lines, "", *_aligned(rows)])


def _speeds(result):
    """(GFLOP/s of the best product, GB/s of the copy)."""
    ceilings = result["ceilings"]
    by_dtype = ceilings["matmul_flop_per_second"].values()
    product = max(max(by_size.values()) for by_size in by_dtype)
    return product / 1e9, ceilings["copy_bytes_per_second"] / 1e9


def _aligned(rows):
    """Lines of a table, its first column aligned left, the others right."""
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths)]
        lines.append("  ".join([name.ljust(first), *padded]).rstrip())
    return lines


# What a row of the table shows of a program, as a function of the program's fields.


def _plain(name, scale=1.0, digits=".4g"):
    return lambda p: _NOT_KNOWN if p[name] is None else format(p[name] / scale, digits)


def _with_spread(name):
    return lambda p: f"{_rounded(p[name]['median'])} +- {_rounded(p[name]['spread'])}"


def _rounded(value):
    """Three digits, without an exponent."""
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
    """Raises for NaN and infinities, which strict JSON does not have."""
    raise ValueError(constant)
