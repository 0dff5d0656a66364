"""Making a slice: complete or nothing, wherever it is cut short and whatever fails."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import trio
from structlog.contextvars import get_contextvars, merge_contextvars
from structlog.testing import capture_logs

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Slice, Status, names_of
from queunir_trio.operations import destruction, provisioning, starting, steps
from queunir_trio.operations.provisioning import ProvisioningFailed
from queunir_trio.operations.steps import Superseded
from queunir_trio.outside import directories
from queunir_trio.outside.runtimes.contract import ImageMissing, RuntimeUnavailable
from queunir_trio.outside.runtimes.process import ProcessRuntime
from queunir_trio.outside.slice_control import SliceUnreachable, WrongSlice
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import leadership, slice_databases, slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.store.slices import StaleLeader
from tests.doubles.premises import Answers, Killed, Premises, open_premises, stub_command
from tests.doubles.runtime import MemoryRuntime

STEPS = ("roles", "database", "schema", "directories", "instance", "health", "identity", "ready")
NOTHING = {"rows": [], "steps": 0, "databases": set(), "directories": [], "instances": []}


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened


@pytest.fixture
def light(place: Premises) -> Premises:
    """The same with slices in memory only, for what does not depend on processes."""
    return place.with_doubles()


async def assert_complete(place: Premises, row: Slice) -> None:
    """One whole slice of number 1, and nothing besides."""
    now = await place.only_row()
    assert now.last_health_at is not None
    assert now == replace(row, status=Status.AVAILABLE, last_health_at=now.last_health_at)
    assert await place.databases_and_roles() == {"wa_slice_1", "wa_slice_1_owner"}
    assert place.directories() == ["1"]
    running = await place.resources.runtime.listed()
    assert [(found.num, found.uuid, found.running) for found in running] == [(1, row.uuid, True)]
    assert (await place.resources.control.health(place.resources.address(row))).slice == str(row.id)


async def test_what_is_logged_while_a_slice_is_made_names_the_slice(light: Premises) -> None:
    row = await provisioning.reserve(light.resources)
    with capture_logs([merge_contextvars]) as lines:
        await provisioning.provision(light.resources, row)
    applied = [line["slice_id"] for line in lines if line["event"] == "migration_applied"]
    assert applied
    assert set(applied) == {row.id}
    assert "slice_id" not in get_contextvars()


async def test_a_slice_is_made_whole_and_its_row_says_so_last(place: Premises) -> None:
    row = await provisioning.reserve(place.resources)
    assert row.status == Status.PROVISIONING
    await provisioning.provision(place.resources, row)
    await assert_complete(place, row)
    log = await slices.steps(place.db, row.id)
    assert [(step.step, step.state) for step in log] == [
        (name, state) for name in STEPS for state in ("started", "done")
    ]
    percents = [step.detail["percent"] for step in log if step.detail]
    assert percents == sorted(percents)
    assert percents[-1] == 100


@pytest.mark.parametrize(
    "point",
    [
        *(f"provision:{step}:{moment}" for step in STEPS for moment in ("started", "acted")),
        "runtime:intent",
        "runtime:secrets",
        "runtime:spawned",
    ],
)
async def test_killed_at_any_point_and_once_more_it_becomes_one_whole_slice(place: Premises, point: str) -> None:
    row = await provisioning.reserve(place.resources)
    place.reached.killed_at = point
    with pytest.raises(Killed):
        await provisioning.provision(place.resources, row)
    with suppress(Killed):  # the second attempt may find what the first left behind the point, and not pass it
        await go_on(place)
    place.reached.killed_at = None
    await go_on(place)
    await assert_complete(place, row)


async def go_on(place: Premises) -> None:
    """What a gateway that starts again does with what it finds."""
    row = await place.only_row()
    if row.status == Status.PROVISIONING:
        await provisioning.provision(place.resources, row)


@pytest.mark.parametrize("step", STEPS)
async def test_cancelled_in_the_middle_of_any_step_it_can_be_gone_on_with(light: Premises, step: str) -> None:
    """A cancellation is not a failure: nothing is undone."""
    row = await provisioning.reserve(light.resources)
    scope = trio.CancelScope()

    def cancel(point: str) -> None:
        if point == f"provision:{step}:started":
            scope.cancel()

    with scope:
        await provisioning.provision(replace(light.resources, reached=cancel), row)
    assert scope.cancelled_caught
    assert (await light.only_row()).status == Status.PROVISIONING
    await go_on(light)
    await assert_complete(light, row)


Break = Callable[[Premises, pytest.MonkeyPatch], None]


def fails_in(module: object, name: str) -> Break:
    async def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    return lambda place, monkeypatch: monkeypatch.setattr(module, name, fail)


def says(what: str, error: Exception) -> Break:
    return lambda place, monkeypatch: setattr(place.resources.control, what, error)


def cannot_start(error: Exception) -> Break:
    async def fail(spec: object) -> None:
        raise error

    return lambda place, monkeypatch: monkeypatch.setattr(place.resources.runtime, "ensure", fail)


@pytest.mark.parametrize(
    ("step", "spoil", "reason"),
    [
        ("roles", fails_in(slice_databases, "ensure_roles"), "No space left"),
        ("database", fails_in(slice_databases, "ensure_database"), "No space left"),
        ("schema", fails_in(slice_databases, "migrate_slice"), "No space left"),
        ("directories", fails_in(directories, "ensure"), "No space left"),
        ("instance", cannot_start(RuntimeUnavailable("the engine answers 500")), "answers 500"),
        ("instance", cannot_start(ImageMissing("wank-slice:latest")), "is not on this machine"),
        ("instance", cannot_start(OSError(28, "No space left on device")), "No space left"),
        ("health", says("health_fails", WrongSlice("somebody else")), "somebody else"),
        ("identity", says("state_fails", SliceUnreachable("status 401")), "status 401"),
    ],
)
async def test_what_fails_is_undone_to_nothing_and_told_of(
    light: Premises, monkeypatch: pytest.MonkeyPatch, step: str, spoil: Break, reason: str
) -> None:
    monkeypatch.setattr(steps, "ORDERED_AGAIN_AFTER", 0.01)
    row = await provisioning.reserve(light.resources)
    spoil(light, monkeypatch)
    with pytest.raises(ProvisioningFailed, match=reason) as failed:
        await provisioning.provision(light.resources, row)
    assert failed.value.step == step
    assert not failed.value.is_about_the_number
    assert await light.everything() == NOTHING
    assert await light.events() == ["provisioning_failed"]


async def test_an_order_that_was_carried_out_and_not_confirmed_makes_no_second_instance(light: Premises) -> None:
    light.resources.runtime.forgets_to_answer = 1
    row = await provisioning.reserve(light.resources)
    await provisioning.provision(light.resources, row)
    await assert_complete(light, row)
    assert light.resources.runtime.started == [1]


async def test_a_runtime_that_hangs_is_not_waited_for_for_ever(
    light: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "ORDERED_WITHIN", 0.02)
    monkeypatch.setattr(steps, "ORDERED_AGAIN_AFTER", 0.01)
    light.resources.runtime.slow = 1000
    row = await provisioning.reserve(light.resources)
    with trio.fail_after(10), pytest.raises(ProvisioningFailed, match="no answer within"):
        await provisioning.provision(light.resources, row)
    assert (await light.only_row()).status == Status.FAILED, "whether anything was started can not be known"
    light.resources.runtime.slow = 0
    await destruction.undo(light.resources, await light.only_row())
    assert await light.everything() == NOTHING


async def test_a_deed_that_takes_too_long_stops_by_itself(light: Premises, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*arguments: object) -> None:
        await trio.sleep_forever()

    row = await provisioning.reserve(light.resources)
    with monkeypatch.context() as patched:
        patched.setattr(steps, "DEED_WITHIN", 1.0)
        patched.setattr(slice_databases, "ensure_roles", hang)
        with trio.fail_after(10), pytest.raises(ProvisioningFailed, match="not done within") as failed:
            await provisioning.provision(light.resources, row)
    assert failed.value.step == "roles"
    assert steps.DEED_WITHIN < leadership.REAPED_AFTER, "who is slow must stop before another begins"


async def test_a_slice_that_never_becomes_healthy_is_given_up(light: Premises, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "HEALTHY_WITHIN", 0.5)
    control = Answers()
    control.health_fails = SliceUnreachable("503")
    place = light.with_doubles(control=control)
    row = await provisioning.reserve(place.resources)
    with pytest.raises(ProvisioningFailed, match=r"not healthy within .*: 503"):
        await provisioning.provision(place.resources, row)
    assert 3 <= len(control.asked) <= 5  # soon at first, then ever more rarely
    assert await place.everything() == NOTHING


async def test_a_slice_that_ends_while_it_starts_is_not_waited_for(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> None:
    async with open_premises(
        database, database_settings, tmp_path, free_base_port, command=stub_command("--dies")
    ) as place:
        row = await provisioning.reserve(place.resources)
        with trio.fail_after(10), pytest.raises(ProvisioningFailed, match="ended while it was starting"):
            await provisioning.provision(place.resources, row)
        assert await place.everything() == NOTHING


async def test_the_slice_of_another_deployment_is_no_substitute(place: Premises) -> None:
    """Same id, same port, healthy: but it was given another key."""
    theirs = ProcessRuntime(place.data_dir / "elsewhere", command=stub_command())
    row = await provisioning.reserve(place.resources)
    await theirs.ensure(starting.spec_of(place.resources, replace(row, uuid=uuid4())))
    try:
        # our own runtime would refuse the port; one that does not look must not get away with it
        light = replace(place.resources, runtime=MemoryRuntime())
        with trio.fail_after(10), pytest.raises(ProvisioningFailed, match="401") as failed:
            await provisioning.provision(light, row)
        assert failed.value.step == "identity"
    finally:
        await theirs.stop_all()


async def test_a_port_that_somebody_else_holds_spoils_the_number_only(place: Premises) -> None:
    row = await provisioning.reserve(place.resources)
    listeners = await trio.open_tcp_listeners(row.port, host="127.0.0.1")
    with pytest.raises(ProvisioningFailed, match="Another program holds port") as failed:
        await provisioning.provision(place.resources, row)
    assert failed.value.is_about_the_number
    assert failed.value.num == 1
    assert await place.everything() == NOTHING
    other = await provisioning.reserve(place.resources, avoiding={1})
    assert other.port == row.port + 2
    for listener in listeners:
        await listener.aclose()


async def test_somebody_elses_database_is_a_conflict_and_survives_it(light: Premises) -> None:
    names = names_of(1, light.data_dir)
    theirs = uuid4()
    await slice_databases.ensure_roles(light.resources.where, names, "password", theirs)
    await slice_databases.ensure_database(light.resources.where, names, theirs)
    row = await provisioning.reserve(light.resources)
    with pytest.raises(ProvisioningFailed) as failed:
        await provisioning.provision(light.resources, row)
    assert (failed.value.step, failed.value.code) == ("roles", "conflict")
    assert failed.value.is_about_the_number
    assert await light.databases_and_roles() == {"wa_slice_1", "wa_slice_1_owner"}
    assert await slice_databases.exists(light.resources.where, names, theirs)
    assert await slices.listed(light.db) == []
    assert await light.events() == ["conflict"]


async def test_somebody_elses_directory_is_a_conflict_and_all_that_was_ours_goes(light: Premises) -> None:
    directory = light.data_dir / "slices" / "1"
    theirs = uuid4()
    await directories.ensure(directory.parent, directory, theirs)
    row = await provisioning.reserve(light.resources)
    with pytest.raises(ProvisioningFailed) as failed:
        await provisioning.provision(light.resources, row)
    assert (failed.value.step, failed.value.code) == ("directories", "conflict")
    assert await light.everything() == {**NOTHING, "directories": ["1"]}
    assert await directories.exists(directory.parent, directory, theirs)


async def test_somebody_elses_instance_is_a_conflict_and_runs_on(light: Premises) -> None:
    runtime = MemoryRuntime()
    place = light.with_doubles(runtime)
    row = await provisioning.reserve(place.resources)
    theirs = await runtime.ensure(starting.spec_of(place.resources, replace(row, uuid=uuid4())))
    with pytest.raises(ProvisioningFailed) as failed:
        await provisioning.provision(place.resources, row)
    assert (failed.value.step, failed.value.code) == ("instance", "conflict")
    assert await runtime.listed() == [theirs]
    assert await place.everything() == {**NOTHING, "instances": [1]}


@pytest.mark.parametrize("layer", [step.name for step in destruction.LAYERS])
@pytest.mark.parametrize("moment", ["started", "acted"])
async def test_killed_while_undoing_nothing_is_left_in_the_end(light: Premises, layer: str, moment: str) -> None:
    light.resources.control.state_fails = SliceUnreachable("status 401")
    row = await provisioning.reserve(light.resources)
    light.reached.killed_at = f"undo:{layer}:{moment}"
    with pytest.raises(Killed):
        await provisioning.provision(light.resources, row)
    failed = await light.only_row()
    assert (failed.status, failed.failed_step, failed.failures) == (Status.FAILED, "identity", 1)
    assert failed.failed_reason is not None
    assert "status 401" in failed.failed_reason
    assert failed.retry_at is not None
    with pytest.raises(Killed):
        await destruction.undo(light.resources, failed)
    light.reached.killed_at = None
    await destruction.undo(light.resources, failed)
    assert await light.everything() == NOTHING


async def test_what_can_not_be_undone_stays_failed_until_it_can(light: Premises) -> None:
    runtime = MemoryRuntime()
    place = light.with_doubles(runtime)
    row = await provisioning.reserve(place.resources)
    place.resources.control.health_fails = WrongSlice("somebody else")

    def dies(point: str) -> None:
        runtime.dead = runtime.dead or point == "provision:health:failed"

    with pytest.raises(ProvisioningFailed, match="somebody else"):
        await provisioning.provision(replace(place.resources, reached=dies), row)
    assert (await place.only_row()).status == Status.FAILED
    runtime.dead = False
    await destruction.undo(place.resources, await place.only_row())
    assert await place.everything() == NOTHING


async def test_a_leader_whose_time_is_over_touches_nothing(light: Premises) -> None:
    row = await provisioning.reserve(light.resources)
    await light.db.execute("update gateway.leader set epoch = epoch + 1")
    for deed in (provisioning.provision, starting.start, starting.stop, destruction.undo, destruction.destroy):
        with pytest.raises(StaleLeader):
            await deed(light.resources, row)
    with pytest.raises(StaleLeader):
        await provisioning.reserve(light.resources)
    assert await light.everything() == {**NOTHING, "rows": [row.id]}


async def test_overtaken_in_the_middle_of_a_deed_the_old_leader_goes_no_further(light: Premises) -> None:
    row = await provisioning.reserve(light.resources)
    control = Answers()

    class Overtaking(MemoryRuntime):
        async def ensure(self, spec):
            await light.db.execute("update gateway.leader set epoch = epoch + 1")
            return await super().ensure(spec)

    place = light.with_doubles(Overtaking(), control)
    with pytest.raises(StaleLeader):
        await provisioning.provision(place.resources, row)
    assert control.asked == []
    assert (await place.only_row()).status == Status.PROVISIONING


async def test_postgresql_away_in_the_middle_is_no_failure(light: Premises, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*arguments: object) -> None:
        raise DatabaseUnavailable("away")

    row = await provisioning.reserve(light.resources)
    with monkeypatch.context() as patched:
        patched.setattr(slice_databases, "ensure_schema", away)
        with pytest.raises(DatabaseUnavailable):
            await provisioning.provision(light.resources, row)
    assert (await light.only_row()).status == Status.PROVISIONING
    await go_on(light)
    await assert_complete(light, row)


async def test_a_slice_marked_for_destruction_while_it_is_made_does_not_become_available(light: Premises) -> None:
    row = await provisioning.reserve(light.resources)
    control = light.resources.control

    class Marking(Answers):
        async def state(self, address):
            assert await destruction.request(light.db, row.id)
            return await control.state(address)

    place = light.with_doubles(control=Marking())
    with pytest.raises(Superseded):
        await provisioning.provision(place.resources, row)
    marked = await place.only_row()
    assert marked.status == Status.DESTROYING
    await destruction.destroy(place.resources, marked)
    assert await place.everything() == NOTHING


async def test_a_failure_of_a_slice_marked_for_destruction_leaves_it_to_the_destruction(light: Premises) -> None:
    row = await provisioning.reserve(light.resources)

    class Marking(Answers):
        async def health(self, address):
            await destruction.request(light.db, row.id)
            raise WrongSlice("somebody else")

    place = light.with_doubles(control=Marking())
    with pytest.raises(Superseded):
        await provisioning.provision(place.resources, row)
    assert (await place.only_row()).status == Status.DESTROYING
    assert await place.events() == []


async def test_numbers_are_given_out_once_and_end_at_the_limit(light: Premises) -> None:
    rows: list[Slice] = []

    async def reserve() -> None:
        rows.append(await provisioning.reserve(light.resources, avoiding={2}))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(reserve)
    assert sorted(light.resources.number(row) for row in rows) == [1, 3, 4, 5]
    with pytest.raises(Refused) as refused:
        await provisioning.reserve(light.resources, avoiding={2})
    assert refused.value.code == "no_capacity"
    assert light.resources.number(await provisioning.reserve(light.resources)) == 2
