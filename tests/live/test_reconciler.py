"""What is wanted and what is come to agree by themselves, after whatever happened."""

import os
import signal
from dataclasses import replace
from uuid import uuid4

import pytest
import trio

from queunir_trio.live import deeds, reconciler, warm_pool
from queunir_trio.live.reconciler import Reconciler
from queunir_trio.model.slices import Status, Wanted
from queunir_trio.operations import assignment, destruction, provisioning
from queunir_trio.operations.starting import spec_of
from queunir_trio.outside.runtimes.contract import Instance, RuntimeUnavailable
from queunir_trio.outside.runtimes.process import ProcessRuntime
from queunir_trio.outside.slice_control import SliceUnreachable, WrongSlice
from queunir_trio.store import slice_databases, slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.store.slices import StaleLeader
from tests.doubles.premises import Answers, Killed, Premises, stub_command
from tests.doubles.reconciling import available, eventually, reconciling, running, sized, stand
from tests.doubles.runtime import MemoryRuntime


async def test_an_empty_pool_is_filled_and_not_beyond(place: Premises, quick: None) -> None:
    place = sized(place, at_least=3)
    async with reconciling(place) as made:
        await eventually(stand(place, Status.AVAILABLE, Status.AVAILABLE, Status.AVAILABLE))

        async def is_idle() -> bool:
            return "[]" in repr(made)

        await eventually(is_idle)
        made.nudge()
        await eventually(stand(place, Status.AVAILABLE, Status.AVAILABLE, Status.AVAILABLE))
    assert sorted(place.resources.runtime.started) == [1, 2, 3]


async def test_never_more_than_two_are_made_at_once(place: Premises, quick: None) -> None:
    making = most = 0
    two, go_on = trio.Event(), trio.Event()

    class Waiting(MemoryRuntime):
        async def ensure(self, spec):
            nonlocal making, most
            making += 1
            most = max(most, making)
            if making == 2:
                two.set()
            await go_on.wait()
            making -= 1
            return await super().ensure(spec)

    place = sized(place.with_doubles(Waiting()), at_least=5)
    async with reconciling(place) as made:
        with trio.fail_after(10):
            await two.wait()
        made.nudge()
        assert len(await slices.listed(place.db)) == 2
        go_on.set()
        await eventually(stand(place, *[Status.AVAILABLE] * 5))
    assert most == 2


async def test_a_claimed_slice_is_replaced_on_a_nudge(place: Premises, quick: None) -> None:
    async with reconciling(place) as made:
        await eventually(stand(place, Status.AVAILABLE))
        async with place.db.transaction() as connection:
            user_id = await connection.fetchval("insert into gateway.users (email) values ('new@x.org') returning id")
            assert await assignment.claim_for_new_user(connection, user_id) is not None
        made.nudge()
        await eventually(stand(place, Status.ASSIGNED, Status.AVAILABLE))


async def test_who_waits_is_served_before_the_pool_is_filled(place: Premises, quick: None) -> None:
    place = sized(place, at_least=2, at_most=3)
    waiting = [await place.add_user(f"user{n}@example.com") for n in range(3)]
    async with reconciling(place):
        await eventually(stand(place, *[Status.ASSIGNED] * 3))
    assert {row.user_id for row in await slices.listed(place.db)} == set(waiting)


async def test_with_billing_who_has_not_paid_gets_nothing(place: Premises, quick: None) -> None:
    await place.add_user()
    async with reconciling(place, billing_enabled=True):
        await eventually(stand(place, Status.AVAILABLE))


async def test_a_full_server_says_so_once(place: Premises, quick: None) -> None:
    place = sized(place, at_least=1, at_most=1)
    for n in range(2):
        await place.add_user(f"user{n}@example.com")
    async with reconciling(place) as made:
        await eventually(stand(place, Status.ASSIGNED))

        async def told() -> bool:
            made.nudge()
            return "no_capacity" in await place.events()

        await eventually(told)
        await eventually(told)
    assert (await place.events()).count("no_capacity") == 1
    assert len(await slices.listed(place.db)) == 1


@pytest.mark.parametrize("point", ["provision:database:acted", "provision:instance:acted", "provision:ready:started"])
async def test_what_a_killed_gateway_began_is_finished_by_the_next(place: Premises, quick: None, point: str) -> None:
    place.reached.killed_at = point
    row = await provisioning.reserve(place.resources)
    with pytest.raises(Killed):
        await provisioning.provision(place.resources, row)
    place.reached.killed_at = None
    async with reconciling(place):
        await eventually(stand(place, Status.AVAILABLE))
    assert (await place.only_row()).id == row.id
    assert place.resources.runtime.started == [1]


async def test_what_was_being_undone_or_destroyed_is_finished_too(place: Premises, quick: None) -> None:
    place = sized(place, at_least=0)
    destroyed = await available(place)
    failing = place.with_doubles(place.resources.runtime, Answers())
    failing.resources.control.state_fails = SliceUnreachable("401")
    failed = await provisioning.reserve(failing.resources)
    failing.reached.killed_at = "undo:database:started"
    with pytest.raises(Killed):
        await provisioning.provision(failing.resources, failed)
    await destruction.request(place.db, destroyed.id)
    place.reached.killed_at = None
    async with reconciling(place):
        await eventually(stand(place))
    everything = await place.everything()
    assert everything == {"rows": [], "steps": 0, "databases": set(), "directories": [], "instances": []}


async def test_an_operators_wish_in_the_table_alone_is_enough(place: Premises, quick: None) -> None:
    place = sized(place, at_least=0)
    row = await available(place)
    await slices.set_wanted(place.db, row.id, Wanted.ABSENT)
    async with reconciling(place):
        await eventually(stand(place))
    assert await place.databases_and_roles() == set()


async def test_instances_follow_what_is_wanted(place: Premises, quick: None) -> None:
    row = await available(place)

    async def runs() -> bool:
        return bool(await running(place))

    async def rests() -> bool:
        return not await running(place)

    async with reconciling(place) as made:
        await slices.set_wanted(place.db, row.id, Wanted.STOPPED)
        made.nudge()
        await eventually(rests)
        await slices.set_wanted(place.db, row.id, Wanted.RUNNING)
        made.nudge()
        await eventually(runs)


async def test_a_slice_killed_with_sigkill_comes_back_as_itself(real: Premises) -> None:
    real = sized(real, at_least=0)
    row = await available(real)
    before = (await running(real))[1]
    assert before.pid is not None

    async def is_back() -> bool:
        now = (await running(real)).get(1)
        return now is not None and now.pid != before.pid

    async with reconciling(real):
        os.kill(before.pid, signal.SIGKILL)
        await eventually(is_back, within=5)
        after = (await running(real))[1]
        assert after.uuid == row.uuid

        async def answers() -> bool:
            try:
                return (await real.resources.control.health(real.resources.address(row))).slice == str(row.id)
            except SliceUnreachable:
                return False

        await eventually(answers, within=5)
    assert (await real.only_row()).id == row.id
    with pytest.raises(ProcessLookupError):
        os.kill(before.pid, 0)  # no zombie either


async def test_who_is_started_again_is_marked_from_before_its_turn_until_it_is_well(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a boot many wait for their turn, and of none of them an answer from before counts."""
    monkeypatch.setattr(deeds, "STARTS_AT_ONCE", 1)
    may_start = trio.Event()

    class Waiting(MemoryRuntime):
        async def ensure(self, spec):
            await may_start.wait()
            return await super().ensure(spec)

    made = sized(place, at_least=0, at_most=2)
    for email in ("one@example.com", "two@example.com"):
        row = await available(made)
        assert await slices.claim(made.db, await made.add_user(email)) is not None
    assert len(await slices.healthy(place.db)) == 2
    booted = sized(place.with_doubles(Waiting()), at_least=0)

    async def all_start() -> bool:
        return all([await slices.is_starting(place.db, row.id, 1e6) for row in await slices.listed(place.db)])

    async def all_are_well() -> bool:
        return len(await slices.healthy(place.db)) == 2

    # what is asked of their health meanwhile is answered as by slices that are not there
    booted.resources.control.health_fails = SliceUnreachable("refused")
    async with reconciling(booted):
        await eventually(all_start)
        assert await slices.healthy(place.db) == set()
        booted.resources.control.health_fails = None
        may_start.set()
        await eventually(all_are_well)
    assert not await slices.is_starting(place.db, row.id, 1e6)


async def test_a_start_that_failed_is_no_longer_marked(place: Premises, quick: None) -> None:
    place = sized(place, at_least=0)
    row = await available(place)
    assert await slices.claim(place.db, await place.add_user()) is not None
    marked: list[bool] = []

    class Failing(MemoryRuntime):
        async def ensure(self, spec):
            marked.append(await slices.is_starting(place.db, row.id, 1e6))
            raise RuntimeUnavailable("full")

    async def failed() -> bool:
        return bool(marked) and not await slices.is_starting(place.db, row.id, 1e6)

    failing = place.with_doubles(Failing())
    failing.resources.control.health_fails = SliceUnreachable("refused")
    async with reconciling(failing):
        await eventually(failed)
    assert marked[0]


async def test_a_gateway_that_starts_again_adopts_what_runs(real: Premises) -> None:
    async with reconciling(real):
        await eventually(stand(real, Status.AVAILABLE))
    before = await running(real)
    row = await real.only_row()
    successor = ProcessRuntime(real.data_dir, command=stub_command("--dies"))
    again = replace(real, resources=replace(real.resources, runtime=successor))
    await real.db.execute("update gateway.slices set last_health_at = null")

    async def is_known_well() -> bool:
        return (await again.only_row()).last_health_at is not None

    async with reconciling(again):
        await eventually(is_known_well)
        await trio.lowlevel.checkpoint()
    assert await running(again) == before
    assert (await again.only_row()).id == row.id


async def test_unmanaged_slices_are_watched_and_left_alone(place: Premises, quick: None) -> None:
    place = sized(place, at_least=0)
    row = await assignment.register_unmanaged(place.db, "127.0.0.1", 4000)

    async def is_known_well() -> bool:
        return (await place.only_row()).last_health_at is not None

    async with reconciling(place):
        await eventually(is_known_well)
        await slices.set_wanted(place.db, row.id, Wanted.STOPPED)
    assert place.resources.runtime.started == []
    assert place.resources.runtime.instances == {}
    assert (await place.only_row()).status == Status.AVAILABLE


@pytest.mark.parametrize("error", [SliceUnreachable("silent"), WrongSlice("a stranger")])
async def test_who_does_not_answer_well_is_not_written_down_as_well(
    place: Premises, quick: None, error: Exception
) -> None:
    place = sized(place, at_least=0)
    await available(place)
    await place.db.execute("update gateway.slices set last_health_at = null")
    control = place.resources.control
    control.health_fails = error
    control.asked.clear()

    async def was_asked() -> bool:
        return bool(control.asked)

    async with reconciling(place):
        await eventually(was_asked)
        control.asked.clear()
    assert (await place.only_row()).last_health_at is None


async def test_what_fails_again_and_again_pauses_with_one_alarm_and_goes_on_when_it_can(
    place: Premises, quick: None
) -> None:
    control = place.resources.control
    control.state_fails = SliceUnreachable("status 401")

    async def is_paused() -> bool:
        return (await place.events()).count("provisioning_failed") > warm_pool.PAUSED_AFTER

    async with reconciling(place):
        await eventually(is_paused)
        control.state_fails = None

        async def is_well() -> bool:
            return await stand(place, Status.AVAILABLE)()

        await eventually(is_well)
    assert (await place.events()).count("provisioning_paused") == 1
    assert await place.databases_and_roles() == {"wa_slice_1", "wa_slice_1_owner"}


async def test_a_number_whose_port_is_taken_is_passed_over(place: Premises, quick: None) -> None:
    place.resources.runtime.taken_ports.add(place.resources.settings.base_port)
    async with reconciling(place):
        await eventually(stand(place, Status.AVAILABLE))
    assert place.resources.number(await place.only_row()) == 2
    assert await place.events() == ["provisioning_failed"]


async def test_a_warm_slice_that_keeps_ending_is_replaced(place: Premises, quick: None) -> None:
    doomed = await available(place)
    runtime = place.resources.runtime

    async def replaced() -> bool:
        rows = await slices.listed(place.db)
        if [row.id for row in rows] == [doomed.id]:
            if runtime.instances.get(1) is not None and runtime.instances[1].running:
                runtime.die(1)
            return False
        return [row.status for row in rows] == [Status.AVAILABLE]

    async with reconciling(place):
        await eventually(replaced)
    assert (await place.only_row()).id != doomed.id
    assert "provisioning_failed" in await place.events()


async def test_a_customers_slice_that_keeps_ending_is_started_on_and_an_alarm_is_raised_once(
    place: Premises, quick: None
) -> None:
    place = sized(place, at_least=0)
    row = await available(place)
    await place.add_user()
    runtime = place.resources.runtime

    async def kept_ending() -> bool:
        if runtime.instances[1].running:
            runtime.die(1)
        return len(runtime.started) > 3 * reconciler.ALARM_AFTER

    async with reconciling(place):
        await eventually(kept_ending)
    assert (await place.only_row()).id == row.id
    assert (await place.only_row()).status == Status.ASSIGNED
    assert (await place.events()).count("slice_keeps_ending") == 1


async def test_while_the_runtime_is_dead_nothing_is_done_and_then_it_goes_on(place: Premises, quick: None) -> None:
    row = await available(place)
    runtime = place.resources.runtime
    runtime.die(1)
    runtime.dead = True
    await place.add_user()

    async def is_served() -> bool:
        return (await slices.find(place.db, row.id)).status == Status.ASSIGNED

    async def runs() -> bool:
        return runtime.instances[1].running

    async with reconciling(sized(place, at_least=0)):
        await eventually(is_served)  # what is warm is given away all the same
        runtime.dead = False
        await eventually(runs)
    assert runtime.started == [1, 1]


async def test_a_runtime_that_hangs_keeps_nobody_waiting(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "LISTED_WITHIN", 0.05)
    row = await available(place)
    place.resources.runtime.slow = 1000
    await place.add_user()

    async def is_served() -> bool:
        return (await slices.find(place.db, row.id)).status == Status.ASSIGNED

    async with reconciling(sized(place, at_least=0)):
        await eventually(is_served)


async def test_postgresql_away_in_the_middle_of_a_deed_is_waited_for(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_schema = slice_databases.ensure_schema
    tries = 0

    async def away(*arguments: object) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DatabaseUnavailable("away")
        await real_schema(*arguments)

    monkeypatch.setattr(slice_databases, "ensure_schema", away)
    async with reconciling(place):
        await eventually(stand(place, Status.AVAILABLE))
    assert tries == 3
    assert await place.events() == []


async def test_a_leader_overtaken_in_the_middle_of_a_deed_ends(place: Premises, quick: None) -> None:
    class Overtaking(MemoryRuntime):
        async def ensure(self, spec):
            await place.db.execute("update gateway.leader set epoch = epoch + 1")
            return await super().ensure(spec)

    taken = place.with_doubles(Overtaking())
    with trio.fail_after(10):
        with pytest.RaisesGroup(pytest.RaisesExc(StaleLeader), flatten_subgroups=True):
            await Reconciler(taken.resources, billing_enabled=False).run(0)
    assert (await place.only_row()).status == Status.PROVISIONING
    epoch = await place.db.fetchval("select epoch from gateway.leader")

    async def is_available() -> bool:
        return await stand(place, Status.AVAILABLE)()

    async with trio.open_nursery() as nursery:
        successor = taken.with_doubles(MemoryRuntime())
        nursery.start_soon(Reconciler(successor.resources, billing_enabled=False).run, epoch)
        await eventually(is_available)
        nursery.cancel_scope.cancel()


async def test_a_slice_marked_for_destruction_while_it_is_made_goes_at_once(place: Premises, quick: None) -> None:
    place = sized(place, at_least=0)
    place.resources.control.health_fails = SliceUnreachable("not yet")  # it would be waited for a whole minute
    row = await provisioning.reserve(place.resources)

    async def is_waited_for() -> bool:
        return row.id in place.resources.control.asked

    async with reconciling(place) as made:
        await eventually(is_waited_for)
        await destruction.request(place.db, row.id)
        made.nudge()
        await eventually(stand(place), within=5)
    assert await place.databases_and_roles() == set()


async def test_an_instance_that_is_not_the_slices_is_a_conflict_told_of_once(place: Premises, quick: None) -> None:
    row = await available(place)
    runtime = place.resources.runtime
    stranger = Instance(1, uuid4(), True, 4711, 1)
    runtime.instances[1] = stranger

    async def tried_often() -> bool:
        log = await slices.steps(place.db, row.id, "start")
        return sum(step.step == "instance" and step.state == "started" for step in log) >= 3

    async with reconciling(place):
        await eventually(tried_often)
    assert runtime.instances[1] == stranger
    assert (await place.events()).count("conflict") == 1


async def test_an_instance_without_a_row_is_left_alone(place: Premises, quick: None) -> None:
    runtime = place.resources.runtime
    row = await provisioning.reserve(place.resources)
    stranger = await runtime.ensure(replace(spec_of(place.resources, row), num=40, uuid=uuid4(), port=1))
    async with reconciling(place):
        await eventually(stand(place, Status.AVAILABLE))
    assert runtime.instances[40] == stranger


async def test_what_a_crash_of_the_machine_left_behind_is_cleared_away(place: Premises, quick: None) -> None:
    runtime = place.resources.runtime
    runtime.instances[40] = Instance(40, uuid4(), False)

    async def is_cleared() -> bool:
        return 40 not in runtime.instances

    async with reconciling(place):
        await eventually(is_cleared)


async def test_a_disk_that_can_not_be_tidied_stops_nothing(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(keep: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(place.resources.runtime, "tidy", fail)
    async with reconciling(place):
        await eventually(stand(place, Status.AVAILABLE))


async def test_a_bug_in_one_deed_is_shown_and_the_others_go_on(
    place: Premises, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = await available(place)
    real_request = destruction.request
    crashes = 0

    async def crash_twice(db: Database, slice_id: int, *, if_unwanted: bool) -> bool:
        nonlocal crashes
        crashes += 1
        if crashes <= 2:
            raise RuntimeError("a bug")
        return await real_request(db, slice_id, if_unwanted=if_unwanted)

    monkeypatch.setattr(destruction, "request", crash_twice)
    await slices.set_wanted(place.db, broken.id, Wanted.ABSENT)

    async def replaced() -> bool:
        return [row.id > broken.id for row in await slices.listed(place.db) if row.status == Status.AVAILABLE] == [True]

    async with reconciling(place):
        await eventually(replaced)
    assert crashes == 3


async def test_a_stale_leader_ends(place: Premises, quick: None) -> None:
    await place.db.execute("update gateway.leader set epoch = epoch + 1")
    with trio.fail_after(5):
        with pytest.RaisesGroup(pytest.RaisesExc(StaleLeader), flatten_subgroups=True):
            await Reconciler(place.resources, billing_enabled=False).run(0)
    assert await slices.listed(place.db) == []
