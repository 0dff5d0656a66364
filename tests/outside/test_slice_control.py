"""Questions to a slice: good answers, strangers, and every way of not answering."""

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import trio

from queunir_trio.model.routing import SliceAddress
from queunir_trio.outside import slice_control
from queunir_trio.outside.slice_control import (
    Health,
    SliceControl,
    SliceState,
    SliceUnreachable,
    StorageUse,
    WrongSlice,
    open_slice_control,
)

Answer = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@pytest.fixture
async def control() -> AsyncIterator[SliceControl]:
    async with open_slice_control() as opened:
        yield opened


@asynccontextmanager
async def slice_that(answer: Answer, *, proves_identity: bool = True) -> AsyncIterator[SliceAddress]:
    """A listener whose every connection gets one request read and then `answer`."""

    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        try:
            await answer(stream, request)
        except trio.BrokenResourceError:
            pass  # the one who asked has had enough

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield SliceAddress(7, 2, UUID(int=7), "127.0.0.1", port, True, proves_identity, "the-key")
        nursery.cancel_scope.cancel()


def says(body: Any, status: str = "200 OK", headers: str = "") -> Answer:
    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
        await stream.send_all(head.encode() + data)

    return answer


async def test_a_healthy_slice_names_itself(control: SliceControl) -> None:
    async with slice_that(says({"status": "ok", "slice": "7", "uptime": 12})) as address:
        assert await control.health(address) == Health("7", 12.0)


@pytest.mark.parametrize("named", ["8", 7, None])
async def test_a_stranger_at_the_address_is_not_taken_for_the_slice(control: SliceControl, named: object) -> None:
    async with slice_that(says({"status": "ok", "slice": named, "uptime": 12})) as address:
        with pytest.raises(WrongSlice):
            await control.health(address)


async def test_a_slice_that_need_not_prove_itself_may_leave_its_name_out(control: SliceControl) -> None:
    async with slice_that(says({"status": "ok"}), proves_identity=False) as address:
        assert await control.health(address) == Health(None, None)


async def test_health_is_asked_without_the_key_and_state_with_it(control: SliceControl) -> None:
    asked: list[bytes] = []

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        asked.append(request.lower())
        await says({"status": "ok", "slice": "7", "state": "ready"})(stream, request)

    async with slice_that(answer) as address:
        await control.health(address)
        await control.state(address)
        await control.log_out(address)
    assert b"x-slice-key" not in asked[0]
    assert b"x-slice-key: the-key\r\n" in asked[1]
    assert asked[2].startswith(b"post /api/status/logout ")
    assert b"x-slice-key: the-key\r\n" in asked[2]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"state": "ready", "phoneNumber": "4915", "qr": None}, SliceState("ready", "4915", None)),
        ({"state": "qr", "qr": {"qr": "x", "n": 1}}, SliceState("qr", None, {"qr": "x", "n": 1})),
        ({"state": "qr", "phoneNumber": 5, "qr": "text"}, SliceState("qr", None, "text")),
        ({"state": "qr", "qr": ["?"]}, SliceState("qr", None, None)),
    ],
)
async def test_the_state_is_read_from_what_images_say(
    control: SliceControl, answer: dict[str, Any], expected: SliceState
) -> None:
    async with slice_that(says(answer)) as address:
        assert await control.state(address) == expected


@pytest.mark.parametrize(
    "answer",
    [
        says({"status": "starting", "slice": "7"}),
        says({"status": "ok", "slice": "7"}, "503 Service Unavailable"),
        says(b"", "302 Found", "location: http://127.0.0.1:1/elsewhere\r\n"),
        says(b"not json"),
        says(b"\xff\xfe"),
        says([1, 2]),
        says(b"[" * 60_000),
        says(b"x" * 70_000),
        says(b"garbage", headers="content-encoding: gzip\r\n"),
    ],
    ids=["not ok", "503", "redirect", "text", "bytes", "list", "deep", "long", "packed"],
)
async def test_what_is_not_a_good_answer_is_no_answer(control: SliceControl, answer: Answer) -> None:
    async with slice_that(answer) as address:
        with pytest.raises(SliceUnreachable):
            await control.health(address)


async def test_a_state_that_is_no_text_is_no_answer(control: SliceControl) -> None:
    async with slice_that(says({"state": None})) as address:
        with pytest.raises(SliceUnreachable, match="tells no state"):
            await control.state(address)


async def test_an_answer_that_breaks_off_is_no_answer(control: SliceControl) -> None:
    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        await stream.aclose()

    async with slice_that(answer) as address:
        with pytest.raises(SliceUnreachable):
            await control.health(address)


async def test_an_answer_that_drips_is_given_up(control: SliceControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_control, "ANSWERED_WITHIN", 0.2)

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.02)

    async with slice_that(answer) as address:
        with trio.fail_after(3), pytest.raises(SliceUnreachable):
            await control.health(address)


async def test_where_nobody_listens_nobody_is_reached(control: SliceControl) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = SliceAddress(7, 2, UUID(int=7), "127.0.0.1", unused.getsockname()[1], True, True, "key")
        with pytest.raises(SliceUnreachable):
            await control.health(address)


async def test_no_proxy_of_the_environment_is_asked(control: SliceControl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    async with (
        slice_that(says({"status": "ok", "slice": "7"})) as address,
        open_slice_control() as opened,
    ):
        assert (await opened.health(address)).slice == "7"


async def test_only_so_many_are_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_control, "AT_ONCE", 2)
    under_way = most = 0
    go, two = trio.Event(), trio.Event()

    async def answer(stream: trio.SocketStream, request: bytes) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == 2:
            two.set()
        await go.wait()
        under_way -= 1
        await says({"status": "ok", "slice": "7"})(stream, request)

    async with slice_that(answer) as address, open_slice_control() as opened, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(opened.health, address)
        with trio.fail_after(5):
            await two.wait()
        go.set()
    assert most == 2


async def test_a_slice_says_what_its_media_take_up(control: SliceControl) -> None:
    told = {"state": "qr", "media_bytes": 700, "media_quota_bytes": 1000}
    async with slice_that(says(told)) as address:
        assert await control.storage(address) == StorageUse(700, 1000)


@pytest.mark.parametrize("used", [b"null", b"NaN", b"-1", b"1e400", b"7.5", b"true", b'"700"', b"9" * 30])
async def test_what_is_no_number_of_bytes_is_nothing(control: SliceControl, used: bytes) -> None:
    async with slice_that(says(b'{"media_bytes": ' + used + b"}")) as address:
        assert await control.storage(address) is None
