"""Browsers for the soak: they read a stream, come back with Last-Event-ID when it ends, and stop reading when told.

Each keeps the rules of EventSource as far as the service can tell: the newest id is sent when connecting again, after
the pause that `retry:` asked for. All they see goes into the history. One task reads all sockets behind one epoll; only
a connection being made has a task of its own.
"""

import json
import math
import random
import select
import socket
from collections.abc import Callable, Iterator
from typing import Final

import httptools
import trio

from benchmarks import history
from benchmarks.history import Record
from benchmarks.processes import HOST, DidNotStart

RETRY: Final = 1.0  # seconds until `retry:` says otherwise
CONNECTED_WITHIN: Final = 10.0  # seconds to the head of the answer
CONNECTING_AT_ONCE: Final = 50
LOOKED_EVERY: Final = 0.01  # seconds
OPENED_WITHIN: Final = 60.0  # seconds until all streams are open for the first time
FOUND_CLOSED_WITHIN: Final = 2.0  # seconds after it reads again, a browser sees that it was let go while it stalled
RECEIVE_BUFFER: Final = 8192  # bytes; small, so that a browser that stalls is felt soon


class Browser:
    """One browser with one stream."""

    def __init__(self, number: int, token: str, put: Callable[[Record], None]) -> None:
        self.number = number
        self.token = token
        self.socket: socket.socket | None = None
        self.stalled = False
        self.resumed_at = -math.inf  # on Trio's clock
        self.last_id = ""
        self.last_number = 0  # of the newest event, as its slice counts
        self.retry = RETRY
        self.status = 0
        self._put = put
        self._parser = httptools.HttpResponseParser(self)
        self._text = b""

    def begin(self) -> None:
        """A new connection: nothing is left of the answer before."""
        self.status = 0
        self._parser = httptools.HttpResponseParser(self)
        self._text = b""

    def request(self, port: int) -> bytes:
        resumed = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id else ""
        return (
            f"GET /api/events HTTP/1.1\r\nHost: {HOST}:{port}\r\nAccept: text/event-stream\r\n"
            f"Cookie: session={self.token}\r\n{resumed}\r\n"
        ).encode()

    def feed(self, data: bytes) -> None:
        """Bytes of the answer. httptools.HttpParserError: they are none."""
        self._parser.feed_data(data)

    def record(self, kind: str, identity: str = "") -> None:
        self._put(Record(self.number, kind, identity))

    # what the parser calls -------------------------------------------------------------------------------------
    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        *frames, self._text = (self._text + body).split(b"\n\n")
        for frame in frames:
            self._take(dict(_fields(frame)))

    def _take(self, fields: dict[str, str]) -> None:
        if "retry" in fields:
            self.retry = int(fields["retry"]) / 1000
        if "id" in fields:
            self.last_id = fields["id"]
        if "data" not in fields:
            return
        name, identity, data = fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"])
        if name == "wa:catchup":
            self._put(Record(self.number, history.CATCHUP, identity, gap=data["gap"]))
        elif isinstance(data, dict) and "canary" in data:
            self.last_number = data["n"]
            self._put(Record(self.number, history.MESSAGE, identity, data["canary"], data["n"]))
        else:
            self._put(Record(self.number, history.OTHER, identity, name))


class Browsers:
    """All browsers of a soak."""

    def __init__(self, port: int, tokens: list[str], put: Callable[[Record], None]) -> None:
        """`tokens`: one for each browser, in the order of their numbers."""
        self.all = [Browser(number, token, put) for number, token in enumerate(tokens)]
        self.reopened = 0
        self.closed_while_stalled = 0
        self.refusals: dict[str, int] = {}  # answers other than 200, by status or error
        self.share = 0.0  # of a core, that we used ourselves while they were measured
        self._port = port
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Browser] = {}
        self._limit = trio.CapacityLimiter(CONNECTING_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._going_on = True

    @property
    def open(self) -> int:
        return sum(browser.socket is not None for browser in self.all)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Opens all streams and keeps them open until cancelled; ready when every one has had its first 200."""
        async with trio.open_nursery() as self._nursery:
            try:
                await self._open_all()
                task_status.started()
                await self._read()
            finally:
                for browser in self.all:
                    if browser.socket is not None:
                        browser.socket.close()
                self._epoll.close()

    def stall(self, number: int) -> None:
        """From now on this browser reads nothing."""
        browser = self.all[number]
        if browser.socket is not None and not browser.stalled:
            browser.stalled = True
            browser.record(history.STALLED)
            self._epoll.unregister(browser.socket.fileno())

    def resume(self, number: int) -> None:
        """It reads again: first what is in its buffers, then it sees whether the server has let it go."""
        browser = self.all[number]
        if browser.socket is not None and browser.stalled:
            browser.stalled = False
            browser.resumed_at = trio.current_time()
            browser.record(history.RESUMED)
            self._epoll.register(browser.socket.fileno(), select.EPOLLIN)

    def leave(self) -> None:
        """From now on an ended stream stays ended."""
        self._going_on = False

    async def _open_all(self) -> None:
        """Reads while the streams are being opened, so that early ones do not look like stalled ones. DidNotStart."""
        assert self._nursery is not None
        for browser in self.all:
            self._nursery.start_soon(self._connect, browser)
        with trio.move_on_after(OPENED_WITHIN):
            while self.open < len(self.all):
                self._read_once()
                await trio.sleep(LOOKED_EVERY)
            return
        raise DidNotStart(f"Only {self.open} of {len(self.all)} streams could be opened; refused: {self.refusals}")

    async def _read(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._read_once()
            await trio.sleep(LOOKED_EVERY)

    def _read_once(self) -> None:
        for descriptor, _ in self._epoll.poll(0, 65_536):
            browser = self._by_descriptor[descriptor]
            assert browser.socket is not None
            try:
                data = browser.socket.recv(65_536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                browser.feed(data)
            else:
                self._ended(browser)

    def _ended(self, browser: Browser) -> None:
        assert browser.socket is not None
        assert self._nursery is not None
        browser.record(history.CLOSED)
        if trio.current_time() - browser.resumed_at < FOUND_CLOSED_WITHIN:
            self.closed_while_stalled += 1
        self._epoll.unregister(browser.socket.fileno())
        del self._by_descriptor[browser.socket.fileno()]
        browser.socket.close()
        browser.socket = None
        if self._going_on:
            self.reopened += 1
            self._nursery.start_soon(self._reconnect, browser)

    async def _reconnect(self, browser: Browser) -> None:
        await trio.sleep(browser.retry * random.uniform(0.5, 1.0))
        await self._connect(browser)

    async def _connect(self, browser: Browser) -> None:
        """Tries until the stream is open."""
        while True:
            async with self._limit:
                refusal = await self._try(browser)
            if refusal is None:
                return
            self.refusals[refusal] = self.refusals.get(refusal, 0) + 1
            await trio.sleep(browser.retry * random.uniform(0.5, 1.0))

    async def _try(self, browser: Browser) -> str | None:
        """None when the stream is open; else why not."""
        browser.begin()
        sock = trio.socket.socket()
        try:
            with trio.fail_after(CONNECTED_WITHIN):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                await sock.connect((HOST, self._port))
                await sock.send(browser.request(self._port))
                browser.record(history.OPENED, browser.last_id)
                while not browser.status:
                    data = await sock.recv(4096)
                    if not data:
                        return "closed"
                    browser.feed(data)
                if browser.status != 200:
                    return str(browser.status)
        except (OSError, trio.TooSlowError) as fault:
            return type(fault).__name__
        else:
            self._adopt(browser, sock)
            return None
        finally:
            sock.close()

    def _adopt(self, browser: Browser, sock: trio.socket.SocketType) -> None:
        browser.socket = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        browser.socket.setblocking(False)
        self._by_descriptor[browser.socket.fileno()] = browser
        self._epoll.register(browser.socket.fileno(), select.EPOLLIN)


def _fields(frame: bytes) -> Iterator[tuple[str, str]]:
    """The fields of one frame; comments have none."""
    for line in frame.decode().split("\n"):
        name, colon, value = line.partition(":")
        if colon and name:
            yield name, value.removeprefix(" ")
