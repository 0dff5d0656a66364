"""How the service ends: whatever its clients do, soon, cleanly and with nothing left behind."""

import socket
from contextlib import ExitStack

import trio

from tests.journeys.conftest import Gateway

STREAMS = 500
STALLED = 20
ENDS_WITHIN = 5.0  # seconds


def address(gateway: Gateway) -> tuple[str, int]:
    return "127.0.0.1", int(gateway.environment["PORT"])


def head(gateway: Gateway, target: str, cookie: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\nCookie: session={cookie}\r\n\r\n".encode()


async def open_stream(gateway: Gateway, cookie: str, stack: ExitStack, *, small: bool = False) -> trio.SocketStream:
    """A stream of which the first bytes were read; `small` leaves it hardly any room to receive more."""
    sock = trio.socket.socket()
    stack.callback(sock.close)
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(address(gateway))
    stream = trio.SocketStream(sock)
    await stream.send_all(head(gateway, "/api/events", cookie))
    seen = b""
    while b"wa:catchup" not in seen:
        data = await stream.receive_some()
        assert data, seen
        seen += data
    return stream


async def test_five_hundred_streams_of_which_twenty_do_not_read(gateway: Gateway) -> None:
    gateway.environment["MAX_STREAMS_PER_USER"] = "1000"
    await gateway.start()
    await gateway.wait_for_pool()
    browser = gateway.browser()
    await browser.register("ana@example.com")
    cookie = browser.client.cookies["session"]
    with ExitStack() as stack:
        stalled = [await open_stream(gateway, cookie, stack, small=True) for _ in range(STALLED)]
        readers = [await open_stream(gateway, cookie, stack) for _ in range(STREAMS - STALLED)]
        async with browser.events() as events, trio.open_nursery() as nursery:
            ended = [trio.Event() for _ in readers]
            for reader, event in zip(readers, ended, strict=True):
                nursery.start_soon(read_to_the_end, reader, event)
            await events.code()
            await browser.simulate("scan")
            await events.named("wa:ready")
            # more than the kernel holds for those who do not read
            await browser.simulate("flood", count=3000, per_second=3000)
            await events.until(lambda event: event.name == "wa:message" and len(events.history) > 1500, within=40)
            with trio.fail_after(ENDS_WITHIN):
                assert await gateway.stop() == 0
            with trio.fail_after(ENDS_WITHIN):
                for event in ended:
                    await event.wait()
            nursery.cancel_scope.cancel()
        del stalled


async def read_to_the_end(stream: trio.SocketStream, ended: trio.Event) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass  # those who fell behind are reset
    ended.set()


async def test_clients_that_never_read_their_answers_do_not_hold_it_up(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    with ExitStack() as stack:
        for _ in range(5):
            sock = trio.socket.socket()
            stack.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect(address(gateway))
            await sock.send(head(gateway, "/openapi.json", "") * 200)
        async with gateway.admin() as admin:
            assert (await admin.get("/health")).status_code == 200
        with trio.fail_after(2 * ENDS_WITHIN):
            assert await gateway.stop() == 0


async def test_idle_connections_close_at_once_and_no_new_one_is_taken(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    stream = await trio.open_tcp_stream(*address(gateway))
    async with stream:
        await stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
        with trio.fail_after(ENDS_WITHIN):
            assert await gateway.stop() == 0
            assert await stream.receive_some() == b""
