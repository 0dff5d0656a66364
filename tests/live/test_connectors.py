"""Connectors against the real Socket.IO servers of Python and Node.js, and against slices that misbehave on purpose."""

import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import pytest
import trio
from trio_websocket import WebSocketRequest, serve_websocket

from queunir_trio.errors import Lost
from queunir_trio.live import connector
from queunir_trio.live.connectors import Connectors
from queunir_trio.live.hub import Hub
from queunir_trio.live.supervision import Backoff
from queunir_trio.model.routing import SliceAddress
from queunir_trio.outside.slice_control import WrongSlice
from tests.doubles.socketio_servers import SocketIoServer, node_command, python_command
from tests.doubles.streams import address

COMMANDS: dict[str, Callable[[], list[str]]] = {"python": python_command, "node": node_command}
_ids = count(1)


@dataclass
class Report:
    state: str = "ready"
    phone_number: str | None = "+1"
    qr: dict[str, Any] | str | None = None


class Control:
    """Answers for slices as the test has it."""

    def __init__(self) -> None:
        self.report = Report()
        self.fault: Exception | None = None
        self.asked: list[tuple[str, int]] = []
        self.may_answer = trio.Event()
        self.may_answer.set()
        self.waiting = 0
        self.waiting_at_most = 0

    async def health(self, address: SliceAddress) -> object:
        self.asked.append(("health", address.slice_id))
        await trio.lowlevel.checkpoint()
        if self.fault is not None:
            raise self.fault
        return None

    async def state(self, address: SliceAddress) -> Report:
        self.asked.append(("state", address.slice_id))
        self.waiting += 1
        self.waiting_at_most = max(self.waiting, self.waiting_at_most)
        await self.may_answer.wait()
        self.waiting -= 1
        return self.report


@dataclass
class Listener:
    """What browsers of a slice would be told."""

    heard: list[tuple[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)

    def take(self, frame: bytes) -> None:
        fields = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
        self.heard.append((fields["event"], fields["data"]))
        self.numbers.append(int(fields["id"].rpartition(":")[2]))
        self.news.set()

    async def hear(self, name: str, within: float = 5.0) -> Any:
        """The payload of the next event of that name; what came before it is behind us then."""
        with trio.fail_after(within):
            while True:
                while self.heard:
                    told, data = self.heard.pop(0)
                    if told == name:
                        return json.loads(data)
                self.news = trio.Event()
                await self.news.wait()


class Service:
    """Connectors with all they need."""

    def __init__(self, **arguments: Any) -> None:
        self.hub = Hub()
        self.control = Control()
        self.addresses: dict[int, SliceAddress] = {}
        self.table_away = False
        self.fault: Exception | None = None  # raised once
        arguments.setdefault("backoff", lambda: Backoff(0.02, 0.05))
        self.connectors = Connectors(self.hub, self.find, self.control, **arguments)

    async def find(self, slice_id: int) -> SliceAddress | None:
        await trio.lowlevel.checkpoint()
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if self.table_away:
            raise Lost("the table is away")
        return self.addresses.get(slice_id)

    def look(self, port: int, slice_id: int | None = None) -> tuple[int, Listener]:
        """Someone looks at a slice; its id is new unless it is given."""
        slice_id = slice_id or 1_000_000 + next(_ids)
        self.addresses[slice_id] = address(slice_id, port)
        listener = Listener()
        channel = self.hub.channel(slice_id)
        channel.follow(listener.take)
        channel.enter()
        return slice_id, listener

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Service"]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.connectors.run)
            yield self
            nursery.cancel_scope.cancel()


@pytest.fixture(scope="session", params=["python", "node"])
def server_of_session(request: pytest.FixtureRequest) -> Iterator[SocketIoServer]:
    server = SocketIoServer(COMMANDS[request.param]())
    yield server
    server.end()


@pytest.fixture
async def server(server_of_session: SocketIoServer) -> SocketIoServer:
    await server_of_session.reset()
    return server_of_session


@pytest.fixture(params=["python", "node"])
def quick_server(request: pytest.FixtureRequest) -> Iterator[SocketIoServer]:
    """One that asks for signs of life as often as it can; Python's counts in whole seconds."""
    interval, patience = (1000, 1000) if request.param == "python" else (100, 300)
    server = SocketIoServer(COMMANDS[request.param](), pingInterval=interval, pingTimeout=patience)
    yield server
    server.end()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with Service().running() as running:
        yield running


def line(service: Service, slice_id: int) -> str:
    return service.hub.channel(slice_id).connector


async def until(holds: Callable[[], bool], within: float = 5.0) -> None:
    with trio.fail_after(within):
        while not holds():
            await trio.sleep(0.01)


# against the real servers


async def test_a_watched_slice_is_connected_with_its_key_and_brought_up_to_date(
    service: Service, server: SocketIoServer
) -> None:
    slice_id, listener = service.look(server.port)
    told = await listener.hear("wa:catchup")
    assert (told["connectionState"], told["connector"], told["gap"]) == ("ready", "open", False)
    assert (await server.saw("connected"))["connected"] == f"key-{slice_id}"
    assert (service.connectors.open, service.connectors.lost) == (1, 0)


async def test_events_come_through_as_the_slice_sent_them(service: Service, server: SocketIoServer) -> None:
    _, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    payload = {"id": 1, "body": "¿Qué tal? \n\r\t\u2028 😀", "list": [1.5, None, True, {}], "big": 2**53}
    await server.emit("wa:message", payload)
    await server.emit("private", "not for browsers")
    await server.emit("wa:two", 1, "b")
    await server.emit("wa:none")
    assert await listener.hear("wa:message") == payload
    assert await listener.hear("wa:two") == [1, "b"]
    assert await listener.hear("wa:none") is None
    assert listener.numbers == [1, 2, 3, 4]


async def test_binary_attachments_come_through_as_base64(service: Service, server: SocketIoServer) -> None:
    _, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    data = bytes(range(256)) * 100
    await server.emit("wa:media", {"thumb": {"$bytes": b64encode(data).decode()}, "more": [{"$bytes": ""}], "id": 3})
    told = await listener.hear("wa:media")
    assert (b64decode(told["thumb"]), told["more"], told["id"]) == (data, [""], 3)


async def test_an_event_that_asks_for_it_is_acknowledged(service: Service, server: SocketIoServer) -> None:
    _, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    await server.order("ask", name="wa:x", args=[1])
    assert (await server.saw("acked"))["acked"] == [None]
    assert await listener.hear("wa:x") == 1


@pytest.mark.parametrize("deed", ["disconnect", "close"])
async def test_a_line_that_the_slice_ends_is_opened_again_and_the_gap_is_told(
    service: Service, server: SocketIoServer, deed: str
) -> None:
    _, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    await server.saw("connected")
    await server.order(deed)
    told = await listener.hear("wa:state")
    assert (told["state"], told["reason"]) == ("degraded", "connector_lost")
    assert (await listener.hear("wa:catchup"))["gap"] is True
    await server.emit("wa:message", 1)
    assert await listener.hear("wa:message") == 1
    assert listener.numbers == [1, 2, 3, 4]


async def test_a_refusal_is_shown_and_not_repeated_until_someone_new_looks(
    service: Service, server: SocketIoServer
) -> None:
    await server.order("refuse", message="no such key")
    slice_id, listener = service.look(server.port)
    assert (await listener.hear("wa:state"))["reason"] == "connector_refused"
    assert line(service, slice_id) == "refused"
    assert service.connectors.lost == 1
    await server.order("refuse", message=None)
    service.connectors.want([])  # a nudge that says nothing about this slice
    with pytest.raises(trio.TooSlowError):
        await listener.hear("wa:catchup", within=0.3)
    service.look(server.port, slice_id)
    assert (await listener.hear("wa:catchup"))["connector"] == "open"
    assert service.connectors.lost == 0


async def test_a_refused_slice_whose_row_changes_is_asked_again(service: Service, server: SocketIoServer) -> None:
    await server.order("refuse", message="not yet")
    slice_id, listener = service.look(server.port)
    await listener.hear("wa:state")
    await server.order("refuse", message=None)
    service.connectors.look_again(slice_id)
    await listener.hear("wa:catchup")


@pytest.mark.parametrize("text", ["garbage", "4", '42["wa:x",NaN]', '452-["wa:x"]', "x" * 100_000, '42["wa:\ud7ff'])
async def test_garbage_ends_that_line_only(service: Service, server: SocketIoServer, text: str) -> None:
    slice_id, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    await server.order("raw", text=text)
    if text.startswith("452"):
        await server.emit("wa:y")  # text where attachments are due
    assert (await listener.hear("wa:state"))["reason"] == "connector_lost"
    assert (await listener.hear("wa:catchup"))["gap"] is True
    await until(lambda: line(service, slice_id) == "open")


async def test_an_oversize_event_ends_that_line_only(service: Service, server: SocketIoServer) -> None:
    _, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    await server.order("big", name="wa:x", bytes=900_000)
    assert len(await listener.hear("wa:x")) == 900_000
    await server.order("big", name="wa:x", bytes=50_000_000)
    assert (await listener.hear("wa:state"))["reason"] == "connector_lost"
    assert (await listener.hear("wa:catchup"))["gap"] is True


async def test_too_many_attachments_by_size_end_that_line_only(service: Service, server: SocketIoServer) -> None:
    _, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    piece = {"$bytes": b64encode(b"x" * 1_000_000).decode()}
    await server.emit("wa:x", [piece] * 4)
    assert len(await listener.hear("wa:x")) == 4
    await server.emit("wa:x", [piece] * 5)
    assert (await listener.hear("wa:state"))["reason"] == "connector_lost"
    assert (await listener.hear("wa:catchup"))["gap"] is True


async def test_a_flood_loses_nothing_and_starves_nobody(service: Service, server: SocketIoServer) -> None:
    _, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    worst = 0.0
    async with trio.open_nursery() as nursery:

        async def beat() -> None:
            nonlocal worst
            while True:
                began = trio.current_time()
                await trio.sleep(0.005)
                worst = max(worst, trio.current_time() - began)

        nursery.start_soon(beat)
        await server.order("flood", name="wa:message", count=10_000)
        await server.emit("wa:end")
        await listener.hear("wa:end", within=30)
        nursery.cancel_scope.cancel()
    assert listener.numbers == list(range(1, 10_003))
    assert worst < 0.25


async def test_what_comes_while_the_state_is_asked_for_follows_the_catch_up(
    service: Service, server: SocketIoServer
) -> None:
    await server.order("greet", events=[["wa:hello", 1]])
    service.control.may_answer = trio.Event()
    service.control.report = Report("qr", None, {"qr": "2@a", "n": 1})
    _, listener = service.look(server.port)
    await server.saw("connected")
    await until(lambda: service.control.waiting == 1)
    await server.emit("wa:ready", {"phoneNumber": "+34"})
    service.control.may_answer.set()
    await until(lambda: len(listener.heard) == 4)
    assert [name for name, _ in listener.heard] == ["wa:catchup", "wa:qr", "wa:hello", "wa:ready"]
    state = json.loads(service.hub.channel(next(iter(service.hub.watched()))).greeting(False).split(b"data: ")[1])
    assert (state["connectionState"], state["phoneNumber"], state["qr"]) == ("ready", "+34", None)


async def test_a_line_with_signs_of_life_stays_open(service: Service, quick_server: SocketIoServer) -> None:
    _, listener = service.look(quick_server.port)
    await listener.hear("wa:catchup")
    with pytest.raises(trio.TooSlowError):  # the server closes a line whose pings are not answered
        await quick_server.saw("disconnected", within=2.5)
    assert service.connectors.open == 1


async def test_a_slice_that_falls_silent_is_lost_and_found_again(
    service: Service, quick_server: SocketIoServer
) -> None:
    _, listener = service.look(quick_server.port)
    await listener.hear("wa:catchup")
    quick_server.freeze()
    began = trio.current_time()
    assert (await listener.hear("wa:state", within=5))["reason"] == "connector_lost"
    assert trio.current_time() - began < 3
    quick_server.thaw()
    assert (await listener.hear("wa:catchup"))["gap"] is True


async def test_a_slice_that_dies_and_comes_back_is_found_again(service: Service, free_port: int) -> None:
    first = SocketIoServer(python_command(), port=free_port)
    _, listener = service.look(free_port)
    try:
        await listener.hear("wa:catchup")
    finally:
        first.end()
    await listener.hear("wa:state")
    second = SocketIoServer(python_command(), port=free_port)
    try:
        assert (await listener.hear("wa:catchup"))["gap"] is True
        await second.emit("wa:message", 1)
        assert await listener.hear("wa:message") == 1
    finally:
        second.end()
    assert listener.numbers == list(range(1, len(listener.numbers) + 1))


async def test_one_line_a_slice_whatever_the_number_of_viewers(service: Service, server: SocketIoServer) -> None:
    slice_id, listener = service.look(server.port)
    for _ in range(20):
        service.look(server.port, slice_id)
    await listener.hear("wa:catchup")
    await server.saw("connected")
    with pytest.raises(trio.TooSlowError):
        await server.saw("connected", within=0.3)


async def test_many_slices_on_one_server_hear_only_of_themselves_when_one_breaks(
    service: Service, server: SocketIoServer
) -> None:
    slices = [service.look(server.port) for _ in range(10)]
    for _, listener in slices:
        await listener.hear("wa:catchup")
    service.connectors.look_again(slices[0][0])
    service.addresses[slices[0][0]] = address(slices[0][0], 1)
    assert (await slices[0][1].hear("wa:state"))["reason"] == "connector_lost"
    await server.emit("wa:message", 1)
    for slice_id, listener in slices[1:]:
        assert await listener.hear("wa:message") == 1
        assert line(service, slice_id) == "open"


# by the clock, and by the table


async def test_a_line_that_nobody_looks_at_is_closed_after_a_while(server: SocketIoServer) -> None:
    async with Service(linger=0.3).running() as service:
        slice_id, listener = service.look(server.port)
        await listener.hear("wa:catchup")
        await server.saw("connected")
        began = trio.current_time()
        service.hub.channel(slice_id).leave()
        await server.saw("disconnected", f"key-{slice_id}")
        assert trio.current_time() - began >= 0.3
        assert line(service, slice_id) == "closed"
        assert service.connectors.open == 0
        service.hub.channel(slice_id).enter()
        assert (await listener.hear("wa:catchup"))["gap"] is True


async def test_a_viewer_who_comes_back_in_time_finds_the_line_open(server: SocketIoServer) -> None:
    async with Service(linger=0.3).running() as service:
        slice_id, listener = service.look(server.port)
        await listener.hear("wa:catchup")
        for _ in range(3):
            service.hub.channel(slice_id).leave()
            await trio.sleep(0.15)
            service.hub.channel(slice_id).enter()
        with pytest.raises(trio.TooSlowError):
            await server.saw("disconnected", f"key-{slice_id}", within=0.5)


async def test_a_wanted_slice_is_followed_although_nobody_looks(service: Service, server: SocketIoServer) -> None:
    slice_id, listener = service.look(server.port)
    service.hub.channel(slice_id).leave()
    service.connectors.want([slice_id])
    await listener.hear("wa:catchup")
    assert service.connectors.open == 1


async def test_no_more_lines_are_opened_at_once_than_the_limit(server: SocketIoServer) -> None:
    async with Service(at_once=3).running() as service:
        service.control.may_answer = trio.Event()
        listeners = [service.look(server.port)[1] for _ in range(10)]
        await until(lambda: service.control.waiting == 3)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert service.control.waiting == 3
        service.control.may_answer.set()
        for listener in listeners:
            await listener.hear("wa:catchup")
        assert service.control.waiting_at_most == 3


async def test_a_managed_slice_proves_who_it_is_before_it_is_sent_the_key(service: Service) -> None:
    connections = 0
    listening = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def count_connection(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, count_connection, listening)
        slice_id, listener = service.look(listening[0].socket.getsockname()[1])
        known = service.addresses[slice_id]
        service.addresses[slice_id] = SliceAddress(
            known.slice_id, known.num, known.uuid, known.host, known.port, True, True, known.key
        )
        service.control.fault = WrongSlice("someone else")
        assert (await listener.hear("wa:state"))["reason"] == "connector_lost"
        await until(lambda: service.control.asked.count(("health", slice_id)) >= 3)
        assert connections == 0
        service.control.fault = None
        await until(lambda: connections > 0)
        nursery.cancel_scope.cancel()


async def test_an_unmanaged_slice_is_not_asked_who_it_is(service: Service, server: SocketIoServer) -> None:
    slice_id, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    assert service.control.asked == [("state", slice_id)]


async def test_a_slice_that_is_gone_from_the_table_is_not_looked_for_again(service: Service) -> None:
    slice_id = 1_000_000 + next(_ids)
    listener = Listener()
    service.hub.channel(slice_id).follow(listener.take)
    service.hub.channel(slice_id).enter()
    assert (await listener.hear("wa:state"))["reason"] == "connector_refused"
    await trio.testing.wait_all_tasks_blocked(0.1)
    assert line(service, slice_id) == "refused"


async def test_while_the_table_is_away_the_last_known_address_serves(service: Service, server: SocketIoServer) -> None:
    slice_id, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    service.table_away = True
    service.connectors.look_again(slice_id)
    await server.order("close")
    await listener.hear("wa:state")
    assert (await listener.hear("wa:catchup"))["connector"] == "open"


async def test_a_slice_that_moved_is_followed_to_where_it_is(service: Service, server: SocketIoServer) -> None:
    slice_id, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    other = SocketIoServer(python_command())
    try:
        service.addresses[slice_id] = address(slice_id, other.port)
        service.connectors.look_again(slice_id)
        assert (await listener.hear("wa:catchup"))["gap"] is True
        await other.emit("wa:message", "here")
        assert await listener.hear("wa:message") == "here"
        await server.saw("disconnected", f"key-{slice_id}")
    finally:
        other.end()


async def test_a_bug_in_looking_up_an_address_ends_no_line(service: Service, server: SocketIoServer) -> None:
    slice_id, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    service.fault = KeyError("a bug")
    service.connectors.look_again(slice_id)
    await until(lambda: service.fault is None)
    await server.emit("wa:message", 1)
    assert await listener.hear("wa:message") == 1


async def test_a_slice_that_never_begins_the_conversation_is_lost(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "CONNECTED_WITHIN", 0.1)

    async def say_nothing(request: WebSocketRequest) -> None:
        await request.accept()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        silent = await nursery.start(partial(serve_websocket, say_nothing, "127.0.0.1", 0, ssl_context=None))
        _, listener = service.look(silent.port)
        assert (await listener.hear("wa:state"))["reason"] == "connector_lost"
        nursery.cancel_scope.cancel()


async def test_looking_again_at_a_slice_that_did_not_move_changes_nothing(
    service: Service, server: SocketIoServer
) -> None:
    slice_id, listener = service.look(server.port)
    await listener.hear("wa:catchup")
    service.connectors.look_again(slice_id)
    with pytest.raises(trio.TooSlowError):
        await server.saw("disconnected", f"key-{slice_id}", within=0.3)
