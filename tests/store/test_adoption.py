"""The database of the older gateway, taken over: nothing is lost and nobody is logged out."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trio

from queunir_trio.model.accounts import token_hash
from queunir_trio.model.slices import Status
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, sessions, slices
from queunir_trio.store.bridge import Connection, Database, open_connection, open_database
from queunir_trio.store.migrations import migrate, migrations
from queunir_trio.store.roles import literal, quoted

OLD = (Path(__file__).parent / "old_database.sql").read_text(encoding="utf-8")
TABLES = ("users", "slices", "sessions", "telemetry", "server_telemetry", "alerts_sent")
FILES = [migration.name for migration in migrations("gateway")]
SLICE_DATABASES = ("wa_slice_1", "wa_slice_2")

Rows = list[dict[str, Any]]


@pytest.fixture
async def old(asyncio_open: None, empty_database_settings: DatabaseSettings) -> DatabaseSettings:
    """Where the older gateway's database is; its role has the password of the settings."""
    where = empty_database_settings
    async with open_connection(where, as_admin=True, database="postgres") as admin:
        await admin.execute(f"create database {quoted(where.name)} template template0")
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute(OLD)
        await admin.execute(f"alter role {quoted(where.user)} password {literal(where.password)}")
    return where


@pytest.fixture
async def old_slice_databases(old: DatabaseSettings) -> AsyncIterator[None]:
    """Two of the slices' databases, owned by the one role that all slices shared."""
    async with open_connection(old, as_admin=True) as admin:
        for name in SLICE_DATABASES:
            await admin.execute(f"create database {name} owner wa_slice template template0")
        yield
        for name in SLICE_DATABASES:
            await admin.execute(f"drop database {name} with (force)")


async def content(where: DatabaseSettings) -> dict[str, Rows]:
    """Every row of the older gateway's tables."""
    async with open_connection(where, as_admin=True) as admin:
        found = {}
        for table in TABLES:
            key = "kind" if table == "alerts_sent" else "port" if table == "slices" else "id"
            rows = await admin.fetch(f"select * from gateway.{table} order by {key}")
            found[table] = [dict(row) for row in rows]
        return found


async def columns(connection: Connection) -> dict[tuple[str, str], str]:
    rows = await connection.fetch(
        "select table_name, column_name, data_type from information_schema.columns where table_schema = 'gateway'"
    )
    return {(row[0], row[1]): row[2] for row in rows}


def by(key: str, rows: Rows) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in rows}


async def test_every_row_is_still_there_with_all_it_held(old: DatabaseSettings) -> None:
    before = await content(old)
    assert await migrate(old) == FILES
    after = await content(old)
    for table, key, may_differ in (
        ("telemetry", "id", set()),
        ("server_telemetry", "id", set()),
        ("alerts_sent", "kind", set()),
        ("users", "id", {"email"}),
        ("slices", "id", {"user_id", "status"}),
    ):
        known = by(key, after[table])
        assert len(known) == len(before[table])
        for row in before[table]:
            now = known[row[key]]
            for column in row.keys() - may_differ:
                # what was left open there has a value now
                assert now[column] == row[column] or row[column] is None, (table, row[key], column)
    assert len(after["sessions"]) == len(before["sessions"])


async def test_columns_keep_their_types(old: DatabaseSettings) -> None:
    async with open_connection(old, as_admin=True) as admin:
        before = await columns(admin)
        await migrate(old)
        after = await columns(admin)
    assert before.items() <= after.items()
    assert after["telemetry", "cpu_percent"] == "numeric"
    assert after["telemetry", "idle_seconds"] == "integer"
    assert after["server_telemetry", "cpu_percent"] == "real"


async def test_an_old_database_ends_up_with_the_columns_of_a_new_one(
    old: DatabaseSettings, database_settings: DatabaseSettings
) -> None:
    await migrate(old)
    async with open_connection(old, as_admin=True) as adopted, open_connection(database_settings, as_admin=True) as new:
        assert (await columns(new)).items() <= (await columns(adopted)).items()


def cookie(number: int) -> bytes:
    """The token of the fixture's session of this number."""
    halves = (str(number), f"again {number}")
    return "".join(hashlib.md5(half.encode()).hexdigest() for half in halves).encode()


async def test_an_old_cookie_still_finds_its_session(old: DatabaseSettings) -> None:
    before = await content(old)
    clear = {row["id"]: row for row in before["sessions"]}
    await migrate(old)
    async with open_database(old) as database:
        good = 0
        for number in range(1, 201):
            row = clear[cookie(number).decode()]
            found = await sessions.facts(database, token_hash(cookie(number)))
            assert (found is not None) == (number <= 180)
            if found is not None:
                good += 1
                assert found.user.id == row["user_id"]
                assert found.user.slice_id == (found.slice.id if found.slice else None)
        assert good == 180
        kept = {row["id"] for row in await database.fetch("select id from gateway.sessions")}
    assert not kept & clear.keys(), "a clear token is still in the table"
    assert kept == {token_hash(token.encode()) for token in clear}


async def move_clock(where: DatabaseSettings, days: float) -> None:
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute("update gateway.clock_shift set shift = shift + make_interval(secs => $1)", days * 86_400)


async def test_the_ninety_days_of_an_old_session_count_from_its_adoption(old: DatabaseSettings) -> None:
    await migrate(old)
    hashed = token_hash(cookie(29))  # begun 29 days ago, idle for up to 29 days more
    async with open_database(old) as database:
        for _ in range(4):
            await move_clock(old, 22)
            assert await sessions.extend(database, hashed)
            assert await sessions.facts(database, hashed) is not None
        await move_clock(old, 1.9)  # 89.9 days after the adoption
        assert await sessions.facts(database, hashed) is not None
        await move_clock(old, 0.2)
        assert await sessions.facts(database, hashed) is None
        assert not await sessions.extend(database, hashed)


async def test_users_keep_their_passwords_and_log_in_with_their_address_in_lower_case(old: DatabaseSettings) -> None:
    await migrate(old)
    async with open_database(old) as database:
        for email in ("customer.3@example.com", "customer.4@example.com", "dora@example.com"):
            found = await accounts.find_by_email(database, email)
            assert found is not None
            user, hashed = found
            assert user.email == email
            if email.startswith("customer"):
                assert hashed is not None
                assert bcrypt.checkpw(b"correct horse battery", hashed.encode())


async def test_of_several_accounts_with_one_address_none_is_lost(old: DatabaseSettings) -> None:
    await migrate(old)
    async with open_database(old) as database:
        rows = await database.fetch(
            "select email, password_hash from gateway.users where lower(email) ~ '^(carla|bob)@' order by password_hash"
        )
        assert {row["password_hash"]: row["email"] for row in rows} == {
            "hash of Carla with capitals": "Carla@Example.com",
            "hash of carla without": "carla@example.com",
            "hash of BOB, who logged in": "bob@example.com",
            "hash of Bob, who never did": "Bob@example.com",
        }
        events = await database.fetch(
            """
            select u.password_hash, k.email from gateway.events e
            join gateway.users u on u.id = e.user_id
            join gateway.users k on k.id = (e.detail ->> 'kept_by_user_id')::int
            where e.kind = 'email_collision'
            """
        )
        assert {tuple(row) for row in events} == {
            ("hash of Carla with capitals", "carla@example.com"),
            ("hash of Bob, who never did", "bob@example.com"),
        }


async def test_what_was_left_open_has_a_value(old: DatabaseSettings) -> None:
    await migrate(old)
    async with open_database(old) as database:
        for user_id in range(1, 121):
            user = await accounts.find(database, user_id)
            assert user is not None
            assert user.is_admin is (user_id == 1)
            assert user.subscription_status in ("trial", "active", "past_due", "cancelled")
            assert user.created_at is not None
        for slice_ in await slices.listed(database):
            assert isinstance(slice_.wa_connected, bool)
            assert slice_.created_at is not None


async def test_slices_keep_what_runs_and_are_wanted_as_they_stood(old: DatabaseSettings) -> None:
    before = by("port", (await content(old))["slices"])
    await migrate(old)
    async with open_database(old) as database:
        every = await slices.listed(database)
        assert len(every) == 60
        assert len({slice_.uuid for slice_ in every}) == 60
        for slice_ in every:
            assert slice_.image is None
            assert slice_.managed
            wanted = {"suspended": "stopped", "destroying": "absent"}.get(slice_.status, "running")
            assert slice_.wanted == wanted
            if slice_.port not in (5001 + 40 * 2, 5001 + 29 * 2):
                assert slice_.status == before[slice_.port]["status"]
                assert slice_.user_id == before[slice_.port]["user_id"]


async def test_the_slice_a_users_row_names_is_theirs_and_a_second_one_is_detached(old: DatabaseSettings) -> None:
    await migrate(old)
    async with open_database(old) as database:
        routed = await slices.find_of_user(database, 30)
        assert routed is not None
        assert (routed.user_id, routed.status) == (30, Status.ASSIGNED)
        second = next(found for found in await slices.listed(database) if found.port == 5001 + 40 * 2)
        assert (second.user_id, second.status, second.wanted) == (None, Status.SUSPENDED, "stopped")
        event = await database.fetchrow("select user_id from gateway.events where slice_id = $1", second.id)
        assert event is not None
        assert event["user_id"] == 20


async def test_the_old_rules_no_longer_forbid_what_is_new_and_the_others_stay(old: DatabaseSettings) -> None:
    await migrate(old)
    async with open_database(old) as database:
        for status in Status:
            await database.execute("update gateway.slices set status = $1 where id = 60", status.value)
        made = await slices.add(database, num=61, base_port=5001)
        assert made.status == Status.PROVISIONING
        for forbidden in (
            "update gateway.slices set status = 'nonsense' where id = 60",
            "update gateway.slices set storage_bytes = -1 where id = 60",
            "update gateway.users set email = 'nowhere' where id = 60",
            "insert into gateway.server_telemetry (swap_in_rate) values (-1)",
        ):
            with pytest.raises(Exception, match="check constraint"):
                await database.execute(forbidden)


async def test_the_adopted_database_serves_the_gateways_own_role(old: DatabaseSettings) -> None:
    await migrate(old)
    async with open_database(old) as database:
        user = await accounts.add(database, "new@example.com", "hash")
        await sessions.begin(database, user.id, "a" * 64, None, None)
        pooled = [found for found in await slices.listed(database) if found.status == Status.AVAILABLE]
        await slices.record_health(database, [found.id for found in pooled])
        claimed = await slices.claim(database, user.id)
        assert claimed is not None
        assert await slices.release(database, claimed.id)
        assert await slices.remove(database, claimed.id)
        assert await slices.find_of_user(database, user.id) is None
        await database.execute("delete from gateway.users where id = $1", user.id)
        assert await sessions.facts(database, "a" * 64) is None


async def test_running_it_again_changes_nothing(old: DatabaseSettings) -> None:
    await migrate(old)
    first = await content(old)
    assert await migrate(old) == []
    assert await content(old) == first


async def test_two_at_once_do_the_work_once(old: DatabaseSettings) -> None:
    done: list[list[str]] = []

    async def run() -> None:
        done.append(await migrate(old))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run)
    assert sorted(done, key=len) == [[], [], [], FILES]
    async with open_database(old) as database:
        assert await sessions.facts(database, token_hash(cookie(29))) is not None


async def test_the_older_gateways_own_role_can_migrate_without_an_admin(old: DatabaseSettings) -> None:
    alone = replace(old, admin_user=old.user, admin_password=old.password)
    assert await migrate(alone) == FILES
    async with open_database(alone) as database:
        assert await sessions.facts(database, token_hash(cookie(29))) is not None


async def test_a_slices_database_stays_as_it_is_and_is_known_as_its_own(
    old: DatabaseSettings, old_slice_databases: None
) -> None:
    await migrate(old)
    async with open_connection(old, as_admin=True) as admin:
        rows = await admin.fetch(
            """
            select datname::text, pg_get_userbyid(datdba)::text, datacl is null, shobj_description(oid, 'pg_database')
            from pg_database where datname = any($1) order by 1
            """,
            list(SLICE_DATABASES),
        )
        uuids = await admin.fetch("select uuid::text from gateway.slices where port in (5001, 5003) order by port")
    assert [tuple(row) for row in rows] == [
        (name, "wa_slice", True, uuid["uuid"]) for name, uuid in zip(SLICE_DATABASES, uuids, strict=True)
    ]


async def test_databases_that_we_may_not_mark_do_not_stop_the_adoption(
    old: DatabaseSettings, old_slice_databases: None
) -> None:
    alone = replace(old, admin_user=old.user, admin_password=old.password)
    assert await migrate(alone) == FILES


async def test_a_new_database_has_nothing_to_adopt(database: Database) -> None:
    assert await database.fetchval("select count(*) from gateway.events") == 0
