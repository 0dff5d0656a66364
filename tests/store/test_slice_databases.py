"""The databases and roles of slices: whose is whose, and who gets in where."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio
import trio.lowlevel

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Names, names_of
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slice_databases
from queunir_trio.store.bridge import (
    Connection,
    Database,
    DatabaseUnavailable,
    NotPermitted,
    open_connection,
)
from queunir_trio.store.migrations import migrations
from queunir_trio.store.slice_databases import drop_database, drop_roles, ensure_database, ensure_roles, ensure_schema

PASSWORD = "a" * 64
NAMES, OTHER = names_of(71, Path("/nowhere")), names_of(72, Path("/nowhere"))
DATABASE = f"database {NAMES.database}"


@pytest.fixture
async def where(asyncio_open: None, database_settings: DatabaseSettings) -> AsyncIterator[DatabaseSettings]:
    """Settings of the gateway's database, on a server that has no slice 71 or 72 before and after."""
    yield database_settings
    with trio.CancelScope(shield=True):
        with trio.fail_after(20):
            for names in (NAMES, OTHER):
                await drop_database(database_settings, names)
                await drop_roles(database_settings, names)


async def make(where: DatabaseSettings, names: Names, uuid: UUID, password: str = PASSWORD) -> None:
    await ensure_roles(where, names, password, uuid)
    await ensure_database(where, names, uuid)
    await ensure_schema(where, names)


def as_slice(where: DatabaseSettings, names: Names, password: str = PASSWORD) -> DatabaseSettings:
    return replace(where, name=names.database, user=names.role, password=password)


async def test_a_slice_gets_a_database_it_can_use(where: DatabaseSettings) -> None:
    await make(where, NAMES, uuid4())
    async with open_connection(as_slice(where, NAMES)) as slice_:
        versions = await slice_.fetch("select version from schema_migrations order by 1")
        assert [row[0] for row in versions] == [migration.version for migration in migrations("slice")]
        tables = await slice_.fetch(
            "select tablename::text, tableowner::text from pg_tables where schemaname = 'public'"
        )
        assert {row["tableowner"] for row in tables} == {NAMES.owner}
        for table in (row["tablename"] for row in tables if row["tablename"] != "schema_migrations"):
            assert await slice_.fetchval(f"select has_table_privilege('{table}', 'select, insert, update, delete')")


async def test_a_slice_changes_rows_and_nothing_else(where: DatabaseSettings) -> None:
    await make(where, NAMES, uuid4())
    async with open_connection(as_slice(where, NAMES)) as slice_:
        for forbidden in (
            "create table mine ()",
            "create schema mine",
            "create temp table mine ()",
            "delete from schema_migrations",
            "create role mine",
            f"alter role {NAMES.role} createdb",
            f"drop database {NAMES.database}",
            f"set role {NAMES.owner}",
            "select pg_read_file('/etc/passwd')",
            "copy schema_migrations to program 'cat'",
        ):
            with pytest.raises(NotPermitted):
                await slice_.execute(forbidden)


async def test_a_slice_reaches_no_other_database(where: DatabaseSettings) -> None:
    await make(where, NAMES, uuid4())
    await make(where, OTHER, uuid4(), "b" * 64)
    for database in (OTHER.database, where.name, "postgres", "template1"):
        with pytest.raises(DatabaseUnavailable):
            async with open_connection(as_slice(where, NAMES), database=database):
                pass
    with pytest.raises(DatabaseUnavailable):
        async with open_connection(as_slice(where, NAMES, "b" * 64)):
            pass
    with pytest.raises(DatabaseUnavailable):
        async with open_connection(replace(as_slice(where, NAMES), user=NAMES.owner)):
            pass


async def test_a_slices_role_has_limits(where: DatabaseSettings) -> None:
    await make(where, NAMES, uuid4())
    async with open_connection(as_slice(where, NAMES)) as slice_:
        for name, value in (("statement_timeout", "1min"), ("temp_file_limit", "1GB")):
            assert await slice_.fetchval("select current_setting($1)", name) == value
        limit = await slice_.fetchval("select rolconnlimit from pg_roles where rolname = current_user")
        assert limit == slice_databases.CONNECTIONS_AT_MOST


async def test_every_step_can_be_taken_again(where: DatabaseSettings) -> None:
    uuid = uuid4()
    for _ in range(3):
        await make(where, NAMES, uuid)
    await make(where, NAMES, uuid, "c" * 64)
    async with open_connection(as_slice(where, NAMES, "c" * 64)) as slice_:
        assert await slice_.fetchval("select 1") == 1
    with pytest.raises(DatabaseUnavailable):
        async with open_connection(as_slice(where, NAMES)):
            pass


async def test_what_is_not_this_slices_is_never_touched(where: DatabaseSettings) -> None:
    owner, stranger = uuid4(), uuid4()
    await make(where, NAMES, owner)
    for attempt in (ensure_roles(where, NAMES, "d" * 64, stranger), ensure_database(where, NAMES, stranger)):
        with pytest.raises(Refused) as caught:
            await attempt
        assert caught.value.code == "conflict"
    await drop_database(where, NAMES, stranger)
    await drop_roles(where, NAMES, stranger)
    assert await slice_databases.exists(where, NAMES, stranger) == []
    assert await slice_databases.exists(where, NAMES, owner) == [DATABASE, f"role {NAMES.role}", f"role {NAMES.owner}"]
    async with open_connection(as_slice(where, NAMES)) as slice_:
        assert await slice_.fetchval("select 1") == 1


@pytest.mark.parametrize(
    "statement",
    [
        f"create role {NAMES.role} login",
        f"create role {NAMES.owner}",
        f"create role {NAMES.owner}; comment on role {NAMES.owner} is 'my own'",
    ],
)
async def test_a_role_somebody_made_is_left_alone(where: DatabaseSettings, statement: str) -> None:
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute(statement)
    with pytest.raises(Refused):
        await ensure_roles(where, NAMES, PASSWORD, uuid4())
    assert len(await slice_databases.exists(where, NAMES)) == 1, "and nothing else was made"


async def test_a_database_somebody_made_is_left_alone(where: DatabaseSettings) -> None:
    uuid = uuid4()
    await ensure_roles(where, NAMES, PASSWORD, uuid)
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute(f"create database {NAMES.database}")
    with pytest.raises(Refused):
        await ensure_database(where, NAMES, uuid)
    await drop_database(where, NAMES, uuid)
    assert DATABASE in await slice_databases.exists(where, NAMES)
    assert DATABASE not in await slice_databases.exists(where, NAMES, uuid)


async def test_a_database_made_just_before_a_crash_is_gone_on_with(where: DatabaseSettings) -> None:
    uuid = uuid4()
    await ensure_roles(where, NAMES, PASSWORD, uuid)
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute(f"create database {NAMES.database} owner {NAMES.owner} allow_connections false")
    assert DATABASE in await slice_databases.exists(where, NAMES, uuid)
    await ensure_database(where, NAMES, uuid)
    await ensure_schema(where, NAMES)
    async with open_connection(as_slice(where, NAMES)) as slice_:
        assert await slice_.fetchval("select 1") == 1
    async with open_connection(where, as_admin=True) as admin:
        mark = await admin.fetchval(
            "select shobj_description(oid, 'pg_database') from pg_database where datname = $1", NAMES.database
        )
    assert mark == str(uuid)


async def test_all_goes_again_and_going_can_be_repeated(where: DatabaseSettings) -> None:
    uuid = uuid4()
    await make(where, NAMES, uuid)
    for _ in range(2):
        await drop_database(where, NAMES, uuid)
        await drop_roles(where, NAMES, uuid)
        assert await slice_databases.exists(where, NAMES) == []
    await make(where, NAMES, uuid4())


async def test_a_database_goes_while_clients_connect_again_and_again(where: DatabaseSettings) -> None:
    uuid = uuid4()
    await make(where, NAMES, uuid)
    connected = trio.Event()

    async def connect() -> None:
        while True:
            try:
                async with open_connection(as_slice(where, NAMES)) as slice_:
                    connected.set()
                    await slice_.execute("select pg_sleep(60)")
            except DatabaseUnavailable:
                await trio.lowlevel.checkpoint()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(connect)
            await connected.wait()
            await drop_database(where, NAMES, uuid)
            await drop_roles(where, NAMES, uuid)
            nursery.cancel_scope.cancel()
    assert await slice_databases.exists(where, NAMES) == []


async def test_the_gateways_own_role_makes_no_databases(where: DatabaseSettings, database: Database) -> None:
    alone = replace(where, admin_user=where.user, admin_password=where.password)
    with pytest.raises(NotPermitted):
        await ensure_roles(alone, NAMES, PASSWORD, uuid4())
    assert await slice_databases.exists(where, NAMES) == []


@pytest.fixture
async def modest(where: DatabaseSettings) -> AsyncIterator[Connection]:
    """A connection of an admin that may create roles and databases and is no superuser."""
    async with open_connection(where, as_admin=True) as superuser:
        await superuser.execute("create role modest createdb createrole")
        try:
            yield superuser
        finally:
            with trio.fail_after(10) as scope:
                scope.shield = True
                await superuser.execute("reset role")
                await drop_database(where, NAMES)
                await drop_roles(where, NAMES)
                await superuser.execute("drop owned by modest; drop role modest")


async def test_an_admin_that_is_no_superuser_is_enough(
    where: DatabaseSettings, modest: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The access rules of the tests' server admit only its superuser, so that one becomes the modest admin."""
    uuid = uuid4()
    await modest.execute(f"alter role {where.admin_user} set role modest")
    try:
        await make(where, NAMES, uuid)
        await make(where, NAMES, uuid)
        async with open_connection(as_slice(where, NAMES)) as slice_:
            async with open_connection(where, as_admin=True) as admin:
                assert await admin.fetchval("select current_user") == "modest"
            await drop_database(where, NAMES, uuid)
            with pytest.raises(DatabaseUnavailable):
                await slice_.fetchval("select 1")
        await drop_roles(where, NAMES, uuid)
        assert await slice_databases.exists(where, NAMES) == []
    finally:
        await modest.execute(f"alter role {where.admin_user} reset role")
