"""The closing word of mode predict: how many scans were segmented, and where their masks are."""

import pathlib
from collections.abc import Mapping

from biedsnet_jax.runtime.console import clock, on_terminal


def segmented(
    folder: pathlib.Path,
    *,
    done: int,
    skipped: int,
    failed: int,
    seconds: float,
    again: Mapping[str, int] | None = None,
    gone: int = 0,
    passed: str = "",
) -> None:
    """How many scans were done by this command, had been done before, and could not be, and where the masks are.

    `again` counts those that were done before and made again, by the reason; `gone` scans have masks and are not there
    any more; `passed` says what was passed over.
    """
    # A name need not be text.
    place = str(folder).encode(errors="backslashreplace").decode()
    if not on_terminal():
        total = done + skipped + failed
        said = [f"{done + skipped} of {total} scans segmented, in {place}; summary.csv has the figures"]
        if skipped and again:
            said.append(f"{skipped} done before")
        if again:
            said.append(made_again(again))
        if gone:
            said.append(_left(gone))
        if passed:
            said.append(f"{passed}; passed_over.csv names them")
        print(". ".join(said))
        return
    from biedsnet_jax.runtime import terminal

    counts = {"done": done, "skipped, done before": skipped, "failed": failed}
    terminal.print_table("predict", ["scans", ""], [(name, str(count)) for name, count in counts.items()])
    facts = {"time": clock(seconds), "masks": place, "figures": f"{place}/summary.csv"}
    if again:
        facts["made again"] = _each(again)
    if gone:
        facts["left"] = _left(gone)
    if passed:
        facts["passed over"] = f"{passed}; {place}/passed_over.csv names them"
    terminal.print_facts(facts)


def made_again(again: Mapping[str, int]) -> str:
    """How many scans were made again, and why."""
    return f"{sum(again.values())} made again: {_each(again)}"


def _each(again):
    return ", ".join(f"{count} because {why}" for why, count in sorted(again.items(), key=lambda one: -one[1]))


def _left(gone):
    if gone == 1:
        return "Masks of 1 scan that is no longer there were left"
    return f"Masks of {gone} scans that are no longer there were left"
