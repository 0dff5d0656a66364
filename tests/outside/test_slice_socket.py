"""The websocket to a slice that misbehaves: every fault is a loss, in time and without a trace."""

import base64
import hashlib
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.model.routing import SliceAddress
from queunir_trio.outside import slice_socket
from queunir_trio.outside.slice_socket import SliceSocket, SliceSocketClosed, open_slice_socket
from tests.doubles.streams import address

Script = Callable[[trio.SocketStream, bytes], Awaitable[None]]


class Slice:
    """Accepts connections, reads the request and does as the script says."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.request = b""
        self.ended = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            while b"\r\n\r\n" not in self.request:
                data = await stream.receive_some()
                if not data:
                    return
                self.request += data
            await self._script(stream, self.request)
        except trio.BrokenResourceError:
            pass
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[Slice, SliceAddress]]:
    server = Slice(script)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        yield server, address(7, listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def shake(stream: trio.SocketStream, request: bytes) -> None:
    found = re.search(rb"(?i)sec-websocket-key: (\S+)", request)
    assert found is not None
    digest = hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(digest)
    )


def frame(payload: bytes, opcode: int = 1) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes([0x80 | opcode, size]) + payload
    return bytes([0x80 | opcode, 127]) + struct.pack("!Q", size) + payload


async def until_end(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


def opened(at: SliceAddress, limit: int = 1000) -> AbstractAsyncContextManager[SliceSocket]:
    return open_slice_socket(at, "/socket.io/?EIO=4", message_at_most=limit)


async def test_messages_go_both_ways_and_the_key_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_socket, "CLOSE_WITHIN", 0.1)

    async def echo(stream: trio.SocketStream, request: bytes) -> None:
        await shake(stream, request)
        await stream.send_all(frame(b"hola") + frame(b"\x00\x01", 2))
        await until_end(stream)

    async with serving(echo) as (server, at):
        async with opened(at) as sock:
            assert await sock.receive() == "hola"
            assert await sock.receive() == b"\x00\x01"
            await sock.send("3")
        assert server.request.startswith(b"GET /socket.io/?EIO=4 HTTP/1.1\r\n")
        assert b"x-slice-key: key-7\r\n" in server.request.lower()
        with trio.fail_after(2):
            await server.ended.wait()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_slice_that_does_not_accept_the_key_refuses(status: int) -> None:
    async def refuse(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)

    async with serving(refuse) as (_, at):
        with trio.fail_after(2), pytest.raises(Refused, match=str(status)) as refusal:
            async with opened(at):
                raise AssertionError
        assert refusal.value.code == "slice_refused"


async def say_not_found(stream: trio.SocketStream, request: bytes) -> None:
    await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


async def say_unavailable(stream: trio.SocketStream, request: bytes) -> None:
    await stream.send_all(b"HTTP/1.1 503 Later\r\ncontent-length: 3\r\n\r\nno!")
    await until_end(stream)


async def say_goodbye(stream: trio.SocketStream, request: bytes) -> None:
    await stream.aclose()


async def say_half(stream: trio.SocketStream, request: bytes) -> None:
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webs")


async def say_nonsense(stream: trio.SocketStream, request: bytes) -> None:
    await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    await until_end(stream)


async def say_the_wrong_proof(stream: trio.SocketStream, request: bytes) -> None:
    await shake(stream, b"sec-websocket-key: AAAA")
    await until_end(stream)


async def say_no_end_of_fields(stream: trio.SocketStream, request: bytes) -> None:
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        await stream.send_all(b"x: y\r\n" * 1000)


async def say_no_end_of_body(stream: trio.SocketStream, request: bytes) -> None:
    await stream.send_all(b"HTTP/1.1 500 Oh\r\ncontent-length: 999999999999\r\n\r\n")
    while True:
        await stream.send_all(b"x" * 65536)


@pytest.mark.parametrize(
    "script",
    [
        say_not_found,
        say_unavailable,
        say_goodbye,
        say_half,
        say_nonsense,
        say_the_wrong_proof,
        say_no_end_of_fields,
        say_no_end_of_body,
    ],
)
async def test_a_handshake_that_is_none_is_a_loss_at_once(script: Script) -> None:
    async with serving(script) as (server, at):
        with trio.fail_after(2), pytest.raises(SliceSocketClosed):
            async with opened(at):
                raise AssertionError
        with trio.fail_after(2):
            await server.ended.wait()


async def test_a_handshake_that_never_comes_is_a_loss_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_socket, "OPEN_WITHIN", 0.2)
    async with serving(until_end_of) as (server, at):
        with trio.fail_after(2), pytest.raises(SliceSocketClosed, match="in time"):
            async with opened(at):
                raise AssertionError
        with trio.fail_after(2):
            await server.ended.wait()


async def until_end_of(stream: trio.SocketStream, request: bytes) -> None:
    await until_end(stream)


async def test_nobody_there_is_an_error_of_the_system(free_port: int) -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        async with opened(address(7, free_port)):
            raise AssertionError


async def receive_all(at: SliceAddress) -> list[str | bytes]:
    """Every message until the connection is lost."""
    messages: list[str | bytes] = []
    with trio.fail_after(5), suppress(SliceSocketClosed):
        async with opened(at) as sock:
            while True:
                messages.append(await sock.receive())
    return messages


async def send_for_ever(at: SliceAddress) -> None:
    async with opened(at) as sock:
        while True:
            await sock.send("x" * 1000)


@pytest.mark.parametrize("closes", [True, False])
async def test_a_message_over_the_limit_ends_the_connection_whether_or_not_the_slice_agrees(closes: bool) -> None:
    async def flood(stream: trio.SocketStream, request: bytes) -> None:
        await shake(stream, request)
        await stream.send_all(frame(b"x" * 1000))
        await stream.send_all(frame(b"x" * 50_000_000))
        if closes:
            await until_end(stream)
        else:
            await trio.sleep_forever()

    async with serving(flood) as (_, at):
        assert all(len(message) == 1000 for message in await receive_all(at))


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        frame(b"\xff\xfe"),
        b"\x81\x85abcdhello",
        frame(b"x" * 200, 9),
        frame(b"\x03\xe8", 8),
        b"",
    ],
)
async def test_broken_frames_and_ends_are_a_loss(garbage: bytes) -> None:
    async def script(stream: trio.SocketStream, request: bytes) -> None:
        await shake(stream, request)
        await stream.send_all(garbage)
        await stream.aclose()

    async with serving(script) as (_, at):
        assert await receive_all(at) == []


async def test_sending_into_a_connection_that_is_over_is_a_loss() -> None:
    async def script(stream: trio.SocketStream, request: bytes) -> None:
        await shake(stream, request)

    async with serving(script) as (_, at):
        with trio.fail_after(2), pytest.raises(SliceSocketClosed):
            await send_for_ever(at)


async def shake_and_wait(stream: trio.SocketStream, request: bytes) -> None:
    await shake(stream, request)
    await until_end(stream)


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    async with serving(shake_and_wait) as (server, at):
        with pytest.raises(KeyError):
            async with opened(at):
                raise KeyError
        with trio.fail_after(2):
            await server.ended.wait()


async def test_a_cancelled_connection_closes_at_once() -> None:
    async with serving(shake_and_wait) as (server, at):
        with trio.move_on_after(0.1) as scope:
            async with opened(at) as sock:
                await sock.receive()
        assert scope.cancelled_caught
        with trio.fail_after(1):
            await server.ended.wait()


async def test_a_slice_that_does_not_answer_a_polite_end_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_socket, "CLOSE_WITHIN", 0.1)

    async def deaf(stream: trio.SocketStream, request: bytes) -> None:
        await shake(stream, request)
        await trio.sleep_forever()

    async with serving(deaf) as (_, at):
        with trio.fail_after(1):
            async with opened(at):
                pass
