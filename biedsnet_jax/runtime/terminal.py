"""What a terminal shows: a bar that renews itself, and tables. Imported only where
there is one, as rich is.
"""

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

# a second, so that the clock goes on while the device works
REFRESH = 4


class Bar:
    """A bar on stderr, shown until `close`. What others print meanwhile goes above it."""

    def __init__(self, what: str, total: int, done: int):
        self._console = Console(file=sys.stderr, force_terminal=True)
        plain = {"markup": False}
        self._progress = Progress(
            TextColumn("{task.description}", **plain),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", **plain),
            TimeElapsedColumn(),
            console=self._console,
            expand=True,
            refresh_per_second=REFRESH,
            # a pipe's lines must not land on the terminal
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._progress.add_task(
            what, total=total, completed=done, numbers=f"{done}/{total}"
        )
        self._progress.start()
        # a kill would leave it hidden
        self._console.show_cursor(True)

    def show(self, done: int, numbers: str) -> None:
        """`done` units, and what is said of them."""
        self._progress.update(self._task, completed=done, numbers=numbers)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        """The bar as it is last, and a new line."""
        self._progress.stop()


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A table on stdout; the first column names the row."""
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for number, name in enumerate(header):
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    _print(table)


def print_facts(facts: dict[str, str]) -> None:
    """A name and what it is, a line each, on stdout."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    # a path stays whole
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(Text(name, style="bold"), Text(value))
    _print(grid)


def _print(table):
    Console(file=sys.stdout, force_terminal=True).print(table)
