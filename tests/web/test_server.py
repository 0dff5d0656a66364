"""The app behind Hypercorn on its Unix socket: what the test client can not see."""

import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from queunir_trio.errors import Misconfigured
from queunir_trio.web import edge, server
from queunir_trio.web.app import GatewayApp
from queunir_trio.web.server import serve_app
from tests.web.conftest import SOMEWHERE


@pytest.fixture
async def stop() -> AsyncIterator[trio.Event]:
    event = trio.Event()
    yield event
    event.set()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's, which pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="qt-", dir="/tmp") as directory:
        yield Path(directory)


async def ask(path: Path, request: bytes) -> bytes:
    """Sends bytes and reads to the end of the connection."""
    received = b""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        with trio.fail_after(5):
            async for chunk in stream:
                received += chunk
    return received


# the socket ---------------------------------------------------------------------------------------------------------


async def test_the_socket_is_ours_alone_and_gone_afterwards(app: GatewayApp, short_path: Path) -> None:
    directory, stop = short_path / "data" / "run", trio.Event()
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_app, app, directory, stop)
        assert path.parent.parent == directory
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert str(os.getpid()) in path.parent.name
        stop.set()
    assert list(directory.iterdir()) == []


async def test_two_servers_do_not_take_each_others_socket(app: GatewayApp, tmp_path: Path, stop: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        paths = [await nursery.start(serve_app, app, tmp_path, stop) for _ in range(2)]
        for path in paths:
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
                assert (await client.get("http://x/health/live")).status_code == 204
        stop.set()


async def test_a_directory_too_deep_for_a_socket_is_evaded(
    app: GatewayApp, short_path: Path, stop: trio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.tempfile, "gettempdir", lambda: str(short_path))
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_app, app, short_path / ("d" * 120), stop)
        assert path.parent.parent == short_path
        assert len(str(path)) <= 107
        stop.set()
    assert os.listdir(short_path) == []


async def test_where_no_directory_is_short_enough_it_is_said(
    app: GatewayApp, tmp_path: Path, stop: trio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(server.tempfile, "gettempdir", lambda: str(deep))
    with pytest.raises(Misconfigured, match="TMPDIR"):
        await serve_app(app, deep, stop)
    assert list(deep.iterdir()) == []


async def test_what_a_killed_process_left_behind_is_swept_and_what_a_living_one_has_is_not(
    app: GatewayApp, short_path: Path, stop: trio.Event
) -> None:
    gone = await trio.run_process(["sh", "-c", "echo $$"], capture_stdout=True)
    dead, alive = short_path / f"app-{int(gone.stdout)}-x", short_path / f"app-{os.getppid()}-x"
    other = short_path / "app-notes-x"
    for directory in (dead, alive, other):
        directory.mkdir()
        (directory / "app.sock").touch()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_app, app, short_path, stop)
        stop.set()
    assert (dead.exists(), alive.exists(), other.exists()) == (False, True, True)


# the traps of the stack ---------------------------------------------------------------------------------------------


async def test_connection_close_closes(app: GatewayApp, tmp_path: Path, stop: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_app, app, tmp_path, stop)
        for body in (b"GET /health/live", b"GET /docs"):
            answer = await ask(path, body + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert answer.startswith((b"HTTP/1.1 204", b"HTTP/1.1 200"))
        stop.set()


async def test_it_ends_at_once_although_idle_connections_are_open(
    app: GatewayApp, tmp_path: Path, stop: trio.Event
) -> None:
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_app, app, tmp_path, stop)
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 204")
            begun = trio.current_time()
            stop.set()
            with trio.fail_after(1):
                assert await stream.receive_some(1000) == b""
    assert trio.current_time() - begun < 1


async def test_one_connection_serves_many_requests(unix_client: httpx.AsyncClient) -> None:
    for _ in range(50):
        assert (await unix_client.get("/health/live")).status_code == 204


async def test_clients_that_go_away_in_the_middle_do_not_end_the_server(
    app: GatewayApp, tmp_path: Path, stop: trio.Event
) -> None:
    async def abort(path: Path, request: bytes) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.send(request)
        sock.close()

    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_app, app, tmp_path, stop)
        for request in (
            b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /do",
            b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        ):
            for _ in range(20):
                await abort(path, request)
        assert (await ask(path, b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))[:12] == (
            b"HTTP/1.1 204"
        )
        stop.set()


async def test_a_websocket_is_refused(app: GatewayApp, tmp_path: Path, stop: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        path = await nursery.start(serve_app, app, tmp_path, stop)
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(
                b"GET /api/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            with trio.fail_after(5):
                assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 403")
        stop.set()


async def test_a_slash_twice_is_another_address(unix_client: httpx.AsyncClient) -> None:
    answer = await unix_client.get("http://app.example.com//health/live")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


async def test_the_front_says_who_asks_and_handlers_do_not_see_how(
    app: GatewayApp, unix_client: httpx.AsyncClient
) -> None:
    async def who() -> dict[str, Any]:
        from quart import request

        fields = sorted(name.lower() for name, _ in request.headers)
        return {"address": request.remote_addr, "scheme": request.scheme, "fields": fields}

    app.add_url_rule("/who", view_func=who)
    answer = await unix_client.get("/who", headers={"x-request-id": "r-1"})
    said = answer.json()
    assert (said["address"], said["scheme"]) == (SOMEWHERE, "https")
    assert not {"x-front-client", "x-front-scheme", "x-request-id"} & set(said["fields"])
    assert answer.headers.get_list("x-request-id") == ["r-1"]
    assert "server" not in answer.headers


# the edge by itself -------------------------------------------------------------------------------------------------


async def speak(app: edge.Asgi, send: edge.Send) -> None:
    scope = {"type": "http", "headers": [], "client": None}
    await edge.Edge(app)(scope, trio.sleep_forever, send)  # type: ignore[arg-type]


async def test_the_last_words_are_sent_whole_even_if_the_app_is_cancelled_meanwhile() -> None:
    sent: list[str] = []

    async def app(scope: edge.Scope, receive: edge.Receive, send: edge.Send) -> None:
        with trio.CancelScope() as scope_of_app:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            scope_of_app.cancel()
            await send({"type": "http.response.body", "body": b""})

    async def send(message: edge.Message) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(str(message["type"]))

    await speak(app, send)
    assert sent == ["http.response.start", "http.response.body", "http.response.body"]


async def test_the_last_words_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, logged: Any
) -> None:
    async def app(scope: edge.Scope, receive: edge.Receive, send: edge.Send) -> None:
        await send({"type": "http.response.body", "body": b""})

    async def send(message: edge.Message) -> None:
        await trio.sleep_forever()

    begun = trio.current_time()
    await speak(app, send)
    assert trio.current_time() - begun == pytest.approx(edge.LAST_WORDS_WITHIN)
    assert [line["event"] for line in logged] == ["answer_not_taken"]


async def test_what_is_neither_a_request_nor_a_websocket_is_the_apps() -> None:
    seen: list[str] = []

    async def app(scope: edge.Scope, receive: edge.Receive, send: edge.Send) -> None:
        seen.append(scope["type"])

    await edge.Edge(app)({"type": "lifespan"}, trio.sleep_forever, trio.sleep_forever)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
