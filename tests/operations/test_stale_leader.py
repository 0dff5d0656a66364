"""A gateway that slept in the middle of a deed wakes up after another has taken over, and touches nothing."""

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from queunir_trio.live.leader import Leader
from queunir_trio.model.slices import Status
from queunir_trio.operations import destruction, provisioning, starting
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import leadership, slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable, open_connection
from queunir_trio.store.leadership import LOCK
from queunir_trio.store.slices import StaleLeader
from tests.doubles.premises import Premises, open_premises
from tests.doubles.reconciling import eventually
from tests.doubles.runtime import MemoryRuntime
from tests.operations.lifecycle_child import SECRET, Forge, Life

NEXT_LEADS_WITHIN = 2.0  # seconds


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port, warm_pool_min=0) as made:
        settings = replace(made.resources.settings, secret=SECRET)
        yield replace(made, resources=replace(made.resources, settings=settings))


async def end_the_leaders_connection(where: DatabaseSettings) -> int:
    async with open_connection(where, as_admin=True) as admin:
        rows = await admin.fetch(
            """
            select pg_terminate_backend(l.pid) from pg_locks l join pg_stat_activity a on a.pid = l.pid
            where l.locktype = 'advisory' and l.objid = $1 and l.granted and a.datname = current_database()
            """,
            LOCK,
        )
    return len(rows)


@pytest.mark.parametrize("asleep_at", ["provision:database:started", "provision:instance:started"])
async def test_who_sleeps_through_the_loss_of_the_lock_does_nothing_more(
    place: Premises, tmp_path: Path, asleep_at: str
) -> None:
    """The successor destroys what the sleeper was making; nothing of it may come back when the sleeper wakes."""
    life = Life(asdict(place.resources.where), str(place.data_dir), place.resources.settings.base_port)
    forge = Forge(tmp_path / "log")
    try:
        sleeper = forge.begin(replace(life, act=None, goal="one_stands", warm=1, stopped_at=asleep_at))
        await eventually(partial(is_stopped, sleeper), within=20)
        row = await place.only_row()
        assert row.status is Status.PROVISIONING
        # while it sleeps, everything about it stands still, its connection too
        assert await end_the_leaders_connection(place.resources.where) == 1
        assert await destruction.request(place.db, row.id)
        successor = replace(life, goal="none_is_left")
        assert await trio.to_thread.run_sync(partial(forge.run, successor)) == 0, forge.said()
        epoch = await place.db.fetchval("select epoch from gateway.leader")
        os.kill(sleeper, signal.SIGCONT)
        await eventually(partial(leads_anew, place, epoch), within=20)
        # it has heard that it leads no more, has begun anew and makes a slice of its own: of the first nothing is left
        assert await trio.to_thread.run_sync(partial(forge.end_of, sleeper)) == 0, forge.said()
        now = await place.only_row()
        assert now.id != row.id
        assert now.status is Status.AVAILABLE
        assert [found.uuid for found in await place.resources.runtime.listed()] == [now.uuid]
    finally:
        forge.close()


async def is_stopped(pid: int) -> bool:
    state = await trio.Path(f"/proc/{pid}/stat").read_text()
    return state.rpartition(")")[2].split()[0] == "T"


async def leads_anew(place: Premises, epoch: int) -> bool:
    now: int = await place.db.fetchval("select epoch from gateway.leader")
    return now > epoch


@pytest.mark.parametrize("step", [step.name for step in destruction.LAYERS])
async def test_each_act_asks_who_leads_right_before_it_touches_anything(
    place: Premises, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The step was still written down by the leader; between that line and the act another took over."""
    light = place.with_doubles()
    row = await provisioning.reserve(light.resources)
    await provisioning.provision(light.resources, row)
    await destruction.request(light.db, row.id)
    begin_step = slices.begin_step

    async def begin_and_lose(db, slice_id, deed, name, detail, epoch):
        await begin_step(db, slice_id, deed, name, detail, epoch)
        if name == step:
            await db.execute("update gateway.leader set epoch = epoch + 1")

    for before in destruction.LAYERS:
        if before.name == step:
            break
        await before.act(light.resources, row)
    there = {**await light.everything(), "steps": None}
    monkeypatch.setattr(slices, "begin_step", begin_and_lose)
    with pytest.raises(StaleLeader):
        await destruction.undo(light.resources, row)
    assert {**await light.everything(), "steps": None} == there


@pytest.mark.parametrize("step", [step.name for step in provisioning.STEPS[:5]])
async def test_each_step_of_a_making_asks_too(place: Premises, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    light = place.with_doubles()
    row = await provisioning.reserve(light.resources)
    begin_step = slices.begin_step
    there: dict[str, object] = {}

    async def begin_and_lose(db, slice_id, deed, name, detail, epoch):
        await begin_step(db, slice_id, deed, name, detail, epoch)
        if name == step:
            there.update({**await light.everything(), "steps": None})
            await db.execute("update gateway.leader set epoch = epoch + 1")

    monkeypatch.setattr(slices, "begin_step", begin_and_lose)
    with pytest.raises(StaleLeader):
        await provisioning.provision(light.resources, row)
    assert {**await light.everything(), "steps": None} == there


@pytest.mark.parametrize("deed", [starting.start, starting.stop, starting.restart])
async def test_who_leads_no_more_starts_and_stops_nothing(place: Premises, deed) -> None:
    runtime = MemoryRuntime()
    light = place.with_doubles(runtime)
    row = await provisioning.reserve(light.resources)
    await provisioning.provision(light.resources, row)
    before = dict(runtime.instances)

    await light.db.execute("update gateway.leader set epoch = epoch + 1")
    with pytest.raises(StaleLeader):
        await deed(light.resources, row)
    assert runtime.instances == before


async def test_the_next_leader_follows_soon_after_the_lock_is_lost(place: Premises) -> None:
    begun: list[int] = []

    async def duty(epoch: int) -> None:
        begun.append(epoch)
        await trio.sleep_forever()

    first, second = (Leader(place.resources.where, [("duty", duty)]) for _ in range(2))

    async def lead(leader: Leader) -> None:
        try:
            await leader.session()
        except* DatabaseUnavailable:
            pass

    async def many_lead(count: int) -> bool:
        await trio.lowlevel.checkpoint()
        return len(begun) == count

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead, first)
        await eventually(partial(many_lead, 1))
        nursery.start_soon(lead, second)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await end_the_leaders_connection(place.resources.where) == 1
        await eventually(partial(many_lead, 2), within=NEXT_LEADS_WITHIN)
        nursery.cancel_scope.cancel()
    assert begun == sorted(begun)


async def test_a_leader_of_whom_nothing_is_heard_loses_the_lock_to_who_waits(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "WAITED_AT_ONCE", 0.1)
    monkeypatch.setattr(leadership, "REAPED_AFTER", 0.5)
    where = place.resources.where
    async with open_connection(where) as silent:
        await silent.execute("select pg_advisory_lock($1)", LOCK)  # and nothing more is asked over it
        with trio.fail_after(10):
            async with leadership.leadership(where) as held:
                assert held.epoch > 0
        assert silent.closed


async def test_a_leader_that_gives_signs_of_life_keeps_the_lock(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "WAITED_AT_ONCE", 0.1)
    monkeypatch.setattr(leadership, "REAPED_AFTER", 1.0)
    monkeypatch.setattr(leadership, "WATCHED_EVERY", 0.1)
    where = place.resources.where
    async with leadership.leadership(where) as held, trio.open_nursery() as nursery:
        nursery.start_soon(held.watch)
        with trio.move_on_after(2.5):
            async with leadership.leadership(where):
                raise AssertionError("two lead at once")
        nursery.cancel_scope.cancel()
