"""The soak's browsers and the counting readers, before a small server that says what a test wants."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from benchmarks.browsers import Browsers
from benchmarks.history import CATCHUP, CLOSED, MESSAGE, OPENED, OTHER, Record
from benchmarks.readers import readers

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
Answer = Callable[[bytes], list[bytes]]  # a request's bytes → what is sent, piece by piece; then the end


@asynccontextmanager
async def server(answer: Answer, *, holds: bool = False) -> AsyncIterator[int]:
    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        for piece in answer(request):
            await stream.send_all(piece)
            await trio.lowlevel.checkpoint()
        if holds:
            await trio.sleep_forever()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def frame(seq: int, number: int) -> bytes:
    return b'id: e:%d\nevent: wa:message\ndata: {"canary":"c","n":%d,"mark":"~"}\n\n' % (seq, number)


async def test_a_browser_writes_down_what_it_sees_and_comes_back_with_its_last_id() -> None:
    requests: list[bytes] = []
    records: list[Record] = []
    done = trio.Event()

    def answer(request: bytes) -> list[bytes]:
        requests.append(request)
        if len(requests) == 1:
            start = b'retry: 10\n\nid: e:6\nevent: wa:catchup\ndata: {"gap":false}\n\n:keepalive\n\n'
            cut = frame(7, 1)
            state = b'id: e:8\nevent: wa:state\ndata: {"state":"ready"}\n\n'
            return [HEAD + start + cut[:9], cut[9:] + state]
        return [HEAD + frame(9, 2)]

    def put(record: Record) -> None:
        records.append(record)
        if len([one for one in records if one.kind == MESSAGE]) == 2:
            done.set()

    async with server(answer) as port, trio.open_nursery() as nursery:
        browsers = Browsers(port, ["a" * 64], put)
        await nursery.start(browsers.run)
        with trio.fail_after(5):
            await done.wait()
        nursery.cancel_scope.cancel()

    assert b"Last-Event-ID" not in requests[0]
    assert b"\r\nLast-Event-ID: e:8\r\n" in requests[1]
    assert records[:7] == [
        Record(0, OPENED),
        Record(0, CATCHUP, "e:6"),
        Record(0, MESSAGE, "e:7", "c", 1),
        Record(0, OTHER, "e:8", "wa:state"),
        Record(0, CLOSED),
        Record(0, OPENED, "e:8"),
        Record(0, MESSAGE, "e:9", "c", 2),
    ]


async def test_readers_count_events_however_they_are_cut() -> None:
    everything = b"".join(frame(number, number) for number in range(1, 51))

    def answer(request: bytes) -> list[bytes]:
        return [HEAD + everything[:100], *(everything[at : at + 7] for at in range(100, len(everything), 7))]

    async with server(answer, holds=True) as port, readers(port, "a" * 64) as opened:
        await opened.add(3)
        assert opened.open == 3
        assert await opened.until_each_has(50)
        assert opened.least_and_most() == (50, 50)
        assert opened.closed == 0
