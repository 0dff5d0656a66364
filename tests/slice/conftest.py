"""A real slice for each test that wants one: its own database with its own role, its own process on a free port.

The role may read and write rows and no more, as in service; the tables are made by somebody else before it starts.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from queunir_trio.outside.embedded_postgres import DatabaseServer
from queunir_trio.store.bridge import asyncio_loop, open_connection
from queunir_trio.store.migrations import migrate_slice
from queunir_trio.store.roles import quoted

KEY = "k" * 64
PASSWORD = "slice-password-for-tests"
TEMPLATE = "slice_template_of_tests"
SPEED = "40"
WITHIN = 30.0  # seconds: how long anything may take before a test gives up

_numbers = itertools.count(1)


@dataclass
class SliceDatabase:
    """A database of a slice, and the admin's way to it."""

    server: DatabaseServer
    name: str

    @property
    def url(self) -> str:
        return f"postgresql://{self.name}:{PASSWORD}@/{self.name}?host={self.server.host}&port={self.server.port}"

    def run(self, statement: str, *arguments: object) -> list[Any]:
        """Runs a statement in it as the server's admin."""
        return trio.run(_asked, self.server, self.name, statement, arguments)

    def shut_out(self) -> None:
        """Lets nobody connect and ends who is connected."""
        in_maintenance(self.server, f"alter database {quoted(self.name)} allow_connections false")
        in_maintenance(
            self.server, f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{self.name}'"
        )

    def let_in(self) -> None:
        in_maintenance(self.server, f"alter database {quoted(self.name)} allow_connections true")


@dataclass
class Slice:
    """A running slice process and a client that carries its key."""

    port: int
    database: SliceDatabase
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Any
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"X-Slice-Key": KEY}, timeout=WITHIN, trust_env=False
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, path: str, json: object = None, **options: Any) -> httpx.Response:
        return self.client.post(path, json=json, **options) if json is not None else self.client.post(path, **options)

    def patch(self, path: str, json: object) -> httpx.Response:
        return self.client.patch(path, json=json)

    def state(self) -> str:
        state: str = self.get("/api/status").json()["state"]
        return state

    def wait_for_state(self, *wanted: str) -> str:
        until(lambda: self.state() in wanted)
        return self.state()

    def wait_for_code(self) -> dict[str, Any]:
        """Looks as a person does, for whom an idle slice shows a code again."""
        found: list[dict[str, Any]] = []
        until(lambda: bool(code := self._code()) and not found.append(code))
        return found[0]

    def _code(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/api/status/state", headers={"X-User-Id": "1"}).json()["qr"] or {}
        return found

    def pair(self) -> None:
        """Scans the code and waits until messages can be sent."""
        until(lambda: bool(self._code()) and self.post("/api/simulator/scan").status_code == 200)
        self.wait_for_state("ready")

    def messages(self, wa_id: str) -> list[dict[str, Any]]:
        answer = self.get(f"/api/chats/{wa_id}/messages")
        found: list[dict[str, Any]] = answer.json()["items"] if answer.status_code == 200 else []
        return found

    def log_text(self) -> str:
        self.log.seek(0)
        text: str = self.log.read().decode()
        return text

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the process and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(WITHIN)


def until(holds: Callable[[], bool], within: float = WITHIN) -> None:
    """Waits until a condition of an outside process holds."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def in_maintenance(server: DatabaseServer, statement: str) -> None:
    """Runs a statement of the server's admin outside any slice's database."""
    trio.run(_asked, server, "postgres", statement, ())


async def _asked(server: DatabaseServer, database: str, statement: str, arguments: tuple[object, ...]) -> list[Any]:
    where = server.settings(database, server.admin_user, server.admin_password)
    async with asyncio_loop(), open_connection(where, as_admin=True, database=database) as connection:
        return await connection.fetch(statement, *arguments)


async def _migrated(server: DatabaseServer) -> None:
    where = server.settings(TEMPLATE, server.admin_user, server.admin_password)
    async with asyncio_loop(), open_connection(where, as_admin=True, database=TEMPLATE) as connection:
        await migrate_slice(connection)


@pytest.fixture(scope="session")
def slice_template(postgres: DatabaseServer) -> DatabaseServer:
    """The server, with a migrated slice database to copy."""
    in_maintenance(postgres, f"create database {TEMPLATE}")
    trio.run(_migrated, postgres)
    return postgres


@contextmanager
def fresh_database(server: DatabaseServer) -> Iterator[SliceDatabase]:
    """A fresh slice database with a role that bears its name."""
    # not called wa_slice_N: other tests clear those away
    database = SliceDatabase(server, f"slice_test_{next(_numbers)}")
    name = quoted(database.name)
    in_maintenance(server, f"create role {name} login password '{PASSWORD}'")
    in_maintenance(server, f"create database {name} template {TEMPLATE}")
    database.run(f"grant select, insert, update, delete on all tables in schema public to {name}")
    yield database
    in_maintenance(server, f"drop database {name} with (force)")
    in_maintenance(server, f"drop role {name}")


@pytest.fixture
def slice_database(slice_template: DatabaseServer) -> Iterator[SliceDatabase]:
    """A slice database of the test's own."""
    with fresh_database(slice_template) as database:
        yield database


@contextmanager
def running(database: SliceDatabase, port: int, *, sound: bool = True, **settings: str) -> Iterator[Slice]:
    """A slice process with these settings over the usual ones; healthy when the block begins, ended after it.

    Its log must hold no traceback, unless the test says that it is not sound.
    """
    environment = {
        "PATH": os.defpath,
        "SLICE_ID": "7",
        "PORT": str(port),
        "DATABASE_URL": database.url,
        "SLICE_KEY": KEY,
        "SIMULATOR_SPEED": SPEED,
        **settings,
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "queunir_slice"], env=environment, stderr=log, stdout=log)
        running_slice = Slice(port, database, process, environment, log)
        try:
            until(lambda: _is_healthy(running_slice))
            yield running_slice
            if process.poll() is None:  # else the test ended it itself
                assert running_slice.stop() == 0, running_slice.log_text()
        finally:
            process.kill()
            process.wait()
            running_slice.client.close()
        assert not sound or "Traceback" not in (text := running_slice.log_text()), text


def _is_healthy(candidate: Slice) -> bool:
    assert candidate.process.poll() is None, candidate.log_text()
    try:
        return candidate.get("/api/health").status_code == 200
    except httpx.TransportError:
        return False


class Listener:
    """A Socket.IO client of one websocket; reads when it is asked, and remembers what it heard."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self.heard: list[tuple[str, dict[str, Any]]] = []

    async def next(self) -> tuple[str, dict[str, Any]]:
        """The next event: its name and payload."""
        while True:
            with trio.fail_after(WITHIN):
                packet = str(await self._socket.get_message())
            if packet == "2":
                await self._socket.send_message("3")
            elif packet.startswith("42"):
                name, payload = json.loads(packet[2:])
                self.heard.append((name, payload))
                return name, payload

    async def wait_for(self, wanted: str, **facts: object) -> dict[str, Any]:
        """The payload of the next event of this name that carries these facts; the others are passed over."""
        while True:
            name, payload = await self.next()
            if name == wanted and facts.items() <= payload.items():
                return payload

    async def is_silent_for(self, seconds: float) -> bool:
        """Whether nothing is heard in so many seconds."""
        with trio.move_on_after(seconds):
            await self.next()
            return False
        return True


@asynccontextmanager
async def listening(candidate: Slice, headers: dict[str, str] | None = None) -> AsyncIterator[Listener]:
    """A client of the slice's Socket.IO server, over a websocket."""
    url = f"ws://127.0.0.1:{candidate.port}/socket.io/?EIO=4&transport=websocket"
    given = {"X-Slice-Key": KEY} if headers is None else headers
    extra_headers = [(name.encode(), value.encode()) for name, value in given.items()]
    async with open_websocket_url(url, extra_headers=extra_headers) as socket:
        with trio.fail_after(WITHIN):
            assert str(await socket.get_message()).startswith("0{")
            await socket.send_message("40")
            assert str(await socket.get_message()).startswith("40{")
        yield Listener(socket)


@asynccontextmanager
async def deaf_client(candidate: Slice) -> AsyncIterator[int]:
    """A client that says hello over a websocket and never reads on; gives its own port."""
    async with await trio.open_tcp_stream("127.0.0.1", candidate.port) as stream:
        stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        handshake = (
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
            f"X-Slice-Key: {KEY}\r\n\r\n"
        )
        await stream.send_all(handshake.encode() + bytes([0x81, 0x82, 0, 0, 0, 0]) + b"40")
        with trio.fail_after(WITHIN):
            assert (await stream.receive_some(16)).startswith(b"HTTP/1.1 101")
        yield stream.socket.getsockname()[1]


@pytest.fixture
def connect_deaf() -> Callable[..., Any]:
    """`async with connect_deaf(slice) as own_port`."""
    return deaf_client


@pytest.fixture
def listen() -> Callable[..., Any]:
    """`async with listen(slice) as listener`."""
    return listening


@pytest.fixture
def run_slice() -> Callable[..., Any]:
    """`with run_slice(database, port, **environment) as slice`, for tests that start it themselves."""
    return running


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Waits until a condition of an outside process holds."""
    return until


@pytest.fixture
def a_slice(slice_database: SliceDatabase, free_port: int) -> Iterator[Slice]:
    """A slice that was just born: it shows a code."""
    with running(slice_database, free_port) as born:
        yield born


@pytest.fixture
def ready_slice(a_slice: Slice) -> Slice:
    """A slice with a paired phone."""
    a_slice.pair()
    return a_slice


@pytest.fixture(scope="session")
def shared_slice(slice_template: DatabaseServer) -> Iterator[Slice]:
    """One slice with a paired phone for every test that leaves its session alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with fresh_database(slice_template) as database, running(database, port) as shared:
        shared.pair()
        yield shared


@pytest.fixture
def crm(shared_slice: Slice) -> Slice:
    """The shared slice, paired, at rest, and without a single row of the CRM."""
    shared_slice.wait_for_state("ready")
    until(lambda: not shared_slice.database.run("select from messages where queued"))
    until(lambda: shared_slice.get("/api/simulator").json()["waiting"] == 0)
    # what was reported is stored in order: after this one, nothing of an earlier test is on its way
    last = f"1555999{next(_numbers)}@c.us"
    shared_slice.post("/api/simulator/message", {"from": last, "body": "the last one"})
    until(lambda: bool(shared_slice.messages(last)))
    shared_slice.database.run("truncate contacts, chats, messages, media_files restart identity cascade")
    return shared_slice
