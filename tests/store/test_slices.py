"""Slices' rows: numbers, moves, health, failures, and a leader that is leader no more."""

from datetime import timedelta

import pytest
import trio

from queunir_trio.model.slices import TRANSITIONS, Status, Wanted
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, slices, steps
from queunir_trio.store.bridge import Conflict, Database, open_connection
from queunir_trio.store.slices import StaleLeader

BASE = 5001


async def lead(database: Database) -> int:
    epoch: int = await database.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    return epoch


async def test_a_new_slice_has_all_it_needs_to_be_made(database: Database) -> None:
    slice_ = await slices.add(database, num=3, base_port=BASE, image="wank-slice:1")
    assert (slice_.port, slice_.host, slice_.status, slice_.wanted) == (
        5005,
        "127.0.0.1",
        Status.PROVISIONING,
        Wanted.RUNNING,
    )
    assert (slice_.managed, slice_.user_id, slice_.image, slice_.failures) == (True, None, "wank-slice:1", 0)
    assert await slices.find(database, slice_.id) == slice_
    assert await slices.find(database, slice_.id + 1) is None
    with pytest.raises(Conflict):
        await slices.add(database, num=3, base_port=BASE)


async def test_what_something_else_runs_is_available_at_once(database: Database) -> None:
    slice_ = await slices.add_unmanaged(database, "10.0.0.7", 8080)
    assert (slice_.host, slice_.port, slice_.managed, slice_.status) == ("10.0.0.7", 8080, False, Status.AVAILABLE)
    with pytest.raises(Conflict):
        await slices.add_unmanaged(database, "10.0.0.7", 8080)


async def test_slices_are_listed_and_counted(database: Database) -> None:
    first = await slices.add(database, num=1, base_port=BASE)
    second = await slices.add(database, num=2, base_port=BASE, status="available")
    assert await slices.listed(database) == [first, second]
    assert await slices.counts(database) == {
        "provisioning": 1,
        "available": 1,
        "assigned": 0,
        "suspended": 0,
        "destroying": 0,
        "failed": 0,
    }


async def test_the_lowest_free_number_is_taken(database: Database) -> None:
    for num in (1, 2, 4):
        await slices.add(database, num=num, base_port=BASE)
    assert await slices.lowest_free_number(database, BASE, 80) == 3
    assert await slices.lowest_free_number(database, BASE, 80, avoiding=[3]) == 5
    assert await slices.lowest_free_number(database, BASE, 2) is None
    gone = (await slices.listed(database))[0]
    assert not await slices.remove(database, gone.id), "it was not marked for destruction"
    assert await slices.release(database, gone.id)
    assert await slices.remove(database, gone.id)
    assert await slices.lowest_free_number(database, BASE, 80) == 1


async def test_numbers_taken_at_once_are_all_different(database: Database) -> None:
    taken: list[int] = []

    async def take() -> None:
        async with database.transaction() as connection:
            num = await slices.lowest_free_number(connection, BASE, 80)
            assert num is not None
            taken.append((await slices.add(connection, num=num, base_port=BASE)).port)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(take)
    assert sorted(taken) == list(range(BASE, BASE + 40, 2))


@pytest.mark.parametrize("now", list(Status))
async def test_a_slice_moves_only_as_its_life_goes(database: Database, now: Status) -> None:
    for num, then in enumerate(Status, 1):
        slice_ = await slices.add(database, num=num, base_port=BASE, status=now)
        assert await slices.move(database, slice_.id, then) == (then in TRANSITIONS[now])
        found = await slices.find(database, slice_.id)
        assert found is not None
        assert found.status == (then if then in TRANSITIONS[now] else now)


async def test_a_move_may_change_what_is_wanted_as_well(database: Database) -> None:
    slice_ = await slices.add(database, num=1, base_port=BASE, status="assigned")
    assert await slices.move(database, slice_.id, Status.SUSPENDED, wanted=Wanted.STOPPED)
    assert not await slices.move(database, slice_.id, Status.AVAILABLE, wanted=Wanted.RUNNING)
    found = await slices.find(database, slice_.id)
    assert found is not None
    assert (found.status, found.wanted) == (Status.SUSPENDED, Wanted.STOPPED)
    assert await slices.set_wanted(database, slice_.id, Wanted.RUNNING)
    assert await slices.set_image(database, slice_.id, "wank-slice:2")
    found = await slices.find(database, slice_.id)
    assert found is not None
    assert (found.wanted, found.image) == (Wanted.RUNNING, "wank-slice:2")
    assert not await slices.move(database, slice_.id + 1, Status.DESTROYING)
    assert not await slices.set_wanted(database, slice_.id + 1, Wanted.RUNNING)


async def test_a_leader_that_is_leader_no_more_changes_nothing(database: Database) -> None:
    slice_ = await slices.add(database, num=1, base_port=BASE)
    stale = await lead(database)
    epoch = await lead(database)
    for attempt in (
        slices.move(database, slice_.id, Status.AVAILABLE, epoch=stale),
        slices.set_wanted(database, slice_.id, Wanted.ABSENT, epoch=stale),
        slices.record_failure(database, slice_.id, "step", "reason", 5, stale),
        slices.clear_failure(database, slice_.id, stale),
        slices.begin_step(database, slice_.id, "deed", "step", None, stale),
        slices.end_step(database, slice_.id, "deed", "step", "done", None, stale),
        slices.remove(database, slice_.id, stale),
        slices.retire(database, slice_.id, stale),
        slices.begin_start(database, slice_.id, stale),
        slices.fail_start(database, slice_.id, stale),
    ):
        with pytest.raises(StaleLeader):
            await attempt
    assert await slices.find(database, slice_.id) == slice_
    assert await slices.steps(database, slice_.id) == []
    assert await slices.move(database, slice_.id, Status.AVAILABLE, epoch=epoch)
    assert not await slices.move(database, slice_.id, Status.SUSPENDED, epoch=epoch)


async def test_health_is_written_for_many_at_once(database: Database, database_settings: DatabaseSettings) -> None:
    every = [await slices.add(database, num=num, base_port=BASE) for num in (1, 2, 3)]
    await slices.record_health(database, [every[0].id, every[2].id])
    found = await slices.listed(database)
    assert [slice_.last_health_at is not None for slice_ in found] == [True, False, True]
    assert await slices.healthy(database) == {every[0].id, every[2].id}
    async with open_connection(database_settings, as_admin=True) as admin:
        await admin.execute("update gateway.clock_shift set shift = '3 minutes'")
    assert await slices.healthy(database) == set()
    await slices.record_health(database, [])


async def test_states_are_written_for_many_at_once_and_only_where_they_differ(database: Database) -> None:
    first, second = [await slices.add(database, num=num, base_port=BASE) for num in (1, 2)]
    states = [(first.id, "ready", True, "+49123"), (second.id, "qr", False, None)]
    await slices.record_states(database, states)
    versions = "select id, xmin::text from gateway.slices order by id"
    before = await database.fetch(versions)
    found = [(found.wa_state, found.wa_connected, found.wa_phone) for found in await slices.listed(database)]
    assert found == [("ready", True, "+49123"), ("qr", False, None)]
    await slices.record_states(database, [states[0], (second.id, "ready", True, "+49124")])
    after = await database.fetch(versions)
    assert before[0] == after[0], "a row that stays the same is not written"
    assert before[1] != after[1]
    await slices.record_states(database, [])


async def test_failures_are_counted_and_forgotten(database: Database) -> None:
    slice_ = await slices.add(database, num=1, base_port=BASE)
    epoch = await lead(database)
    assert await slices.record_failure(database, slice_.id, "health", "no answer", 60, epoch)
    assert await slices.record_failure(database, slice_.id, "start", "no image", 120, epoch)
    found = await slices.find(database, slice_.id)
    assert found is not None
    assert (found.failures, found.failed_step, found.failed_reason) == (2, "start", "no image")
    now = await database.fetchval("select gateway.clock()")
    assert found.retry_at is not None
    assert timedelta(seconds=100) < found.retry_at - now <= timedelta(seconds=120)
    assert await slices.record_failure(database, slice_.id, "start", "no image", None)
    found = await slices.find(database, slice_.id)
    assert found is not None
    assert found.retry_at is None
    assert await slices.clear_failure(database, slice_.id, epoch)
    found = await slices.find(database, slice_.id)
    assert found is not None
    assert (found.failures, found.failed_step, found.failed_reason, found.retry_at) == (0, None, None, None)


async def test_steps_are_written_down_in_order(database: Database) -> None:
    slice_ = await slices.add(database, num=1, base_port=BASE)
    epoch = await lead(database)
    await slices.begin_step(database, slice_.id, "provision", "roles", {"percent": 10}, epoch)
    await slices.end_step(database, slice_.id, "provision", "roles", "done", None, epoch)
    await slices.begin_step(database, slice_.id, "destroy", "roles", None, None)
    log = await slices.steps(database, slice_.id)
    assert [(row.deed, row.step, row.state, row.detail) for row in log] == [
        ("provision", "roles", "started", {"percent": 10}),
        ("provision", "roles", "done", None),
        ("destroy", "roles", "started", None),
    ]
    assert await slices.steps(database, slice_.id, "provision") == log[:2]
    assert log[0].at <= log[1].at
    assert await steps.newest(database, slice_.id) == log[-1]
    assert await steps.newest(database, slice_.id + 1) is None


async def test_a_row_that_is_removed_takes_what_refers_to_it_along(database: Database) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    slice_ = await slices.add(database, num=1, base_port=BASE, status="available")
    await slices.assign(database, user.id, slice_.id)
    await slices.begin_step(database, slice_.id, "destroy", "roles", None, None)
    await database.execute("insert into gateway.telemetry (slice_id) values ($1)", slice_.id)
    assert await slices.release(database, slice_.id)
    assert await slices.remove(database, slice_.id, await lead(database))
    assert await slices.find(database, slice_.id) is None
    assert await slices.steps(database, slice_.id) == []
    assert await database.fetchval("select count(*) from gateway.telemetry") == 0
    assert await slices.find_of_user(database, user.id) is None
    assert not await slices.remove(database, slice_.id)
