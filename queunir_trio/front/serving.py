"""A client's connection from its first byte to its last: one request after another.

Every way in which this can fail ends in exactly one of three things: a JSON error where nothing of an answer has been
sent, a broken connection where something has, and silence where the client is no longer there.
"""

import socket

import structlog

from queunir_trio.front.answers import ALL_METHODS, error_answer
from queunir_trio.front.connection import ClientGone, Connection, Phase
from queunir_trio.front.delivering import Cut
from queunir_trio.front.exchange import Exchange
from queunir_trio.front.shortcut import Shortcut
from queunir_trio.front.state import Front
from queunir_trio.outside.readiness import ReadySocket
from queunir_trio.outside.sockets import close, reset, send_some
from queunir_trio.wire.http import BadMessage

log = structlog.get_logger()


async def serve(front: Front, sock: socket.socket, peer: str) -> None:
    """Serves one connection to its end; the socket is closed or handed over when this returns."""
    connection = Connection(sock, peer.encode(), front.gate.is_trusted(peer), front.wheel, front.limits)
    connection.is_last = front.draining
    front.wheel.connections.add(connection)
    try:
        await _serve(front, connection)
    except (ClientGone, Cut):
        pass  # whether the client may take what it has for the whole is decided below
    finally:
        front.wheel.connections.discard(connection)
        if connection.phase is Phase.ANSWERING:
            reset(connection.sock)
        elif not connection.detached:
            close(connection.sock)


async def _serve(front: Front, connection: Connection) -> None:
    exchange: Exchange | None = None
    shortcut = Shortcut(front, connection, connection.sock) if isinstance(connection.sock, ReadySocket) else None
    try:
        with connection.scope:
            while not connection.is_last and (exchange := await _next(front, connection, shortcut)) is not None:
                if not await exchange.run() or connection.is_last:
                    return await _part(connection)
                exchange = None
        if connection.overdue:
            exchange = _under_way(exchange, shortcut)
            await _give_up(front, connection, exchange, _overdue_code(connection, exchange))
    except (ClientGone, Cut):
        raise
    except Exception:
        # a fault of ours ends this connection and no other
        log.exception("connection_crashed", ip=connection.peer.decode())
        await _give_up(front, connection, _under_way(exchange, shortcut), "internal_error")


def _under_way(exchange: Exchange | None, shortcut: Shortcut | None) -> Exchange | None:
    return shortcut.exchange if exchange is None and shortcut is not None else exchange


async def _part(connection: Connection) -> None:
    if not connection.detached:
        await connection.linger()


async def _next(front: Front, connection: Connection, shortcut: Shortcut | None) -> Exchange | None:
    """The next request that has to be carried out here, or to its end; None where the client has no more."""
    try:
        begun = await shortcut.carry() if shortcut is not None else None
        if begun is not None:
            return begun
        if connection.is_last:  # the service ends since, while the client took the rest of an answer
            await connection.linger()
            return None
        head = await connection.next_head()
        return None if head is None else Exchange(front, connection, head)
    except BadMessage as bad:
        connection.enter(Phase.ANSWERING, connection.limits.body)
        await connection.send(_unasked(front, connection, bad.code, bad.status, bad.reason))
        await connection.linger()
        return None


def _overdue_code(connection: Connection, exchange: Exchange | None) -> str | None:
    if connection.phase is Phase.HEAD or connection.phase is Phase.BODY:
        return "request_timeout"
    if connection.phase is Phase.WAITING and exchange is not None:
        return "slice_timeout" if exchange.route else "unavailable"
    return None


async def _give_up(front: Front, connection: Connection, exchange: Exchange | None, code: str | None) -> None:
    """The error that ends the connection: said without waiting, and only where no answer has begun."""
    if code is None or connection.has_answered or connection.detached:
        return
    if exchange is not None:
        exchange.report(code)
        answer = exchange.error(code)
    else:
        answer = _unasked(front, connection, code)
    try:
        send_some(connection.sock, answer)
    except OSError:
        return
    await connection.linger()


def _unasked(front: Front, connection: Connection, code: str, status: int = 0, sentence: str = "") -> bytes:
    """An error for what never became a request, after which the connection closes."""
    request_id = front.next_id()
    front.refusals[code] += 1
    ip = connection.peer.decode()
    log.info("bad_request", code=code, detail=sentence, request_id=request_id.decode(), ip=ip)
    lines = b"x-request-id: %b\r\n" % request_id
    if code == "method_not_allowed":
        lines += ALL_METHODS
    return error_answer(code, False, lines, request_id, status, sentence)
