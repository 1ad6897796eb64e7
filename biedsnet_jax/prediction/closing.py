"""The closing lines of mode predict: how many scans were segmented, and where the masks
are.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from biedsnet_jax.runtime.console import clock, on_terminal


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of scans that this run segmented, skipped and failed to segment."""

    done: int
    # Scans whose masks an earlier run made.
    skipped: int
    failed: int
    # Scans that an earlier run had segmented, by the reason to segment them again.
    again: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # Scans that have masks but whose files no longer exist.
    gone: int = 0
    # A sentence about the files that were passed over; empty where there were none.
    passed: str = ""


def segmented(folder: pathlib.Path, counts: Counts, *, seconds: float) -> None:
    """Prints how many scans were segmented and where their masks are.

    A terminal gets tables, anything else one line.
    """
    # The bytes of a folder's name need not be text.
    place = str(folder).encode(errors="backslashreplace").decode()
    if on_terminal():
        _print_tables(place, counts, seconds)
        return
    finished = counts.done + counts.skipped
    total = finished + counts.failed
    sentences = [
        f"{finished} of {total} scans segmented, in {place}; "
        "summary.csv has the figures"
    ]
    if counts.again:
        if counts.skipped:
            sentences.append(f"{counts.skipped} done before")
        sentences.append(made_again(counts.again))
    if counts.gone:
        sentences.append(_left(counts.gone))
    if counts.passed:
        sentences.append(f"{counts.passed}; passed_over.csv names them")
    print(". ".join(sentences))


def made_again(again: Mapping[str, int]) -> str:
    """Says how many scans were made again, and why."""
    return f"{sum(again.values())} made again: {_reasons(again)}"


def _print_tables(place, counts, seconds):
    # Here, since only a terminal needs rich.
    from biedsnet_jax.runtime import terminal

    rows = [
        ("done", str(counts.done)),
        ("skipped, done before", str(counts.skipped)),
        ("failed", str(counts.failed)),
    ]
    terminal.print_table("predict", ["scans", ""], rows)
    facts = {"time": clock(seconds), "masks": place, "figures": f"{place}/summary.csv"}
    if counts.again:
        facts["made again"] = _reasons(counts.again)
    if counts.gone:
        facts["left"] = _left(counts.gone)
    if counts.passed:
        facts["passed over"] = f"{counts.passed}; {place}/passed_over.csv names them"
    terminal.print_facts(facts)


def _reasons(again):
    most_first = sorted(again.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} because {why}" for why, count in most_first)


def _left(gone):
    return f"Masks of scans that are no longer there were left: {gone}"
