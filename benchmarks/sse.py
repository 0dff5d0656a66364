"""`python -m benchmarks sse`: one slice's events on many streams, beside a plain SSE server on Node.

The gateway gets its events from a slice over Socket.IO, as in service; Node makes the same events by a timer in its own
process, which is in Node's favour. What is compared is events delivered per second of the server's CPU, at the same
steady rate and with the same readers, and what an idle stream costs in memory.
"""

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import trio
from rich.console import Console

from benchmarks import peers
from benchmarks.gateway import gateway, wait_until_carried
from benchmarks.neighbours import Neighbours
from benchmarks.processes import HOST, Memory, Program, allow_many_descriptors, free_ports
from benchmarks.readers import Readers, readers
from benchmarks.report import Floor, Report, Spread, show_table
from benchmarks.slices import Slices, slices

OURS: Final = "queunir-trio"
NODE: Final = "node"
STREAMS: Final = (500, 1000)
IDLE_STREAMS: Final = 2000
DELIVERIES: Final = 25_000  # events a second on all streams together: what one core of either carries with ease
EVENT_BYTES: Final = 150
SETTLED_AFTER: Final = 3.0  # seconds without work before memory is read
E1: Final = 1.0
E3: Final = 12.0  # KB


@dataclass(slots=True)
class Server:
    """One contender: how its events are paced and told, and what was measured."""

    name: str
    program: Program
    port: int
    token: str
    pace: Callable[[float], Awaitable[int]]  # events a second from now on; how many there have been
    collect: Callable[[], Awaitable[None]]  # frees what can be freed before memory is read
    per_cpu_second: dict[int, list[float]] = field(default_factory=dict)  # by streams
    cpu_share: dict[int, list[float]] = field(default_factory=dict)
    readers_share: dict[int, list[float]] = field(default_factory=dict)
    kilobytes: dict[str, float] = field(default_factory=dict)  # of an idle stream


async def measure(console: Console, seconds: int, rounds: int) -> Report:
    """The whole comparison."""
    allow_many_descriptors()
    await peers.install()
    report = Report("sse", {"seconds": seconds, "rounds": rounds, "deliveries_per_second": DELIVERIES})
    with tempfile.TemporaryDirectory(prefix="queunir-bench-") as folder:
        async with _servers(Path(folder)) as servers:
            neighbours = Neighbours()
            for server in servers:  # first, while no server has freed memory of earlier streams in hand
                report.faults += await _measure_memory(server)
            for count in STREAMS:
                for number in range(rounds):
                    for server in servers if number % 2 == 0 else servers[::-1]:
                        report.faults += await _measure_events(server, count, seconds)
            _judge(console, report, *servers)
            neighbours.tell(console, report)
    return report


@asynccontextmanager
async def _servers(directory: Path) -> AsyncIterator[tuple[Server, Server]]:
    [node_port] = free_ports(1)
    async with (
        slices(directory, 1) as double,
        gateway(directory, {"MAX_STREAMS_PER_USER": "100000"}) as ours,
        peers.sse_server(directory, node_port) as node,
        httpx.AsyncClient(base_url=f"http://{HOST}:{node_port}", timeout=10.0) as client,
    ):
        slice_ = (await double.all())[0]
        token = await ours.add_customer(await ours.add_slice(slice_.port))
        await wait_until_carried(ours.port, token, "/api/ready")
        yield (
            Server(OURS, ours.program, ours.port, token, _pace_of_slice(double), _nothing),
            Server(NODE, node, node_port, token, _pace_of_node(client), _collection_of_node(client)),
        )


def _pace_of_slice(double: Slices) -> Callable[[float], Awaitable[int]]:
    async def pace(per_second: float) -> int:
        if per_second:
            await double.wait_until_connected()
        return (await double.pace(per_second, EVENT_BYTES))[0].emitted

    return pace


def _pace_of_node(client: httpx.AsyncClient) -> Callable[[float], Awaitable[int]]:
    async def pace(per_second: float) -> int:
        asked = {"per_second": per_second, "bytes": EVENT_BYTES}
        return int((await client.post("/control", params=asked)).raise_for_status().json()["emitted"])

    return pace


def _collection_of_node(client: httpx.AsyncClient) -> Callable[[], Awaitable[None]]:
    async def collect() -> None:
        (await client.post("/control/collect")).raise_for_status()

    return collect


async def _nothing() -> None:
    """Python frees by counting references: there is nothing to ask for."""


async def _measure_memory(server: Server) -> list[str]:
    """What `IDLE_STREAMS` streams on which nothing happens add to the process, and what as many again add.

    The first may live in memory that was freed after the start; those that follow have to be given new memory.
    """
    async with readers(server.port, server.token) as opened:
        await opened.add(IDLE_STREAMS // 20)  # what is loaded and made once does not count
        memory = [await _settled_memory(server)]
        for _ in range(2):
            await opened.add(IDLE_STREAMS)
            memory.append(await _settled_memory(server))
        closed = opened.closed
    for name, before, after in zip(("the first", "the next"), memory, memory[1:], strict=False):
        server.kilobytes |= {
            f"{name}, resident": (after.resident - before.resident) / IDLE_STREAMS / 1024,
            f"{name}, proportional": (after.proportional - before.proportional) / IDLE_STREAMS / 1024,
        }
    await trio.sleep(SETTLED_AFTER)
    return [f"{server.name}: {closed} idle streams were closed."] if closed else []


async def _settled_memory(server: Server) -> Memory:
    await server.collect()
    await trio.sleep(SETTLED_AFTER)
    return server.program.memory()


async def _measure_events(server: Server, count: int, seconds: int) -> list[str]:
    """One round; what was lost or doubled, as sentences."""
    async with readers(server.port, server.token) as opened:
        await opened.add(count)
        emitted = await server.pace(0)
        await server.pace(DELIVERIES / count)
        came = await opened.until_each_has(1)
        share, own, delivered, spent = await _watch(server.program, opened, seconds)
        expected = await server.pace(0) - emitted
        await opened.until_each_has(expected)
        least, most = opened.least_and_most()
    server.per_cpu_second.setdefault(count, []).append(delivered / max(spent, 0.01))
    server.cpu_share.setdefault(count, []).append(share)
    server.readers_share.setdefault(count, []).append(own)
    faults = [] if came else [f"{server.name}, {count} streams: some streams had no event in time."]
    if (least, most) != (expected, expected):
        faults.append(f"{server.name}, {count} streams: {expected} events became {least} to {most} on a stream.")
    if opened.closed:
        faults.append(f"{server.name}, {count} streams: the server closed {opened.closed} of them.")
    return faults


async def _watch(program: Program, opened: Readers, seconds: int) -> tuple[float, float, int, float]:
    """Over so many seconds: the server's and our own share of a core, events delivered, the server's CPU seconds."""
    began, events, spent, own = time.perf_counter(), opened.events, program.cpu_seconds(), time.process_time()
    await trio.sleep(seconds)
    lasted = time.perf_counter() - began
    spent = program.cpu_seconds() - spent
    return spent / lasted, (time.process_time() - own) / lasted, opened.events - events, spent


def _judge(console: Console, report: Report, ours: Server, node: Server) -> None:
    for count in STREAMS:
        rows = [_row(server, count) for server in (ours, node)]
        columns = ["", "events per CPU-second, median (spread)", "share of a core", "readers' share of a core"]
        show_table(console, f"{count} streams on one slice, {DELIVERIES // count} events/s each", columns, rows)
        ratio = Spread.of(ours.per_cpu_second[count]).median / Spread.of(node.per_cpu_second[count]).median
        report.floors.append(Floor("E1", f"events per CPU-second, times node, {count} streams", E1, ratio))
    rows = [(one.name, *(f"{value:.1f}" for value in one.kilobytes.values())) for one in (ours, node)]
    title = f"KB of memory of an idle stream, {IDLE_STREAMS} streams and then as many again"
    show_table(console, title, ["", *ours.kilobytes], rows)
    worst = max(ours.kilobytes.values())
    report.floors.append(Floor("E3", "KB an idle stream, the largest of these", E3, worst, at_most=True))
    report.figures |= {server.name: _figures(server) for server in (ours, node)}


def _row(server: Server, count: int) -> tuple[str, ...]:
    return (
        server.name,
        Spread.of(server.per_cpu_second[count]).told(),
        Spread.of(server.cpu_share[count]).told(2),
        Spread.of(server.readers_share[count]).told(2),
    )


def _figures(server: Server) -> dict[str, Any]:
    return {
        "events_per_cpu_second": {str(count): values for count, values in server.per_cpu_second.items()},
        "share_of_a_core": {str(count): values for count, values in server.cpu_share.items()},
        "readers_share_of_a_core": {str(count): values for count, values in server.readers_share.items()},
        "kilobytes_of_an_idle_stream": server.kilobytes,
    }
