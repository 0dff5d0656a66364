"""What the tables tell, who hears it, and what happens when the line is cut."""

import os
import signal
from collections.abc import Awaitable

import pytest
import trio
import trio.testing

from queunir_trio.errors import Lost
from queunir_trio.model.slices import Wanted
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, notifications, outbox, sessions, slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable, open_connection
from queunir_trio.store.notifications import Change, change_of, listening

HASH = "a" * 64
Channel = trio.MemoryReceiveChannel[Change]


async def heard(changes: Channel, deed: Awaitable[object]) -> list[Change]:
    """What is told of a deed."""
    await deed
    found: list[Change] = []
    with trio.fail_after(5):
        found.append(await changes.receive())
    # the notifications of one transaction arrive together
    await trio.testing.wait_all_tasks_blocked(0.02)
    while True:
        try:
            found.append(changes.receive_nowait())
        except trio.WouldBlock:
            return found


async def test_a_session_that_is_renamed_or_shortened_by_hand_is_told_of_by_the_name_it_had(
    database: Database, database_settings: DatabaseSettings
) -> None:
    user = await accounts.add(database, "ana@example.com", "hash")
    async with listening(database_settings) as changes:
        await sessions.begin(database, user.id, HASH, None, None)
        shorten = "update gateway.sessions set expires_at = expires_at - interval '1 day'"
        assert await heard(changes, database.execute(shorten)) == [Change("sessions", "update", HASH, user.id, None)]
        rename = "update gateway.sessions set id = repeat('c', 64)"
        told = await heard(changes, database.execute(rename))
        assert {change.id for change in told} == {HASH, "c" * 64}


async def test_sessions_tell_of_their_end(database: Database, database_settings: DatabaseSettings) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    async with listening(database_settings) as changes:
        await sessions.begin(database, user.id, HASH, None, None)
        await sessions.begin(database, user.id, "b" * 64, None, None)
        assert await heard(changes, sessions.end(database, HASH)) == [Change("sessions", "delete", HASH, user.id, None)]
        async with open_connection(database_settings, as_admin=True) as psql:
            told = await heard(changes, psql.execute("truncate gateway.sessions"))
        assert told == [Change("sessions", "truncate", None, None, None)]


async def test_what_matters_about_a_user_is_told_and_nothing_else(
    database: Database, database_settings: DatabaseSettings
) -> None:
    async with listening(database_settings) as changes:
        user = await accounts.add(database, "a@example.com", "hash")
        assert (await changes.receive()).op == "insert"
        await accounts.record_login(database, user.id)
        await accounts.set_password(database, user.id, "another")
        told = await heard(changes, accounts.make_admin(database, user.id))
        assert told == [Change("users", "update", user.id, None, None)]
        told = await heard(changes, database.execute("delete from gateway.users"))
        assert told == [Change("users", "delete", user.id, None, None)]


async def test_a_slice_that_changes_hands_is_told_to_both(
    database: Database, database_settings: DatabaseSettings
) -> None:
    user = await accounts.add(database, "a@example.com", "hash")
    first = await slices.add(database, num=1, base_port=5001, status="available")
    second = await slices.add(database, num=2, base_port=5001, status="available")
    async with listening(database_settings) as changes:
        told = await heard(changes, slices.assign(database, user.id, first.id))
        assert {(change.table, change.id, change.user_id) for change in told} == {
            ("slices", first.id, None),
            ("slices", first.id, user.id),
            ("users", user.id, None),
        }
        assert Change("users", "update", user.id, None, first.id) in told
        told = await heard(changes, slices.assign(database, user.id, second.id))
        assert {(change.table, change.id, change.user_id) for change in told} == {
            ("slices", first.id, None),
            ("slices", first.id, user.id),
            ("slices", second.id, None),
            ("slices", second.id, user.id),
            ("users", user.id, None),
        }


async def test_another_image_is_told(database: Database, database_settings: DatabaseSettings) -> None:
    slice_ = await slices.add(database, num=1, base_port=5001)
    async with listening(database_settings) as changes:
        told = await heard(changes, slices.set_image(database, slice_.id, "wank-slice:2"))
        assert told == [Change("slices", "update", slice_.id, None, None)]
        await slices.set_image(database, slice_.id, "wank-slice:2")  # the same again is no change
        told = await heard(changes, slices.set_wanted(database, slice_.id, Wanted.STOPPED))
        assert len(told) == 1


async def test_health_and_states_are_not_told(database: Database, database_settings: DatabaseSettings) -> None:
    slice_ = await slices.add(database, num=1, base_port=5001)
    async with listening(database_settings) as changes:
        await slices.begin_start(database, slice_.id)
        await slices.record_health(database, [slice_.id])
        await slices.record_states(database, [(slice_.id, "ready", True, "+49")])
        await slices.record_failure(database, slice_.id, "step", "reason", 1)
        told = await heard(changes, slices.begin_step(database, slice_.id, "deed", "step", None, None))
        assert [(change.table, change.slice_id) for change in told] == [("slice_steps", slice_.id)]


async def test_mail_and_a_moved_clock_are_told(database: Database, database_settings: DatabaseSettings) -> None:
    async with listening(database_settings) as changes:
        told = await heard(changes, outbox.put(database, "mail", "key", {"to": "a@example.com"}))
        assert [(change.table, change.op) for change in told] == [("outbox", "insert")]
        async with open_connection(database_settings, as_admin=True) as psql:
            told = await heard(changes, psql.execute("update gateway.clock_shift set shift = '1 day'"))
        assert [(change.table, change.op) for change in told] == [("clock_shift", "update")]


async def test_what_is_rolled_back_is_not_told(database: Database, database_settings: DatabaseSettings) -> None:
    async with listening(database_settings) as changes:
        async with database.connection() as connection:
            await connection.execute("begin")
            await accounts.add(connection, "a@example.com", "hash")
            await connection.execute("rollback")
        told = await heard(changes, accounts.add(database, "b@example.com", "hash"))
        assert len(told) == 1


async def test_what_we_did_not_send_is_passed_over(database: Database, database_settings: DatabaseSettings) -> None:
    async with listening(database_settings) as changes:
        for payload in ("hello", "[]", "{}", "7", '"text"'):
            await database.execute("select pg_notify('gateway', $1)", payload)
        told = await heard(changes, accounts.add(database, "b@example.com", "hash"))
        assert [change.table for change in told] == ["users"]
    assert change_of('{"table": "t", "op": "o"}') == Change("t", "o", None, None, None)


LISTENERS = "from pg_stat_activity where usename = 'wank_gateway' and datname = current_database()"


async def test_a_listener_whose_connection_is_ended_hears_of_it(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    async def listen() -> None:
        async with listening(database_settings):
            async with open_connection(database_settings, as_admin=True) as watcher:
                await watcher.execute(f"select pg_terminate_backend(pid) {LISTENERS}")
            await trio.sleep_forever()

    with trio.fail_after(5), pytest.raises(DatabaseUnavailable):
        await listen()


async def test_a_listener_that_does_not_read_hears_of_that(
    database: Database, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "UNREAD_AT_MOST", 3)

    async def listen() -> None:
        async with listening(database_settings):
            for number in range(5):
                await accounts.add(database, f"{number}@example.com", "hash")
            await trio.sleep_forever()

    with trio.fail_after(5), pytest.raises(Lost, match="unread"):
        await listen()


async def test_a_line_that_is_dead_is_found_out(
    asyncio_open: None, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "WATCHED_EVERY", 0.05)
    monkeypatch.setattr(notifications, "ANSWERED_WITHIN", 0.2)
    monkeypatch.setattr("queunir_trio.store.bridge.RELEASED_WITHIN", 0.2)
    pids: list[int] = []

    async def listen() -> None:
        async with listening(database_settings):
            async with open_connection(database_settings, as_admin=True) as watcher:
                pids.append(await watcher.fetchval(f"select pid {LISTENERS}"))
            os.kill(pids[0], signal.SIGSTOP)
            await trio.sleep_forever()

    try:
        with trio.fail_after(5), pytest.raises(DatabaseUnavailable):
            await listen()
    finally:
        os.kill(pids[0], signal.SIGCONT)


async def test_a_line_that_is_quiet_is_kept(
    database: Database, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "WATCHED_EVERY", 0.1)
    async with listening(database_settings) as changes:
        with trio.move_on_after(0.3):
            await changes.receive()
        assert len(await heard(changes, accounts.add(database, "a@example.com", "hash"))) == 1


async def test_what_a_listener_raises_comes_out_as_it_is(
    asyncio_open: None, database_settings: DatabaseSettings
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with listening(database_settings):
            raise ZeroDivisionError


async def test_a_listener_that_closed_its_channel_is_not_bothered(
    database: Database, database_settings: DatabaseSettings
) -> None:
    async with listening(database_settings) as changes:
        await changes.aclose()
        await accounts.add(database, "a@example.com", "hash")
        assert await database.fetchval("select 1") == 1
