"""The closing word of mode predict: how many scans were segmented, and where their
masks are.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from biedsnet_jax.runtime.console import clock, on_terminal


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many scans were done by this command, had been done before, and could not be."""

    done: int
    skipped: int
    failed: int
    # done before and made again, by the reason
    again: Mapping[str, int] = dataclasses.field(default_factory=dict)
    gone: int = 0  # scans that have masks and are not there any more
    passed: str = ""  # what was passed over


def segmented(folder: pathlib.Path, counts: Counts, *, seconds: float) -> None:
    """How many scans were segmented, and where the masks are."""
    # A name need not be text.
    place = str(folder).encode(errors="backslashreplace").decode()
    if not on_terminal():
        total = counts.done + counts.skipped + counts.failed
        said = [
            f"{counts.done + counts.skipped} of {total} scans segmented, in {place}; summary.csv has the figures"
        ]
        if counts.skipped and counts.again:
            said.append(f"{counts.skipped} done before")
        if counts.again:
            said.append(made_again(counts.again))
        if counts.gone:
            said.append(_left(counts.gone))
        if counts.passed:
            said.append(f"{counts.passed}; passed_over.csv names them")
        print(". ".join(said))
        return
    from biedsnet_jax.runtime import terminal

    rows = [
        ("done", counts.done),
        ("skipped, done before", counts.skipped),
        ("failed", counts.failed),
    ]
    terminal.print_table(
        "predict", ["scans", ""], [(name, str(count)) for name, count in rows]
    )
    facts = {"time": clock(seconds), "masks": place, "figures": f"{place}/summary.csv"}
    if counts.again:
        facts["made again"] = _each(counts.again)
    if counts.gone:
        facts["left"] = _left(counts.gone)
    if counts.passed:
        facts["passed over"] = f"{counts.passed}; {place}/passed_over.csv names them"
    terminal.print_facts(facts)


def made_again(again: Mapping[str, int]) -> str:
    """How many scans were made again, and why."""
    return f"{sum(again.values())} made again: {_each(again)}"


def _each(again):
    return ", ".join(
        f"{count} because {why}"
        for why, count in sorted(again.items(), key=lambda one: -one[1])
    )


def _left(gone):
    if gone == 1:
        return "Masks of 1 scan that is no longer there were left"
    return f"Masks of {gone} scans that are no longer there were left"
