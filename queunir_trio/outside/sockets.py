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
from typing import Final

from trio.lowlevel import checkpoint_if_cancelled, notify_closing, wait_readable, wait_writable

READ_AT_MOST: Final = 65536  # bytes a read

_RESET: Final = struct.pack("ii", 1, 0)


async def receive(sock: socket.socket) -> bytes:
    """The next bytes, b"" at the end. OSError when the connection broke."""
    while True:
        await wait_readable(sock)
        try:
            return sock.recv(READ_AT_MOST)
        except BlockingIOError:
            continue


async def send_all(sock: socket.socket, data: bytes | bytearray | memoryview) -> None:
    """Everything of `data`, waiting only where the socket is full. OSError when the connection broke."""
    await checkpoint_if_cancelled()
    sent = send_some(sock, data)
    if sent == len(data):
        return
    rest = memoryview(data)[sent:]
    while rest:
        await wait_writable(sock)
        rest = rest[send_some(sock, rest) :]


def send_some(sock: socket.socket, data: bytes | bytearray | memoryview) -> int:
    """As many bytes as the socket takes now."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def has_something(sock: socket.socket) -> bool:
    """Whether an idle connection has bytes, an end or an error waiting: then it can not be used again."""
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
