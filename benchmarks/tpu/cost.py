"""What a step should take on a TPU, from what its compiled program does; and the table
of such predictions.

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
# the others go around the ring once
_TIMES_AROUND = {"all-reduce": 2.0}
_SHOWN = ("program", "images", "chips", "GiB of HBM", "TFLOP", "GB moved", "GB in HBM", "all-reduce MB (number)",
          "step ms, HBM alone", "step ms, all bytes", "images/s", "compile s")  # fmt: skip


def chip_of(topology: str) -> Chip:
    """By the word before the colon. Raises BadInput for one that is not in the table."""
    family = topology.split(":")[0]
    if family not in CHIPS:
        raise BadInput(
            f"unknown chip, {family}, in --topology; use one of {', '.join(CHIPS)}, such as v5e:2x4"
        )
    return CHIPS[family]


def compiler_version() -> str:
    """Of libtpu. Raises BadInput where it is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise BadInput(
            'TPU compiler not installed, libtpu, for --topology; pip install "jax[tpu]"'
        ) from error


def collective_seconds(
    collectives: list[tuple[str, int, int]], *, chips: int, chip: Chip
) -> float:
    """Of all of them one after another; each is (kind, bytes on one chip, times)."""
    around = sum(
        _TIMES_AROUND.get(kind, 1.0) * size * times for kind, size, times in collectives
    )
    return (chips - 1) / chips * around / chip.link


def step_seconds(*, flop: float, moved: float, collectives: float, chip: Chip) -> float:
    """Of one step on every chip; `collectives` in seconds, the rest of one chip."""
    return max(flop / chip.peak, moved / chip.hbm) + collectives


def read(folder: str) -> list[dict]:
    """What runs have left in `folder`. Raises BadInput where there is none, or a file
    is none of theirs.
    """
    results = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            result = json.loads(path.read_text())
            _row(result)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"no prediction, or damaged, {reason(error)}, {path}; take it out of the folder"
            ) from error
        results.append(result)
    if not results:
        raise BadInput(
            f"no predictions, nothing, in {folder}; make some with --topology and --output={folder}"
        )
    return sorted(
        results,
        key=lambda r: (
            r["variant"],
            r["program"],
            r["topology"].split(":")[0],
            r["chips"],
        ),
    )


def table(results: list[dict]) -> str:
    """Markdown: a row a result, and below it a line for each pair of slices of one kind
    of chip.
    """
    lines = [
        "| topology | " + " | ".join(_SHOWN) + " |",
        "| :-- |" + " --: |" * len(_SHOWN),
    ]
    by_variant = {}
    for result in results:
        by_variant.setdefault(result["variant"], []).append(result)
    parts = []
    for variant, group in by_variant.items():
        parts.append("\n".join([variant, "", *lines, *map(_row, group)]))
        parts.append("\n".join(f"- {line}" for line in scaling(group)))
    return "\n\n".join(filter(None, parts))


def scaling(results: list[dict]) -> list[str]:
    """Efficiency of more chips of the same kind, at equal work per chip and at equal
    work altogether.
    """
    lines = []
    for few in results:
        for many in results:
            same = all(few[name] == many[name] for name in ("variant", "program"))
            if not same or few["chip"] != many["chip"] or few["chips"] >= many["chips"]:
                continue
            chips = f"{few['chip']} {few['program']}, {few['chips']} to {many['chips']} chips"
            if few["per_chip"] == many["per_chip"]:
                values = [
                    few[name] / many[name]
                    for name in ("step_seconds_hbm", "step_seconds")
                ]
                lines.append(
                    f"{chips} at {few['per_chip']} images a chip (weak scaling): {_both(values)}"
                )
            if few["images"] == many["images"]:
                more = many["chips"] / few["chips"]
                values = [
                    few[name] / many[name] / more
                    for name in ("step_seconds_hbm", "step_seconds")
                ]
                lines.append(
                    f"{chips} at {few['images']} images altogether (strong scaling): {_both(values)}"
                )
    return lines


def _both(values):
    return f"efficiency {100 * values[0]:.1f} % by HBM traffic, {100 * values[1]:.1f} % by all bytes"


def _row(result):
    memory = result["memory"]
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
        f"{result['images'] / result['step_seconds']:.0f} to {result['images'] / result['step_seconds_hbm']:.0f}",
        f"{result['compile_seconds']:.0f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"
