"""Who gets which slice: from the warm pool, by an admin's hand, and who waits."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, slices
from queunir_trio.store.bridge import Database, open_connection

BASE = 5001
Warm = Callable[..., Awaitable[Slice]]
SignUp = Callable[[str], Awaitable[User]]


@pytest.fixture
def sign_up(database: Database) -> SignUp:
    async def add(name: str) -> User:
        return await accounts.add(database, f"{name}@example.com", "hash")

    return add


@pytest.fixture
def warm(database: Database) -> Warm:
    """Makes slices as they wait in the pool, or nearly so."""
    numbers = iter(range(1, 100))

    async def make(*, healthy: bool = True, **fields: object) -> Slice:
        fields = {"status": Status.AVAILABLE, **fields}
        slice_ = await slices.add(database, num=next(numbers), base_port=BASE, **fields)  # type: ignore[arg-type]
        if healthy:
            await slices.record_health(database, [slice_.id])
        return slice_

    return make


async def test_a_claim_takes_the_oldest_warm_slice_and_both_rows_say_so(
    database: Database, sign_up: SignUp, warm: Warm
) -> None:
    user = await sign_up("a")
    first, _ = await warm(), await warm()
    claimed = await slices.claim(database, user.id)
    assert claimed is not None
    assert (claimed.id, claimed.status, claimed.user_id) == (first.id, Status.ASSIGNED, user.id)
    assert await slices.find_of_user(database, user.id) == claimed
    assert await database.fetchval("select assigned_at <= gateway.clock() from gateway.slices where id = $1", first.id)


async def test_only_what_is_warm_is_claimed(
    database: Database, database_settings: DatabaseSettings, sign_up: SignUp, warm: Warm
) -> None:
    user = await sign_up("a")
    for status in Status:
        if status != Status.AVAILABLE:
            await warm(status=status)
    await warm(wanted=Wanted.STOPPED)
    await warm(managed=False)
    await warm(healthy=False)
    await slices.begin_start(database, (await warm()).id)
    assert await slices.claim(database, user.id) is None
    await warm()
    async with open_connection(database_settings, as_admin=True) as admin:
        await admin.execute("update gateway.clock_shift set shift = '10 minutes'")
    assert await slices.claim(database, user.id) is None, "it has not answered for ten minutes"


async def test_nobody_gets_a_second_slice(database: Database, sign_up: SignUp, warm: Warm) -> None:
    user = await sign_up("a")
    await warm()
    await warm()
    claimed: list[Slice | None] = []

    async def claim() -> None:
        async with database.transaction() as connection:
            claimed.append(await slices.claim(connection, user.id))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(claim)
    assert len([slice_ for slice_ in claimed if slice_ is not None]) == 1
    assert await slices.counts(database) | {"available": 1, "assigned": 1} == await slices.counts(database)


async def test_a_user_who_is_not_or_will_not_be_gets_none(database: Database, sign_up: SignUp, warm: Warm) -> None:
    user = await sign_up("a")
    await warm()
    await database.execute("update gateway.users set deleting_at = gateway.clock()")
    assert await slices.claim(database, user.id) is None
    assert await slices.claim(database, user.id + 1) is None


async def test_twenty_claims_for_five_slices_give_five_different_ones(
    database: Database, sign_up: SignUp, warm: Warm
) -> None:
    users = [await sign_up(f"u{n}") for n in range(20)]
    for _ in range(5):
        await warm()
    claimed: list[Slice | None] = []

    async def claim(user: User) -> None:
        async with database.transaction() as connection:
            claimed.append(await slices.claim(connection, user.id))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for user in users:
                nursery.start_soon(claim, user)
    ids = [slice_.id for slice_ in claimed if slice_ is not None]
    assert len(ids) == len(set(ids)) == 5
    assert len(await slices.waiting_users(database, billing_enabled=False)) == 15


async def test_a_claim_that_is_rolled_back_gives_the_slice_back(
    database: Database, sign_up: SignUp, warm: Warm
) -> None:
    user = await sign_up("a")
    slice_ = await warm()

    async def claim_and_fail() -> None:
        async with database.transaction() as connection:
            assert await slices.claim(connection, user.id) is not None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await claim_and_fail()
    found = await slices.find(database, slice_.id)
    assert found is not None
    assert found.status == Status.AVAILABLE


async def test_who_waits_without_billing(database: Database, sign_up: SignUp, warm: Warm) -> None:
    first, admin, gone, suspended, served, last = [
        await sign_up(name) for name in ("first", "admin", "gone", "suspended", "served", "last")
    ]
    await accounts.make_admin(database, admin.id)
    await database.execute("update gateway.users set deleting_at = gateway.clock() where id = $1", gone.id)
    await database.execute("update gateway.users set suspended_at = gateway.clock() where id = $1", suspended.id)
    await warm()
    assert await slices.claim(database, served.id) is not None
    assert await slices.waiting_users(database, billing_enabled=False) == [first.id, last.id]


async def test_who_waits_with_billing(database: Database, sign_up: SignUp) -> None:
    statuses = {name: await sign_up(name) for name in ("active", "past_due", "cancelled", "trial")}
    paying = await sign_up("in-a-trial-of-a-subscription")
    for status, user in statuses.items():
        await database.execute("update gateway.users set subscription_status = $2 where id = $1", user.id, status)
    await database.execute("update gateway.users set subscription_id = 'sub_1' where id = $1", paying.id)
    expected = [statuses["active"].id, statuses["past_due"].id, paying.id]
    assert await slices.waiting_users(database, billing_enabled=True) == expected


async def test_an_assignment_suspends_the_slice_that_was_had(database: Database, sign_up: SignUp, warm: Warm) -> None:
    user = await sign_up("a")
    old, new = await warm(), await warm(managed=False, healthy=False)
    await slices.assign(database, user.id, old.id)
    assigned = await slices.assign(database, user.id, new.id)
    assert (assigned.id, assigned.status, assigned.user_id) == (new.id, Status.ASSIGNED, user.id)
    assert await slices.find_of_user(database, user.id) == assigned
    detached = await slices.find(database, old.id)
    assert detached is not None
    assert (detached.status, detached.user_id, detached.wanted) == (Status.SUSPENDED, None, Wanted.STOPPED)


async def test_what_can_not_be_assigned_is_refused_and_nothing_changes(
    database: Database, sign_up: SignUp, warm: Warm
) -> None:
    user, other = await sign_up("a"), await sign_up("b")
    mine, theirs = await warm(), await warm()
    await slices.assign(database, user.id, mine.id)
    await slices.assign(database, other.id, theirs.id)
    for user_id, slice_id, code in (
        (user.id + 100, mine.id, "no_such_user"),
        (user.id, mine.id + 100, "no_such_slice"),
        (user.id, theirs.id, "not_available"),
        (user.id, mine.id, "not_available"),
    ):
        with pytest.raises(Refused) as caught:
            await slices.assign(database, user_id, slice_id)
        assert caught.value.code == code
    found = await slices.find_of_user(database, user.id)
    assert found is not None
    assert found.id == mine.id


async def test_two_admins_assign_one_slice_at_once(database: Database, sign_up: SignUp, warm: Warm) -> None:
    users = [await sign_up(f"u{n}") for n in range(4)]
    slice_ = await warm()
    outcomes: list[str] = []

    async def assign(user: User) -> None:
        try:
            await slices.assign(database, user.id, slice_.id)
        except Refused as refusal:
            outcomes.append(refusal.code)
        else:
            outcomes.append("assigned")

    async with trio.open_nursery() as nursery:
        for user in users:
            nursery.start_soon(assign, user)
    assert sorted(outcomes) == ["assigned"] + ["not_available"] * 3


async def test_a_slice_that_is_released_is_to_go_and_its_user_waits_again(
    database: Database, sign_up: SignUp, warm: Warm
) -> None:
    user = await sign_up("a")
    slice_ = await warm()
    await slices.assign(database, user.id, slice_.id)
    assert await slices.release(database, slice_.id)
    found = await slices.find(database, slice_.id)
    assert found is not None
    assert (found.status, found.wanted, found.user_id) == (Status.DESTROYING, Wanted.ABSENT, None)
    assert await slices.waiting_users(database, billing_enabled=False) == [user.id]
    unmanaged = await slices.add_unmanaged(database, "127.0.0.1", 9999)
    assert await slices.release(database, unmanaged.id)
    assert await slices.find(database, unmanaged.id) is None
    assert not await slices.release(database, unmanaged.id)
