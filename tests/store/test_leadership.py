"""One process acts, the others wait, and who slept through the change is held back."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import psutil
import pytest
import trio

from queunir_trio.errors import Lost
from queunir_trio.outside.embedded_postgres import DatabaseServer
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import leadership as module
from queunir_trio.store.bridge import Connection, open_connection
from queunir_trio.store.leadership import LOCK, Leadership, leadership

HOLDERS = f"select pid from pg_locks where locktype = 'advisory' and objid = {LOCK} and granted"
WAITERS = f"select count(*) from pg_locks where locktype = 'advisory' and objid = {LOCK} and not granted"


@pytest.fixture
async def watcher(asyncio_open: None, database_settings: DatabaseSettings) -> AsyncIterator[Connection]:
    async with open_connection(database_settings, as_admin=True) as connection:
        yield connection


async def lead(
    where: DatabaseSettings, leaders: list[Leadership], end: trio.Event, task_status: trio.TaskStatus[None]
) -> None:
    async with leadership(where) as held:
        leaders.append(held)
        task_status.started()
        await end.wait()
    leaders.remove(held)


async def test_one_leads_and_the_next_follows_at_once(watcher: Connection, database_settings: DatabaseSettings) -> None:
    leaders: list[Leadership] = []
    end = trio.Event()

    async def first(task_status: trio.TaskStatus[None]) -> None:
        await lead(database_settings, leaders, end, task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(first)
        epoch = leaders[0].epoch
        nursery.start_soon(follow, database_settings, leaders, nursery.cancel_scope)
        with trio.fail_after(5):
            while not await watcher.fetchval(WAITERS):
                await trio.sleep(0.01)
        assert [leader.epoch for leader in leaders] == [epoch]
        assert repr(leaders[0]) == f"<Leadership {epoch}>"
        end.set()
        with trio.fail_after(5):
            await trio.sleep_forever()
    assert leaders[-1].epoch == epoch + 1
    assert await watcher.fetch(HOLDERS) == []


async def follow(where: DatabaseSettings, leaders: list[Leadership], done: trio.CancelScope) -> None:
    async with leadership(where) as held:
        leaders.append(held)
        done.cancel()


async def test_who_is_cancelled_while_waiting_or_leading_leaves_no_lock(
    watcher: Connection, database_settings: DatabaseSettings
) -> None:
    for moment in [0.001 * n for n in range(40)]:
        with trio.move_on_after(moment):
            async with leadership(database_settings):
                await trio.sleep_forever()
    with trio.fail_after(5):
        async with leadership(database_settings):
            with trio.move_on_after(0.1):
                async with leadership(database_settings):
                    raise AssertionError("two lead")
    assert await watcher.fetch(HOLDERS) == []
    assert await watcher.fetchval(WAITERS) == 0


async def test_who_waits_long_asks_anew_and_leads_in_the_end(
    watcher: Connection, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITED_AT_ONCE", 0.02)
    led = trio.Event()

    async def wait() -> None:
        async with leadership(database_settings):
            led.set()

    async with trio.open_nursery() as nursery:
        async with leadership(database_settings):
            nursery.start_soon(wait)
            with trio.move_on_after(0.2):
                await led.wait()
            assert not led.is_set()
        with trio.fail_after(5):
            await led.wait()


async def test_a_leader_whose_connection_is_ended_hears_of_it(
    watcher: Connection, database_settings: DatabaseSettings
) -> None:
    async def lose() -> None:
        async with leadership(database_settings) as held:
            pid = await watcher.fetchval(HOLDERS)
            await watcher.execute("select pg_terminate_backend($1)", pid)
            await held.watch()

    with trio.fail_after(5), pytest.raises(Lost):
        await lose()
    with trio.fail_after(5):
        async with leadership(database_settings):
            pass


async def test_a_leader_whose_line_is_dead_hears_of_it(
    watcher: Connection, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCHED_EVERY", 0.05)
    monkeypatch.setattr(module, "ANSWERED_WITHIN", 0.2)
    monkeypatch.setattr("queunir_trio.store.bridge.RELEASED_WITHIN", 0.2)
    pids: list[int] = []

    async def lose() -> None:
        async with leadership(database_settings) as held:
            pids.append(await watcher.fetchval(HOLDERS))
            os.kill(pids[0], signal.SIGSTOP)
            await held.watch()

    try:
        with trio.fail_after(5), pytest.raises(Lost):
            await lose()
    finally:
        os.kill(pids[0], signal.SIGCONT)


async def test_a_leader_that_is_well_goes_on(
    watcher: Connection, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCHED_EVERY", 0.01)
    async with leadership(database_settings) as held:
        with trio.move_on_after(0.2) as scope:
            await held.watch()
        assert scope.cancelled_caught


async def test_a_process_that_is_killed_is_followed_soon(
    postgres: DatabaseServer, watcher: Connection, database_settings: DatabaseSettings
) -> None:
    where = database_settings
    program = f"""
import trio
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import asyncio_loop
from queunir_trio.store.leadership import leadership

async def main():
    where = DatabaseSettings({where.host!r}, {where.port}, {where.name!r}, {where.user!r}, {where.password!r}, "", "")
    async with asyncio_loop(), leadership(where):
        print("leading", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(start_program, program)
        assert process.stdout is not None
        with trio.fail_after(20):
            assert b"leading" in await process.stdout.receive_some()
        assert await watcher.fetchval(HOLDERS) is not None
        process.kill()
        with trio.fail_after(5):
            async with leadership(where):
                pass
    assert not psutil.pid_exists(process.pid)


async def start_program(program: str, task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        check=False,
        task_status=task_status,
    )
