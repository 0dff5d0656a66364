"""`python -m benchmarks proxy`: requests through the front and through its peers, round by round in one run.

All contenders carry the same requests to the same stub slice. A round drives each of them for some seconds, in an order
that turns with each round, so that a noisy neighbour meets all of them; medians are compared, never single runs.
"""

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import nginx, peers, wrk
from benchmarks.gateway import gateway, wait_until_carried
from benchmarks.neighbours import Neighbours
from benchmarks.processes import Program, allow_many_descriptors, free_ports
from benchmarks.report import Floor, Report, Spread, show_table

WARM_UP: Final = 1  # seconds each contender is driven before the first round
OURS: Final = "queunir-trio"
NGINX: Final = "nginx"
EXPRESS: Final = "express"
CHP: Final = "configurable-http-proxy"
FASTIFY: Final = "fastify"
# name, peer, at least so many times its requests per second
FLOORS: Final = (("P1", NGINX, 0.40), ("P2", EXPRESS, 4.0), ("P3", CHP, 2.0), ("P3", FASTIFY, 1.0))


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request: which fields it carries, and the answer's body."""

    name: str
    head: str  # the name of a script: small, browser
    body: str


CASES: Final = (
    Case("small head, 106 bytes", "small", "106"),
    Case("17 browser fields, 106 bytes", "browser", "106"),
    Case("17 browser fields, 1 KB", "browser", "1024"),
)


@dataclass(slots=True)
class Contender:
    """A proxy, and what it did in the rounds of one case."""

    name: str
    program: Program
    port: int
    loads: list[wrk.Load] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # seconds, of its whole process tree
    faults: list[dict[str, int]] = field(default_factory=list)  # the errors of each run that had any, warm-up included

    async def warm_up(self, path: str, script: Path) -> None:
        self.loads, self.cpu = [], []
        load = await wrk.drive(self.port, path, script, WARM_UP)
        self.faults = [dict(load.errors)] if load.faulty else []

    async def drive(self, path: str, script: Path, seconds: int) -> None:
        before = self.program.cpu_seconds()
        load = await wrk.drive(self.port, path, script, seconds)
        self.cpu.append(self.program.cpu_seconds() - before)
        self.loads.append(load)
        if load.faulty or not load.requests:
            self.faults.append(dict(load.errors))

    def per_second(self) -> Spread:
        return Spread.of([load.per_second for load in self.loads])

    def per_cpu_second(self) -> Spread:
        return Spread.of([load.requests / max(spent, 0.01) for load, spent in zip(self.loads, self.cpu, strict=True)])


async def measure(console: Console, seconds: int, rounds: int) -> Report:
    """The whole comparison."""
    allow_many_descriptors()
    await peers.install()
    report = Report("proxy", {"seconds": seconds, "rounds": rounds, "peers": peers.versions()})
    with tempfile.TemporaryDirectory(prefix="queunir-bench-") as folder:
        directory = Path(folder)
        async with _contenders(directory) as (contenders, token):
            scripts, neighbours = _scripts(directory, token), Neighbours()
            for case in CASES:
                await _run(case, contenders, scripts, seconds, rounds)
                _judge(console, report, case, contenders)
            neighbours.tell(console, report)
    return report


@asynccontextmanager
async def _contenders(directory: Path) -> AsyncIterator[tuple[list[Contender], str]]:
    """All of them running before one stub slice, and the session that they are asked with."""
    stub_port, nginx_port, express_port, chp_port, chp_api, fastify_port = free_ports(6)
    async with (
        nginx.stub(directory, stub_port),
        gateway(directory) as ours,
        nginx.bare(directory, nginx_port, stub_port) as bare,
        peers.express(directory, express_port, ours.where) as express,
        peers.configurable_http_proxy(directory, chp_port, chp_api, stub_port) as chp,
        peers.fastify(directory, fastify_port, stub_port) as fastify,
    ):
        token = await ours.add_customer(await ours.add_slice(stub_port))
        contenders = [
            Contender(OURS, ours.program, ours.port),
            Contender(NGINX, bare, nginx_port),
            Contender(EXPRESS, express, express_port),
            Contender(CHP, chp, chp_port),
            Contender(FASTIFY, fastify, fastify_port),
        ]
        for contender in contenders:
            for name, length in nginx.BODIES.items():
                await wait_until_carried(contender.port, token, nginx.stub_path(name), length)
        yield contenders, token


def _scripts(directory: Path, token: str) -> dict[str, Path]:
    cookie = {"Cookie": f"session={token}"}
    heads: Mapping[str, Mapping[str, str]] = {"small": cookie, "browser": {**wrk.BROWSER_FIELDS, **cookie}}
    return {name: wrk.write_script(directory, name, fields) for name, fields in heads.items()}


async def _run(case: Case, contenders: list[Contender], scripts: Mapping[str, Path], seconds: int, rounds: int) -> None:
    path, script = nginx.stub_path(case.body), scripts[case.head]
    for contender in contenders:
        await contender.warm_up(path, script)
    for number in range(rounds):
        start = number % len(contenders)
        for contender in contenders[start:] + contenders[:start]:
            await contender.drive(path, script, seconds)


def _judge(console: Console, report: Report, case: Case, contenders: list[Contender]) -> None:
    """Writes one case into the report and shows it."""
    by_name = {contender.name: contender for contender in contenders}
    ours = by_name[OURS].per_second().median
    rows, figures = [], {}
    for contender in contenders:
        speed, frugality = contender.per_second(), contender.per_cpu_second()
        rows.append(
            (
                contender.name,
                speed.told(),
                f"{speed.median / by_name[NGINX].per_second().median:.2f}",
                f"{ours / speed.median:.2f}",
                frugality.told(),
                str(sum(sum(errors.values()) for errors in contender.faults)),
            )
        )
        figures[contender.name] = _figures(contender)
        report.faults += [
            f"{case.name}: {contender.name} answered wrongly or not at all: {errors}" for errors in contender.faults
        ]
    columns = ["", "requests/s, median (spread)", "of nginx", "ours is times", "requests per CPU-second", "errors"]
    show_table(console, case.name, columns, rows)
    report.figures[case.name] = figures
    report.floors += [
        Floor(name, f"times {peer}, {case.name}", wanted, ours / by_name[peer].per_second().median)
        for name, peer, wanted in FLOORS
    ]


def _figures(contender: Contender) -> dict[str, Any]:
    return {
        "requests_per_second": [round(load.per_second, 1) for load in contender.loads],
        "requests_per_cpu_second": [
            round(load.requests / max(spent, 0.01), 1)
            for load, spent in zip(contender.loads, contender.cpu, strict=True)
        ],
        "cpu_seconds": [round(spent, 2) for spent in contender.cpu],
        "p50_ms_at_full_speed": [load.p50 for load in contender.loads],
        "p99_ms_at_full_speed": [load.p99 for load in contender.loads],
        "errors": contender.faults,
    }
