"""Where connections come in, how many there may be, and how they end when the service does."""

import errno
import socket
from typing import Any

import structlog
import trio

from queunir_trio.front.serving import serve
from queunir_trio.front.state import Front
from queunir_trio.outside.sockets import without_delay
from queunir_trio.outside.upstream import IDLE_AT_MOST

log = structlog.get_logger()

BACKLOG = 2048
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
NOT_LISTENING = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})
NOT_HERE = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
PAUSE_WHEN_FULL = 0.1  # seconds
IDLE_CLOSED_EVERY = 1.0  # seconds


async def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for an address or name. OSError where it is taken or not ours."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, where in dict.fromkeys(found):
        try:
            sockets.append(_listening(family, where))
        except OSError as error:
            if error.errno not in NOT_HERE:
                for sock in sockets:
                    sock.close()
                raise
            missing = error  # a name may have an address of IPv6 on a machine without it
    if missing is not None and not sockets:
        raise missing
    return sockets


def _listening(family: int, where: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """Accepts connections until it drains."""

    def __init__(self, front: Front, sockets: list[socket.socket]) -> None:
        self._front = front
        self._sockets = sockets
        self._accepting = trio.CancelScope()
        self._drained = trio.Event()

    @property
    def port(self) -> int:
        """The first socket's port."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until `drain`, or until it is cancelled; every connection ends before this returns."""
        front = self._front
        try:
            async with trio.open_nursery() as supporting:
                supporting.start_soon(front.wheel.run)
                supporting.start_soon(self._close_idle_upstreams)
                async with trio.open_nursery() as connections:
                    task_status.started()  # the sockets listen already
                    await self._accept_all(connections)
                    connections.cancel_scope.deadline = trio.current_time() + front.limits.drain
                supporting.cancel_scope.cancel()
        finally:
            front.upstreams.close_idle(float("inf"))
            front.app.close_idle(float("inf"))
            self._drained.set()

    def drain(self) -> None:
        """No new connection, no new request on an old one; idle ones close now, busy ones when they have answered."""
        self._front.draining = True
        self._accepting.cancel()
        for connection in self._front.wheel.connections:
            connection.end_soon()

    async def drained(self) -> None:
        """Waits until no connection is left, neither of clients nor to upstreams."""
        await self._drained.wait()

    async def _accept_all(self, connections: trio.Nursery) -> None:
        try:
            with self._accepting:
                async with trio.open_nursery() as accepting:
                    for sock in self._sockets:
                        accepting.start_soon(self._accept, sock, connections)
        finally:
            for sock in self._sockets:
                sock.close()

    async def _accept(self, sock: socket.socket, connections: trio.Nursery) -> None:
        front = self._front
        listening = trio.socket.from_stdlib_socket(sock)
        while True:
            if len(connections.child_tasks) >= front.limits.connections:
                await trio.sleep(PAUSE_WHEN_FULL)
                continue
            try:
                accepted, where = await listening.accept()
            except OSError as error:
                if error.errno in NOT_LISTENING:
                    raise
                if error.errno in OUT_OF_DESCRIPTORS:
                    log.error("out_of_descriptors", reason=error.strerror)
                    await trio.sleep(PAUSE_WHEN_FULL)
                else:
                    await trio.lowlevel.checkpoint()  # that client was gone before it was accepted
                continue
            self._begin(socket.socket(fileno=accepted.detach()), where[0], connections)

    def _begin(self, accepted: socket.socket, peer: str, connections: trio.Nursery) -> None:
        front = self._front
        try:
            without_delay(accepted)
            sock = front.readiness.take(accepted)
        except OSError as error:
            # it broke before it began, or the kernel watches no further socket
            log.error("connection_not_taken", ip=peer, reason=error.strerror)
            accepted.close()
            return
        connections.start_soon(serve, front, sock, peer)

    async def _close_idle_upstreams(self) -> None:
        front = self._front
        while True:
            await trio.sleep(IDLE_CLOSED_EVERY)
            front.upstreams.close_idle(front.wheel.now - IDLE_AT_MOST)
