"""Bringing a database to what this version expects."""

from dataclasses import replace

import pytest
import trio

from queunir_trio.errors import Lost, Misconfigured
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import migrations as module
from queunir_trio.store.bridge import Database, NotPermitted, open_connection, open_database
from queunir_trio.store.migrations import LOCK, migrate, migrate_slice, migrations, pending

NAMES = [migration.name for migration in migrations("gateway")]


async def test_a_missing_database_is_made_whole(asyncio_open: None, empty_database_settings: DatabaseSettings) -> None:
    assert await pending(empty_database_settings) == NAMES
    assert await migrate(empty_database_settings) == NAMES
    assert await pending(empty_database_settings) == []
    assert await migrate(empty_database_settings) == []


async def test_two_at_once_on_a_missing_database(asyncio_open: None, empty_database_settings: DatabaseSettings) -> None:
    done: list[list[str]] = []

    async def run() -> None:
        done.append(await migrate(empty_database_settings))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run)
    assert sorted(done, key=len) == [[], [], [], NAMES]


async def test_versions_are_kept_as_dbmate_keeps_them(database: Database) -> None:
    rows = await database.fetch("select version from gateway.schema_migrations order by 1")
    assert [row[0] for row in rows] == [name.partition("_")[0] for name in NAMES]


async def test_a_file_that_fails_leaves_nothing_and_is_done_later(
    asyncio_open: None, empty_database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = empty_database_settings
    first = module.Migration("1", "1_first", "create table gateway.first ()")
    broken = module.Migration("2", "2_second", "create table gateway.second (); select nonsense")
    monkeypatch.setattr(module, "migrations", lambda _: (first, broken))
    with pytest.raises(Exception, match="nonsense"):
        await migrate(where)
    assert await pending(where) == ["2_second"]
    async with open_connection(where, as_admin=True) as admin:
        assert await admin.fetchval("select to_regclass('gateway.first') is not null")
        assert await admin.fetchval("select to_regclass('gateway.second') is null")


async def test_another_migration_is_waited_for_with_a_limit(
    asyncio_open: None, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCKED_WITHIN", 0.1)
    async with open_connection(database_settings, as_admin=True) as other, other.locked(LOCK):
        with pytest.raises(Lost, match="Another migration"):
            await migrate(database_settings)
    assert await migrate(database_settings) == []


async def test_the_gateways_role_can_change_neither_tables_nor_the_clock(database: Database) -> None:
    await database.execute("insert into gateway.users (email) values ('a@example.com')")
    assert await database.fetchval("select gateway.clock() is not null")
    for forbidden in (
        "update gateway.clock_shift set shift = '1 day'",
        "insert into gateway.schema_migrations values ('9')",
        "create table gateway.mine ()",
        "drop table gateway.users",
        "create database mine",
        "create role mine",
        "truncate gateway.users",
    ):
        with pytest.raises(NotPermitted):
            await database.execute(forbidden)


async def test_a_role_that_may_not_is_explained(
    asyncio_open: None, empty_database_settings: DatabaseSettings, database_settings: DatabaseSettings
) -> None:
    powerless = replace(
        empty_database_settings,
        admin_user=database_settings.user,
        admin_password=database_settings.password,
    )
    with pytest.raises(Misconfigured, match="DB_ADMIN_USER") as caught:
        await migrate(powerless)
    assert database_settings.password not in str(caught.value)


async def test_a_role_that_is_missing_is_made_and_can_log_in(
    asyncio_open: None, empty_database_settings: DatabaseSettings
) -> None:
    where = replace(empty_database_settings, user="other_gateway", password="a 'quoted' pass\"word")
    try:
        with pytest.raises(Misconfigured, match=r"pg_hba\.conf"):
            await migrate(where)
        assert await pending(where) == []
        async with open_connection(where, as_admin=True) as admin:
            kept = await admin.fetchval("select rolpassword from pg_authid where rolname = 'other_gateway'")
            assert kept.startswith("SCRAM-SHA-256$")
            # the server lets in only the name of the usual role, so its password is tried under that
            usual = await admin.fetchval("select rolpassword from pg_authid where rolname = 'wank_gateway'")
            await admin.execute(f"alter role wank_gateway password '{kept}'")
            with pytest.raises(NotPermitted, match="permission denied for database"):
                async with open_connection(replace(where, user="wank_gateway")):
                    raise AssertionError("only the role that the database was made for enters it")
            await admin.execute(f"grant connect on database {where.name} to wank_gateway")
            try:
                async with open_database(replace(where, user="wank_gateway")) as database:
                    assert await database.fetchval("select current_user") == "wank_gateway"
            finally:
                await admin.execute(f"alter role wank_gateway password '{usual}'")
    finally:
        async with open_connection(where, as_admin=True, database="postgres") as admin:
            await admin.execute(f"drop database if exists {where.name} with (force)")
            await admin.execute("drop role if exists other_gateway")


async def test_a_slices_tables_are_made_once(asyncio_open: None, database_settings: DatabaseSettings) -> None:
    async with open_connection(database_settings, as_admin=True) as connection:
        names = [migration.name for migration in migrations("slice")]
        assert await migrate_slice(connection) == names
        assert await migrate_slice(connection) == []


def test_a_file_without_its_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="migrate:up"):
        module._up("0001_x", "create table x ();")
    assert module._up("0001_x", "-- migrate:up\nyes\n-- migrate:down\nno").strip() == "yes"
