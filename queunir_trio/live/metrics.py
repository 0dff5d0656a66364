"""What Prometheus reads: figures taken at the moment they are asked for, so that nothing has to be kept up."""

from collections.abc import Callable, Iterable, Mapping

import trio
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from queunir_trio import __version__

LAG_MEASURED_EVERY = 1.0  # seconds


class Lag:
    """How late this process is for its own timers: the first sign of a blocked event loop."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            due = trio.current_time() + LAG_MEASURED_EVERY
            await trio.sleep_until(due)
            self.seconds = trio.current_time() - due


class Metrics(Collector):
    """A registry of its own, and the figures of one service."""

    def __init__(
        self,
        gauges: Mapping[str, tuple[str, Callable[[], float]]],
        counters: Mapping[str, tuple[str, Callable[[], float]]],
        refusals: Callable[[], Mapping[str, int]],
    ) -> None:
        """`gauges` and `counters`: name without the prefix → (help, how to read it)."""
        self._gauges = gauges
        self._counters = counters
        self._refusals = refusals
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)

    def text(self) -> bytes:
        """Everything in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("queunir_info", "The version that runs.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        for name, (documentation, read) in self._gauges.items():
            yield GaugeMetricFamily(f"queunir_{name}", documentation, value=read())
        for name, (documentation, read) in self._counters.items():
            yield CounterMetricFamily(f"queunir_{name}", documentation, value=read())
        refusals = CounterMetricFamily("queunir_refusals", "Requests refused by the front.", labels=["code"])
        for code, count in self._refusals().items():
            refusals.add_metric([code], count)
        yield refusals
