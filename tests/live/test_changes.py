"""What a table tells of itself reaches the routes and whoever else must hear of it; a gap in hearing is no secret."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from queunir_trio.errors import Lost
from queunir_trio.live.changes import Changes
from queunir_trio.live.routes import Forgotten, Routes
from queunir_trio.model.accounts import User, new_token, token_hash
from queunir_trio.model.routing import Route
from queunir_trio.model.slices import Slice
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, assignments, sessions, slices
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.store.notifications import Change

PATIENCE = 5.0  # seconds


class Ear:
    """Changes and routes on a real database, and everything that they told."""

    def __init__(self, where: DatabaseSettings, database: Database) -> None:
        self.database = database
        self.routes = Routes(database, "master", 5001)
        self.changes = Changes(where, self.routes)
        self.forgotten: list[Forgotten] = []
        self.resyncs = 0
        self.routes.subscribe(self.forgotten.append)
        self.changes.on_resync(self._resynced)

    def _resynced(self) -> None:
        self.resyncs += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        """Notifications come from another process: looked for again and again, but not for long."""
        with trio.fail_after(PATIENCE):
            while not condition():
                await trio.sleep(0.005)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.changes.session)
            await self.until(lambda: self.changes.listening)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
async def ear(database_settings: DatabaseSettings, database: Database) -> Ear:
    return Ear(database_settings, database)


@pytest.fixture
async def user(database: Database) -> User:
    return await accounts.add(database, "a@example.com", "hash")


@pytest.fixture
async def slice_(database: Database, user: User) -> Slice:
    made = await slices.add_unmanaged(database, "127.0.0.1", 6001)
    return await assignments.assign(database, user.id, made.id)


async def remembered(ear: Ear, user: User) -> tuple[bytes, Route]:
    token = new_token().encode()
    await sessions.begin(ear.database, user.id, token_hash(token), None, None)
    route = await ear.routes.find(token)
    assert route is not None
    assert ear.routes.peek(token) is not None
    return token, route


async def test_a_session_that_ends_anywhere_ends_here(ear: Ear, user: User) -> None:
    async with ear.listening():
        token, _ = await remembered(ear, user)
        ear.forgotten.clear()
        await sessions.end(ear.database, token_hash(token))
        await ear.until(lambda: ear.routes.peek(token) is None)
        assert ear.forgotten == [Forgotten(frozenset({token_hash(token)}), ended=True)]
        assert await ear.routes.find(token) is None


async def test_a_user_who_is_suspended_is_looked_at_anew(ear: Ear, user: User, slice_: Slice) -> None:
    async with ear.listening():
        token, route = await remembered(ear, user)
        assert route.refusal is None
        ear.forgotten.clear()
        await ear.database.execute("update gateway.users set suspended_at = gateway.clock() where id = $1", user.id)
        await ear.until(lambda: ear.routes.peek(token) is None)
        assert ear.forgotten == [Forgotten(user_id=user.id)]
        again = await ear.routes.find(token)
        assert again is not None
        assert again.refusal == "suspended"


async def test_a_slice_that_is_assigned_becomes_its_users_route(ear: Ear, user: User, database: Database) -> None:
    async with ear.listening():
        token, route = await remembered(ear, user)
        assert route.refusal == "no_slice"
        made = await slices.add_unmanaged(database, "127.0.0.1", 6001)
        await assignments.assign(database, user.id, made.id)
        await ear.until(lambda: ear.routes.peek(token) is None)
        again = await ear.routes.find(token)
        assert again is not None
        assert again.slice_id == made.id


async def test_a_slice_that_moves_takes_its_users_route_along(ear: Ear, user: User, slice_: Slice) -> None:
    async with ear.listening():
        token, _ = await remembered(ear, user)
        ear.forgotten.clear()
        await ear.database.execute("update gateway.slices set port = 6003 where id = $1", slice_.id)
        await ear.until(lambda: ear.routes.peek(token) is None)
        assert Forgotten(slice_id=slice_.id) in ear.forgotten
        again = await ear.routes.find(token)
        assert again is not None
        assert again.address is not None
        assert again.address.port == 6003


async def test_a_jump_in_time_and_an_emptied_table_concern_everybody(
    ear: Ear, user: User, database_settings: DatabaseSettings
) -> None:
    async with ear.listening(), open_connection(database_settings, as_admin=True) as admin:
        for statement in (
            "update gateway.clock_shift set shift = shift + interval '1 second'",
            "truncate gateway.sessions",
        ):
            token, _ = await remembered(ear, user)
            ear.forgotten.clear()
            await admin.execute(statement)
            await ear.until(lambda token=token: ear.routes.peek(token) is None)  # type: ignore[misc]
            assert ear.forgotten == [Forgotten(everything=True)]


async def test_whoever_asked_hears_of_a_table_and_of_no_other(ear: Ear, user: User) -> None:
    heard: list[Change] = []
    ear.changes.on("users", heard.append)
    ear.changes.on("users", heard.append)
    async with ear.listening():
        token, _ = await remembered(ear, user)
        await sessions.end(ear.database, token_hash(token))
        other = await accounts.add(ear.database, "b@example.com", "hash")
        await ear.until(lambda: len(heard) == 2)
        assert heard == [Change("users", "insert", other.id, None, None)] * 2


async def test_when_hearing_begins_everything_is_looked_at_anew(ear: Ear, user: User) -> None:
    assert not ear.changes.listening
    async with ear.listening():
        assert ear.resyncs == 1
        assert ear.forgotten == [Forgotten(everything=True)]
        token, _ = await remembered(ear, user)
    assert not ear.changes.listening
    assert ear.routes.peek(token) is None  # nobody would tell of its end
    async with ear.listening():
        assert ear.resyncs == 2


async def test_a_lost_connection_is_a_loss_and_nothing_is_remembered_meanwhile(
    ear: Ear, user: User, database_settings: DatabaseSettings
) -> None:
    lost = trio.Event()

    async def listen() -> None:
        with pytest.raises(Lost):
            await ear.changes.session()
        lost.set()

    async with trio.open_nursery() as nursery, open_connection(database_settings, as_admin=True) as admin:
        nursery.start_soon(listen)
        await ear.until(lambda: ear.changes.listening)
        token, _ = await remembered(ear, user)
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and query ilike 'listen%'"
        )
        with trio.fail_after(PATIENCE):
            await lost.wait()
        assert not ear.changes.listening
        assert ear.routes.peek(token) is None
        assert await ear.routes.find(token) is not None
        assert ear.routes.peek(token) is None


async def test_odd_changes_are_taken_for_what_they_may_mean(ear: Ear) -> None:
    odd = [
        (Change("sessions", "delete", None, None, None), []),
        (Change("slice_steps", "insert", 1, None, 7), []),
        (Change("slices", "update", "7", 42, 7), [Forgotten(slice_id=7), Forgotten(user_id=42)]),
        (Change("users", "truncate", None, None, None), [Forgotten(everything=True)]),
    ]
    for change, forgotten in odd:
        ear.forgotten.clear()
        ear.changes._apply(change)
        assert ear.forgotten == forgotten
