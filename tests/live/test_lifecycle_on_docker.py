"""Many slices on a real Docker engine: ten made at once without a clash, and twenty removed without a trace."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from queunir_trio.live import deeds, warm_pool
from queunir_trio.model.slices import Status
from queunir_trio.operations import destruction
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database
from tests.docker_engine import Engine
from tests.doubles.containers import of_slices, on_engine, open_docker_premises
from tests.doubles.premises import Premises
from tests.doubles.reconciling import available, eventually, reconciling, running, sized

AT_ONCE, ROUNDS = 5, 4  # twenty in all


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int, docker_host: str
) -> AsyncIterator[Premises]:
    data_dir = tmp_path / "data"
    async with open_docker_premises(database, database_settings, data_dir, free_base_port, docker_host) as made:
        yield sized(made, at_least=0, at_most=10)


async def test_ten_are_made_at_once_without_a_clash(
    place: Premises, docker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (warm_pool, deeds):
        monkeypatch.setattr(module, "AT_ONCE", 10)
    users = {await place.add_user(f"user{n}@example.com") for n in range(10)}
    most = 0

    async def all_are_served() -> bool:
        nonlocal most
        rows = await slices.listed(place.db)
        most = max(most, sum(row.status is Status.PROVISIONING for row in rows))
        return [row.status for row in rows] == [Status.ASSIGNED] * 10

    async with reconciling(place):
        await eventually(all_are_served, within=60)
    rows = await slices.listed(place.db)
    assert most == 10, "they were made beside each other"
    assert {row.user_id for row in rows} == users
    assert sorted(place.resources.number(row) for row in rows) == list(range(1, 11))
    assert sorted(await running(place)) == list(range(1, 11))
    for row in rows:
        await place.resources.control.state(place.resources.address(row))
    assert on_engine(docker_engine, place.data_dir) == of_slices(*range(1, 11))
    assert await place.events() == []


async def test_twenty_rounds_leave_engine_server_and_disk_as_they_were(place: Premises, docker_engine: Engine) -> None:
    async def everything() -> dict[str, object]:
        databases = await place.db.fetch("select datname from pg_database order by 1")
        roles = await place.db.fetch("select rolname from pg_roles order by 1")
        files = sorted(str(path) for path in place.data_dir.rglob("*") if path.name not in ("slices", "run"))
        found = {"databases": databases, "roles": roles, "files": files}
        return {**await place.everything(), **on_engine(docker_engine, place.data_dir), **found}

    async def interfaces_are_as_before() -> bool:
        return interfaces() == interfaces_before

    before, interfaces_before = await everything(), interfaces()
    ids: set[int] = set()

    async def make_and_destroy() -> None:
        row = await available(place)
        ids.add(row.id)
        assert await destruction.request(place.db, row.id)
        await destruction.destroy(place.resources, replace(row, status=Status.DESTROYING))

    with trio.fail_after(100):
        for _ in range(ROUNDS):
            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(make_and_destroy)
    assert len(ids) == AT_ONCE * ROUNDS
    assert await everything() == before
    await eventually(interfaces_are_as_before)  # the kernel takes its time


def interfaces() -> list[str]:
    """The bridges of slices' networks, and whatever else there is in this process's network namespace."""
    return sorted(line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:])
