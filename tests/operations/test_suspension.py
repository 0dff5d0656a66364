"""What may be asked of a slice that lives, and when it is refused. Only rows change here."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from queunir_trio.errors import Refused
from queunir_trio.model.routing import SessionFacts, route_of
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import assignment, suspension
from queunir_trio.store import accounts, slices, suspensions
from queunir_trio.store.bridge import Database
from queunir_trio.store.slices import StaleLeader

BASE = 20_001


async def standing(database: Database, status: Status, *, managed: bool = True) -> Slice:
    """A slice that stands there, with a customer where it has one at that stage."""
    row = await slices.add(database, num=1, base_port=BASE, status=Status.AVAILABLE, managed=managed, image="process")
    if status in (Status.ASSIGNED, Status.SUSPENDED):
        user = await accounts.add(database, "ana@example.com", "hash")
        await assignment.assign(database, user.id, row.id)
    elif status is Status.DESTROYING:
        await slices.release(database, row.id)
    if status is Status.SUSPENDED:
        await suspension.suspend(database, row.id, "money")
    if status in (Status.PROVISIONING, Status.FAILED):
        await database.execute("update gateway.slices set status = $2 where id = $1", row.id, status.value)
    found = await slices.find(database, row.id)
    assert found is not None
    return found


async def test_a_suspended_slice_rests_and_keeps_its_customer_until_it_is_resumed(database: Database) -> None:
    row = await standing(database, Status.ASSIGNED)
    for _ in range(2):
        now = await suspension.suspend(database, row.id, "money")
        assert (now.status, now.wanted, now.suspended_for) == (Status.SUSPENDED, Wanted.STOPPED, "money")
        assert now.user_id == row.user_id
    for _ in range(2):
        now = await suspension.resume(database, row.id)
        assert now == row


async def test_an_admins_reason_outweighs_a_missing_payment(database: Database) -> None:
    row = await standing(database, Status.ASSIGNED)
    assert (await suspension.suspend(database, row.id, "money")).suspended_for == "money"
    assert (await suspension.suspend(database, row.id, "admin")).suspended_for == "admin"
    assert (await suspension.suspend(database, row.id, "money")).suspended_for == "admin"


@pytest.mark.parametrize(
    ("reason", "subscription", "refusal"),
    [
        ("money", "active", "payment_required"),
        ("admin", "past_due", "suspended"),
        (None, "past_due", "payment_required"),
        (None, "active", "suspended"),
    ],
)
async def test_a_customer_is_told_whether_paying_would_help(
    database: Database, reason: str | None, subscription: str, refusal: str
) -> None:
    row = replace(await standing(database, Status.SUSPENDED), suspended_for=reason)
    assert row.user_id is not None
    user = await accounts.find(database, row.user_id)
    assert user is not None
    facts = SessionFacts("hash", row.uuid, replace(user, subscription_status=subscription), row, 100.0)
    assert route_of(facts, "secret", BASE).refusal == refusal


ASKED = {"suspend": lambda db, id_: suspension.suspend(db, id_, "admin"), "resume": suspension.resume,
         "restart": suspension.restart}  # fmt: skip
ALLOWED = {
    "suspend": {Status.ASSIGNED, Status.SUSPENDED},
    "resume": {Status.ASSIGNED, Status.SUSPENDED},
    "restart": {Status.AVAILABLE, Status.ASSIGNED},
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("status", list(Status))
async def test_what_a_slices_life_does_not_allow_is_refused_and_changes_nothing(
    database: Database, asked: str, status: Status
) -> None:
    row = await standing(database, status)
    if status in ALLOWED[asked]:
        await ASKED[asked](database, row.id)
        return
    with pytest.raises(Refused) as refused:
        await ASKED[asked](database, row.id)
    assert refused.value.code == "transition"
    assert f"Slice {row.id} can not be" in refused.value.reason
    assert await slices.find(database, row.id) == row


@pytest.mark.parametrize("asked", ASKED)
async def test_a_slice_that_does_not_exist_is_refused(database: Database, asked: str) -> None:
    with pytest.raises(Refused) as refused:
        await ASKED[asked](database, 4711)
    assert refused.value.code == "no_such_slice"


@pytest.mark.parametrize("asked", ["suspend", "resume"])
async def test_what_is_wanted_absent_is_not_called_back(database: Database, asked: str) -> None:
    row = await standing(database, Status.ASSIGNED)
    await slices.set_wanted(database, row.id, Wanted.ABSENT)
    with pytest.raises(Refused):
        await ASKED[asked](database, row.id)


async def test_a_slice_taken_from_its_customer_has_nobody_to_go_on_for(database: Database) -> None:
    row = await standing(database, Status.ASSIGNED)
    other = await slices.add(database, num=2, base_port=BASE, status=Status.AVAILABLE)
    assert row.user_id is not None
    await assignment.assign(database, row.user_id, other.id)
    with pytest.raises(Refused, match="has no customer any more"):
        await suspension.resume(database, row.id)


async def test_what_something_else_runs_is_not_ours_to_restart(database: Database) -> None:
    row = await standing(database, Status.ASSIGNED, managed=False)
    with pytest.raises(Refused, match="something else runs it"):
        await suspension.restart(database, row.id)
    assert (await suspension.suspend(database, row.id, "admin")).status is Status.SUSPENDED


async def test_a_wish_for_a_restart_that_comes_during_one_is_kept(database: Database) -> None:
    row = await standing(database, Status.ASSIGNED)
    first = (await suspension.restart(database, row.id)).restart_wanted_at
    second = (await suspension.restart(database, row.id)).restart_wanted_at
    assert first is not None
    assert second is not None
    assert second > first
    assert not await suspensions.end_restart(database, row.id, first)
    assert await suspensions.end_restart(database, row.id, second)
    assert (await slices.find(database, row.id)) == row


async def test_resting_ends_the_wish_for_a_restart(database: Database) -> None:
    row = await standing(database, Status.ASSIGNED)
    await suspension.restart(database, row.id)
    await suspension.suspend(database, row.id, "admin")
    assert (await suspension.resume(database, row.id)).restart_wanted_at is None


async def test_a_stale_leader_ends_no_wish(database: Database) -> None:
    with pytest.raises(StaleLeader):
        await suspensions.end_restart(database, 1, datetime.now(UTC), epoch=4711)
