"""Who gets which slice: never two the same, never one two."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import assignment
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database
from tests.doubles.premises import Premises, open_premises


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened


async def warm(place: Premises, how_many: int) -> list[Slice]:
    """Rows of slices that are available and well; nothing stands behind them."""
    found = []
    for num in range(1, how_many + 1):
        base_port = place.resources.settings.base_port
        row = await slices.add(place.db, num=num, base_port=base_port, status=Status.AVAILABLE, image="process")
        await slices.record_health(place.db, [row.id])
        found.append(row)
    return found


async def users(place: Premises, how_many: int) -> list[int]:
    return [await place.add_user(f"user{n}@example.com") for n in range(how_many)]


async def test_twenty_claims_on_five_slices_give_five_people_one_each(place: Premises) -> None:
    await warm(place, 5)
    got: dict[int, Slice | None] = {}

    async def claim(user_id: int) -> None:
        async with place.db.transaction() as connection:
            got[user_id] = await assignment.claim_for_new_user(connection, user_id)

    async with trio.open_nursery() as nursery:
        for user_id in await users(place, 20):
            nursery.start_soon(claim, user_id)
    served = {user_id: row for user_id, row in got.items() if row is not None}
    assert len(got) == 20
    assert len(served) == 5
    assert len({row.id for row in served.values()}) == 5
    for user_id, row in served.items():
        routed = await slices.find_of_user(place.db, user_id)
        assert routed is not None
        assert (routed.id, routed.user_id, routed.status) == (row.id, user_id, Status.ASSIGNED)
    assert len(await slices.waiting_users(place.db, False)) == 15


async def test_a_burst_of_sign_ups_while_the_queue_is_served_gives_nobody_two_and_nothing_twice(
    place: Premises,
) -> None:
    await warm(place, 5)
    waiting = await users(place, 10)
    went_empty: list[int] = []

    async def sign_up(number: int) -> None:
        async with place.db.transaction() as connection:
            user_id = await connection.fetchval(
                "insert into gateway.users (email) values ($1) returning id", f"burst{number}@example.com"
            )
            if await assignment.claim_for_new_user(connection, user_id) is None:
                went_empty.append(user_id)

    async def serve() -> None:
        await assignment.serve_waiting(place.db, billing_enabled=False)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(sign_up, number)
            if number % 5 == 0:
                nursery.start_soon(serve)
    owners = [row.user_id for row in await slices.listed(place.db)]
    assert None not in owners
    assert len(set(owners)) == 5
    routed = await place.db.fetch("select id, slice_id from gateway.users where slice_id is not null")
    assert {(row["id"], row["slice_id"]) for row in routed} == {
        (row.user_id, row.id) for row in await slices.listed(place.db)
    }
    still = await slices.waiting_users(place.db, False)
    assert len(still) == 15
    assert set(still) == {*waiting, *went_empty} - set(owners)


async def test_one_user_who_asks_many_times_at_once_gets_one_slice(place: Premises) -> None:
    await warm(place, 3)
    user_id = await place.add_user()

    async def claim() -> None:
        async with place.db.transaction() as connection:
            await assignment.claim_for_new_user(connection, user_id)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(claim)
    owned = [row for row in await slices.listed(place.db) if row.user_id == user_id]
    assert len(owned) == 1


async def test_a_sign_up_that_fails_gives_its_slice_back(place: Premises) -> None:
    await warm(place, 1)
    user_id = await place.add_user()

    async def sign_up_that_fails() -> None:
        async with place.db.transaction() as connection:
            assert await assignment.claim_for_new_user(connection, user_id) is not None
            raise RuntimeError("the sign-up fails")

    with pytest.raises(RuntimeError, match="the sign-up fails"):
        await sign_up_that_fails()
    assert (await place.only_row()).status == Status.AVAILABLE


async def test_who_waited_longest_is_served_first_and_the_rest_go_on_waiting(place: Premises) -> None:
    await warm(place, 2)
    waiting = await users(place, 4)
    assert await assignment.serve_waiting(place.db, billing_enabled=False) == waiting[2:]
    assert [row.user_id for row in await slices.listed(place.db)] == waiting[:2]
    assert await assignment.serve_waiting(place.db, billing_enabled=False) == waiting[2:]


async def test_who_was_served_by_somebody_else_meanwhile_waits_no_more(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(place, 2)
    first, second = await users(place, 2)
    seen = await slices.waiting_users(place.db, False)
    assert await assignment.claim_for_new_user(place.db, first) is not None
    lists = [seen]

    async def as_it_was(db: Database, billing_enabled: bool) -> list[int]:
        return lists.pop()

    monkeypatch.setattr(slices, "waiting_users", as_it_was)
    assert await assignment.serve_waiting(place.db, billing_enabled=False) == []
    assert {row.user_id for row in await slices.listed(place.db)} == {first, second}


async def test_with_billing_only_who_pays_is_served(place: Premises) -> None:
    await warm(place, 2)
    await users(place, 2)
    assert await assignment.serve_waiting(place.db, billing_enabled=True) == []
    assert [row.user_id for row in await slices.listed(place.db)] == [None, None]


async def test_an_admin_moves_a_customer_and_nothing_of_the_old_slice_is_destroyed(place: Premises) -> None:
    first, second = await warm(place, 2)
    user_id = await place.add_user()
    assert await assignment.claim_for_new_user(place.db, user_id) is not None
    moved = await assignment.assign(place.db, user_id, second.id)
    assert (moved.id, moved.user_id, moved.status) == (second.id, user_id, Status.ASSIGNED)
    old = await slices.find(place.db, first.id)
    assert old is not None
    assert (old.status, old.wanted, old.user_id) == (Status.SUSPENDED, Wanted.STOPPED, None)


@pytest.mark.parametrize(
    ("user", "slice_", "code"), [("none", "free", "no_such_user"), ("one", "none", "no_such_slice")]
)
async def test_what_does_not_exist_can_not_be_assigned(place: Premises, user: str, slice_: str, code: str) -> None:
    user_id = await place.add_user() if user == "one" else 4711
    slice_id = (await warm(place, 1))[0].id if slice_ == "free" else 4711
    with pytest.raises(Refused) as refused:
        await assignment.assign(place.db, user_id, slice_id)
    assert refused.value.code == code


async def test_a_slice_of_somebody_else_can_not_be_assigned(place: Premises) -> None:
    await warm(place, 1)
    one, other = await users(place, 2)
    taken = await assignment.claim_for_new_user(place.db, one)
    assert taken is not None
    with pytest.raises(Refused) as refused:
        await assignment.assign(place.db, other, taken.id)
    assert refused.value.code == "not_available"


async def test_an_unmanaged_slice_is_registered_once_and_given_to_nobody_by_itself(place: Premises) -> None:
    row = await assignment.register_unmanaged(place.db, "127.0.0.1", 4000)
    assert (row.managed, row.status, row.port) == (False, Status.AVAILABLE, 4000)
    with pytest.raises(Refused) as refused:
        await assignment.register_unmanaged(place.db, "127.0.0.1", 4000)
    assert refused.value.code == "port_taken"
    user_id = await place.add_user()
    await slices.record_health(place.db, [row.id])
    assert await assignment.claim_for_new_user(place.db, user_id) is None
    assert (await assignment.assign(place.db, user_id, row.id)).user_id == user_id


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_a_port_that_can_not_be_is_refused(place: Premises, port: int) -> None:
    with pytest.raises(Refused) as refused:
        await assignment.register_unmanaged(place.db, "127.0.0.1", port)
    assert refused.value.fields is not None
    assert list(refused.value.fields) == ["port"]
