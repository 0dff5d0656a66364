"""Whether a process stays as it is: figures once a second, and their last third against the middle one."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from benchmarks.gateway import Gateway
from benchmarks.report import Floor

EVERY: Final = 1.0  # seconds
# what the median of the last third may be, in terms of the median of the middle third
TOLERATED: Final = {"resident_mb": 1.05, "descriptors": 1.02, "tasks": 1.02}
GAUGES: Final = {"tasks": "queunir_tasks", "streams": "queunir_streams_open", "connections": "queunir_connections_open"}


@dataclass(slots=True)
class Samples:
    """The figures of a gateway over a while, each a list with one entry a second."""

    series: dict[str, list[float]] = field(default_factory=dict)

    async def take(self, gateway: Gateway) -> None:
        """Samples until cancelled."""
        began = time.monotonic()
        while True:
            figures = {
                "seconds": time.monotonic() - began,
                "resident_mb": gateway.program.resident() / 2**20,
                "descriptors": float(gateway.program.descriptors()),
                "cpu_seconds": gateway.program.cpu_seconds(),
            }
            metrics = await gateway.metrics()
            figures |= {name: metrics[gauge] for name, gauge in GAUGES.items() if gauge in metrics}
            for name, value in figures.items():
                self.series.setdefault(name, []).append(round(value, 2))
            await trio.sleep(max(0.0, EVERY - (time.monotonic() - began - figures["seconds"])))

    def growth(self, name: str) -> tuple[float, float]:
        """The medians of the middle and of the last third."""
        values = self.series[name]
        third = len(values) // 3
        return statistics.median(values[third : 2 * third]), statistics.median(values[2 * third :])

    def floors(self) -> list[Floor]:
        """Memory, descriptors and tasks, each flat or not."""
        return [
            Floor("flat", f"{name}, last third / middle third", tolerated, self._ratio(name), at_most=True)
            for name, tolerated in TOLERATED.items()
            if name in self.series
        ]

    def cpu_share(self) -> float:
        """Of one core, over the whole while."""
        return _slope(self.series["seconds"], self.series["cpu_seconds"])

    def _ratio(self, name: str) -> float:
        middle, last = self.growth(name)
        return last / middle


def _slope(times: Sequence[float], values: Sequence[float]) -> float:
    return (values[-1] - values[0]) / (times[-1] - times[0])
