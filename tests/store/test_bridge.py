"""asyncpg as Trio programs use it: values, errors, transactions."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio_asyncio

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import bridge
from queunir_trio.store.bridge import (
    Conflict,
    Connection,
    Database,
    DatabaseMissing,
    DatabaseUnavailable,
    NotPermitted,
    Queries,
    asyncio_loop,
    open_connection,
    open_database,
)

ADD = "insert into gateway.users (email) values ($1)"
COUNT = "select count(*) from gateway.users"


async def test_values_go_in_and_come_out(database: Database) -> None:
    assert await database.fetchval("select $1::jsonb", {"a": [1, "é", None]}) == {"a": [1, "é", None]}
    moment = datetime(2026, 11, 20, 12, tzinfo=UTC)
    row = await database.fetchrow("select $1::timestamptz as at, $2::interval as lasts", moment, timedelta(days=90))
    assert row is not None
    assert row["at"] == moment
    assert row["at"].tzinfo is UTC or row["at"].utcoffset() == timedelta(0)
    assert row["lasts"] == timedelta(days=90)
    assert [row[0] for row in await database.fetch("select * from generate_series(1, 3)")] == [1, 2, 3]
    assert await database.fetchrow("select 1 where false") is None
    assert await database.execute(ADD, "a@example.com") == "INSERT 0 1"


async def test_a_unique_constraint_is_named(database: Database) -> None:
    await database.execute(ADD, "a@example.com")
    with pytest.raises(Conflict) as caught:
        await database.execute(ADD, "a@example.com")
    assert caught.value.constraint == "users_email_key"
    assert database.in_use == 0


async def test_a_transaction_commits_at_its_end(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(ADD, "a@example.com")
        assert await database.fetchval(COUNT) == 0
    assert await database.fetchval(COUNT) == 1


async def test_a_transaction_in_which_something_is_raised_leaves_nothing(database: Database) -> None:
    async def add_and_fail() -> None:
        async with database.transaction() as connection:
            await connection.execute(ADD, "a@example.com")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await add_and_fail()
    assert await database.fetchval(COUNT) == 0


async def test_a_transaction_inside_another_is_a_savepoint(database: Database) -> None:
    async def add_two(connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute(ADD, "b@example.com")
            await connection.execute(ADD, "a@example.com")

    async with database.transaction() as connection:
        await connection.execute(ADD, "a@example.com")
        with pytest.raises(Conflict):
            await add_two(connection)
        await connection.execute(ADD, "c@example.com")
    assert [row[0] for row in await database.fetch("select email from gateway.users order by 1")] == [
        "a@example.com",
        "c@example.com",
    ]


async def test_a_constraint_that_waits_for_the_commit_is_a_conflict_too(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_connection(database_settings, as_admin=True) as connection:
        await connection.execute(
            "create table late (n int, constraint late_n unique (n) deferrable initially deferred)"
        )
        with pytest.raises(Conflict) as caught:
            async with connection.transaction():
                await connection.execute("insert into late values (1), (1)")
        assert caught.value.constraint == "late_n"
        assert await connection.fetchval("select count(*) from late") == 0


@pytest.mark.parametrize("held", [False, True])
async def test_a_cancelled_query_ends_on_the_server_too(
    database: Database, database_settings: DatabaseSettings, held: bool
) -> None:
    async def sleep(db: Queries) -> None:
        with trio.move_on_after(0.1) as scope:
            await db.execute("select pg_sleep(60)")
        assert scope.cancelled_caught

    with trio.fail_after(5):
        if held:
            async with database.connection() as connection:
                await sleep(connection)
                assert await connection.fetchval("select 1") == 1
        else:
            await sleep(database)
    async with open_connection(database_settings, as_admin=True) as watcher:
        sleeping = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and state = 'active'"
        assert await watcher.fetchval(f"{sleeping} and pid <> pg_backend_pid()") == 0
    assert database.in_use == 0


async def test_a_cancelled_transaction_is_rolled_back_and_the_connection_goes_on(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_connection(database_settings) as connection:
        with trio.move_on_after(0.1) as scope:
            async with connection.transaction():
                await connection.execute(ADD, "a@example.com")
                await connection.execute("select pg_sleep(60)")
        assert scope.cancelled_caught
        async with connection.transaction():
            assert await connection.fetchval(COUNT) == 0
        assert not connection.closed


async def test_after_a_commit_that_was_cancelled_nobody_goes_on(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_connection(database_settings) as connection:
        with trio.CancelScope() as scope:
            async with connection.transaction():
                await connection.execute(ADD, "a@example.com")
                scope.cancel()
        assert scope.cancelled_caught
        assert connection.closed
        with pytest.raises(DatabaseUnavailable):
            await connection.fetchval(COUNT)
    async with open_connection(database_settings, as_admin=True) as watcher:
        with trio.fail_after(5):
            while await watcher.fetchval(OTHERS):
                await trio.sleep(0.01)
        assert await watcher.fetchval(COUNT) == 0


OTHERS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


async def test_who_waits_too_long_for_a_connection_is_told(
    asyncio_open: None, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "ROOM_WITHIN", 0.05)
    async with open_database(database_settings, at_most=1) as database, database.connection() as connection:
        with pytest.raises(DatabaseUnavailable, match="none of the 1 connections"):
            await database.fetchval("select 1")
        assert repr(database) == "<Database 1 of 1 in use>"
        assert await connection.fetchval("select 1") == 1


async def test_waiting_for_a_connection_can_be_cancelled(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_database(database_settings, at_most=1) as database, database.connection():
        with trio.move_on_after(0.05) as scope:
            await database.fetchval("select 1")
        assert scope.cancelled_caught
    assert database.in_use == 0


async def test_a_database_that_is_missing_and_a_wrong_password_are_told_apart(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    with pytest.raises(DatabaseMissing):
        async with open_connection(database_settings, database="no_such_database"):
            pass
    with pytest.raises(DatabaseUnavailable) as caught:
        async with open_connection(replace(database_settings, password="wrong")):
            pass
    assert not isinstance(caught.value, DatabaseMissing)


async def test_a_right_that_is_missing_is_no_loss(database: Database) -> None:
    with pytest.raises(NotPermitted):
        await database.execute("update gateway.clock_shift set shift = '1 day'")


async def test_a_mistake_in_a_statement_is_a_bug_and_passes(database: Database) -> None:
    with pytest.raises(Exception, match="nonsense") as caught:
        await database.execute("select nonsense")
    assert not isinstance(caught.value, DatabaseUnavailable)
    with pytest.raises(Exception, match=r"parameter|argument"):
        await database.execute("select $1::int")
    async with database.connection() as connection:
        with pytest.raises(Exception, match=r"parameter|argument"):
            await connection.execute("select $1::int")


async def test_a_connection_of_its_own_is_closed_at_the_end(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_connection(database_settings) as connection:
        assert repr(connection) == "<Connection open>"
    assert repr(connection) == "<Connection closed>"
    with pytest.raises(DatabaseUnavailable):
        await connection.fetchval("select 1")


async def test_a_lock_is_held_by_one_and_given_back(asyncio_open: None, database_settings: DatabaseSettings) -> None:
    async with open_connection(database_settings) as first, open_connection(database_settings) as second:
        async with first.locked(7):
            assert await second.fetchval("select pg_try_advisory_lock(7)") is False
        assert await second.fetchval("select pg_try_advisory_lock(7)") is True


async def test_a_lock_that_was_cancelled_while_waited_for_is_not_kept(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async with open_connection(database_settings) as first, open_connection(database_settings) as second:
        async with first.locked(7):
            with trio.move_on_after(0.1) as scope:
                async with second.locked(7):
                    raise AssertionError("the lock is taken")
            assert scope.cancelled_caught
        assert await first.fetchval("select pg_try_advisory_lock(7)") is True
        assert not second.closed


@pytest.mark.parametrize(
    "context", [{"message": "a report"}, {"message": "a report", "exception": ZeroDivisionError("nobody waits")}]
)
async def test_no_report_to_the_asyncio_loop_ends_anything(database: Database, context: dict[str, object]) -> None:
    trio_asyncio.current_loop.get().call_exception_handler(context)
    assert await database.fetchval("select 1") == 1


async def test_what_is_raised_inside_the_loop_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with asyncio_loop():
            raise ZeroDivisionError


async def test_a_notification_reaches_the_listener(asyncio_open: None, database_settings: DatabaseSettings) -> None:
    heard: list[str] = []
    told = trio.Event()

    def hear(payload: str) -> None:
        heard.append(payload)
        told.set()

    async with open_connection(database_settings) as connection:
        await connection.listen("news", hear)
        async with open_connection(database_settings) as teller:
            await teller.execute("notify news, 'hello'")
        with trio.fail_after(5):
            await told.wait()
    assert heard == ["hello"]


async def test_only_a_pool_or_a_connection_can_be_asked() -> None:
    with pytest.raises(NotImplementedError):
        await Queries().fetchval("select 1")
    with pytest.raises(NotImplementedError):
        Queries().transaction()


async def test_a_ping_takes_the_time_of_an_answer(database: Database) -> None:
    assert 0 < await database.ping() < 3


async def test_what_can_not_be_cleaned_up_is_cut_off(
    asyncio_open: None, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "RELEASED_WITHIN", 0.2)
    async with open_connection(database_settings) as connection:
        # it takes a cancellation for an error like any other and goes on
        await connection.execute(STUBBORN)
        with trio.fail_after(3), trio.move_on_after(0.2):
            async with connection.transaction():
                await connection.execute("select pg_temp.stubborn()")
    assert connection.closed


STUBBORN = """
create function pg_temp.stubborn() returns void language plpgsql as $$
begin
    for n in 1..20 loop
        begin
            perform pg_sleep(0.2);
        exception when query_canceled then
            null;
        end;
    end loop;
end $$
"""


async def test_it_is_a_connection_that_a_transaction_gives(database: Database) -> None:
    async with database.transaction() as connection:
        assert isinstance(connection, Connection)
