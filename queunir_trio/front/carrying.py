"""One request on its way to an upstream, bytes as they come, in constant memory, and the answer to it.

A request whose body is in hand is one write and then one answer. A longer body is sent beside the answer: a slice may
answer early, and then the rest of the body is not waited for.
"""

import socket
from dataclasses import dataclass
from typing import Final

import trio

from queunir_trio.front.answers import CONTINUE
from queunir_trio.front.bodies import RequestBody
from queunir_trio.front.connection import BODY, WAITING, Connection, Phase
from queunir_trio.front.delivering import Delivery, NoAnswer
from queunir_trio.outside.readiness import ReadySocket
from queunir_trio.outside.sockets import close, send_all
from queunir_trio.outside.upstream import Upstream
from queunir_trio.wire.http import RequestHead

REPEATABLE: Final = frozenset({b"GET", b"HEAD"})


@dataclass(slots=True)
class Begun:
    """A request without a body that was sent already, over a connection that was open."""

    upstream: Upstream  # in which it has its place
    sock: ReadySocket
    request: bytes
    received: bytes = b""  # what came since; nothing where the connection ended


class Errand:
    """One request on its way: what is needed from its first byte out to the last byte back."""

    __slots__ = ("body", "connection", "delivery", "head", "request", "sent", "upstream")

    def __init__(
        self,
        connection: Connection,
        head: RequestHead,
        upstream: Upstream,
        request: bytes,
        body: RequestBody | None,
        delivery: Delivery,
    ) -> None:
        """`request` is everything that can be sent at once, `body` what is still to come."""
        self.connection = connection
        self.head = head
        self.upstream = upstream
        self.request = request
        self.body = body
        self.delivery = delivery
        self.sent = body is None  # the upstream has taken the request to its last byte

    async def run(self, begun: Begun | None = None) -> bool:
        """Carries it, or goes on with what was begun; returns whether the client's connection may live on.

        Busy, Unreachable, TooSlow or WrongPeer before the answer has begun, Cut after; BadMessage (502, or of the
        request's body) at any time; ClientGone.
        """
        if begun is None:
            self.upstream.enter()
        try:
            if begun is None:
                self._wait_for_answer()
                sock: socket.socket | None = self.upstream.idle(repeatable=self.head.method in REPEATABLE)
            else:
                sock = begun.sock
            if sock is not None:
                try:
                    return await self._exchange(sock, begun)
                except NoAnswer:
                    if self.delivery.received or self.head.method not in REPEATABLE or self.body is not None:
                        raise
                    # else it closed while it was idle: a safe request may go out once more
            return await self._exchange(await self.upstream.connected())
        finally:
            self.connection.awaits_answer = False
            self.upstream.leave()

    def _wait_for_answer(self) -> None:
        connection = self.connection
        connection.enter(WAITING, connection.limits.first_byte)
        connection.awaits_answer = True

    async def _exchange(self, sock: socket.socket, begun: Begun | None = None) -> bool:
        reusable = False
        try:
            if begun is not None:
                reusable = await self.delivery.bring(sock, begun.received)
            elif self.body is not None:
                reusable = await self._ask_while_sending(sock, self.body)
            else:
                try:
                    await send_all(sock, self.request)
                except OSError:
                    pass  # it may have answered before it closed
                reusable = await self.delivery.bring(sock)
        finally:
            if reusable:
                self.upstream.give_back(sock, self.connection.wheel.now)
            else:
                close(sock)
        return self.delivery.keep_alive

    async def _ask_while_sending(self, sock: socket.socket, body: RequestBody) -> bool:
        if self.head.expects_continue:
            await self.connection.send(CONTINUE)
        reusable = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_body, sock, body)
                reusable = await self.delivery.bring(sock)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        return reusable and self.sent

    async def _send_body(self, sock: socket.socket, body: RequestBody) -> None:
        """Sends the request and its body as it comes; stops where the upstream reads no more, for it may answer yet."""
        connection = self.connection
        data = self.request
        connection.deadline = connection.wheel.now + connection.limits.body
        while await self._pass_on(sock, data):
            if body.complete:
                self.sent = True
                if not connection.has_answered:
                    self._wait_for_answer()
                return
            self._move_to(BODY)
            await connection.more()
            data = body.take_framed()

    async def _pass_on(self, sock: socket.socket, data: bytes) -> bool:
        """Whether the upstream took it. While it hesitates the deadline is missed by it, and not by the client."""
        self._move_to(WAITING)
        try:
            await send_all(sock, data)
        except OSError:
            return False
        return True

    def _move_to(self, phase: Phase) -> None:
        """Another phase until the same deadline; an answer that has begun is the last phase of all."""
        if not self.connection.has_answered:
            self.connection.phase = phase


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What happened first decides, for the rest followed from it; a cancellation only where there is nothing else."""
    failures = group.split(trio.Cancelled)[1]
    leaf: BaseException = failures or group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
