"""How much of the machine others used while we measured: figures from a busy machine prove nothing."""

import os
import time
from typing import Final

import psutil
from rich.console import Console

from benchmarks.report import Report

TOLERATED: Final = 0.10  # of all cores


class Neighbours:
    """Begins to look when it is made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _machine_seconds()
        self._ours = _own_seconds()

    def share(self) -> float:
        """What processes that are not ours have used of all cores since then, 0 to 1."""
        theirs = (_machine_seconds() - self._busy) - (_own_seconds() - self._ours)
        return max(0.0, theirs / ((time.monotonic() - self._began) * (os.cpu_count() or 1)))

    def tell(self, console: Console, report: Report) -> None:
        """Writes it into the report, and warns where it is too much."""
        share = self.share()
        report.figures["others used of the machine"] = round(share, 3)
        if share > TOLERATED:
            warning = f"Others used {share:.0%} of the machine meanwhile: repeat this when it is quiet."
            console.print(warning, style="bold", highlight=False)


def _machine_seconds() -> float:
    """CPU time of everything since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _own_seconds() -> float:
    """CPU time of this process and all it started, ended ones included."""
    own = psutil.Process()
    return float(sum(sum(one.cpu_times()[:4]) for one in (own, *own.children(recursive=True))))
