"""A place for deeds on slices: a real database, slices as stub processes, and a way to see what is left of them."""

import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from queunir_trio.model.routing import SliceAddress
from queunir_trio.model.slices import Slice
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.runtimes.process import ProcessRuntime
from queunir_trio.outside.slice_control import Health, SliceState, open_slice_control
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.store.roles import quoted
from tests.doubles.runtime import MemoryRuntime

STUB = Path(__file__).parent / "stub_slice.py"


def stub_command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-I", str(STUB), *arguments)


class Killed(BaseException):
    """The gateway ended here: nothing after this point is done by it, and nothing catches it."""


@dataclass
class Reached:
    """Which points were passed, and the one at which to be killed."""

    points: list[str] = field(default_factory=list)
    killed_at: str | None = None

    def __call__(self, point: str) -> None:
        self.points.append(point)
        if point == self.killed_at:
            raise Killed(point)


class Answers:
    """Stands for SliceControl: every slice is well, unless it is told what to raise instead."""

    def __init__(self) -> None:
        self.health_fails: Exception | None = None
        self.state_fails: Exception | None = None
        self.log_out_fails: Exception | None = None
        self.logged_out: list[int] = []
        self.asked: list[int] = []

    async def health(self, address: SliceAddress) -> Health:
        self.asked.append(address.slice_id)
        await trio.lowlevel.checkpoint()
        if self.health_fails is not None:
            raise self.health_fails
        return Health(str(address.slice_id), 1.0)

    async def state(self, address: SliceAddress) -> SliceState:
        await trio.lowlevel.checkpoint()
        if self.state_fails is not None:
            raise self.state_fails
        return SliceState("qr", None, None)

    async def log_out(self, address: SliceAddress) -> None:
        await trio.lowlevel.checkpoint()
        if self.log_out_fails is not None:
            raise self.log_out_fails
        self.logged_out.append(address.slice_id)


@dataclass
class Premises:
    """Everything a test of slices looks at."""

    resources: Resources
    reached: Reached
    data_dir: Path

    @property
    def db(self) -> Database:
        return self.resources.db

    async def only_row(self) -> Slice:
        rows = await slices.listed(self.db)
        assert len(rows) == 1, rows
        return rows[0]

    async def databases_and_roles(self) -> set[str]:
        """What there is on the server that belongs to slices."""
        async with open_connection(self.resources.where, as_admin=True) as connection:
            return await _left(connection)

    def directories(self) -> list[str]:
        base = self.data_dir / "slices"
        return sorted(path.name for path in base.iterdir()) if base.exists() else []

    async def everything(self) -> dict[str, object]:
        """All there is, in all layers; of a place where nothing is, all values are false."""
        return {
            "rows": [row.id for row in await slices.listed(self.db)],
            "steps": await self.db.fetchval("select count(*) from gateway.slice_steps"),
            "databases": await self.databases_and_roles(),
            "directories": self.directories(),
            "instances": [found.num for found in await self.resources.runtime.listed()],
        }

    async def clear(self) -> None:
        """Leaves nothing of what there was but the numbers that were given out."""
        for found in await self.resources.runtime.listed():
            await self.resources.runtime.remove(found.num, found.uuid)
        await _drop_all(self.resources.where)
        shutil.rmtree(self.data_dir / "slices", ignore_errors=True)
        await self.db.execute("update gateway.users set slice_id = null; update gateway.slices set user_id = null")
        for table in ("slice_steps", "events", "jobs", "receipts", "erasures", "outbox", "users", "slices"):
            await self.db.execute(f"delete from gateway.{table}")

    async def events(self) -> list[str]:
        return [row["kind"] for row in await self.db.fetch("select kind from gateway.events order by id")]

    async def add_user(self, email: str = "one@example.com") -> int:
        user_id: int = await self.db.fetchval(
            "insert into gateway.users (email, password_hash) values ($1, 'x') returning id", email
        )
        return user_id

    def with_doubles(self, runtime: MemoryRuntime | None = None, control: "Answers | None" = None) -> "Premises":
        """The same place with slices that exist in memory only: what is real is the database and the disk."""
        resources = replace(self.resources, runtime=runtime or MemoryRuntime(), control=control or Answers())
        return replace(self, resources=resources)


@asynccontextmanager
async def open_premises(
    database: Database,
    where: DatabaseSettings,
    data_dir: Path,
    base_port: int,
    *,
    command: tuple[str, ...] | None = None,
    warm_pool_min: int = 1,
    at_most: int = 5,
) -> AsyncIterator[Premises]:
    """Premises whose processes, databases and roles are all gone at the end."""
    reached = Reached()
    told: Callable[[str], None] = lambda point: reached(f"runtime:{point}")  # noqa: E731
    runtime = ProcessRuntime(data_dir, command=command or stub_command(), reached=told)
    settings = SliceSettings("process", "unused", None, base_port, warm_pool_min, at_most, "a secret for tests" * 3)
    async with open_slice_control() as control:
        resources = Resources(database, where, runtime, control, settings, data_dir, False, 0, reached)
        try:
            yield Premises(resources, reached, data_dir)
        finally:
            await runtime.stop_all(within=1)
            await _drop_all(where)


async def _drop_all(where: DatabaseSettings) -> None:
    async with open_connection(where, as_admin=True) as connection:
        left = await _left(connection)
        for name in sorted(left):
            await connection.execute(f"drop database if exists {quoted(name)} with (force)")
        for name in sorted(left):
            await connection.execute(f"drop role if exists {quoted(name)}")


async def _left(connection) -> set[str]:
    rows = await connection.fetch(
        r"""
        select datname::text from pg_database where datname like 'wa\_slice\_%'
        union select rolname::text from pg_roles where rolname like 'wa\_slice\_%'
        """
    )
    return {row[0] for row in rows}
