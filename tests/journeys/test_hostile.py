"""Bytes that would end or confuse what stands behind the front: everything else goes on as if nothing had happened."""

import json

import httpx
import pytest
import trio

from tests.journeys.browser import PASSWORD
from tests.journeys.conftest import Gateway

HOSTILE = {
    "an upgrade to HTTP/2 with a body": (
        b"POST /auth/login HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 2\r\n\r\n{}"
    ),
    "a broken chunk": b"POST /auth/login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a websocket": (
        b"GET /auth/me HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ),
    "bytes that are not text": b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    "a TLS hello": bytes.fromhex("1603010200010001fc0303") + bytes(64),
    "two lengths": b"POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "a way around": b"GET /api/..%2fadmin/users HTTP/1.1\r\nHost: a\r\n\r\n",
}


async def say(gateway: Gateway, data: bytes) -> bytes:
    """Everything that is answered until the connection ends or nothing more comes."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(gateway.environment["PORT"]))
    answer = b""
    async with stream:
        await stream.send_all(data)
        with trio.move_on_after(2):
            while more := await stream.receive_some():
                answer += more
    return answer


async def test_the_service_outlives_what_would_end_its_app(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    answers: dict[str, bytes] = {}

    async def hear(name: str) -> None:
        answers[name] = await say(gateway, HOSTILE[name])

    async with trio.open_nursery() as nursery:
        for name in HOSTILE:
            nursery.start_soon(hear, name)
    # only the first is a request at all: its upgrade is passed over, and its body read as a body
    for name in list(HOSTILE)[1:]:
        assert answers[name].startswith((b"HTTP/1.1 4", b"HTTP/1.1 505")), (name, answers[name][:80])
        assert answers[name].count(b"x-request-id: ") == 1, name
    assert answers["an upgrade to HTTP/2 with a body"].startswith(b"HTTP/1.1 415")  # the app's own answer
    async with gateway.admin() as admin:
        assert (await admin.get("/health")).status_code == 200


async def test_bodies_that_break_off_never_reach_the_app(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    head = b"POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n"

    async def break_off() -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", int(gateway.environment["PORT"]))
        async with stream:
            await stream.send_all(head + b'{"email": "')

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(break_off)
    async with gateway.admin() as admin:
        assert (await admin.get("/health")).status_code == 200
        refused = (await admin.get("/metrics")).text
        assert "session_crashed" not in gateway.log.read_text()
        assert "queunir_requests_total" in refused


async def test_requests_that_are_abandoned_in_the_middle_of_their_transaction(gateway: Gateway) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()

    async def abandon(number: int) -> None:
        body = json.dumps({"email": f"a{number}@example.com", "password": PASSWORD}).encode()
        head = (
            b"POST /auth/register HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        stream = await trio.open_tcp_stream("127.0.0.1", int(gateway.environment["PORT"]))
        async with stream:
            await stream.send_all(head % len(body) + body)
            with trio.move_on_after(0.01 * (number % 40)):
                await stream.receive_some()

    async with trio.open_nursery() as nursery:
        for number in range(120):
            nursery.start_soon(abandon, number)
    async with gateway.admin() as admin:
        with trio.fail_after(10):
            assert (await admin.get("/health")).status_code == 200
    assert await gateway.stop() == 0


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/health", "/health/slices", "/"])
async def test_what_everybody_may_see_is_served_with_a_request_id(gateway: Gateway, path: str) -> None:
    gateway.environment["WARM_POOL_MIN"] = "0"
    await gateway.start()
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"]
    assert "server" not in answer.headers
