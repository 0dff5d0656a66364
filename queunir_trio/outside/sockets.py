"""Plain non-blocking sockets under Trio: what the front and its upstreams read, write and close.

Raw sockets and not SocketStream: a proxied request is four of these calls, and each layer less is felt.
A deadline is never set here; whoever owns the connection cancels it.
"""

import fcntl
import select
import socket
import struct
import sys
import termios
from collections.abc import Coroutine
from typing import Any, Final

import trio
from trio.lowlevel import notify_closing, wait_readable

from queunir_trio.outside.readiness import READ_AT_MOST, ReadySocket

_RESET: Final = struct.pack("ii", 1, 0)


def receive(sock: socket.socket) -> Coroutine[Any, Any, bytes]:
    """The next bytes, b"" at the end. OSError when the connection broke."""
    return sock.receive() if isinstance(sock, ReadySocket) else _receive(sock)


async def _receive(sock: socket.socket) -> bytes:
    while True:
        await wait_readable(sock)
        try:
            return sock.recv(READ_AT_MOST)
        except BlockingIOError:
            continue


async def send_all(sock: socket.socket, data: bytes | bytearray | memoryview) -> None:
    """Everything of `data`, waiting only where the socket is full. OSError when the connection broke."""
    sent = send_some(sock, data)
    if sent == len(data):
        return
    rest = memoryview(data)[sent:]
    while rest:
        await wait_writable(sock)
        rest = rest[send_some(sock, rest) :]


async def wait_writable(sock: socket.socket) -> None:
    """Returns when a socket that was full may take more."""
    if isinstance(sock, ReadySocket):
        await sock.wait_writable()
    else:
        await trio.lowlevel.wait_writable(sock)


def send_some(sock: socket.socket, data: bytes | bytearray | memoryview) -> int:
    """As many bytes as the socket takes now."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def has_something(sock: socket.socket, *, certainly: bool = True) -> bool:
    """Whether an idle connection has bytes, an end or an error waiting: then it can not be used again.

    Where that need not be known `certainly`, what was heard of the socket so far decides, without asking the kernel.
    """
    if not certainly and isinstance(sock, ReadySocket) and sock.is_silent:
        return False
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that were sent and that the peer's system has not taken yet."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def close(sock: socket.socket) -> None:
    """Closes; whoever waits for the socket is woken with ClosedResourceError."""
    if sock.fileno() >= 0:
        notify_closing(sock)
        sock.close()


def released(sock: socket.socket) -> socket.socket:
    """The connection as a plain socket that nothing here waits for any more; `sock` is used up."""
    return sock.released() if isinstance(sock, ReadySocket) else sock


def reset(sock: socket.socket) -> None:
    """Closes by RST, so that what was sent so far can not be taken for the whole."""
    if sock.fileno() >= 0:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:  # the peer was faster
            pass
        close(sock)


def without_delay(sock: socket.socket) -> None:
    """Non-blocking, and small writes leave at once."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def departures(sockets: list[socket.socket]) -> tuple[set[int], set[int]]:
    """File descriptors whose peer sent FIN, and those that are broken; one system call for all of them.

    A FIN behind unread bytes is seen by POLLRDHUP only (poll(2)), not by a peek.
    """
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLRDHUP)
    ended: set[int] = set()
    broken: set[int] = set()
    for descriptor, events in poll.poll(0):
        (broken if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL) else ended).add(descriptor)
    return ended, broken
