"""Suspending, resuming, restarting and replacing: the last wish wins, whatever was under way when it came."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID

import pytest
import trio

from queunir_trio.live import attempts, deeds, filling, reconciler
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import destruction, provisioning, suspension
from queunir_trio.outside.slice_control import SliceUnreachable
from queunir_trio.store import pool, rollouts, slices
from tests.doubles.premises import Premises
from tests.doubles.reconciling import available, eventually, reconciling, running, sized, stand
from tests.doubles.runtime import MemoryRuntime


class Slow(MemoryRuntime):
    """Orders wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = trio.Event()
        self.may_go_on.set()
        self.asked = trio.Event()

    def hold(self) -> None:
        self.may_go_on, self.asked = trio.Event(), trio.Event()

    async def _wait(self) -> None:
        self.asked.set()
        await self.may_go_on.wait()

    async def ensure(self, spec):
        await self._wait()
        return await super().ensure(spec)

    async def stop(self, num, uuid, within=10):
        await self._wait()
        await super().stop(num, uuid, within)

    async def remove(self, num, uuid):
        await self._wait()
        await super().remove(num, uuid)


async def serving(place: Premises) -> Slice:
    row = await available(place)
    assert await slices.claim(place.db, await place.add_user()) is not None
    found = await slices.find(place.db, row.id)
    assert found is not None
    return found


def runs(place: Premises, wanted: bool = True) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return bool(await running(place)) is wanted

    return check


async def test_a_suspended_slice_is_stopped_and_comes_back_with_its_data(real: Premises, quick: None) -> None:
    real = sized(real, at_least=0)
    row = await serving(real)
    kept = real.data_dir / "slices" / "1" / "session" / "pairing"
    kept.write_text("paired")
    async with reconciling(real) as made:
        await suspension.suspend(real.db, row.id, "money")
        made.nudge()
        await eventually(runs(real, False))
        await suspension.resume(real.db, row.id)
        made.nudge()
        await eventually(runs(real))
    assert kept.read_text() == "paired"
    assert (await real.only_row()).user_id == row.user_id


async def test_a_wanted_restart_is_one_restart(real: Premises, quick: None) -> None:
    real = sized(real, at_least=0)
    row = await serving(real)
    before = (await running(real))[1].pid

    async def is_done() -> bool:
        return (await real.only_row()).restart_wanted_at is None

    async with reconciling(real) as made:
        await suspension.restart(real.db, row.id)
        await suspension.restart(real.db, row.id)
        made.nudge()
        await eventually(is_done)
        after = (await running(real))[1].pid
        made.nudge()
        await eventually(runs(real))
    assert after != before
    assert (await running(real))[1].pid == after
    log = await slices.steps(real.db, row.id, "restart")
    assert [step.step for step in log if step.state == "started"] == ["stopped", "instance", "health", "recorded"]


async def test_a_restart_that_is_asked_for_does_not_wait_for_the_pause_after_a_failure(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "TRIED_AGAIN_AFTER", 1000.0)
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 1000.0)
    place = sized(place, at_least=0)
    row = await serving(place)
    place.resources.runtime.die(1)
    place.resources.control.health_fails = SliceUnreachable("503")

    async def has_failed() -> bool:
        log = await slices.steps(place.db, row.id, "start")
        return any(step.step == "health" for step in log) and "(" not in repr(made)

    async with reconciling(place) as made:
        monkeypatch.setattr("queunir_trio.operations.starting.HEALTHY_WITHIN", 0.05)
        await eventually(has_failed)
        place.resources.control.health_fails = None
        await suspension.restart(place.db, row.id)
        made.nudge()

        async def is_done() -> bool:
            return (await place.only_row()).restart_wanted_at is None

        await eventually(is_done)


WISHES: dict[str, Callable[[Premises, int], Awaitable[object]]] = {
    "suspend": lambda place, id_: suspension.suspend(place.db, id_, "admin"),
    "resume": lambda place, id_: suspension.resume(place.db, id_),
    "restart": lambda place, id_: suspension.restart(place.db, id_),
    "destroy": lambda place, id_: destruction.request(place.db, id_),
}


@pytest.mark.parametrize(
    ("wishes", "stands"),
    [
        (["suspend", "resume"], Status.ASSIGNED),
        (["restart", "suspend"], Status.SUSPENDED),
        (["suspend", "resume", "suspend"], Status.SUSPENDED),
        (["restart", "destroy"], None),
        (["suspend", "destroy"], None),
        (["suspend", "resume", "destroy"], None),
    ],
)
async def test_of_wishes_that_come_while_one_is_carried_out_the_last_one_wins(
    place: Premises, quick: None, wishes: list[str], stands: Status | None
) -> None:
    runtime = Slow()
    place = sized(place.with_doubles(runtime), at_least=0)
    row = await serving(place)
    await place.db.execute("update gateway.users set suspended_at = now()")  # who is destroyed under them waits not
    async with reconciling(place) as made:
        runtime.hold()
        await WISHES[wishes[0]](place, row.id)
        made.nudge()
        with trio.fail_after(10):
            await runtime.asked.wait()
        for wish in wishes[1:]:
            await WISHES[wish](place, row.id)
            made.nudge()
        runtime.may_go_on.set()
        stand_so = stand(place, *([stands] if stands else []))

        async def is_settled() -> bool:
            agrees = bool(await running(place)) is (stands is Status.ASSIGNED)
            return agrees and await stand_so() and made.is_idle

        await eventually(is_settled)
    if stands is None:
        assert await place.databases_and_roles() == set()
        assert place.directories() == []


async def test_a_new_slice_is_made_while_another_is_being_destroyed(place: Premises, quick: None) -> None:
    runtime = Slow()
    place = sized(place.with_doubles(runtime), at_least=1, at_most=2)
    row = await available(place)
    async with reconciling(place) as made:
        runtime.hold()
        await destruction.request(place.db, row.id)
        made.nudge()
        await eventually(stand(place, Status.DESTROYING, Status.PROVISIONING))
        assert [place.resources.number(found) for found in await slices.listed(place.db)] == [1, 2]
        runtime.may_go_on.set()
        await eventually(stand(place, Status.AVAILABLE))


async def test_an_undo_that_is_called_off_makes_the_slice_after_all(place: Premises, quick: None) -> None:
    runtime = Slow()
    place = sized(place.with_doubles(runtime), at_least=0)
    row = await provisioning.reserve(place.resources)
    await slices.move(place.db, row.id, Status.FAILED)
    async with reconciling(place) as made:
        runtime.hold()
        made.nudge()
        with trio.fail_after(10):
            await runtime.asked.wait()
        assert await slices.move(place.db, row.id, Status.PROVISIONING)
        made.nudge()
        runtime.may_go_on.set()
        await eventually(stand(place, Status.AVAILABLE))
    assert (await place.only_row()).uuid == row.uuid


async def test_a_wish_by_the_column_alone_that_is_taken_back_in_time_destroys_nothing(place: Premises) -> None:
    row = await available(place)
    await slices.set_wanted(place.db, row.id, Wanted.ABSENT)
    await slices.set_wanted(place.db, row.id, Wanted.RUNNING)
    assert not await destruction.request(place.db, row.id, if_unwanted=True)
    assert (await place.only_row()).status is Status.AVAILABLE


async def test_a_slice_that_keeps_ending_says_so_in_its_row_until_a_restart_goes_well(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = sized(place, at_least=0)
    row = await serving(place)
    runtime = place.resources.runtime

    async def has_kept_ending() -> bool:
        if runtime.instances[1].running:
            runtime.die(1)
        return (await place.only_row()).failures > 0

    async def is_forgiven() -> bool:
        return (await place.only_row()).failures == 0

    async with reconciling(place) as made:
        await eventually(has_kept_ending)
        assert "soon after it was started" in ((await place.only_row()).failed_reason or "")
        await suspension.restart(place.db, row.id)
        made.nudge()
        await eventually(is_forgiven)


async def test_after_a_boot_only_some_start_at_a_time(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deeds, "STAGGERED_BY", 0.01)
    place = sized(place, at_least=0, at_most=10)
    for _ in range(10):
        await available(place)
    starting = most = 0

    class Counting(MemoryRuntime):
        async def ensure(self, spec):
            nonlocal starting, most
            starting += 1
            most = max(most, starting)
            await trio.sleep(0.02)
            starting -= 1
            return await super().ensure(spec)

    booted = sized(place.with_doubles(Counting()), at_least=0, at_most=10)

    async def all_run() -> bool:
        return len(await running(booted)) == 10

    async with reconciling(booted):
        await eventually(all_run, within=20)
    assert most == deeds.STARTS_AT_ONCE


# --- the pool ---------------------------------------------------------------------------------------------------------


def on_image(place: Premises, image: str, **sizes: int) -> Premises:
    """As of an operator who chose this image; a memory runtime makes nothing of it."""
    settings = replace(place.resources.settings, runtime="docker", image=image)
    return sized(replace(place, resources=replace(place.resources, settings=settings)), **sizes)


async def images(place: Premises) -> list[str | None]:
    return [row.image for row in await slices.listed(place.db)]


async def test_a_new_image_replaces_what_stands_warm_one_by_one_and_the_new_one_first(
    place: Premises, quick: None
) -> None:
    old = on_image(place, "slice:1", at_least=2)
    taken = await available(old)
    user_id = await old.add_user()
    assert await slices.claim(place.db, user_id) is not None
    async with reconciling(old):
        await eventually(stand(place, Status.ASSIGNED, Status.AVAILABLE, Status.AVAILABLE))
    fewest, leaving = 2, 0

    async def is_replaced() -> bool:
        nonlocal fewest, leaving
        rows = await slices.listed(place.db)
        fewest = min(fewest, sum(row.status is Status.AVAILABLE for row in rows))
        leaving = max(leaving, sum(row.status is Status.DESTROYING for row in rows))
        return [row.image for row in rows] == ["slice:1", "slice:2", "slice:2"]

    async with reconciling(on_image(place, "slice:2", at_least=2)):
        await eventually(is_replaced, within=20)
    assert fewest == 2, "there were always as many warm as there should be"
    assert leaving == 1
    assert (await slices.find(place.db, taken.id)) is not None
    assert (await slices.find_of_user(place.db, user_id)).id == taken.id, "who has a customer is left alone"


async def test_where_there_is_no_room_the_old_one_goes_first(place: Premises, quick: None) -> None:
    await available(on_image(place, "slice:1", at_least=1))

    async def is_replaced() -> bool:
        return await images(place) == ["slice:2"] and (await place.only_row()).status is Status.AVAILABLE

    async with reconciling(on_image(place, "slice:2", at_least=1, at_most=1)):
        await eventually(is_replaced)


async def test_while_slices_are_moved_to_another_image_none_is_replaced(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_running(db: object) -> bool:
        return True

    monkeypatch.setattr(rollouts, "is_running", is_running)
    await available(on_image(place, "slice:1", at_least=1))
    async with reconciling(on_image(place, "slice:2", at_least=1)) as made:
        for _ in range(3):
            made.nudge()
            await trio.sleep(0.05)
    assert await images(place) == ["slice:1"]


async def test_a_pool_that_is_paused_makes_nothing_and_gives_away_what_is_warm(place: Premises, quick: None) -> None:
    await available(place)
    await pool.set(place.db, paused=True)
    for n in range(2):
        await place.add_user(f"user{n}@example.com")
    async with reconciling(sized(place, at_least=3)) as made:
        await eventually(stand(place, Status.ASSIGNED))
        made.nudge()
        await trio.sleep(0.1)
        assert len(await slices.listed(place.db)) == 1
        await pool.set(place.db, paused=False, at_least=0)
        made.nudge()
        await eventually(stand(place, Status.ASSIGNED, Status.ASSIGNED))


async def test_the_operators_number_outweighs_the_settings(place: Premises, quick: None) -> None:
    await pool.set(place.db, at_least=3)
    async with reconciling(sized(place, at_least=1)):
        await eventually(stand(place, *[Status.AVAILABLE] * 3))


async def test_failures_in_a_row_are_shown_and_end_with_a_success(place: Premises, quick: None) -> None:
    place.resources.control.state_fails = SliceUnreachable("401")

    async def failures() -> int:
        return (await pool.read(place.db)).failures

    async def has_failed() -> bool:
        return await failures() > 1

    async def is_well() -> bool:
        return await failures() == 0

    async with reconciling(place) as made:
        await eventually(has_failed)
        place.resources.control.state_fails = None
        await eventually(stand(place, Status.AVAILABLE))
        made.nudge()
        await eventually(is_well)


async def test_a_warm_slice_that_answers_nobody_is_replaced(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "UNWELL_FOR", 0.05)
    frozen = await available(place)
    answer = place.resources.control.health

    async def health(address):
        if address.slice_id == frozen.id:
            raise SliceUnreachable("silent")
        return await answer(address)

    monkeypatch.setattr(place.resources.control, "health", health)
    await place.db.execute("update gateway.slices set last_health_at = now() - interval '1 hour'")

    async def is_replaced() -> bool:
        made.nudge()
        rows = await slices.listed(place.db)
        return [row.status for row in rows] == [Status.AVAILABLE] and rows[0].id != frozen.id

    async with reconciling(place) as made:
        await eventually(is_replaced)
    assert "provisioning_failed" in await place.events()


async def test_slices_that_a_rollout_holds_are_left_to_it(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await serving(sized(place, at_least=0))
    place.resources.runtime.die(1)
    held = {row.id}

    async def all_held(db: object) -> set[int]:
        return held

    monkeypatch.setattr(rollouts, "held", all_held)
    async with reconciling(sized(place, at_least=0)) as made:
        made.nudge()
        await trio.sleep(0.1)
        assert not await running(place)
        held.clear()
        made.nudge()
        await eventually(runs(place))


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_ten_are_made_at_once_without_a_clash(real: Premises) -> None:
    real = sized(real, at_least=0, at_most=10)
    made: list[UUID] = []

    async def make() -> None:
        made.append((await available(real)).uuid)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(make)
    assert len(set(made)) == 10
    assert sorted(await running(real)) == list(range(1, 11))
    for row in await slices.listed(real.db):
        assert row.status is Status.AVAILABLE
        await real.resources.control.state(real.resources.address(row))


async def test_twenty_rounds_leave_the_server_as_it_was(real: Premises) -> None:
    real = sized(real, at_least=0)

    async def everything() -> dict[str, object]:
        databases = await real.db.fetch("select datname from pg_database order by 1")
        roles = await real.db.fetch("select rolname from pg_roles order by 1")
        files = sorted(str(path) for path in real.data_dir.rglob("*") if path.name not in ("slices", "run"))
        return {**await real.everything(), "all": [*databases, *roles], "files": files}

    before = await everything()
    ids = set()
    for _ in range(20):
        row = await available(real)
        ids.add(row.id)
        assert real.resources.number(row) == 1
        assert await destruction.request(real.db, row.id)
        await destruction.destroy(real.resources, replace(row, status=Status.DESTROYING))
    assert await everything() == before
    assert len(ids) == 20
