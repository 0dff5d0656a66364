"""Somebody has the log-in of one slice and tries everything: on another slice, the gateway, the catalogues, the server.

What PostgreSQL can not refuse stands here too, with the reason why it does no harm to anybody else.
"""

import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from queunir_trio.model.slices import names_of
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slice_sessions
from queunir_trio.store.bridge import (
    Connection,
    DatabaseUnavailable,
    LoginRefused,
    NotPermitted,
    open_connection,
)
from queunir_trio.store.migrations import migrate
from queunir_trio.store.slice_databases import (
    CONNECTIONS_AT_MOST,
    drop_database,
    drop_roles,
    ensure_database,
    ensure_roles,
    ensure_schema,
)

MINE, THEIRS = names_of(73, Path("/nowhere")), names_of(74, Path("/nowhere"))
CANARY = f"canary-{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway and two slices; `mine` is what the intruder holds."""

    gateway: DatabaseSettings
    mine: DatabaseSettings
    theirs: DatabaseSettings

    @asynccontextmanager
    async def intruder(self) -> AsyncIterator[Connection]:
        async with open_connection(self.mine) as connection:
            yield connection


@pytest.fixture
async def place(asyncio_open: None, empty_database_settings: DatabaseSettings) -> AsyncIterator[Place]:
    where = empty_database_settings
    await migrate(where)
    passwords = secrets.token_hex(32), secrets.token_hex(32)
    try:
        for names, password in zip((MINE, THEIRS), passwords, strict=True):
            uuid = uuid4()
            await ensure_roles(where, names, password, uuid)
            await ensure_database(where, names, uuid)
            await ensure_schema(where, names)
        mine, theirs = (
            replace(where, name=names.database, user=names.role, password=password)
            for names, password in zip((MINE, THEIRS), passwords, strict=True)
        )
        yield Place(where, mine, theirs)
    finally:
        with trio.fail_after(20) as scope:
            scope.shield = True
            await _clear(where)


async def _clear(where: DatabaseSettings) -> None:
    for names in (MINE, THEIRS):
        await drop_database(where, names)
        await drop_roles(where, names)


async def accepted(connection: Connection, statements: Iterable[str]) -> list[str]:
    """Those of the statements that are not refused for want of a right."""
    found = []
    for statement in statements:
        try:
            await connection.execute(statement)
        except NotPermitted:
            continue
        except Exception as error:  # noqa: BLE001 - another error is no refusal: the test shows which it was
            found.append(f"{statement}: {type(error).__name__}: {error}")
            continue
        found.append(statement)
    return found


async def test_another_database_is_not_entered(place: Place) -> None:
    for database in (THEIRS.database, place.gateway.name, "postgres", "template1"):
        with pytest.raises(LoginRefused):
            async with open_connection(place.mine, database=database):
                raise AssertionError(f"{MINE.role} entered {database}")
    with pytest.raises(DatabaseUnavailable, match=r"pg_hba|template0"):
        async with open_connection(place.mine, database="template0"):
            raise AssertionError("template0 was entered")


async def test_nobody_else_is_impersonated(place: Place) -> None:
    """Not the owner, not the neighbour, not the gateway, not the admin: not with this password, not with any."""
    for user, database in (
        (MINE.owner, MINE.database),
        (MINE.owner, MINE.owner),
        (THEIRS.role, THEIRS.database),
        (THEIRS.role, MINE.database),
        (THEIRS.owner, THEIRS.database),
        (place.gateway.user, place.gateway.name),
        (place.gateway.user, MINE.database),
        (place.gateway.admin_user, place.gateway.name),
        (place.gateway.admin_user, MINE.database),
    ):
        for password in (place.mine.password, ""):
            with pytest.raises(DatabaseUnavailable):
                async with open_connection(replace(place.mine, user=user, password=password), database=database):
                    raise AssertionError(f"{user} entered {database}")


async def test_its_rights_alone_would_keep_it_out_of_the_others(place: Place) -> None:
    """The access rules are one wall; the rights on each database are the second, should somebody loosen the first."""
    async with open_connection(place.gateway, as_admin=True) as admin:
        for database in (THEIRS.database, place.gateway.name):
            for right in ("connect", "create", "temp"):
                assert not await admin.fetchval("select has_database_privilege($1, $2, $3)", MINE.role, database, right)
        assert not await admin.fetchval("select has_database_privilege($1, $2, 'temp')", MINE.role, MINE.database)
        memberships = "select count(*) from pg_auth_members m join pg_roles r on r.oid = m.member where r.rolname = $1"
        assert await admin.fetchval(memberships, MINE.role) == 0
        attributes = await admin.fetchrow(
            "select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls "
            "from pg_roles where rolname = $1",
            MINE.role,
        )
        assert attributes is not None
        assert not any(attributes)


async def test_the_role_can_not_be_left(place: Place) -> None:
    async with place.intruder() as intruder:
        others = (MINE.owner, THEIRS.role, THEIRS.owner, place.gateway.user, place.gateway.admin_user)
        assert not await accepted(intruder, [f"set role {role}" for role in others])
        assert not await accepted(intruder, [f"set session authorization {role}" for role in others])
        assert not await accepted(intruder, [f"grant {role} to {MINE.role}" for role in others])
        assert not await accepted(intruder, [f"reassign owned by {role} to {MINE.role}" for role in others])
        assert not await accepted(intruder, [f"drop owned by {role}" for role in others])
        assert not await accepted(intruder, ["grant pg_read_all_data, pg_monitor to current_user"])


async def test_roles_are_neither_made_nor_changed(place: Place) -> None:
    async with place.intruder() as intruder:
        assert not await accepted(
            intruder,
            [
                "create role x",
                f"drop role {THEIRS.role}",
                f"alter role {THEIRS.role} password 'x'",
                f"alter role {THEIRS.role} set statement_timeout = 1",
                f"alter role {THEIRS.role} nologin",
                f"alter role {place.gateway.user} password 'x'",
                "alter role all set statement_timeout = 1",
                *(
                    f"alter role {MINE.role} {attribute}"
                    for attribute in (
                        "superuser", "createrole", "createdb", "replication", "bypassrls", "nologin",
                        "connection limit -1", "valid until 'infinity'", "set temp_file_limit = -1",
                    )
                ),
                f"comment on role {MINE.role} is 'another slice'",
                f"comment on role {THEIRS.role} is 'another slice'",
            ],
        )  # fmt: skip


async def test_databases_are_neither_made_nor_changed(place: Place) -> None:
    async with place.intruder() as intruder:
        assert not await accepted(
            intruder,
            [
                "create database x",
                "create database x template template1",
                f"drop database {THEIRS.database}",
                f"drop database {THEIRS.database} with (force)",
                f"drop database {place.gateway.name}",
                f"alter database {MINE.database} set work_mem = '1GB'",
                f"alter database {MINE.database} connection limit 1",
                f"alter database {MINE.database} allow_connections false",
                f"alter database {MINE.database} owner to {MINE.role}",
                f"alter database {THEIRS.database} connection limit 0",
                f"comment on database {MINE.database} is 'another slice'",
                f"grant all on database {THEIRS.database} to current_user",
                f"grant all on database {place.gateway.name} to current_user",
                "create tablespace x location '/tmp'",
                f"alter database {MINE.database} set tablespace pg_default",
            ],
        )
        # said with a warning and of no effect
        await intruder.execute(f"grant all on database {MINE.database} to public")
    async with open_connection(place.gateway, as_admin=True) as admin:
        acl = await admin.fetchval("select datacl::text from pg_database where datname = $1", MINE.database)
        assert "{=" not in acl
        assert ",=" not in acl
        assert not await admin.fetchval("select has_database_privilege($1, $2, 'connect')", MINE.role, THEIRS.database)


async def test_its_own_tables_keep_their_form(place: Place) -> None:
    async with place.intruder() as intruder:
        assert not await accepted(
            intruder,
            [
                "drop table contacts",
                "truncate contacts",
                "alter table contacts add mine int",
                "alter table contacts disable trigger all",
                "create index on contacts (id)",
                "create trigger x before insert on contacts execute function suppress_redundant_updates_trigger()",
                "create rule x as on insert to contacts do instead nothing",
                "create policy x on contacts",
                "comment on table contacts is 'x'",
                "create table mine ()",
                "create temp table mine ()",
                "create temp sequence mine",
                "create view mine as select 1",
                "create type mine as (n int)",
                "create function mine() returns int language sql as 'select 1'",
                "create schema mine",
                "drop schema public cascade",
                "create cast (int as text) with inout",
                "create publication mine",
                "create subscription mine connection 'dbname=postgres' publication mine with (connect = false)",
                "create event trigger mine on ddl_command_start execute function now()",
                "create foreign data wrapper mine",
                "create statistics mine on id, name from chats",
                "insert into schema_migrations values ('9999')",
                "update schema_migrations set version = 'x'",
                "delete from schema_migrations",
                "truncate schema_migrations",
                f"reindex system {MINE.database}",
                f"reindex database {MINE.database}",
            ],
        )
        await intruder.execute("grant all on contacts to public")  # of no effect: it owns nothing
        assert not await intruder.fetchval(
            "select exists (select from pg_class, aclexplode(relacl) a where relname = 'contacts' and a.grantee = 0)"
        )


async def test_files_programs_and_the_network_are_out_of_reach(place: Place) -> None:
    async with place.intruder() as intruder:
        assert not await accepted(
            intruder,
            [
                "copy contacts to program 'cat'",
                "copy contacts from program 'id'",
                "copy contacts to '/tmp/stolen'",
                "copy contacts from '/etc/passwd'",
                "select pg_read_file('/etc/passwd')",
                "select pg_read_binary_file('global/pg_control')",
                "select pg_stat_file('base')",
                "select pg_ls_dir('.')",
                "select pg_ls_logdir()",
                "select pg_ls_waldir()",
                "select pg_current_logfile()",
                "select lo_import('/etc/passwd')",
                "select lo_export(1, '/tmp/stolen')",
                "load 'auto_explain'",
                "create extension dblink",
                "create extension postgres_fdw",
                "create extension pg_trgm",
                "create extension file_fdw",
                "alter system set work_mem = '1GB'",
                "checkpoint",
                "select pg_reload_conf()",
                "select pg_rotate_logfile()",
                "select pg_switch_wal()",
                "select pg_promote()",
                "select pg_create_restore_point('x')",
                "select pg_create_physical_replication_slot('x')",
                "select pg_create_logical_replication_slot('x', 'pgoutput')",
                "select pg_drop_replication_slot('x')",
                "select pg_replication_origin_create('x')",
                "select pg_stat_reset()",
                "select pg_stat_reset_shared('bgwriter')",
                "select pg_log_backend_memory_contexts(1)",
            ],
        )


async def test_passwords_and_settings_of_the_server_are_not_read(place: Place) -> None:
    async with place.intruder() as intruder:
        assert not await accepted(
            intruder,
            [
                "select * from pg_authid",
                "select * from pg_shadow",
                "select rolpassword from pg_authid where rolname = current_user",
                "table pg_user_mapping",
                "select subconninfo from pg_subscription",
                "table pg_largeobject",
                "table pg_file_settings",
                "table pg_hba_file_rules",
                "table pg_config",
                "show hba_file",
                "show data_directory",
                "show config_file",
                "table pg_statistic",
                "table pg_statistic_ext_data",
                "update pg_database set datallowconn = false",
                "delete from pg_authid",
                "select 1 from pg_database for update",
            ],
        )
        assert await intruder.fetchval("select bool_and(rolpassword = '********') from pg_roles")
        for lock in ("pg_database in exclusive mode", "pg_authid in access share mode"):
            with pytest.raises(NotPermitted):
                async with intruder.transaction():
                    await intruder.execute(f"lock table {lock}")


async def test_what_others_do_is_not_seen_and_not_disturbed(place: Place) -> None:
    async with (
        place.intruder() as intruder,
        open_connection(place.theirs) as neighbour,
        open_connection(place.gateway) as gateway,
    ):
        for other in (neighbour, gateway):
            await other.execute(f"select '{CANARY}'")
        shown = await intruder.fetch("select * from pg_stat_activity where usename is distinct from current_user")
        assert shown, "that there are others is seen"
        for row in shown:
            assert CANARY not in str(tuple(row))
            assert row["query"] in ("<insufficient privilege>", "", None)
            assert row["client_addr"] is None
        pids = "from pg_stat_activity where usename is distinct from current_user"
        for function in ("pg_terminate_backend", "pg_cancel_backend"):
            for row in await intruder.fetch(f"select pid {pids} and usename is not null"):
                assert not await accepted(intruder, [f"select {function}({row['pid']})"])
        for other in (neighbour, gateway):
            assert await other.fetchval("select 1") == 1
        assert not await accepted(
            intruder,
            [
                f"select pg_database_size('{THEIRS.database}')",
                f"select pg_database_size('{place.gateway.name}')",
            ],
        )


async def test_notifications_and_locks_stay_in_their_own_database(place: Place) -> None:
    heard: list[str] = []
    async with (
        place.intruder() as intruder,
        open_connection(place.theirs) as neighbour,
        open_connection(place.gateway) as gateway,
    ):
        await gateway.listen("gateway", heard.append)
        await neighbour.listen("gateway", heard.append)
        await intruder.execute("notify gateway, 'forged'; select pg_notify('gateway', 'forged')")
        await intruder.execute("select pg_advisory_lock(n) from generate_series(7161000, 7161010) n")
        for other in (gateway, neighbour):
            assert await other.fetchval("select pg_try_advisory_lock(7161001)"), "the same number is another lock"
        # each of the two would have heard it by the answer to a later statement
        await gateway.execute("notify gateway, 'real'")
        with trio.fail_after(5):
            while "real" not in heard:
                await gateway.execute("select 1")
        await neighbour.execute("select 1")
    assert heard == ["real"]


async def test_limits_hold(place: Place) -> None:
    async with place.intruder() as intruder:
        assert await intruder.fetchval("show statement_timeout") == "1min"
        assert await intruder.fetchval("show idle_in_transaction_session_timeout") == "1min"
        assert await intruder.fetchval("show temp_file_limit") == "1GB"
        assert not await accepted(intruder, ["set temp_file_limit = -1", "set temp_file_limit = '2GB'"])
        assert not await accepted(
            intruder, ["set log_statement = 'none'", "set log_min_messages = 'panic'", "set track_activities = off"]
        )
        with pytest.raises(Exception, match="prepared transactions are disabled"):
            async with intruder.transaction():
                await intruder.execute("prepare transaction 'kept for ever'")
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS_AT_MOST - 1):
                await nursery.start(_hold, place.mine)
            with pytest.raises(DatabaseUnavailable, match="too many connections"):
                async with place.intruder():
                    raise AssertionError("one more than may be was let in")
            async with open_connection(place.theirs) as neighbour:
                assert await neighbour.fetchval("select 1") == 1
            nursery.cancel_scope.cancel()


async def _hold(where: DatabaseSettings, task_status: trio.TaskStatus[None]) -> None:
    async with open_connection(where):
        task_status.started()
        await trio.sleep_forever()


async def test_what_can_not_be_refused_harms_only_itself(place: Place) -> None:
    """PostgreSQL lets every role do this; each time it is the slice's own loss, and can be set right."""
    async with place.intruder() as intruder:
        await intruder.execute(f"alter role {MINE.role} set statement_timeout = 0")
        await intruder.execute(f"alter role {MINE.role} reset all")
        await intruder.execute("select lo_create(0)")  # lies in its own database and goes with it
        await intruder.execute("set statement_timeout = 0; set work_mem = '1GB'; set application_name = 'gateway'")
        names = await intruder.fetch("select datname from pg_database")
        assert THEIRS.database in {row[0] for row in names}, "a name that holds a number and nothing else"
        await intruder.execute("drop owned by current_user")  # gives back what it may do here
        await intruder.execute(f"alter role {MINE.role} password 'its own'")
    with pytest.raises(DatabaseUnavailable):
        async with place.intruder():
            raise AssertionError("it locked itself out")
    async with open_connection(place.theirs) as neighbour:
        await neighbour.execute("insert into user_settings (key) values ('x')")
        assert await neighbour.fetchval("show statement_timeout") == "1min"
        assert await neighbour.fetchval("select setconfig::text from pg_db_role_setting s, pg_roles r "
                                        "where r.oid = s.setrole and r.rolname = current_user") is not None  # fmt: skip


async def test_temporary_files_stay_limited_whatever_it_resets(place: Place) -> None:
    """The limit is for a superuser to change; a role that resets all its settings keeps it."""
    async with place.intruder() as intruder:
        await intruder.execute(f"alter role {MINE.role} reset all")
    async with place.intruder() as intruder:
        assert await intruder.fetchval("show temp_file_limit") == "1GB"


async def test_a_limit_that_a_slice_lifts_is_kept_by_the_gateway(place: Place) -> None:
    async with open_connection(place.theirs) as neighbour, trio.open_nursery() as nursery:

        async def go_on(intruder: Connection, statements: list[str]) -> None:
            for statement in statements:
                await intruder.execute(statement)
            while True:
                await trio.sleep(0.05)
                await intruder.execute("select 1")

        async def overstay(statements: list[str]) -> None:
            async with place.intruder() as intruder:
                with pytest.raises(DatabaseUnavailable):
                    await go_on(intruder, statements)
                ended.append(statements[-1])

        ended: list[str] = []
        lifted = "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0"
        nursery.start_soon(overstay, [lifted, "select pg_sleep(600)"])
        nursery.start_soon(overstay, [lifted, "select count(pg_advisory_lock(n)) from generate_series(1, 3000) n"])
        nursery.start_soon(overstay, ["begin", "listen x"])
        await neighbour.execute("begin; select pg_advisory_lock(1)")
        limits = slice_sessions.Limits(statement=0.3, idle=0.3, transaction=0.3, locks=2000)
        with trio.fail_after(20):
            while len(ended) < 3:
                await trio.sleep(0.1)
                await neighbour.execute("commit; begin; select 1")
                for session in await slice_sessions.end_overlong(place.gateway, limits):
                    assert session.role == MINE.role
    assert len(ended) == 3
