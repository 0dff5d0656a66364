"""`python -m benchmarks soak`: a thousand streams over fifty slices while slices go away and browsers stall.

Every stream's history is written down and checked afterwards; the gateway's memory, descriptors and tasks are sampled
each second and must be flat; at the end it gets SIGTERM with all streams open and must end cleanly.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from rich.console import Console

from benchmarks import history
from benchmarks.browsers import Browsers
from benchmarks.flatness import Samples
from benchmarks.gateway import Gateway, gateway, wait_until_carried
from benchmarks.history import Verdict
from benchmarks.processes import allow_many_descriptors
from benchmarks.report import Report, show_table
from benchmarks.slices import Slices, slices
from benchmarks.stop import end

SMALL: Final = 200  # bytes of an event
LARGE: Final = 8_000  # bytes of an event of a slice that has a stalled browser: fills its buffers in seconds
FILLED_WITH: Final = 600  # events of each slice before the measurement, so that all history kept is full from the start
SETTLED_AFTER: Final = 5.0  # seconds between that and the measurement
AWAY: Final = 1.5  # seconds a restarting slice is away
FROZEN: Final = 12.0  # seconds; longer than the double's promised ping, so the gateway must notice
STALLED: Final = 15.0  # seconds; longer than the 10 s after which a stuck stream is closed
STALLED_AGAIN_AFTER: Final = 5.0  # seconds
LAST_WITHIN: Final = 20.0  # seconds until every stream has the very last event


@dataclass(frozen=True, slots=True)
class Size:
    """How large a soak is."""

    slices: int = 50
    streams: int = 1000
    per_second: float = 10.0  # events of each slice
    seconds: int = 60

    @property
    def each(self) -> int:
        """Streams of one slice."""
        return self.streams // self.slices

    @property
    def stalled(self) -> int:
        """1 % of the browsers, at most one of a slice."""
        return min(self.slices, max(1, self.streams // 100))


async def measure(console: Console, size: Size, kept: Path | None = None) -> Report:
    """One soak. `kept`: where the history is written, else it is thrown away."""
    allow_many_descriptors()
    report = Report("soak", {"slices": size.slices, "streams": size.streams, "seconds": size.seconds})
    with tempfile.TemporaryDirectory(prefix="queunir-bench-") as folder:
        directory = Path(folder)
        path = kept or directory / "history.tsv"
        with path.open("w", encoding="ascii") as file:
            async with (
                slices(directory, size.slices) as double,
                # room for a browser that comes back before its old connection is known to be gone
                gateway(directory, {"MAX_STREAMS_PER_USER": str(2 * size.each)}) as ours,
            ):
                canaries = await _soak(console, report, size, double, ours, history.Writer(file))
        if canaries:
            _judge(console, report, history.check(history.read(path), canaries))
    return report


async def _soak(
    console: Console, report: Report, size: Size, double: Slices, ours: Gateway, writer: history.Writer
) -> Mapping[int, str]:
    """Everything up to the gateway's end; the canary of each stream."""
    made = await double.all()
    tokens = []
    for slice_ in made:
        tokens.append(await ours.add_customer(await ours.add_slice(slice_.port)))
        await wait_until_carried(ours.port, tokens[-1], "/api/ready")
    browsers = Browsers(ours.port, [token for token in tokens for _ in range(size.each)], writer.put)
    async with trio.open_nursery() as nursery:
        await nursery.start(browsers.run)
        await double.wait_until_connected()
        samples = await _disturbed_minute(size, double, ours, browsers)
        missing = await _missing_last(size, double, browsers)
        if missing:
            report.faults.append(f"{missing} streams did not get the last event within {LAST_WITHIN:g} s.")
        for number in _stalling(size):
            browsers.stall(number)
        await end(report, ours.program, browsers)
        nursery.cancel_scope.cancel()
    writer.flush()
    _tell_samples(console, report, samples, browsers)
    return {number: made[number // size.each].canary for number in range(size.each * size.slices)}


async def _disturbed_minute(size: Size, double: Slices, ours: Gateway, browsers: Browsers) -> Samples:
    """The measurement itself."""
    loud = range(1, size.stalled + 1)
    await double.burst(FILLED_WITH, SMALL)
    await double.pace(size.per_second, SMALL)
    await double.pace(size.per_second, LARGE, loud)
    await trio.sleep(SETTLED_AFTER)
    samples, own, began = Samples(), time.process_time(), time.monotonic()
    with trio.move_on_after(size.seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(samples.take, ours)
            nursery.start_soon(_restart_slices, size, double)
            nursery.start_soon(_freeze_slices, size, double)
            nursery.start_soon(_stall_browsers, size, browsers)
    for number in _stalling(size):
        browsers.resume(number)
    browsers.share = (time.process_time() - own) / (time.monotonic() - began)
    return samples


async def _restart_slices(size: Size, double: Slices) -> None:
    """Every slice once in the time there is."""
    for number in range(1, size.slices + 1):
        await double.restart(number, AWAY)
        await trio.sleep(size.seconds / size.slices)


async def _freeze_slices(size: Size, double: Slices) -> None:
    """Two slices, one after the other, none of them when it is restarted."""
    await trio.sleep(size.seconds / 4)
    await double.freeze(size.slices, FROZEN)
    await trio.sleep(size.seconds / 4)
    await double.freeze(1, FROZEN)


async def _stall_browsers(size: Size, browsers: Browsers) -> None:
    while True:
        for number in _stalling(size):
            browsers.stall(number)
        await trio.sleep(STALLED)
        for number in _stalling(size):
            browsers.resume(number)
        await trio.sleep(STALLED_AGAIN_AFTER)


def _stalling(size: Size) -> range:
    """The first browser of each of the first slices."""
    return range(0, size.stalled * size.each, size.each)


async def _missing_last(size: Size, double: Slices, browsers: Browsers) -> int:
    """Ends the noise, sends one last event to all and counts the streams that do not get it."""
    await double.pace(0, SMALL)
    await trio.sleep(AWAY)
    await double.wait_until_connected()
    wanted = [slice_.emitted for slice_ in await double.burst(1, SMALL)]
    missing = size.streams
    with trio.move_on_after(LAST_WITHIN):
        while missing:
            missing = sum(one.last_number < wanted[one.number // size.each] for one in browsers.all)
            await trio.sleep(0.05)
    return missing


def _tell_samples(console: Console, report: Report, samples: Samples, browsers: Browsers) -> None:
    names = [name for name in samples.series if name not in ("seconds", "cpu_seconds")]
    rows = []
    for name in names:
        middle, last = samples.growth(name)
        values = samples.series[name]
        rows.append((name, f"{values[0]:,.1f}", f"{middle:,.1f}", f"{last:,.1f}", f"{max(values):,.1f}"))
    show_table(console, "the gateway, sampled each second", ["", "first", "middle third", "last third", "most"], rows)
    about = {
        "gateway's share of a core": round(samples.cpu_share(), 3),
        "browsers' share of a core": round(browsers.share, 3),
        "streams opened again": browsers.reopened,
        "closed while stalled": browsers.closed_while_stalled,
        "refusals": browsers.refusals,
    }
    for name, value in about.items():
        console.print(f"{name}: {value}", highlight=False)
    report.figures |= {"series": samples.series, **about}
    report.floors += samples.floors()


def _judge(console: Console, report: Report, verdict: Verdict) -> None:
    counts = dict(verdict.counts)
    console.print(f"history: {counts}", highlight=False)
    report.figures["history"] = counts
    report.faults += [f"{rule}: {count} times" for rule, count in verdict.findings.items()]
    report.faults += verdict.examples[:10]
