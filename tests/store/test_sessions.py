"""How long a session is good, for whom, and how it ends."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
import trio

from queunir_trio.model.accounts import User
from queunir_trio.model.slices import Status
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, sessions, slices
from queunir_trio.store.bridge import Database, Queries, Record, open_connection

HASH, OTHER = "a" * 64, "b" * 64
Move = Callable[[float], Awaitable[None]]


@pytest.fixture
async def user(database: Database) -> User:
    return await accounts.add(database, "a@example.com", "hash")


@pytest.fixture
def move_days(database_settings: DatabaseSettings) -> Move:
    async def move(days: float) -> None:
        async with open_connection(database_settings, as_admin=True) as admin:
            await admin.execute(
                "update gateway.clock_shift set shift = shift + make_interval(secs => $1)", days * 86_400
            )

    return move


class Counted(Queries):
    """A database that counts what it is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0

    async def fetchrow(self, sql: str, *arguments: object) -> Record | None:
        self.asked += 1
        return await self._database.fetchrow(sql, *arguments)


async def test_the_facts_of_a_session_come_with_one_statement(database: Database, user: User) -> None:
    await sessions.begin(database, user.id, HASH, "192.0.2.1", "Firefox")
    counted = Counted(database)
    found = await sessions.facts(counted, HASH)
    assert counted.asked == 1
    assert found is not None
    assert (found.token_hash, found.user, found.slice) == (HASH, user, None)
    assert 30 * 86_400 - 60 < found.seconds_left <= 30 * 86_400
    assert await sessions.facts(database, OTHER) is None


async def test_the_facts_tell_the_slice_that_routes(database: Database, user: User) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    slice_ = await slices.add(database, num=3, base_port=5001, status=Status.AVAILABLE, image="wank-slice:1")
    await slices.record_health(database, [slice_.id])
    claimed = await slices.claim(database, user.id)
    found = await sessions.facts(database, HASH)
    assert found is not None
    assert found.slice == claimed
    assert found.slice is not None
    assert (found.slice.port, found.slice.image, found.slice.uuid) == (5005, "wank-slice:1", slice_.uuid)
    assert found.user.slice_id == slice_.id


async def test_a_user_who_is_being_deleted_has_no_session(database: Database, user: User) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    await database.execute("update gateway.users set deleting_at = gateway.clock() where id = $1", user.id)
    assert await sessions.facts(database, HASH) is None
    assert await sessions.valid(database, [HASH]) == set()


async def test_a_session_ends_after_thirty_idle_days(database: Database, user: User, move_days: Move) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    await move_days(29.9)
    assert await sessions.facts(database, HASH) is not None
    await move_days(0.2)
    assert await sessions.facts(database, HASH) is None
    assert await sessions.valid(database, [HASH]) == set()
    assert await sessions.listed(database, user.id) == []
    assert not await sessions.extend(database, HASH)
    assert await sessions.prune(database) == 1
    assert await sessions.prune(database) == 0


async def test_a_session_in_use_ends_after_ninety_days(database: Database, user: User, move_days: Move) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    for _ in range(4):
        await move_days(22)
        assert await sessions.extend(database, HASH)
    found = await sessions.facts(database, HASH)
    assert found is not None
    assert 1.9 * 86_400 < found.seconds_left <= 2 * 86_400
    await move_days(2.1)
    assert await sessions.facts(database, HASH) is None


async def test_the_ninety_days_hold_whatever_the_row_says(database: Database, user: User, move_days: Move) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    await database.execute("update gateway.sessions set expires_at = gateway.clock() + interval '10 years'")
    await move_days(89)
    assert await sessions.valid(database, [HASH]) == {HASH}
    assert (await sessions.listed(database, user.id))[0].token_hash == HASH
    await move_days(1.1)
    assert await sessions.facts(database, HASH) is None
    assert await sessions.valid(database, [HASH]) == set()
    assert await sessions.prune(database) == 1


async def test_a_session_is_extended_once_an_hour_at_most(database: Database, user: User, move_days: Move) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    assert not await sessions.extend(database, HASH)
    await move_days(0.9 / 24)
    assert not await sessions.extend(database, HASH)
    await move_days(0.2 / 24)
    assert await sessions.extend(database, HASH)
    assert not await sessions.extend(database, HASH)
    assert not await sessions.extend(database, OTHER)


async def test_a_session_ends_once(database: Database, user: User) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    assert await sessions.end(database, HASH)
    assert not await sessions.end(database, HASH)
    assert await sessions.facts(database, HASH) is None


async def test_all_sessions_of_a_user_end_but_one(database: Database, user: User) -> None:
    stranger = await accounts.add(database, "b@example.com", "hash")
    for number in range(4):
        await sessions.begin(database, user.id, str(number) * 64, None, None)
    await sessions.begin(database, stranger.id, HASH, None, None)
    ended = await sessions.end_all(database, user.id, but="2" * 64)
    assert sorted(ended) == ["0" * 64, "1" * 64, "3" * 64]
    assert await sessions.valid(database, ["0" * 64, "2" * 64, HASH]) == {"2" * 64, HASH}
    assert await sessions.end_all(database, user.id) == ["2" * 64]
    assert await sessions.end_all(database, user.id) == []


async def test_a_user_sees_their_sessions_and_ends_one(database: Database, user: User, move_days: Move) -> None:
    stranger = await accounts.add(database, "b@example.com", "hash")
    await sessions.begin(database, user.id, HASH, "192.0.2.1", "x" * 1000)
    await move_days(1)
    await sessions.begin(database, user.id, OTHER, None, None)
    newer, older = await sessions.listed(database, user.id)
    assert (older.ip, older.user_agent, older.token_hash) == ("192.0.2.1", "x" * 400, HASH)
    assert (newer.ip, newer.user_agent, newer.token_hash) == (None, None, OTHER)
    assert newer.created_at > older.created_at
    assert await sessions.end_by_ref(database, stranger.id, older.ref) is None
    assert await sessions.end_by_ref(database, user.id, uuid4()) is None
    assert await sessions.end_by_ref(database, user.id, older.ref) == HASH
    assert [row.ref for row in await sessions.listed(database, user.id)] == [newer.ref]


async def test_an_end_and_a_new_password_come_together_or_not_at_all(database: Database, user: User) -> None:
    await sessions.begin(database, user.id, HASH, None, None)

    async def fail_half_way() -> None:
        async with database.transaction() as connection:
            await accounts.set_password(connection, user.id, "another")
            await sessions.end_all(connection, user.id)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_half_way()
    assert await sessions.valid(database, [HASH]) == {HASH}
    assert await accounts.find_by_email(database, "a@example.com") == (user, "hash")


async def test_many_ask_at_once(database: Database, user: User) -> None:
    await sessions.begin(database, user.id, HASH, None, None)
    found = []

    async def ask() -> None:
        found.append(await sessions.facts(database, HASH))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
    assert all(facts is not None for facts in found)
    assert len(found) == 100
