"""Medians, floors and tables: how a benchmark tells what it found."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

SUCCESS: Final = 0
FAULTY: Final = 1  # something went wrong: errors, lost events, a broken rule
MISSED: Final = 3  # all went well, but a floor was missed (2 is what a wrong command line ends with)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds and how far they lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def told(self, digits: int = 0) -> str:
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} to {self.most:,.{digits}f})"


@dataclass(frozen=True, slots=True)
class Floor:
    """A goal and what was reached; `at_most` turns the comparison around."""

    name: str
    what: str
    wanted: float
    measured: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted


@dataclass(slots=True)
class Report:
    """What one benchmark found; `faults` are sentences, each of which fails the run."""

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    floors: list[Floor] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        if self.faults:
            return FAULTY
        return SUCCESS if all(floor.reached for floor in self.floors) else MISSED

    def as_json(self) -> dict[str, Any]:
        floors = [{**asdict(floor), "reached": floor.reached} for floor in self.floors]
        return {"figures": self.figures, "floors": floors, "faults": self.faults, "exit_code": self.exit_code}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


def show_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column is text and whose others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_verdict(console: Console, report: Report) -> None:
    """Every floor with reached or missed, then every fault."""
    rows = [
        (
            f"{floor.name} {floor.what}",
            f"{'at most' if floor.at_most else 'at least'} {floor.wanted:g}",
            f"{floor.measured:.2f}",
            "reached" if floor.reached else "MISSED",
        )
        for floor in report.floors
    ]
    if rows:
        show_table(console, f"{report.name}: floors", ["floor", "wanted", "measured", ""], rows)
    for fault in report.faults:
        console.print(f"FAULT: {fault}", style="bold", markup=False)


def write_json(path: Path, reports: Iterable[Report], about: dict[str, Any]) -> None:
    """All reports of one run in one file."""
    content = {"machine": about, **{report.name: report.as_json() for report in reports}}
    path.write_text(json.dumps(content, indent=2) + "\n")
