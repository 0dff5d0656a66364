"""What the sockets of all streams have to say, told by one epoll inside Trio's own.

A client has nothing to say once its stream has begun: what it sends is read and dropped, its end is the stream's end.
Events come edge-triggered, so a socket costs a system call only when something about it changes.
"""

import select
import socket
from collections.abc import Callable
from typing import Final

import trio

from queunir_trio.front.audience import Stream
from queunir_trio.outside import sockets

SEND_BUFFER: Final = 65536  # bytes in the kernel for a client that does not read; left alone it would grow to megabytes
DROPPED_AT_MOST: Final = 65536  # bytes a client may send behind its request
READ_AT_MOST: Final = 16384  # bytes at once
EVENTS_AT_ONCE: Final = 256  # between two chances for others to run

_WATCHED: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_OVER: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class StreamSockets:
    """Calls `gone` with a stream whose client has left, and `writable` with one whose full socket has room again."""

    def __init__(self, gone: Callable[[Stream], None], writable: Callable[[Stream], None]) -> None:
        self._gone = gone
        self._writable = writable
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}

    def add(self, stream: Stream) -> None:
        self._streams[stream.fd] = stream
        self._epoll.register(stream.fd, _WATCHED)

    def remove(self, stream: Stream) -> None:
        """To be called before the socket closes."""
        del self._streams[stream.fd]
        self._epoll.unregister(stream.fd)

    def await_writable(self, stream: Stream, wanted: bool) -> None:
        self._epoll.modify(stream.fd, _WATCHED | select.EPOLLOUT if wanted else _WATCHED)

    async def run(self) -> None:
        """Watches until it is cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, events in self._epoll.poll(0, EVENTS_AT_ONCE):
                stream = self._streams.get(descriptor)
                if stream is not None:  # one event may have ended the stream of the next
                    self._handle(stream, events)

    def close(self) -> None:
        self._epoll.close()

    def _handle(self, stream: Stream, events: int) -> None:
        if events & _OVER or (events & select.EPOLLIN and not drained(stream)):
            self._gone(stream)
        elif events & select.EPOLLOUT and stream.stuck_since is not None:
            self._writable(stream)


def drained(stream: Stream) -> bool:
    """Drops what the client sent: unread, it would turn a close into a reset. False: it is gone, or talks too much."""
    try:
        while stream.dropped_bytes < DROPPED_AT_MOST:
            data = stream.sock.recv(READ_AT_MOST)
            if not data:
                return False
            stream.dropped_bytes += len(data)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def prepared(sock: socket.socket, acknowledged_within: float) -> bool:
    """Makes a connection's socket fit for a stream. A client that acknowledges nothing for so many seconds is gone.

    False: it is gone already, and the socket is closed.
    """
    try:
        sockets.without_delay(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(acknowledged_within * 1000))
    except OSError:
        sockets.close(sock)
        return False
    return True


def turn_away(sock: socket.socket, last_words: bytes) -> None:
    """Says something, if it can be said at once, and closes."""
    try:
        sock.setblocking(False)
        sock.send(last_words)
    except OSError:
        pass  # it will not hear them, and goes all the same
    sockets.close(sock)
