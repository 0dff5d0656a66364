"""A front with everything around it: a slice and an app that do as told, sessions in a dictionary, and clients."""

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import h11
import trio

from queunir_trio.errors import Refused
from queunir_trio.front.gate import Gate
from queunir_trio.front.limits import Limits
from queunir_trio.front.listener import Listener, listen
from queunir_trio.front.state import Front
from queunir_trio.model.routing import Route, SliceAddress
from queunir_trio.outside.readiness import Readiness
from queunir_trio.outside.upstream import Upstream, Upstreams, app_upstream
from queunir_trio.store.bridge import DatabaseUnavailable
from tests.doubles.upstreams import PATIENCE, ScriptedUpstream, Talk, scripted_upstream, send_what_fits, send_whole

TOKEN: Final = b"a" * 64
COOKIE: Final = b"cookie: session=" + TOKEN + b"\r\n"
SLICE_ID: Final = 7
QUICK: Final = Limits(turn=0.02, half_closed=0.3, linger=0.5)


class Sessions:
    """Routes by token; what the front asks of the route cache."""

    def __init__(self) -> None:
        self.by_token: dict[bytes, Route] = {}
        self.remembered = True  # whether `peek` knows
        self.unavailable = False
        self.crash: Exception | None = None
        self.asked = trio.Event()
        self.may_answer = trio.Event()
        self.may_answer.set()

    def peek(self, token: bytes) -> Route | None:
        return self.by_token.get(token) if self.remembered else None

    async def find(self, token: bytes) -> Route | None:
        self.asked.set()
        await self.may_answer.wait()
        if self.crash is not None:
            raise self.crash
        if self.unavailable:
            raise DatabaseUnavailable("connection refused")
        return self.by_token.get(token)


class Streams:
    """Takes sockets over and keeps them; what the front asks of the event streams."""

    def __init__(self) -> None:
        self.adopted: list[tuple[socket.socket, bytes, Route, str | None]] = []
        self.full = False
        self.crash: Exception | None = None

    def admit(self, route: Route) -> None:
        if self.full:
            raise Refused("too_many_streams", "Too many.")

    def adopt(self, sock: socket.socket, head: bytes, route: Route, last_event_id: str | None) -> None:
        if self.crash is not None:
            raise self.crash
        self.adopted.append((sock, head, route, last_event_id))
        sock.send(head)


@dataclass
class Answer:
    """An answer as an independent parser reads it."""

    status: int
    version: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    interim: list[int]

    def field(self, name: bytes) -> bytes | None:
        """The one value of a field; two are a fault."""
        values = self.values(name)
        assert len(values) < 2, f"{name!r} came {len(values)} times"
        return values[0] if values else None

    def values(self, name: bytes) -> list[bytes]:
        return [value for other, value in self.fields if other == name]

    @property
    def error(self) -> dict[str, Any]:
        """The JSON error, after a look at what every error must have."""
        told: dict[str, Any] = json.loads(self.body)
        assert set(told) == {"error", "code", "request_id"}
        assert told["error"].endswith(".")
        assert told["request_id"].encode() == self.field(b"x-request-id")
        assert self.field(b"content-type") == b"application/json"
        assert self.field(b"cache-control") == b"no-store"
        return told

    @property
    def code(self) -> str:
        return str(self.error["code"])


class Client:
    """A browser's connection, by hand."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await send_whole(self.sock, data)

    async def send_what_fits(self, piece: bytes, enough: float) -> int:
        """Sends until nobody takes anything for `enough` seconds; returns how much was taken."""
        return await send_what_fits(self.sock, piece, enough)

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        await self.send(data)
        return await self.answer(method)

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer, whole. h11's RemoteProtocolError where it ends too soon, ConnectionError where it breaks."""
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        if self.buffer:
            parser.receive_data(self.buffer)
        answer: Answer | None = None
        interim: list[int] = []
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self.receive())
            elif isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                answer = Answer(event.status_code, event.http_version, list(event.headers), b"", interim)
            elif isinstance(event, h11.Data):
                assert answer is not None
                answer.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert answer is not None
                self.buffer = bytes(parser.trailing_data[0])
                return answer
            else:
                raise AssertionError(f"no answer but {event!r}")

    async def receive(self) -> bytes:
        with trio.fail_after(PATIENCE):
            data = await self.sock.recv(65536)
            assert isinstance(data, bytes)
            return data

    async def exactly(self, size: int, *, keep: bool = True) -> bytes:
        """So many bytes, or only their count."""
        while not keep and size > 0:
            size -= len(await self.receive())
        while len(self.buffer) < size:
            data = await self.receive()
            assert data, f"the end after {self.buffer!r}"
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        while mark not in self.buffer:
            data = await self.receive()
            assert data, f"the end after {self.buffer!r}"
            self.buffer += data
        before, _, self.buffer = self.buffer.partition(mark)
        return before + mark

    async def rest(self) -> bytes:
        """Everything until the clean end. ConnectionResetError where there is none."""
        while data := await self.receive():
            self.buffer += data
        data, self.buffer = self.buffer, b""
        return data

    async def broken(self) -> bytes:
        """Everything until the connection breaks; a clean end is a fault."""
        try:
            while data := await self.receive():
                self.buffer += data
        except ConnectionResetError:
            return self.buffer
        raise AssertionError(f"a clean end after {self.buffer!r:.300}")

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class House:
    """Everything that a test of the front touches."""

    def __init__(self, front: Front, listener: Listener, stack: AsyncExitStack) -> None:
        self.front = front
        self.listener = listener
        self.port = listener.port  # kept, for a drained listener has none
        self.stack = stack
        self.slice: ScriptedUpstream
        self.app: ScriptedUpstream
        self.sessions: Sessions
        self.streams: Streams
        self.mismatched: list[SliceAddress]
        self.touched: list[int]
        self.guesses: list[str]  # addresses that tokens of no session came from
        self.starting: set[int]  # slices that are said to be starting
        self.asked_about: list[int]  # slices of which it was asked whether they are

    async def client(self, *, window: int | None = None, source: str = "127.0.0.1") -> Client:
        """A connection to the front; `window` bounds what its kernel takes in unread."""
        sock = trio.socket.socket()
        if window is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.stack.callback(sock.close)
        await sock.bind((source, 0))
        await sock.connect(("127.0.0.1", self.port))
        return Client(sock)

    async def asked(self, request: bytes) -> tuple[Client, Talk]:
        """A client whose request has arrived at the slice."""
        client = await self.client()
        await client.send(request)
        talk = await self.slice.connection()
        await talk.request()
        return client, talk

    async def answer_to(self, request: bytes, said: bytes, method: str = "GET", *, end: bool = False) -> Answer:
        """What a client is answered when the slice says this."""
        client, talk = await self.asked(request)
        await talk.say(said)
        if end:
            talk.close()
        return await client.answer(method)

    @property
    def upstream(self) -> Upstream:
        """The connections to the slice."""
        address = self.route().address
        assert address is not None
        return self.front.upstreams.to(address)

    def route(self, **changed: Any) -> Route:
        """The route of the one session there is, with changes."""
        address = SliceAddress(SLICE_ID, 2, UUID(int=7), "127.0.0.1", self.slice.port, False, False, "the-slice-key")
        return replace(Route("hash", 42, False, SLICE_ID, address, None), **changed)

    def set_route(self, **changed: Any) -> None:
        self.sessions.by_token[TOKEN] = self.route(**changed)

    def manage(self) -> None:
        """Makes the slice one that must name itself."""
        address = self.route().address
        assert address is not None
        self.set_route(address=replace(address, managed=True, proves_identity=True))

    async def wait_until(self, condition: Any) -> None:
        """Looks again and again, for what no event tells."""
        with trio.fail_after(PATIENCE):
            while not condition():
                await trio.sleep(0.01)


def api(path: bytes = b"/api/contacts", fields: bytes = b"", method: bytes = b"GET", body: bytes = b"") -> bytes:
    """A request of the customer who is logged in."""
    length = b"content-length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nhost: crm.example\r\n%b%b%b\r\n%b" % (method, path, COOKIE, length, fields, body)


def page(path: bytes = b"/", fields: bytes = b"", method: bytes = b"GET", body: bytes = b"") -> bytes:
    """A request of somebody who is not."""
    length = b"content-length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nhost: crm.example\r\n%b%b\r\n%b" % (method, path, length, fields, body)


def open_gate(sessions: Any, cors_origin: str | None = None, trusted: tuple[str, ...] = ()) -> Gate:
    return Gate(
        sessions,
        own_origin="https://crm.example",
        cors_origin=cors_origin,
        trusted_proxies=tuple(ip_network(each) for each in trusted),
        secure_cookies=True,
    )


@asynccontextmanager
async def open_house(
    directory: Path,
    limits: Limits = QUICK,
    *,
    cors_origin: str | None = None,
    trusted: tuple[str, ...] = (),
    slice_window: int | None = None,
) -> AsyncIterator[House]:
    """A house whose front listens; it is torn down without a drain."""
    async with AsyncExitStack() as stack:
        slice_ = await stack.enter_async_context(scripted_upstream(window=slice_window))
        app = await stack.enter_async_context(scripted_upstream(directory / "app.sock"))
        sessions, streams = Sessions(), Streams()
        mismatched: list[SliceAddress] = []
        touched: list[int] = []
        guesses: list[str] = []
        starting: set[int] = set()
        asked_about: list[int] = []

        async def is_starting(slice_id: int) -> bool:
            asked_about.append(slice_id)
            return slice_id in starting

        gate = open_gate(sessions, cors_origin, trusted)
        readiness = Readiness()
        upstreams = Upstreams(mismatched.append, readiness)
        unix = app_upstream(lambda: directory / "app.sock")
        front = Front(
            gate,
            upstreams,
            unix,
            streams,  # type: ignore[arg-type]
            limits,
            touched.append,
            readiness,
            guesses.append,
            is_starting,
        )
        listener = Listener(front, await listen("127.0.0.1", 0))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        house = House(front, listener, stack)
        house.slice, house.app, house.sessions, house.streams = slice_, app, sessions, streams
        house.mismatched, house.touched = mismatched, touched
        house.guesses, house.starting, house.asked_about = guesses, starting, asked_about
        house.set_route()
        stack.callback(lambda: [sock.close() for sock, *_ in streams.adopted])
        await nursery.start(front.readiness.run)
        await nursery.start(listener.run)
        yield house
