"""Tables for people."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

WIDTH_OF_A_PIPE: Final = 500  # a pipe has no edge: nothing is cut off for what reads it


def print_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """One line for each row, on stdout; nothing where a value is None."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        values = [row[column] for column in columns]
        table.add_row(*("" if value is None else str(value) for value in values))
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, width=WIDTH_OF_A_PIPE)
    console.print(table)
