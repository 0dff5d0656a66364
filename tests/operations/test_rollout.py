"""Moving slices to another image: the pairing survives, what is not well goes back, and a kill changes nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.rollout import Phase, RolloutState
from queunir_trio.model.routing import SliceAddress
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import destruction, starting
from queunir_trio.operations.rollout import RETURN, UPDATE
from queunir_trio.outside.slice_control import WrongSlice
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import rollouts, slices
from queunir_trio.store.bridge import Database
from queunir_trio.store.slices import StaleLeader
from tests.doubles.moving import Moving, contents
from tests.doubles.premises import Killed, open_premises

UPDATE_STEPS = ("look", "stop", "snapshot", "schema", "replace", "health", "state", "recorded")
RETURN_STEPS = ("stop", "row", "session", "instance", "health", "recorded")
MOMENTS = ("started", "acted", "done")


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "HEALTHY_WITHIN", 0.3)
    monkeypatch.setattr(starting, "FIRST_ASKED_AFTER", 0.01)


@pytest.fixture
async def moving(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Moving]:
    async with open_premises(database, database_settings, tmp_path, free_base_port, at_most=20) as place:
        yield Moving(place)


def snapshots(moving: Moving) -> list[Path]:
    return sorted((moving.place.data_dir / "slices").glob("*/*before-rollout*"))


async def events_of(moving: Moving, kind: str) -> list[dict[str, object]]:
    rows = await moving.db.fetch("select slice_id, detail from gateway.events where kind = $1 order by id", kind)
    return [{"slice_id": row["slice_id"], **row["detail"]} for row in rows]


async def fails(moving: Moving, rollout: object) -> str:
    with pytest.raises(Refused) as refused:
        await moving.carry_on(rollout)  # type: ignore[arg-type]
    return refused.value.code


async def killed(moving: Moving, rollout: object) -> bool:
    """Whether this attempt was cut short; nothing after the point was done."""
    cut = False
    try:
        await moving.carry_on(rollout)  # type: ignore[arg-type]
    except* Killed:
        cut = True
    except* Refused:
        pass
    return cut


async def test_every_slice_runs_the_new_image_with_the_session_it_had(moving: Moving) -> None:
    rows = [await moving.add_paired() for _ in range(3)] + [await moving.add_warm()]
    before = {row.id: contents(moving.session(row)) for row in rows}
    rollout = await moving.begin("good", batch=2)
    result = await moving.carry_on(rollout)
    assert result == {"rollout": rollout.id, "state": "done", "updated": 4, "returned": 0, "skipped": 0}
    assert [moving.image(row) for row in rows] == ["good"] * 4
    assert {row.id: contents(moving.session(row)) for row in rows} == before
    assert snapshots(moving) == [], "no copy is kept once the rollout is over"
    for row in rows:
        now = await moving.row(row.id)
        assert now.image == "good"
        assert now.status is row.status
    assert (await moving.now(rollout)).state is RolloutState.DONE
    assert await rollouts.held(moving.db) == set()
    assert len(await events_of(moving, "rollout_done")) == 1


async def test_warm_slices_come_first_then_the_canary_then_batches(moving: Moving) -> None:
    customers = [await moving.add_paired() for _ in range(4)]
    warm = await moving.add_warm()
    rollout = await moving.begin("good", batch=2)
    await moving.carry_on(rollout)
    parts = await moving.parts(rollout)
    assert parts[warm.id].stage == "warm"
    assert [parts[row.id].stage for row in customers] == ["canary", "batch", "batch", "batch"]
    assert moving.released[0] == warm.id
    assert moving.released[1] == customers[0].id
    assert set(moving.released[2:4]) == {customers[1].id, customers[2].id}
    assert moving.runtime.most_away <= 2, "no more than a batch is away at once"


async def test_what_is_made_from_now_on_is_made_from_the_new_image(moving: Moving) -> None:
    await moving.add_warm()
    setting = moving.place.resources.image
    assert await rollouts.current_image(moving.db, setting) == setting
    await moving.carry_on(await moving.begin("good"))
    assert await rollouts.current_image(moving.db, setting) == "good"
    assert await rollouts.current_image(moving.db, "another") == "another", "a setting that is changed is meant"


async def test_a_rollout_of_named_slices_leaves_the_others_and_what_new_ones_are_made_from(moving: Moving) -> None:
    first, second = await moving.add_paired(), await moving.add_paired()
    rollout = await moving.begin("good", only=[second.id])
    await moving.carry_on(rollout)
    assert (moving.image(first), moving.image(second)) == ("old", "good")
    assert await rollouts.current_image(moving.db, moving.place.resources.image) == moving.place.resources.image


@pytest.mark.parametrize("image", ["sick", "crashing", "forgetful", "stranger"])
async def test_a_canary_that_is_not_as_before_goes_back_and_nobody_else_is_touched(moving: Moving, image: str) -> None:
    rows = [await moving.add_paired() for _ in range(3)]
    before = {row.id: contents(moving.session(row)) for row in rows}
    pids = {num: found.pid for num, found in moving.runtime.instances.items()}
    rollout = await moving.begin(image)
    assert await fails(moving, rollout) == "rollout_failed"
    assert [moving.image(row) for row in rows] == ["old"] * 3
    assert {row.id: contents(moving.session(row)) for row in rows} == before
    assert await moving.phases(rollout) == {
        rows[0].id: Phase.RETURNED,
        rows[1].id: Phase.PENDING,
        rows[2].id: Phase.PENDING,
    }
    for row in rows[1:]:
        num = moving.place.resources.number(row)
        assert moving.runtime.instances[num].pid == pids[num]
    now = await moving.now(rollout)
    assert now.state is RolloutState.RETURNED
    assert f"Slice {rows[0].id} was taken back" in (now.reason or "")
    assert [event["slice_id"] for event in await events_of(moving, "rollout_failed")] == [rows[0].id]
    assert [(await moving.row(row.id)).image for row in rows] == ["old"] * 3
    assert snapshots(moving) == []
    assert await rollouts.held(moving.db) == set()


async def test_when_the_canary_fails_warm_slices_go_back_as_well(moving: Moving) -> None:
    customer, warm = await moving.add_paired(), await moving.add_warm()
    rollout = await moving.begin("forgetful")  # a warm slice has no pairing to lose
    assert await fails(moving, rollout) == "rollout_failed"
    assert (moving.image(customer), moving.image(warm)) == ("old", "old")
    assert await moving.phases(rollout) == {customer.id: Phase.RETURNED, warm.id: Phase.RETURNED}
    now = await moving.now(rollout)
    assert now.state is RolloutState.RETURNED
    assert f"Slice {customer.id} " in (now.reason or "")


async def test_a_warm_slice_that_got_a_customer_meanwhile_is_theirs_as_it_is(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer, warm = await moving.add_paired(), await moving.add_warm()
    rollout = await moving.begin("forgetful")
    user_id = await moving.place.add_user("new@example.com")

    def reached(point: str) -> None:
        if point == "rollout:canary:next":
            claims.append(user_id)

    claims: list[int] = []
    monkeypatch.setattr(type(moving.place.reached), "__call__", lambda self, point: reached(point))
    real = moving.control.state

    async def state(address: object) -> object:
        if claims:
            assert await slices.claim(moving.db, claims.pop()) is not None
            (moving.session(warm) / "pairing").write_text("34777")
        return await real(address)  # type: ignore[arg-type]

    monkeypatch.setattr(moving.control, "state", state)
    assert await fails(moving, rollout) == "rollout_failed"
    assert (moving.image(customer), moving.image(warm)) == ("old", "forgetful")
    assert (moving.session(warm) / "pairing").read_text() == "34777"
    assert (await moving.now(rollout)).state is RolloutState.FAILED


async def test_a_failure_in_a_batch_stops_there_and_keeps_what_is_well(moving: Moving) -> None:
    rows = [await moving.add_paired() for _ in range(6)]
    bad = moving.place.resources.number(rows[2])
    rollout = await moving.begin("good", batch=2)
    real = moving.runtime.ensure

    async def ensure(spec: object) -> object:
        found = await real(spec)  # type: ignore[arg-type]
        if spec.num == bad and spec.image == "good":  # type: ignore[attr-defined]
            moving.runtime.die(bad)
        return found

    moving.runtime.ensure = ensure  # type: ignore[method-assign,assignment]
    assert await fails(moving, rollout) == "rollout_failed"
    phases = await moving.phases(rollout)
    assert [phases[row.id] for row in rows] == [
        Phase.UPDATED,
        Phase.UPDATED,
        Phase.RETURNED,
        *[Phase.PENDING] * 3,
    ]
    assert [moving.image(row) for row in rows] == ["good", "good", "old", "old", "old", "old"]
    assert (await moving.now(rollout)).state is RolloutState.FAILED
    assert snapshots(moving) == []


# ── who is passed over ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_stopped_unmanaged_failed_and_adopted_slices_are_listed_and_left(moving: Moving) -> None:
    paired, stopped, adopted = await moving.add_paired(), await moving.add_paired(), await moving.add_paired()
    unmanaged = await slices.add_unmanaged(moving.db, "127.0.0.1", 4000)
    await slices.set_wanted(moving.db, stopped.id, Wanted.STOPPED)
    await moving.db.execute("update gateway.slices set image = null where id = $1", adopted.id)
    rollout = await moving.begin("good")
    await moving.carry_on(rollout)
    parts = await moving.parts(rollout)
    assert parts[paired.id].phase is Phase.UPDATED
    for row, reason in ((stopped, "stopped"), (adopted, "adopted"), (unmanaged, "Something else")):
        assert parts[row.id].phase is Phase.SKIPPED
        assert reason in (parts[row.id].reason or "")
    assert moving.image(stopped) == "old"


async def test_an_adopted_slice_that_is_named_is_moved_and_goes_back_as_it_was(moving: Moving) -> None:
    adopted = await moving.add_paired()
    await moving.db.execute("update gateway.slices set image = null where id = $1", adopted.id)
    assert await fails(moving, await moving.begin("sick", only=[adopted.id])) == "rollout_failed"
    assert (await moving.row(adopted.id)).image is None
    assert moving.image(adopted) == "old"
    await moving.carry_on(await moving.begin("good", only=[adopted.id]))
    assert (await moving.row(adopted.id)).image == "good"


@pytest.mark.parametrize("state", ["authenticated", "syncing"])
async def test_a_slice_in_the_middle_of_pairing_is_left_alone(moving: Moving, state: str) -> None:
    row = await moving.add_paired()
    moving.control.states[moving.place.resources.number(row)] = state
    rollout = await moving.begin("good")
    await moving.carry_on(rollout)
    assert moving.image(row) == "old"
    assert "being connected" in ((await moving.parts(rollout))[row.id].reason or "")
    starting_since = await moving.db.fetchval("select starting_since from gateway.slices where id = $1", row.id)
    assert starting_since is None, "it was never away"


async def test_who_does_not_answer_is_no_canary_and_is_left_alone(moving: Moving) -> None:
    silent, well = await moving.add_paired(), await moving.add_paired()
    moving.control.silent.add(moving.place.resources.number(silent))
    rollout = await moving.begin("good")
    await moving.carry_on(rollout)
    parts = await moving.parts(rollout)
    assert (parts[silent.id].phase, parts[well.id].stage) == (Phase.SKIPPED, "canary")


async def test_a_stranger_in_a_slices_place_does_not_hold_up_the_others(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, well = await moving.add_paired(), await moving.add_paired()
    real = moving.control.health

    async def health(address: SliceAddress) -> object:
        if address.slice_id == taken.id:
            raise WrongSlice("somebody else")
        return await real(address)

    monkeypatch.setattr(moving.control, "health", health)
    rollout = await moving.begin("good")
    await moving.carry_on(rollout)
    assert await moving.phases(rollout) == {taken.id: Phase.SKIPPED, well.id: Phase.UPDATED}


async def test_what_runs_the_image_already_is_not_interrupted(moving: Moving) -> None:
    row = await moving.add_paired("good")
    started = list(moving.runtime.started)
    rollout = await moving.begin("good")
    await moving.carry_on(rollout)
    assert moving.runtime.started == started
    assert "already" in ((await moving.parts(rollout))[row.id].reason or "")


async def test_a_slice_that_is_destroyed_meanwhile_is_given_up(moving: Moving) -> None:
    row = await moving.add_paired()
    rollout = await moving.begin("good")
    moving.place.reached.killed_at = f"{UPDATE}:snapshot:done"
    assert await killed(moving, rollout)
    moving.place.reached.killed_at = None
    await destruction.request(moving.db, row.id)
    await moving.carry_on(rollout)
    assert (await moving.phases(rollout))[row.id] is Phase.SKIPPED
    assert (await moving.row(row.id)).status is Status.DESTROYING
    assert await rollouts.held(moving.db) == set()


# ── cut short ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("point", [f"{UPDATE}:{step}:{moment}" for step in UPDATE_STEPS for moment in MOMENTS])
async def test_killed_at_any_point_twice_it_is_gone_on_with(moving: Moving, point: str) -> None:
    row = await moving.add_paired()
    before = contents(moving.session(row))
    rollout = await moving.begin("good")
    moving.place.reached.killed_at = point
    assert await killed(moving, rollout)
    await killed(moving, rollout)  # the second attempt may find the step done and not pass the point
    moving.place.reached.killed_at = None
    if (await moving.now(rollout)).state is RolloutState.RUNNING:
        await moving.carry_on(rollout)
    assert (await moving.now(rollout)).state is RolloutState.DONE
    assert moving.image(row) == (await moving.row(row.id)).image == "good"
    assert contents(moving.session(row)) == before
    assert snapshots(moving) == []


@pytest.mark.parametrize(
    "point",
    [f"{RETURN}:{step}:{moment}" for step in RETURN_STEPS for moment in MOMENTS] + [f"{UPDATE}:health:failed"],
)
async def test_killed_on_the_way_back_twice_it_is_as_it_was(moving: Moving, point: str) -> None:
    row = await moving.add_paired()
    before = contents(moving.session(row))
    rollout = await moving.begin("crashing")
    moving.place.reached.killed_at = point
    assert await killed(moving, rollout)
    await killed(moving, rollout)
    moving.place.reached.killed_at = None
    if (await moving.now(rollout)).state is RolloutState.RUNNING:
        assert await fails(moving, rollout) == "rollout_failed"
    assert moving.image(row) == (await moving.row(row.id)).image == "old"
    assert contents(moving.session(row)) == before
    assert (await moving.now(rollout)).state is RolloutState.RETURNED
    assert snapshots(moving) == []


async def test_killed_after_the_new_image_ran_its_session_is_not_taken_for_the_old_one(moving: Moving) -> None:
    row = await moving.add_paired()
    before = contents(moving.session(row))
    rollout = await moving.begin("stranger")  # writes into the session as soon as it starts
    moving.place.reached.killed_at = f"{UPDATE}:replace:acted"
    assert await killed(moving, rollout)
    assert contents(moving.session(row)) != before
    moving.place.reached.killed_at = None
    assert await fails(moving, rollout) == "rollout_failed"
    assert contents(moving.session(row)) == before


async def test_a_session_that_was_put_back_is_not_put_back_again_once_it_is_in_use(moving: Moving) -> None:
    row = await moving.add_paired()
    rollout = await moving.begin("crashing")
    moving.place.reached.killed_at = f"{RETURN}:instance:acted"
    assert await killed(moving, rollout)
    moving.place.reached.killed_at = None
    (moving.session(row) / "Default" / "keys.bin").write_bytes(b"a ratchet has turned")
    assert await fails(moving, rollout) == "rollout_failed"
    assert (moving.session(row) / "Default" / "keys.bin").read_bytes() == b"a ratchet has turned"


async def test_while_it_is_cut_short_nobody_else_may_touch_the_slice(moving: Moving) -> None:
    warm = await moving.add_warm()
    rollout = await moving.begin("good")
    moving.place.reached.killed_at = f"{UPDATE}:stop:acted"
    assert await killed(moving, rollout)
    assert await rollouts.held(moving.db) == {warm.id}
    await slices.record_health(moving.db, [warm.id])  # a late answer of the old one
    user_id = await moving.place.add_user()
    assert await slices.claim(moving.db, user_id) is None
    with pytest.raises(Refused) as refused:
        await slices.assign(moving.db, user_id, warm.id)
    assert refused.value.code == "not_available"
    moving.place.reached.killed_at = None
    await moving.carry_on(rollout)
    assert await rollouts.held(moving.db) == set()


async def test_a_customer_whose_slice_is_replaced_is_told_that_it_is_being_prepared(moving: Moving) -> None:
    row = await moving.add_paired()
    rollout = await moving.begin("good")
    moving.place.reached.killed_at = f"{UPDATE}:stop:acted"
    assert await killed(moving, rollout)
    await slices.record_health(moving.db, [row.id])
    assert await slices.is_starting(moving.db, row.id, 1000.0)


async def test_a_leader_whose_time_is_over_stops(moving: Moving) -> None:
    row = await moving.add_paired()
    rollout = await moving.begin("good")
    real = moving.runtime.copy

    async def copy(*arguments: object) -> None:
        await real(*arguments)  # type: ignore[arg-type]
        await moving.db.execute("update gateway.leader set epoch = epoch + 1")

    moving.runtime.copy = copy  # type: ignore[method-assign,assignment]
    with pytest.raises(StaleLeader):
        await moving.carry_on(rollout)
    assert (await moving.row(row.id)).image == "old"
    moving.runtime.copy = real  # type: ignore[method-assign]
    await moving.carry_on(rollout)
    assert moving.image(row) == "good"


async def test_a_runtime_that_is_away_on_the_way_back_is_waited_for_and_told_of(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await moving.add_paired()
    before = contents(moving.session(row))
    rollout = await moving.begin("crashing")

    async def no_copy(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        moving.place.reached.killed_at = f"{RETURN}:session:next"
        assert await killed(moving, rollout)
        moving.place.reached.killed_at = None
        patched.setattr(moving.runtime, "copy", no_copy)
        with pytest.raises(Lost, match="No space left"):
            await moving.carry_on(rollout)
    assert await rollouts.held(moving.db) == {row.id}
    assert (await events_of(moving, "rollout_return_failed"))[0]["slice_id"] == row.id
    assert await fails(moving, rollout) == "rollout_failed"
    assert contents(moving.session(row)) == before


async def test_a_session_that_can_not_be_copied_leaves_the_old_image_running(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await moving.add_paired()
    before = contents(moving.session(row))
    rollout = await moving.begin("good")

    async def no_copy(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(moving.runtime, "copy", no_copy)
    assert await fails(moving, rollout) == "rollout_failed"
    assert moving.image(row) == "old"
    assert contents(moving.session(row)) == before
    part = (await moving.parts(rollout))[row.id]
    assert (part.step, "No space left" in (part.reason or "")) == ("snapshot", True)


# ── one at a time, paused, aborted ──────────────────────────────────────────────────────────────────────────────────


async def test_there_are_never_two(moving: Moving) -> None:
    await moving.add_warm()
    first = await moving.begin("good")
    with pytest.raises(Refused) as refused:
        await moving.begin("sick")
    assert refused.value.code == "rollout_under_way"
    async with trio.open_nursery() as nursery:
        outcomes: list[str] = []

        async def try_one() -> None:
            try:
                await moving.begin("good")
                outcomes.append("begun")
            except Refused as again:
                outcomes.append(again.code)

        await moving.carry_on(first)
        await moving.db.execute("update gateway.jobs set state = 'done', finished_at = now()")
        for _ in range(4):
            nursery.start_soon(try_one)
    assert sorted(outcomes) == ["begun", *["rollout_under_way"] * 3]


async def test_one_whose_work_was_given_up_does_not_stand_in_the_way(moving: Moving) -> None:
    row = await moving.add_warm()
    given_up = await moving.begin("good")
    moving.place.reached.killed_at = f"{UPDATE}:stop:acted"
    assert await killed(moving, given_up)
    moving.place.reached.killed_at = None
    await moving.db.execute("update gateway.jobs set state = 'failed', finished_at = now()")
    assert await rollouts.held(moving.db) == set(), "the slice is everybody's again"
    await starting.start(moving.place.resources, await moving.row(row.id))
    await moving.carry_on(await moving.begin("good"))
    assert (await moving.now(given_up)).state is RolloutState.FAILED
    assert moving.image(row) == "good"


async def begin_and_pause(moving: Moving, rows: int) -> tuple[list[Slice], object]:
    """Paused while the canary is on its way."""
    made = [await moving.add_paired() for _ in range(rows)]
    rollout = await moving.begin("good", batch=1)
    moving.place.reached.killed_at = f"{UPDATE}:snapshot:done"
    assert await killed(moving, rollout)
    moving.place.reached.killed_at = None
    assert await rollouts.change(moving.db, rollout.id, RolloutState.PAUSED)
    return made, rollout


async def test_a_pause_finishes_what_is_under_way_and_begins_nothing_new(moving: Moving) -> None:
    rows, rollout = await begin_and_pause(moving, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(moving.carry_on, rollout)
        with trio.fail_after(10):
            while (await moving.phases(rollout))[rows[0].id] is not Phase.UPDATED:  # type: ignore[arg-type]
                await trio.sleep(0.01)
            while (await moving.job(rollout)).step != "paused":  # type: ignore[arg-type]
                await trio.sleep(0.01)
            assert [moving.image(row) for row in rows] == ["good", "old", "old"]
            assert await rollouts.change(moving.db, rollout.id, RolloutState.RUNNING)  # type: ignore[attr-defined]
    assert [moving.image(row) for row in rows] == ["good"] * 3


async def test_an_abort_keeps_what_was_moved_and_leaves_the_rest(moving: Moving) -> None:
    rows, rollout = await begin_and_pause(moving, 3)
    assert await rollouts.change(moving.db, rollout.id, RolloutState.ABORTED)  # type: ignore[attr-defined]
    with pytest.raises(Refused):  # it holds the slice that is under way until that is at its end
        await moving.begin("sick")
    assert await fails(moving, rollout) == "rollout_aborted"
    assert [moving.image(row) for row in rows] == ["good", "old", "old"]
    assert (await moving.now(rollout)).finished_at is not None  # type: ignore[arg-type]
    assert snapshots(moving) == []
    assert await rollouts.current_image(moving.db, moving.place.resources.image) == moving.place.resources.image
    await moving.carry_on(await moving.begin("good"))


async def test_what_is_over_can_not_be_resumed(moving: Moving) -> None:
    await moving.add_warm()
    rollout = await moving.begin("good")
    await moving.carry_on(rollout)
    for state in (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.ABORTED):
        assert not await rollouts.change(moving.db, rollout.id, state)
