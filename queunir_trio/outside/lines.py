"""Connected sockets as the front and its upstreams use them: read, write, and know who is gone.

A proxied request is two reads and two writes, so each system call and each layer less is felt. Trio asks the kernel
anew about a socket at every wait; here a socket is told to the kernel once, edge-triggered, in an epoll of our own
that Trio watches as a whole (epoll(7), "Edge-triggered and level-triggered"). A deadline is never set here: whoever
owns the connection cancels it.
"""

import select
import socket
import struct
from typing import Final

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, checkpoint, current_task, reschedule, wait_readable, wait_task_rescheduled

READ_AT_MOST: Final = 65536  # bytes a read
EVENTS_AT_ONCE: Final = 1024

_WATCHED: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time: what is unsent is dropped, the peer gets RST
_GO: Final = outcome.Value(None)


class Line:
    """One connected socket. At most one task reads and one writes.

    `ended`: the peer has sent its FIN, though bytes before it may be unread; `broken`: nothing can be sent either.
    """

    __slots__ = ("_lines", "_readable", "_reader", "_writable", "_writer", "broken", "ended", "sock")

    def __init__(self, lines: "Lines", sock: socket.socket) -> None:
        self._lines = lines
        self.sock = sock
        self.ended = False
        self.broken = False
        self._readable = True  # until a read says otherwise
        self._writable = True
        self._reader: trio.lowlevel.Task | None = None
        self._writer: trio.lowlevel.Task | None = None

    def __repr__(self) -> str:
        return f"<Line {self.sock.fileno()}>"

    async def receive(self) -> bytes:
        """The next bytes, b"" at the end. OSError when the connection broke."""
        while True:
            if not self._readable:
                await self._wait_readable()
            try:
                data = self.sock.recv(READ_AT_MOST)
            except BlockingIOError:
                self._readable = False
                continue
            # less than was asked for is all there was: the next bytes are a new edge, but an end seen already is not
            self._readable = self.ended or len(data) == READ_AT_MOST
            if len(data) == READ_AT_MOST:
                await checkpoint()  # a sender who never pauses must not keep the others waiting
            return data

    async def send_all(self, data: bytes) -> None:
        """Everything of `data`, waiting only where the socket is full. OSError when the connection broke."""
        sent = self.send_some(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            if not self._writable:
                await self._wait_writable()
            rest = rest[self.send_some(rest) :]

    def send_some(self, data: bytes | memoryview) -> int:
        """As many bytes as the socket takes now."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            self._writable = False
            return 0

    def has_something(self) -> bool:
        """Whether bytes, an end or an error wait to be read: an idle connection that has any can not be used again."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Closes; whoever waits for the line finds it closed."""
        if self.sock.fileno() >= 0:
            self._lines.forget(self)
            self.sock.close()
            self._wake(True, True)

    def reset(self) -> None:
        """Closes by RST, so that what was sent so far can not be taken for the whole."""
        if self.sock.fileno() >= 0:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            except OSError:
                pass  # the peer was faster
            self.close()

    def detach(self) -> socket.socket:
        """The socket, for another owner; the line is no more."""
        self._lines.forget(self)
        return self.sock

    def notice(self, events: int) -> None:
        """The kernel told these events."""
        if events & select.EPOLLRDHUP:
            self.ended = True
        if events & _BROKEN:
            self.ended = self.broken = True
        self._wake(bool(events & _READABLE), bool(events & _WRITABLE))

    def _wake(self, readable: bool, writable: bool) -> None:
        if readable:
            self._readable = True
            if self._reader is not None:
                reader, self._reader = self._reader, None
                reschedule(reader, _GO)
        if writable:
            self._writable = True
            if self._writer is not None:
                writer, self._writer = self._writer, None
                reschedule(writer, _GO)

    async def _wait_readable(self) -> None:
        self._reader = current_task()

        def abort(_: RaiseCancelT) -> Abort:
            self._reader = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    async def _wait_writable(self) -> None:
        self._writer = current_task()

        def abort(_: RaiseCancelT) -> Abort:
            self._writer = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)


class Lines:
    """All lines of one process, and the task that hears of them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lines: dict[int, Line] = {}

    def __repr__(self) -> str:
        return f"<Lines {len(self._lines)}>"

    def add(self, sock: socket.socket) -> Line:
        """A connected, non-blocking socket as a line."""
        line = Line(self, sock)
        self._epoll.register(sock, _WATCHED)
        self._lines[sock.fileno()] = line
        return line

    def forget(self, line: Line) -> None:
        """The line is about to close or to be somebody else's."""
        descriptor = line.sock.fileno()
        if self._lines.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wakes whoever waits, until it is cancelled."""
        task_status.started()
        poll, lines, descriptor = self._epoll.poll, self._lines, self._epoll.fileno()
        while True:
            await wait_readable(descriptor)
            for ready, events in poll(0, EVENTS_AT_ONCE):
                line = lines.get(ready)
                if line is not None:
                    line.notice(events)
