"""Sockets that the kernel is told of once, and the one task that hears when they are ready.

Trio asks the kernel anew at every wait. A proxied request is several waits, so here a socket is registered when it is
made, edge-triggered, in an epoll of our own that Trio watches as a whole (epoll(7), "Level-triggered and
edge-triggered").
"""

import select
import socket
from collections.abc import Callable
from typing import Final

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, checkpoint, current_task, reschedule, wait_task_rescheduled

READ_AT_MOST: Final = 65536  # bytes a read
EVENTS_AT_ONCE: Final = 128  # then the other tasks have their turn

_WATCHED: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_READABLE: Final = select.EPOLLIN | _ENDED
_WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class ReadySocket(socket.socket):
    """A connected, non-blocking socket of a Readiness. At most one task reads and one writes at a time.

    `on_readable` is called, in the task of the Readiness, when bytes, an end or an error came and no task waits for
    them. It must not wait, and nothing may be raised from it.
    """

    __slots__ = ("_ended", "_readable", "_reader", "_readiness", "_writer", "on_readable")

    def __init__(self, readiness: "Readiness", descriptor: int) -> None:
        super().__init__(fileno=descriptor)
        self.setblocking(False)
        self._readiness = readiness
        self._readable = True  # until a read says otherwise
        self._ended = False  # the peer's FIN was seen, though bytes before it may be unread
        self._reader: Task | None = None
        self._writer: Task | None = None
        self.on_readable: Callable[[], None] | None = None

    @property
    def is_silent(self) -> bool:
        """Whether all that came was read, as far as the kernel has told."""
        return not self._readable

    async def receive(self) -> bytes:
        """The next bytes, b"" at the end. OSError when the connection broke."""
        while True:
            while not self._readable:
                self._reader = current_task()
                await wait_task_rescheduled(self._stop_reading)
            try:
                data = self.recv(READ_AT_MOST)
            except BlockingIOError:
                self._readable = False
                continue
            if len(data) < READ_AT_MOST:
                # that was all there was: what comes next is a new edge, but for an end that was seen already
                self._readable = self._ended
            else:
                await checkpoint()  # a sender who never pauses must not keep the others waiting
            return data

    def receive_now(self) -> bytes | None:
        """The bytes that came, b"" at the end, None where there is nothing. OSError when the connection broke."""
        try:
            data = self.recv(READ_AT_MOST)
        except BlockingIOError:
            self._readable = False
            return None
        if len(data) < READ_AT_MOST:
            self._readable = self._ended
        return data

    async def wait_writable(self) -> None:
        """Returns when a send may take something; to be called right after one that took less than it was given.

        Such a send has made the kernel promise an edge, so there is nothing to look at first.
        """
        if self.fileno() >= 0:
            self._writer = current_task()
            await wait_task_rescheduled(self._stop_writing)

    def _stop_reading(self, _: RaiseCancelT) -> Abort:
        self._reader = None
        return Abort.SUCCEEDED

    def _stop_writing(self, _: RaiseCancelT) -> Abort:
        self._writer = None
        return Abort.SUCCEEDED

    def notice(self, events: int) -> None:
        """The kernel told these events."""
        if events & _ENDED:
            self._ended = True
        if events & _READABLE:
            self._readable = True
            if self._reader is not None:
                reader, self._reader = self._reader, None
                reschedule(reader)
            elif self.on_readable is not None:
                self.on_readable()
        if events & _WRITABLE and self._writer is not None:
            writer, self._writer = self._writer, None
            reschedule(writer)

    def close(self) -> None:
        """Closes; whoever waits finds it closed."""
        self._readiness.forget(self)
        super().close()
        self.notice(_READABLE | _WRITABLE)

    def released(self) -> socket.socket:
        """The connection as a plain socket for another owner; this one is closed."""
        self._readiness.forget(self)
        plain = socket.socket(fileno=self.detach())
        plain.setblocking(False)
        return plain


class Readiness:
    """The sockets of one process that wait here, and the task that wakes their readers and writers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, ReadySocket] = {}

    def __repr__(self) -> str:
        return f"<Readiness of {len(self._sockets)} sockets>"

    def take(self, sock: socket.socket) -> ReadySocket:
        """A connected socket as one of ours; `sock` itself is used up. OSError where the kernel can watch no more."""
        self._epoll.register(sock, _WATCHED)
        ours = ReadySocket(self, sock.detach())
        self._sockets[ours.fileno()] = ours
        return ours

    def forget(self, sock: ReadySocket) -> None:
        """The socket is about to close or to be somebody else's."""
        if self._sockets.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wakes whoever waits, until it is cancelled."""
        poll, sockets, descriptor = self._epoll.poll, self._sockets, self._epoll.fileno()
        task_status.started()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            for ready, events in poll(0, EVENTS_AT_ONCE):
                sock = sockets.get(ready)
                if sock is not None:
                    sock.notice(events)
