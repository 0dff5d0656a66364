"""Slices of an older deployment move to roles of their own: nothing is lost, and nobody is locked out on the way."""

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Slice, Status, derived_secret, port_of
from queunir_trio.operations import isolating
from queunir_trio.operations.isolating import Move
from queunir_trio.outside.embedded_postgres import DatabaseServer
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store import isolation, slice_databases, slices
from queunir_trio.store.bridge import (
    Connection,
    Database,
    DatabaseUnavailable,
    LoginRefused,
    NotPermitted,
    open_connection,
)
from queunir_trio.store.leadership import leadership

CONTENT = (Path(__file__).parent / "old_slice_database.sql").read_text(encoding="utf-8")
OLD, REPORTER = "old_shared", "old_reporter"
PASSWORD = "the-one-password-of-all-slices"
NUMBERS = (61, 62, 63)
BASE_PORT = 5001
SECRET = "s" * 32
SETTINGS = SliceSettings("docker", "image", None, BASE_PORT, 0, 80, SECRET)

Facts = dict[str, Any]


@dataclass
class Deployment:
    """Slices as the older gateway left them, and the settings of all who log in."""

    move: Move
    where: DatabaseSettings
    slices: dict[int, Slice] = field(default_factory=dict)

    def shared(self, num: int) -> DatabaseSettings:
        return replace(self.where, name=f"wa_slice_{num}", user=OLD, password=PASSWORD)

    def own(self, num: int) -> DatabaseSettings:
        password = derived_secret(SECRET, "database", self.slices[num].uuid)
        return replace(self.where, name=f"wa_slice_{num}", user=f"wa_slice_{num}", password=password)

    def restarting(self, deed: Callable[[int], Awaitable[None]]) -> Move:
        return replace(self.move, restart=deed, back_within=20)


@pytest.fixture
async def old(database: Database, database_settings: DatabaseSettings, postgres: DatabaseServer, tmp_path: Path) -> Any:
    """Three adopted slices, the first with all that a database can hold; the shared role is let in everywhere."""
    where = database_settings
    deployment = Deployment(Move(database, where, SETTINGS, tmp_path, OLD), where)
    async with _let_in(where, postgres), open_connection(where, as_admin=True) as admin:
        await admin.execute(f"create role {OLD} login password '{PASSWORD}'; create role {REPORTER}")
        try:
            for num in NUMBERS:
                await admin.execute(f"create database wa_slice_{num} owner {OLD} template template0")
                slice_ = await slices.add(database, num=num, base_port=BASE_PORT, status=Status.ASSIGNED)
                deployment.slices[num] = slice_
                await admin.execute(f"comment on database wa_slice_{num} is '{slice_.uuid}'")
            async with open_connection(deployment.shared(61)) as connection:
                await connection.execute(CONTENT)
            async with open_connection(where, as_admin=True, database="wa_slice_61") as superuser:
                await superuser.execute("create table of_an_operator (n int); insert into of_an_operator values (1)")
                await superuser.execute(f"grant select, insert on of_an_operator to {OLD}")
            yield deployment
        finally:
            with trio.fail_after(30) as scope:
                scope.shield = True
                await _clear(admin)


async def _clear(admin: Connection) -> None:
    for num in NUMBERS:
        await admin.execute(f"drop database if exists wa_slice_{num} with (force)")
    await admin.execute("drop database if exists reports with (force)")
    rows = await admin.fetch(
        "select quote_ident(rolname) from pg_roles where rolname ~ '^wa_slice_6[123]' or rolname ~ '^old_' "
        "order by rolname ~ 'owner$'"
    )
    for row in rows:
        await admin.execute(f"drop role {row[0]}")


@asynccontextmanager
async def _let_in(where: DatabaseSettings, server: DatabaseServer) -> AsyncIterator[None]:
    """The access rules of an older deployment: the shared role may go wherever its rights let it."""
    rules = Path(server.host).parent / "pg_hba.conf"
    before = rules.read_text()
    try:
        await _set_rules(where, rules, f"{before}local all {OLD},{REPORTER} scram-sha-256\n")
        yield
    finally:
        with trio.CancelScope(shield=True):
            with trio.fail_after(10):
                await _set_rules(where, rules, before)


async def _set_rules(where: DatabaseSettings, rules: Path, text: str) -> None:
    rules.write_text(text)  # noqa: ASYNC240 - a few bytes; the file stays the server's own
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute("select pg_reload_conf()")


async def facts(where: DatabaseSettings, num: int) -> Facts:
    """All rows of all tables as checksums, and how everything is defined and where it lies on the disk."""
    async with open_connection(where, as_admin=True, database=f"wa_slice_{num}") as admin:
        tables = await admin.fetch(
            "select format('%I.%I', schemaname, tablename) from pg_tables "
            "where schemaname not in ('pg_catalog', 'information_schema') order by 1"
        )
        rows = {}
        for (table,) in tables:
            found = await admin.fetchrow(
                f"select count(*), md5(string_agg(t::text, '|' order by t::text)) from {table} t"
            )
            assert found is not None
            rows[table] = tuple(found)
        definitions = await admin.fetch(
            """
            select 'relation ' || oid::regclass, relkind::text || relfilenode from pg_class where oid > 16383
            union all select 'function ' || oid::regprocedure, prosrc from pg_proc where oid > 16383
            union all select 'constraint ' || conname, pg_get_constraintdef(oid) from pg_constraint where oid > 16383
            union all select 'type ' || oid::regtype, typtype::text from pg_type where oid > 16383
            union all select 'trigger ' || tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
            union all select 'extension ' || extname, extversion from pg_extension
            union all select 'large object ' || loid, encode(data, 'hex') from pg_largeobject
            union all select 'sequence ' || schemaname || sequencename, last_value::text from pg_sequences
            order by 1, 2
            """
        )
    return {"rows": rows, "definitions": [tuple(row) for row in definitions]}


async def owners(where: DatabaseSettings, num: int) -> dict[str, int]:
    """How many things in the database each role owns, as the server counts them."""
    async with open_connection(where, as_admin=True) as admin:
        rows = await admin.fetch(
            """
            select pg_get_userbyid(s.refobjid)::text, count(*) from pg_shdepend s join pg_database d on d.oid = s.dbid
            where d.datname = $1 and s.deptype = 'o' and s.refclassid = 'pg_authid'::regclass
              and s.classid <> 'pg_default_acl'::regclass
            group by 1
            """,
            f"wa_slice_{num}",
        )
    return {row[0]: row[1] for row in rows}


async def work(connection: Connection, name: str) -> None:
    """What an older backend does all day, and what it does when it starts."""
    await connection.execute("insert into messages (contact_id, body) values (1, 'while it was moved')")
    await connection.execute("update contacts set mood = 'sad' where id = 1")
    await connection.execute("select shout('x'), nextval('numbers'), lo_get(4711); select * from glad")
    await connection.execute("insert into of_an_operator values (2)")
    await connection.execute("create table if not exists contacts (id int)")
    await connection.execute(f"alter table contacts add column if not exists {name} text")
    await connection.execute(f"create table {name} (id serial primary key); create temp table t_{name} (n int)")
    await connection.execute("refresh materialized view totals; truncate extra.import_9")
    await connection.execute(f"create function {name}() returns int language sql as 'select 1'")


async def test_a_running_slice_is_prepared_without_losing_anything_for_a_moment(old: Deployment) -> None:
    """It works without a pause, on an old connection and on new ones, while everything is handed over."""
    where, stop, rounds = old.where, trio.Event(), 0
    before = await facts(where, 62)

    async def carry_on() -> None:
        nonlocal rounds
        async with open_connection(old.shared(61)) as lasting:
            while not stop.is_set():
                async with open_connection(old.shared(61)) as fresh:
                    await work(fresh, f"fresh_{rounds}")
                await work(lasting, f"lasting_{rounds}")
                rounds += 1

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry_on)
            while rounds < 1:
                await trio.sleep(0.01)
            moved = await isolating.isolate(old.move, old.slices[61])
            seen = rounds
            while rounds < seen + 2:
                await trio.sleep(0.01)
            stop.set()
    assert moved.state == "prepared"
    assert (await facts(where, 62)) == before, "the neighbours were not touched"
    async with open_connection(where, as_admin=True) as admin:
        assert (
            await admin.fetchval("select datdba::regrole::text from pg_database where datname = 'wa_slice_62'") == OLD
        )
    async with open_connection(old.own(61)) as own:
        await work(own, "as_itself")


async def test_nothing_in_a_database_changes_but_its_owner(old: Deployment) -> None:
    before = await facts(old.where, 61)
    assert (await owners(old.where, 61))[OLD] > 250
    await isolating.isolate(old.move, old.slices[61])
    assert await facts(old.where, 61) == before
    found = await owners(old.where, 61)
    assert OLD not in found
    assert found["wa_slice_61_owner"] > 250


async def test_a_slice_that_is_started_anew_takes_its_own_role_and_the_shared_one_is_shut_out(old: Deployment) -> None:
    before = await facts(old.where, 61)
    async with trio.open_nursery() as nursery:

        async def live(num: int) -> None:
            async with open_connection(old.own(num)) as own:
                # the gateway's own connections do not count as the slice's
                await own.execute("set application_name = 'a slice'")
                await trio.sleep_forever()

        async def restart(slice_id: int) -> None:
            assert slice_id == old.slices[61].id
            nursery.start_soon(live, 61)

        async with open_connection(old.shared(61)) as left_behind:
            await left_behind.execute("create temp table t (n int); create table made_late (n int)")
            with trio.fail_after(60):
                moved = await isolating.isolate(old.restarting(restart), old.slices[61])
            assert (moved.state, moved.left) == ("isolated", [])
            with pytest.raises(DatabaseUnavailable):
                await left_behind.execute("select 1")
        nursery.cancel_scope.cancel()
    with pytest.raises(NotPermitted):
        async with open_connection(old.shared(61)):
            raise AssertionError("the shared role is shut out")
    assert OLD not in await owners(old.where, 61)
    after = await facts(old.where, 61)
    assert after["rows"].pop("public.made_late") == (0, None)
    assert after["rows"] == before["rows"]
    async with open_connection(old.own(61)) as own:
        await work(own, "as_itself")
    async with open_connection(old.shared(62)) as neighbour:
        assert await neighbour.fetchval("select 1") == 1, "those that were not moved yet go on"


async def test_a_slice_that_does_not_come_back_keeps_the_shared_role(old: Deployment) -> None:
    async def restart(slice_id: int) -> None:
        pass

    move = replace(old.restarting(restart), back_within=0.5)
    moved = await isolating.isolate(move, old.slices[62])
    assert moved.state == "prepared"
    async with open_connection(old.shared(62)) as connection:
        await connection.execute("create table still_mine (n int)")


async def test_what_an_operator_granted_the_shared_role_and_what_new_tables_are_born_with_stays(
    old: Deployment,
) -> None:
    await isolating.isolate(old.move, old.slices[61])
    async with open_connection(old.own(61)) as own:
        await own.execute("insert into of_an_operator values (3)")
        await own.execute("create table extra.new_one (n int); create function new_one() returns int return 1")
        for role, may in ((REPORTER, True), ("wa_slice_62", None)):
            if may is not None:
                assert await own.fetchval("select has_table_privilege($1, 'extra.new_one', 'select')", role)
                assert await own.fetchval("select has_table_privilege($1, 'contacts', 'select')", role)
                assert await own.fetchval("select has_function_privilege($1, 'new_one()', 'execute')", role)
        assert not await own.fetchval(
            "select exists (select from pg_proc p, aclexplode(proacl) a where proname = 'new_one' and grantee = 0)"
        )
        assert await own.fetchval("select tableowner from pg_tables where tablename = 'new_one'") == "wa_slice_61_owner"


async def test_a_busy_table_is_waited_for_and_never_kept_from_the_slice(old: Deployment) -> None:
    """The slice holds a table for longer than we wait for a lock, and goes on using another one meanwhile."""
    async with open_connection(old.shared(61)) as slice_, trio.open_nursery() as nursery:
        done: list[isolating.Moved] = []

        async def move() -> None:
            done.append(await isolating.isolate(old.move, old.slices[61]))

        with trio.fail_after(60):
            async with slice_.transaction():
                await slice_.execute("lock table messages in access exclusive mode")
                nursery.start_soon(move)
                async with open_connection(old.where, as_admin=True) as admin:
                    while not await admin.fetchval(
                        "select exists (select from pg_stat_activity "
                        "where wait_event_type = 'Lock' and datname = 'wa_slice_61')"
                    ):
                        await trio.sleep(0.01)
                async with open_connection(old.shared(61)) as another:
                    await another.execute("set statement_timeout = '900ms'")
                    for _ in range(5):
                        await another.execute("update contacts set mood = 'sad'")
                await slice_.execute("select pg_sleep(0.7)")
            while not done:
                await trio.sleep(0.01)
    assert done[0].state == "prepared"


@pytest.mark.parametrize(
    "step", ["ensure_roles", "keep_in", "take_database", "take_objects", "act_as_owner", "shut_out"]
)
async def test_a_move_that_was_cut_short_goes_on_where_it_ended(
    old: Deployment, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off right after each of its steps, twice; the shared role still enters until it is shut out on purpose."""
    before = await facts(old.where, 61)
    module: Any = slice_databases if step == "ensure_roles" else isolation
    carried_out = getattr(module, step)

    async def cut_short(*arguments: Any) -> None:
        await carried_out(*arguments)
        raise DatabaseUnavailable("cut short")

    async with trio.open_nursery() as nursery:

        async def restart(slice_id: int) -> None:
            nursery.start_soon(_stay, old.own(61))

        monkeypatch.setattr(module, step, cut_short)
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable, match="cut short"):
                await isolating.isolate(old.restarting(restart), old.slices[61])
            if step != "shut_out":
                async with open_connection(old.shared(61)) as connection:
                    await connection.execute("update contacts set mood = 'glad' where false")
            else:
                break  # a second time there is nobody left to be shut out
        monkeypatch.undo()
        moved = await isolating.isolate(old.restarting(restart), old.slices[61])
        nursery.cancel_scope.cancel()
    assert (moved.state, moved.left) == ("isolated", [])
    assert await facts(old.where, 61) == before


async def _stay(where: DatabaseSettings) -> None:
    async with open_connection(where) as connection:
        await connection.execute("set application_name = 'a slice'")
        await trio.sleep_forever()


async def test_looking_changes_nothing_and_tells_what_is_left(old: Deployment) -> None:
    for _ in range(2):
        seen = await isolating.look(old.move, old.slices[61])
        assert seen.state == "shared"
        assert [left.split()[0] for left in seen.left] == ["make", "make", "take", "let", "hand", "start"]
    await isolating.isolate(old.move, old.slices[61])
    seen = await isolating.look(old.move, old.slices[61])
    assert (seen.state, len(seen.left)) == ("prepared", 1)
    async with open_connection(old.where, as_admin=True) as admin:
        await admin.execute("drop database wa_slice_62")
    assert (await isolating.look(old.move, old.slices[62])).state == "missing"


async def test_a_slice_that_was_started_anew_by_hand_is_found_out(old: Deployment) -> None:
    assert (await isolating.isolate(old.move, old.slices[62])).state == "prepared"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stay, old.own(62))
        async with open_connection(old.shared(62)):
            with trio.fail_after(20):
                while (await isolation.look(old.where, old.move.names(old.slices[62]), OLD)).own_sessions == 0:  # type: ignore[union-attr]
                    await trio.sleep(0.01)
            assert (await isolating.isolate(old.move, old.slices[62])).state == "prepared", (
                "somebody comes as the old one"
            )
        with trio.fail_after(20):
            while (await isolating.isolate(old.move, old.slices[62])).state != "isolated":
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def test_rows_only_takes_what_a_slice_needs_no_more(old: Deployment) -> None:
    async with open_connection(old.where, as_admin=True) as admin:
        await isolating.isolate(old.move, old.slices[61])
        async with open_connection(old.own(61)) as as_owner:
            moved = await isolating.isolate(replace(old.move, rows_only=True), old.slices[61])
            assert "reads and writes rows" in moved.done[-1]
            with pytest.raises(DatabaseUnavailable):
                await as_owner.execute("drop table messages")
        async with open_connection(old.own(61)) as own:
            await own.execute(
                "insert into messages (contact_id, body) values (1, 'x'); update extra.kept set what = '{}'"
            )
            for statement in (
                "create table mine ()",
                "drop table messages",
                "create temp table t ()",
                "set role wa_slice_61_owner",
            ):
                with pytest.raises(NotPermitted):
                    await own.execute(statement)
        assert not await admin.fetchval("select pg_has_role('wa_slice_61', 'wa_slice_61_owner', 'member')")


async def test_what_the_owner_of_a_database_set_there_is_not_carried_out_by_the_admin(old: Deployment) -> None:
    """A slice that owned its database may have put functions under the names of PostgreSQL's own."""
    async with open_connection(old.shared(61)) as slice_:
        await slice_.execute(
            """
            create schema evil;
            create table evil.caught (who text);
            grant all on schema evil to public; grant all on evil.caught to public;
            create function evil.count(bigint) returns bigint language sql as
                $$ insert into evil.caught values (current_user); select 1::bigint $$;
            create function evil.quote_ident(text) returns text language sql volatile as
                $$ insert into evil.caught values (current_user); select pg_catalog.quote_ident($1) $$;
            create function evil.trap(oid, oid) returns bool language sql volatile as
                $$ insert into evil.caught values (current_user); select $1::int8 = $2::int8 $$;
            create operator evil.= (leftarg = oid, rightarg = oid, function = evil.trap);
            alter database wa_slice_61 set search_path = evil, pg_catalog, public;
            """
        )
    async with open_connection(old.where, as_admin=True, database="wa_slice_61", search_path="pg_catalog") as admin:
        await isolating.isolate(old.move, old.slices[61])
        await isolating.isolate(replace(old.move, rows_only=True), old.slices[61])
        assert await admin.fetchval("select count(*) from evil.caught") == 0
    async with open_connection(old.where, as_admin=True, database="wa_slice_61") as careless:
        await careless.execute("select quote_ident('x')")
        assert await careless.fetchval("select pg_catalog.count(*) from evil.caught") > 0, "the trap works"


async def test_a_database_of_another_slice_is_left_alone(old: Deployment) -> None:
    async with open_connection(old.where, as_admin=True) as admin:
        await admin.execute(f"comment on database wa_slice_61 is '{uuid4()}'")
        with pytest.raises(Refused) as caught:
            await isolating.isolate(old.move, old.slices[61])
        assert caught.value.code == "conflict"
        assert (
            await admin.fetchval("select datdba::regrole::text from pg_database where datname = 'wa_slice_61'") == OLD
        )
        assert not await admin.fetchval("select exists (select from pg_roles where rolname like 'wa_slice_61%')")


async def test_a_slice_that_acts_as_its_owner_can_not_pass_its_database_off_as_anothers(old: Deployment) -> None:
    slice_ = old.slices[62]
    names = old.move.names(slice_)
    await isolating.isolate(old.move, slice_)
    async with open_connection(old.own(62)) as own:
        await own.execute(f"comment on database wa_slice_62 is '{uuid4()}'")
    there = await slice_databases.exists(old.where, names, slice_.uuid)
    assert "database wa_slice_62" in there
    with pytest.raises(Refused, match="may change the tables"):
        await slice_databases.ensure_schema(old.where, names)
    async with open_connection(old.where, as_admin=True) as admin:
        await admin.execute(f"revoke wa_slice_62_owner from {OLD}")
    await slice_databases.drop_database(old.where, names, slice_.uuid)
    await slice_databases.drop_roles(old.where, names, slice_.uuid)
    assert await slice_databases.exists(old.where, names) == []


async def test_the_shared_role_goes_with_the_last_slice_and_not_before(old: Deployment) -> None:
    async with trio.open_nursery() as nursery:

        async def restart(slice_id: int) -> None:
            num = next(num for num, slice_ in old.slices.items() if slice_.id == slice_id)
            nursery.start_soon(_stay, old.own(num))

        every = await isolating.chosen(old.move.db, None)
        assert [slice_.port for slice_ in every] == [port_of(num, BASE_PORT) for num in NUMBERS]
        for slice_ in every:
            with pytest.raises(Refused, match="wa_slice_63"):
                await isolating.drop_shared_role(old.move)
            await isolating.isolate(old.restarting(restart), slice_)
        nursery.cancel_scope.cancel()
    async with open_connection(old.where, as_admin=True) as admin:
        await admin.execute(f"create database reports owner {OLD}")
        with pytest.raises(Refused, match="reports"):
            await isolating.drop_shared_role(old.move)
        await admin.execute("drop database reports")
        assert await isolating.drop_shared_role(old.move) is True
        assert not await admin.fetchval("select exists (select from pg_roles where rolname = $1)", OLD)
    assert await isolating.drop_shared_role(old.move) is None


async def test_what_can_not_be_moved_is_refused_by_name(old: Deployment) -> None:
    db = old.move.db
    await slices.move(db, old.slices[63].id, Status.DESTROYING)
    for wrong, code in ((9999, "no_such_slice"), (old.slices[63].id, "transition")):
        with pytest.raises(Refused) as caught:
            await isolating.chosen(db, [wrong])
        assert caught.value.code == code
    assert {found.id for found in await isolating.chosen(db, None)} == {old.slices[61].id, old.slices[62].id}


async def test_a_slice_made_by_this_gateway_gets_back_what_it_changed_of_its_role(old: Deployment) -> None:
    slice_ = await slices.add(old.move.db, num=64, base_port=BASE_PORT, status=Status.AVAILABLE)
    names = old.move.names(slice_)
    old.slices[64] = slice_
    try:
        password = derived_secret(SECRET, "database", slice_.uuid)
        await slice_databases.ensure_roles(old.where, names, password, slice_.uuid)
        await slice_databases.ensure_database(old.where, names, slice_.uuid)
        await slice_databases.ensure_schema(old.where, names)
        assert (await isolating.look(old.move, slice_)).state == "isolated"
        async with open_connection(old.own(64)) as own:
            await own.execute(
                "alter role wa_slice_64 set statement_timeout = 0; alter role wa_slice_64 password 'mine'"
            )
            await own.execute("drop owned by wa_slice_64")
        with pytest.raises(LoginRefused):
            async with open_connection(old.own(64)):
                raise AssertionError("it locked itself out")
        assert (await isolating.isolate(old.move, slice_)).state == "isolated"
        async with open_connection(old.own(64)) as own:
            assert await own.fetchval("show statement_timeout") == "1min"
            await own.execute("insert into user_settings (key) values ('x')")
            for statement in ("create table mine ()", "delete from schema_migrations", "set role wa_slice_64_owner"):
                with pytest.raises(NotPermitted):
                    await own.execute(statement)
    finally:
        with trio.CancelScope(shield=True):
            with trio.fail_after(20):
                await slice_databases.drop_database(old.where, names)
                await slice_databases.drop_roles(old.where, names)


async def test_two_at_once_is_one_too_many(old: Deployment) -> None:
    async with isolation.alone(old.where):
        with pytest.raises(Refused) as caught:
            async with isolation.alone(old.where):
                raise AssertionError("it is held already")
    assert caught.value.code == "in_use"
    async with isolation.alone(old.where):
        pass


async def test_a_gateway_that_leads_keeps_nobody_from_moving_slices(old: Deployment) -> None:
    with trio.fail_after(20):
        async with leadership(old.where), isolation.alone(old.where):
            pass


async def command(where: DatabaseSettings, *arguments: str) -> tuple[int, str]:
    """What `queunir-trio slice isolate` ends with and prints."""
    environment = {
        "DB_HOST": where.host,
        "DB_PORT": str(where.port),
        "DB_NAME": where.name,
        "DB_USER": where.user,
        "DB_PASSWORD": where.password,
        "DB_ADMIN_USER": where.admin_user,
        "DB_ADMIN_PASSWORD": where.admin_password,
        "ADMIN_KEY": "k" * 32,
        "SLICE_DB_PASSWORD": SECRET,
    }
    with trio.fail_after(60):
        done = await trio.run_process(
            [sys.executable, "-m", "queunir_trio", "slice", "isolate", *arguments],
            env={**os.environ, **environment},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    for secret in (PASSWORD, SECRET, derived_secret(SECRET, "database", uuid4())[:8], where.admin_password):
        assert secret.encode() not in done.stdout + done.stderr
    return done.returncode, done.stdout.decode()


async def test_the_command_checks_moves_and_tells_what_is_left(old: Deployment) -> None:
    arguments = ("--all", "--shared-role", OLD)
    code, told = await command(old.where, *arguments, "--check", "--json")
    assert code == 1
    assert [slice_["state"] for slice_ in json.loads(told)["slices"]] == ["shared"] * 3
    async with open_connection(old.where, as_admin=True) as admin:
        await admin.execute(f"comment on database wa_slice_63 is '{uuid4()}'")
        code, told = await command(old.where, *arguments, "--json")
        answer = json.loads(told)
        assert code == 1, "one of them could not be moved"
        assert [slice_["state"] for slice_ in answer["slices"]] == ["prepared"] * 2
        assert [failed["id"] for failed in answer["failed"]] == [old.slices[63].id]
        await admin.execute(f"comment on database wa_slice_63 is '{old.slices[63].uuid}'")
    code, told = await command(old.where, str(old.slices[63].id), "--shared-role", OLD)
    assert code == 0
    assert "started anew" in told
    await old.move.db.execute("update gateway.slices set status = 'suspended', wanted = 'stopped'")
    code, told = await command(old.where, *arguments, "--restart", "--drop-shared-role", "--json")
    answer = json.loads(told)
    assert (code, answer["shared_role"]["dropped"]) == (0, True)
    assert [slice_["state"] for slice_ in answer["slices"]] == ["isolated"] * 3, "those that rest need no restart"
    assert (await command(old.where, *arguments, "--check"))[0] == 0
    actions = await old.move.db.fetch("select action, count(*) from gateway.audit_log group by 1 order by 1")
    assert {row[0] for row in actions} == {"shared_role_drop", "slice_isolate"}
