"""The progress bar and the tables of a terminal, made with rich.

Imported only where there is a terminal.
"""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

# Times a second that the bar is redrawn, so that its clock goes on while a device works.
REFRESH = 4


class Bar:
    """A bar on stderr, shown until `close`; what is printed meanwhile goes above it."""

    def __init__(self, what: str, total: int, done: int):
        self._console = Console(file=sys.stderr, force_terminal=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            expand=True,
            refresh_per_second=REFRESH,
            # What is meant for a pipe must not land on the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task(
            what, total=total, completed=done, numbers=f"{done}/{total}"
        )
        self._progress.start()
        # rich hides the cursor, which a kill would leave hidden.
        self._console.show_cursor(True)

    def show(self, done: int, numbers: str) -> None:
        """Shows `done` units, and the numbers beside the bar."""
        self._progress.update(self._task, completed=done, numbers=numbers)

    def resize(self, total: int) -> None:
        """Changes how many units the whole bar stands for."""
        self._progress.update(self._task, total=total)

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar as it is and starts a new line."""
        self._progress.stop()


class Clock:
    """A clock beside a text on stderr, which goes away with `close`."""

    def __init__(self, text: str):
        console = Console(file=sys.stderr, force_terminal=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=REFRESH,
            # What is meant for a pipe must not land on the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._progress.add_task(text, total=None)
        self._progress.start()
        console.show_cursor(True)

    def close(self) -> None:
        """Takes the line away."""
        self._progress.stop()


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Prints a table on stdout; the first column names the row."""
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    _print(table)


def print_facts(facts: dict[str, str]) -> None:
    """Prints names and their values on stdout, a line each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    # Folded, since a path that is cut off cannot be copied.
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(Text(name, style="bold"), Text(value))
    _print(grid)


def _print(table):
    Console(file=sys.stdout, force_terminal=True).print(table)
