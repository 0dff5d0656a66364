"""The pool when tasks are cancelled by the hundred, and when PostgreSQL goes away and comes back."""

import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import pytest
import trio

from queunir_trio.outside.embedded_postgres import DatabaseServer
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import bridge
from queunir_trio.store.bridge import Database, DatabaseUnavailable, open_connection, open_database

PAIR = "insert into gateway.audit_log (actor, action, target) values ('storm', $1, 'x')"
LEFT_OPEN = """
    select count(*) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'
"""
CONNECTIONS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


async def one_statement(database: Database) -> None:
    await database.fetchval("select pg_sleep(0.002)")


async def one_transaction(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(PAIR, "first")
        await connection.execute(PAIR, "second")


async def several_statements(database: Database) -> None:
    async with database.connection() as connection:
        await connection.fetchval("select count(*) from gateway.users")
        async with connection.transaction(), connection.transaction():
            await connection.execute("select pg_sleep(0.001)")
        await connection.fetchval("select 1")


DEEDS: list[Callable[[Database], Awaitable[None]]] = [one_statement, one_transaction, several_statements]


async def storm(database: Database, chance: random.Random) -> int:
    """400 tasks, each cancelled at a point of its own; how many came through."""
    finished = 0

    async def run(deed: Callable[[Database], Awaitable[None]], point: float) -> None:
        nonlocal finished
        with trio.move_on_after(point):
            await deed(database)
            finished += 1

    async with trio.open_nursery() as nursery:
        for _ in range(400):
            nursery.start_soon(run, chance.choice(DEEDS), chance.choice([0, 0.5]) * chance.random() + 0.001)
    return finished


@pytest.mark.parametrize("seed", range(6))
async def test_a_storm_of_cancellations_leaves_the_pool_whole(
    asyncio_open: None, database_settings: DatabaseSettings, seed: int
) -> None:
    chance = random.Random(seed)
    async with open_database(database_settings, at_most=4) as database:
        with trio.fail_after(30):
            for _ in range(3):
                await storm(database, chance)
            assert database.in_use == 0
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    connection = await stack.enter_async_context(database.connection())
                    assert await connection.fetchval("select count(*) from gateway.audit_log where false") == 0
        rows = await database.fetch("select action, count(*) from gateway.audit_log group by action")
        written = {row[0]: row[1] for row in rows}
        assert written.get("first") == written.get("second")
        async with open_connection(database_settings, as_admin=True) as watcher:
            await _until(lambda: _is_zero(watcher.fetchval(LEFT_OPEN)))
            assert await watcher.fetchval(CONNECTIONS) <= 4


async def test_a_storm_that_is_cancelled_as_a_whole_ends_at_once(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_database(database_settings, at_most=4) as database:
        with trio.fail_after(20):
            for seed in range(10):
                with trio.move_on_after(0.02 * (seed + 1)):
                    await storm(database, random.Random(seed))
                assert database.in_use == 0
        assert await database.fetchval("select 1") == 1


@asynccontextmanager
async def stopped(server: DatabaseServer) -> AsyncIterator[None]:
    """The shared server is away, and surely back afterwards."""
    await server.stop()
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            with trio.fail_after(30):
                await server.start()


async def test_a_server_that_goes_and_comes_back(
    postgres: DatabaseServer, database: Database, database_settings: DatabaseSettings
) -> None:
    async with database.connection() as held:
        assert await database.fetchval("select 1") == 1
        async with stopped(postgres):
            with pytest.raises(DatabaseUnavailable):
                await held.fetchval("select 1")
            with pytest.raises(DatabaseUnavailable):
                await database.fetchval("select 1")
            with pytest.raises(DatabaseUnavailable):
                async with database.transaction():
                    pass
            with pytest.raises(DatabaseUnavailable):
                await database.ping()
            assert database.in_use == 1
    assert database.in_use == 0
    with trio.fail_after(5):
        assert await database.fetchval("select 1") == 1
    async with open_connection(database_settings, as_admin=True) as watcher:
        assert await watcher.fetchval(CONNECTIONS) == 1


async def test_a_pool_opens_while_the_server_is_away(
    postgres: DatabaseServer, asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with AsyncExitStack() as stack:
        async with stopped(postgres):
            database = await stack.enter_async_context(open_database(database_settings))
            with pytest.raises(DatabaseUnavailable):
                await database.fetchval("select 1")
        assert await database.fetchval("select 1") == 1


async def test_a_busy_query_ends_when_the_server_does(
    postgres: DatabaseServer, database: Database, database_settings: DatabaseSettings
) -> None:
    outcome: list[BaseException] = []

    async def sleep() -> None:
        try:
            await database.execute("select pg_sleep(60)")
        except DatabaseUnavailable as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        async with open_connection(database_settings, as_admin=True) as watcher:
            await _until(lambda: _is_one(watcher.fetchval(LEFT_OPEN)))
        with trio.fail_after(10):
            async with stopped(postgres):
                while not outcome:  # noqa: ASYNC110
                    await trio.sleep(0.01)
    assert await database.fetchval("select 1") == 1


async def test_a_transaction_whose_connection_is_ended_leaves_nothing(
    database: Database, database_settings: DatabaseSettings
) -> None:
    async def write_and_be_ended() -> None:
        async with database.transaction() as connection:
            await connection.execute(PAIR, "lost")
            pid = await connection.fetchval("select pg_backend_pid()")
            async with open_connection(database_settings, as_admin=True) as watcher:
                await watcher.execute("select pg_terminate_backend($1, 5000)", pid)
            await connection.execute(PAIR, "lost")

    with pytest.raises(DatabaseUnavailable):
        await write_and_be_ended()
    assert await database.fetchval("select count(*) from gateway.audit_log") == 0
    assert database.in_use == 0


async def test_no_connection_left_on_the_server_is_a_loss_and_passes(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_connection(database_settings, as_admin=True, database="postgres") as admin:
        await admin.execute(f"alter database {database_settings.name} connection limit 1")
        async with open_database(database_settings) as database:
            async with database.connection() as held:
                assert await held.fetchval("select 1") == 1
                with pytest.raises(DatabaseUnavailable, match="too many connections"):
                    await database.fetchval("select 1")
            assert database.in_use == 0
            assert await database.fetchval("select 1") == 1


async def test_max_connections_reached_is_a_loss_and_passes(
    postgres: DatabaseServer, asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_database(database_settings) as database:
        async with AsyncExitStack() as stack:

            async def take_all() -> None:
                for _ in range(120):
                    await stack.enter_async_context(open_connection(database_settings))

            with pytest.raises(DatabaseUnavailable, match="TooManyConnections"):
                await take_all()
            with pytest.raises(DatabaseUnavailable, match="TooManyConnections"):
                await database.fetchval("select 1")
        with trio.fail_after(5):
            while True:
                await trio.sleep(0.01)
                try:
                    assert await database.fetchval("select 1") == 1
                except DatabaseUnavailable:
                    continue
                break
        assert database.in_use == 0


async def test_a_server_that_hangs_does_not_hang_us(
    asyncio_open: None, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "PING_WITHIN", 0.2)
    monkeypatch.setattr(bridge, "RELEASED_WITHIN", 0.2)
    async with open_database(database_settings, at_most=1) as database:
        pid = await database.fetchval("select pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.fail_after(5), pytest.raises(DatabaseUnavailable, match="did not answer"):
                await database.ping()
            assert database.in_use == 0
            # the next one gets a connection of its own
            with trio.fail_after(5):
                assert await database.fetchval("select pg_backend_pid()") != pid
        finally:
            os.kill(pid, signal.SIGCONT)
        await _until(lambda: _is_gone(pid))


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(10):
        while not await holds():  # noqa: ASYNC110  the server has no event to wait for
            await trio.sleep(0.01)


async def _is_zero(number: Awaitable[int]) -> bool:
    return await number == 0


async def _is_one(number: Awaitable[int]) -> bool:
    return await number == 1


async def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)
