"""Real parts for every test: a PostgreSQL server for each worker, a database for each test, free ports."""

import fcntl
import itertools
import os
import queue
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from queunir_trio.outside.embedded_postgres import DatabaseServer, embedded_postgres
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Database, asyncio_loop, open_connection, open_database
from queunir_trio.store.migrations import migrate
from queunir_trio.store.roles import quoted
from tests.docker_fixtures import (  # noqa: F401  a plugin of this folder, by its names
    docker_engine,
    docker_host,
    docker_runtime,
    other_image,
    pytest_collection_modifyitems,
    pytest_itemcollected,
)

GATEWAY_PASSWORD = "gateway-password-for-tests"
TEMPLATE = "gateway_template"
PORTS_OF_A_RANGE = 100  # fifty slices
MEMORY_NEEDED = 2 * 2**30  # bytes
LEFT_BEHIND_AFTER = 600  # seconds
WORKERS_AT_MOST = 8  # each has every eighth range to itself
FIRST_PORT, LAST_PORT = 10_000, 32_000  # below those the system gives out by itself

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """A running server with a migrated template; the whole session of a worker shares it.

    QUEUNIR_PG_BIN chooses another PostgreSQL. A test that stops it must start it again.
    """
    with ExitStack() as stack:
        directory = stack.enter_context(_quick_directory(tmp_path_factory))
        opening = partial(embedded_postgres, directory, max_connections=100, durable=False)
        server = stack.enter_context(_kept_open(opening))
        trio.run(_migrated, server.settings(TEMPLATE, "wank_gateway", GATEWAY_PASSWORD))
        yield server


@pytest.fixture
def database_settings(postgres: DatabaseServer) -> Iterator[DatabaseSettings]:
    """A fresh copy of the migrated template, dropped after the test."""
    where = postgres.settings(f"test_{next(_numbers)}", "wank_gateway", GATEWAY_PASSWORD)
    trio.run(_as_admin, where, f"create database {quoted(where.name)} template {TEMPLATE}")
    yield where
    trio.run(_as_admin, where, f"drop database if exists {quoted(where.name)} with (force)")


@pytest.fixture
def empty_database_settings(postgres: DatabaseServer) -> Iterator[DatabaseSettings]:
    """Settings of a database that does not exist yet; dropped after the test if it does by then."""
    where = postgres.settings(f"test_{next(_numbers)}", "wank_gateway", GATEWAY_PASSWORD)
    yield where
    trio.run(_as_admin, where, f"drop database if exists {quoted(where.name)} with (force)")


@pytest.fixture
async def asyncio_open() -> AsyncIterator[None]:
    """An asyncio loop in the test's own Trio, for what opens databases and connections itself."""
    async with asyncio_loop():
        yield


@pytest.fixture
async def database(asyncio_open: None, database_settings: DatabaseSettings) -> AsyncIterator[Database]:
    """The pool of the gateway's own role on the test's own database."""
    async with open_database(database_settings) as opened:
        yield opened


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def free_base_port() -> int:
    """The first of a hundred free ports, for slices; each test of each worker has others."""
    ranges = (LAST_PORT - FIRST_PORT) // PORTS_OF_A_RANGE // WORKERS_AT_MOST
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS_AT_MOST
    for _ in range(ranges):
        mine = (os.getpid() + next(_numbers)) % ranges * WORKERS_AT_MOST + worker
        base = FIRST_PORT + mine * PORTS_OF_A_RANGE + 1
        if all(_is_free(port) for port in range(base, base + PORTS_OF_A_RANGE - 1)):
            return base
    raise AssertionError("no hundred free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


async def _migrated(where: DatabaseSettings) -> None:
    async with asyncio_loop():
        await migrate(where)


async def _as_admin(where: DatabaseSettings, statement: str) -> None:
    async with asyncio_loop(), open_connection(where, as_admin=True, database="postgres") as connection:
        await connection.execute(statement)


@contextmanager
def _quick_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where there is room: copying a database takes 20 ms there, and up to 600 ms on a slow disk."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MEMORY_NEEDED):
        yield tmp_path_factory.mktemp("postgres")
        return
    for directory in memory.glob("queunir-tests-*"):
        _remove_if_left_behind(directory)
    with tempfile.TemporaryDirectory(prefix="queunir-tests-", dir=memory, ignore_cleanup_errors=True) as fresh:
        yield Path(fresh)


def _remove_if_left_behind(directory: Path) -> None:
    """What a killed run left; a run that goes on holds its lock, or has only just begun."""
    with suppress(OSError), open(directory / "lock", "rb") as lock:
        if time.time() - os.fstat(lock.fileno()).st_mtime < LEFT_BEHIND_AFTER:
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _kept_open(open_server: Callable[[], Any]) -> Iterator[DatabaseServer]:
    """Holds an async context manager open in a thread of its own: a session outlives each test's Trio."""
    ready: queue.Queue[tuple[DatabaseServer, trio.lowlevel.TrioToken, trio.Event] | BaseException] = queue.Queue()

    async def hold() -> None:
        async with open_server() as server:
            done = trio.Event()
            ready.put((server, trio.lowlevel.current_trio_token(), done))
            await done.wait()

    def run() -> None:
        try:
            trio.run(hold)
        except BaseException as error:  # noqa: BLE001, ASYNC103  handed to the one who waits
            ready.put(error)

    thread = threading.Thread(target=run, name="postgres")
    thread.start()
    held = ready.get(timeout=120)
    if isinstance(held, BaseException):
        raise held
    server, token, done = held
    try:
        yield server
    finally:
        token.run_sync_soon(done.set)
        thread.join(timeout=30)
        assert not thread.is_alive(), "PostgreSQL did not stop"
