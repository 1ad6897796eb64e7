"""Predicts a step's time on a TPU from its compiled program, and tables predictions.

    step = max(FLOP / peak, bytes / HBM bandwidth) + collectives,
    an all-reduce of B bytes over n chips = 2 (n - 1) / n B / link bandwidth

Nothing overlaps with the collectives, and they run as one ring over one link in one
direction, though a torus has four or six links a chip: both are the slower assumption.
Latency is left out.
"""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

from biedsnet_jax.errors import BadInput, reason


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip."""

    peak: float  # FLOP/s in bfloat16
    hbm_bytes: float
    hbm: float  # bytes/s
    link: float  # bytes/s of one link in one direction


# cloud.google.com/tpu/docs/v5e, v5p and v6e, "key chip specifications": peak compute
# (bf16), HBM capacity and bandwidth, and interchip interconnect bandwidth, 1600, 4800
# and 3200 Gbps (given there today as twice that, both directions), over the 4, 6 and 4
# links that a chip of a 2D, 3D and 2D torus has.
CHIPS = {
    "v5e": Chip(peak=197e12, hbm_bytes=16e9, hbm=819e9, link=1600e9 / 8 / 4),
    "v5p": Chip(peak=459e12, hbm_bytes=95e9, hbm=2765e9, link=4800e9 / 8 / 6),
    "v6e": Chip(peak=918e12, hbm_bytes=32e9, hbm=1600e9, link=3200e9 / 8 / 4),
}
# The other collectives go around the ring once.
_TIMES_AROUND = {"all-reduce": 2.0}
_COLUMNS = (
    "topology",
    "program",
    "images",
    "chips",
    "GiB of HBM",
    "TFLOP",
    "GB moved",
    "GB in HBM",
    "all-reduce MB (number)",
    "step ms, HBM alone",
    "step ms, all bytes",
    "images/s",
    "compile s",
)


def chip_of(topology: str) -> Chip:
    """The chip that a topology's word before the colon names.

    Raises BadInput for one that is not in the table.
    """
    family = topology.split(":")[0]
    if family not in CHIPS:
        raise BadInput(
            f"--topology names the chip {family}, which is not in the table. "
            f"Use one of {', '.join(CHIPS)}, such as v5e:2x4."
        )
    return CHIPS[family]


def compiler_version() -> str:
    """Version of libtpu. Raises BadInput where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise BadInput(
            'The TPU compiler, libtpu, is not installed. Run pip install "jax[tpu]".'
        ) from error


def collective_seconds(
    collectives: list[tuple[str, int, int]], *, chips: int, chip: Chip
) -> float:
    """Seconds of collectives in turn; each is (kind, bytes on one chip, times)."""
    around = sum(
        _TIMES_AROUND.get(kind, 1.0) * size * times for kind, size, times in collectives
    )
    return (chips - 1) / chips * around / chip.link


def step_seconds(*, flop: float, moved: float, collectives: float, chip: Chip) -> float:
    """Seconds of one step; `collectives` are seconds, the rest is of one chip."""
    return max(flop / chip.peak, moved / chip.hbm) + collectives


def read(folder: str) -> list[dict]:
    """Reads the results in `folder`, in the order of the table.

    Raises BadInput where there is none, or a file is no result.
    """
    results = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            result = json.loads(path.read_text())
            _row(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{path} is no prediction, or damaged ({reason(error)}). "
                "Take it out of the folder."
            ) from error
        results.append(result)
    if not results:
        raise BadInput(
            f"{folder} has no predictions. Make some with --topology and --output={folder}."
        )

    def order(result):
        chip = result["topology"].split(":")[0]
        return result["variant"], result["program"], chip, result["chips"]

    return sorted(results, key=order)


def table(results: list[dict]) -> str:
    """Markdown tables, a row a result, with lines on scaling below each.

    A line compares two slices of one kind of chip.
    """
    lines = [_line(_COLUMNS), "| :-- |" + " --: |" * (len(_COLUMNS) - 1)]
    by_variant = {}
    for result in results:
        by_variant.setdefault(result["variant"], []).append(result)
    parts = []
    for variant, group in by_variant.items():
        parts.append("\n".join([variant, "", *lines, *map(_row, group)]))
        parts.append("\n".join(f"- {line}" for line in scaling(group)))
    return "\n\n".join(filter(None, parts))


def scaling(results: list[dict]) -> list[str]:
    """Efficiency of more chips of the same kind, as sentences.

    Chips are compared at equal work per chip and at equal work altogether.
    """
    lines = []
    for few in results:
        for many in results:
            same = all(
                few[name] == many[name] for name in ("variant", "program", "chip")
            )
            if not same or few["chips"] >= many["chips"]:
                continue
            chips = f"{few['chip']} {few['program']}, {few['chips']} to {many['chips']} chips"
            if few["per_chip"] == many["per_chip"]:
                images = f"{few['per_chip']} images a chip (weak scaling)"
                lines.append(f"{chips} at {images}: {_efficiency(few, many, 1)}")
            if few["images"] == many["images"]:
                images = f"{few['images']} images altogether (strong scaling)"
                more = many["chips"] / few["chips"]
                lines.append(f"{chips} at {images}: {_efficiency(few, many, more)}")
    return lines


def _efficiency(few, many, more):
    """Share of the speed of `more` times the chips that `many` gets."""
    hbm, total = (
        100 * few[name] / many[name] / more
        for name in ("step_seconds_hbm", "step_seconds")
    )
    return f"efficiency {hbm:.1f} % by HBM traffic, {total:.1f} % by all bytes"


def _row(result):
    memory = result["memory"]
    slowest = result["images"] / result["step_seconds"]
    fastest = result["images"] / result["step_seconds_hbm"]
    cells = [
        result["topology"],
        result["program"],
        f"{result['images']} ({result['per_chip']} a chip)",
        result["chips"],
        f"{memory['total_bytes'] / 2**30:.2f}",
        f"{result['flop'] / 1e12:.3g}",
        f"{result['bytes'] / 1e9:.3g}",
        f"{result['hbm_bytes'] / 1e9:.3g}",
        f"{result['collective_bytes'] / 1e6:.3g} ({result['collectives']})",
        f"{1e3 * result['step_seconds_hbm']:.3g}",
        f"{1e3 * result['step_seconds']:.3g}",
        f"{slowest:.0f} to {fastest:.0f}",
        f"{result['compile_seconds']:.0f}",
    ]
    return _line(cells)


def _line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"
