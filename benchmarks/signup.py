"""`python -m benchmarks signup_to_qr`: from the click on "sign up" to the QR code in the browser.

First from slices that stand ready, then with every slice still to be made, one after the other, then ten at once. The
gateway, its database and the slices are those of service; the slices are processes or, with `--runtime docker`,
containers. All that is asked is asked as a browser asks it.
"""

import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Any, Final

import httpx
import trio
from rich.console import Console

from benchmarks.gateway import Gateway, gateway
from benchmarks.processes import HOST, DidNotStart, allow_many_descriptors
from benchmarks.report import Floor, Report, Spread, show_table
from queunir_trio.outside import directories
from queunir_trio.outside.runtimes.choice import open_runtime
from queunir_trio.settings import Settings, read_settings
from queunir_trio.store.bridge import open_connection

AT_ONCE: Final = 10
SHOWN_WITHIN: Final = 120.0  # seconds from the click to the QR code, before it counts as never
WARM_WITHIN: Final = 60.0  # seconds for each slice that is to stand ready
CLEARED_WITHIN: Final = 60.0  # seconds
WARM: Final = "warm slice"
COLD: Final = "cold: made on demand"
BURST: Final = f"cold: {AT_ONCE} at once"
# what was promised for containers: seconds at most
FLOORS: Final = ((WARM, 1.0), (COLD, 15.0))
STEPS: Final = """
    select step, extract(epoch from max(at) filter (where state = 'done') - min(at) filter (where state = 'started'))
    from gateway.slice_steps where slice_id = $1 and deed = 'provision' group by step
    having count(*) filter (where state = 'done') > 0 order by min(id)
"""


@dataclass(frozen=True, slots=True)
class SignUp:
    """One customer's way; the seconds count from the click."""

    slice_id: int
    answered: float
    shown: float
    steps: Mapping[str, float]  # seconds of each step by which the slice was made


@dataclass(slots=True)
class Case:
    """Sign-ups under the same circumstances."""

    name: str
    customers: list[SignUp] = field(default_factory=list)

    def spread(self, of: str) -> Spread:
        return Spread.of([getattr(customer, of) for customer in self.customers])

    def as_json(self) -> dict[str, Any]:
        return {
            "answered_seconds": [round(customer.answered, 4) for customer in self.customers],
            "qr_seconds": [round(customer.shown, 4) for customer in self.customers],
            "steps_seconds": [
                {name: round(lasted, 4) for name, lasted in customer.steps.items()} for customer in self.customers
            ],
        }


async def measure(console: Console, rounds: int, runtime: str = "process") -> Report:
    """The three cases. `runtime` is `process`, or `docker` with DOCKER_HOST and SLICE_IMAGE as in service."""
    allow_many_descriptors()
    report = Report("signup_to_qr", {"runtime": runtime, "rounds": rounds, "at once": AT_ONCE})
    cases = Case(WARM), Case(COLD), Case(BURST)
    with tempfile.TemporaryDirectory(prefix="queunir-bench-") as folder:
        directory = Path(folder)
        environment = _environment(directory, runtime, rounds)
        async with _cleared(environment), gateway(directory, environment) as ours:
            await _wait_until_warm(ours, rounds)
            await ours.pool(paused=True)  # what is made meanwhile would be measured too
            for number in range(rounds):
                await _sign_up(ours, cases[0], number)
            await ours.pool(paused=False, min=0)
            for number in range(rounds):
                await _sign_up(ours, cases[1], rounds + number)
            async with trio.open_nursery() as nursery:
                for number in range(AT_ONCE):
                    nursery.start_soon(_sign_up, ours, cases[2], 2 * rounds + number)
    _judge(console, report, cases, runtime)
    return report


async def _sign_up(ours: Gateway, case: Case, number: int) -> None:
    """Registers as a new customer with an address of their own, and looks until there is a QR code. DidNotStart."""
    client = httpx.AsyncClient(
        base_url=f"http://{HOST}:{ours.port}",
        headers={"X-Forwarded-For": f"198.51.100.{number + 1}"},
        timeout=SHOWN_WITHIN,
    )
    async with client:
        began = time.monotonic()
        account = {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_hex(8)}
        answer = await client.post("/auth/register", json=account)
        answered = time.monotonic() - began
        if answer.status_code != 201:
            raise DidNotStart(f"The sign-up was answered {answer.status_code}: {answer.text[:200]}")
        with trio.move_on_after(SHOWN_WITHIN) as scope:
            await _wait_for_qr(client)
        shown = time.monotonic() - began
        if scope.cancelled_caught:
            raise DidNotStart(f"{case.name}: no QR code within {SHOWN_WITHIN:g} s\n{ours.program.log_end()}")
        slice_id = (await client.get("/auth/me")).json()["slice"]["id"]
    async with open_connection(ours.where) as connection:
        steps = {row[0]: float(row[1]) for row in await connection.fetch(STEPS, slice_id)}
    case.customers.append(SignUp(slice_id, answered, shown, steps))


async def _wait_for_qr(client: httpx.AsyncClient) -> None:
    """Returns with the first event that has a QR code in it; comes back where the stream ends, as browsers do."""
    while True:
        async with client.stream("GET", "/api/events") as stream:
            name = ""
            async for line in stream.aiter_lines():
                kind, _, value = line.partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data" and has_qr(name, value):
                    return
        await trio.sleep(0.05)


def has_qr(event: str, payload: str) -> bool:
    """Whether a browser can show a QR code after this event: a new one, or one that was there when it came."""
    return event in ("wa:qr", "wa:catchup") and bool(json.loads(payload).get("qr"))


async def _wait_until_warm(ours: Gateway, count: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{ours.port}") as client:
        said: Any = None
        with trio.move_on_after(WARM_WITHIN * count):
            while True:
                said = (await client.get("/health")).json()["slices"]
                if said["available"] >= count:
                    return
                await trio.sleep(0.2)
    raise DidNotStart(f"{count} slices should stand ready, and there are: {said}\n{ours.program.log_end()}")


def _environment(directory: Path, runtime: str, warm: int) -> dict[str, str]:
    return {
        "DATA_DIR": str(directory / "data"),
        "SLICE_RUNTIME": runtime,
        "SLICE_IMAGE": environ.get("SLICE_IMAGE", "wank-slice:latest"),
        "WARM_POOL_MIN": str(warm),
        "TRUSTED_PROXIES": HOST,  # each customer has an address of their own: sign-ups are limited by address
    }


@asynccontextmanager
async def _cleared(environment: Mapping[str, str]) -> AsyncIterator[None]:
    """Slices run on when their gateway ends, so whatever is left of them is removed at last."""
    try:
        yield
    finally:
        needed = {"ADMIN_KEY": secrets.token_hex(32), "SLICE_DB_PASSWORD": secrets.token_hex(32)}
        with trio.move_on_after(CLEARED_WITHIN, shield=True):
            await _clear(read_settings({**environ, **environment, **needed}))


async def _clear(settings: Settings) -> None:
    """Only ours, by their marks: another service's slices may live on the same engine."""
    base = settings.data_dir / "slices"
    async with open_runtime(settings) as runtime:
        ours = set((await directories.labels(base)).values())
        for instance in await runtime.listed():
            if instance.uuid in ours:
                await runtime.remove(instance.num, instance.uuid)
                await runtime.erase(base / str(instance.num))


def _judge(console: Console, report: Report, cases: Sequence[Case], runtime: str) -> None:
    rows = [(case.name, case.spread("answered").told(2), case.spread("shown").told(2)) for case in cases]
    title = f"seconds from the click, median (spread), slices as {runtime}"
    show_table(console, title, ["", "sign-up answered", "QR code in the browser"], rows)
    for case in cases[1:]:
        _show_steps(console, case)
    report.figures |= {case.name: case.as_json() for case in cases}
    by_name = {case.name: case for case in cases}
    report.floors += [
        Floor(
            "Q1", f"seconds to the QR code, {name}, {runtime}", most, by_name[name].spread("shown").median, at_most=True
        )
        for name, most in FLOORS
    ]
    given = [customer.slice_id for case in cases for customer in case.customers]
    if len(set(given)) != len(given):
        report.faults.append(f"Two customers got the same slice: {sorted(given)}")


def _show_steps(console: Console, case: Case) -> None:
    """Which step of making a slice takes how much of the whole."""
    names = list(dict.fromkeys(name for customer in case.customers for name in customer.steps))
    whole = sum(sum(customer.steps.values()) for customer in case.customers) or 1.0
    rows = []
    for name in names:
        lasted = [customer.steps[name] for customer in case.customers if name in customer.steps]
        rows.append((name, Spread.of(lasted).told(3), f"{100 * sum(lasted) / whole:.0f} %"))
    show_table(console, f"{case.name}: the steps", ["step", "seconds, median (spread)", "of all steps"], rows)
