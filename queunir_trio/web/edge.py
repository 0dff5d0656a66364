"""Between the server and the app: who the front says is asking, and two faults of the stack kept away.

The front is the only one who can reach the socket, so its private fields are believed. They end here: no handler ever
sees them.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import structlog
import trio

from queunir_trio.logs import about, about_nothing

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

LAST_WORDS_WITHIN: Final = 10.0  # seconds; the front reads promptly or is gone
GOING_AWAY: Final = 1001  # the websocket code of a refusal

log = structlog.get_logger()


class Edge:
    """The app as an ASGI application that knows its clients."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request_id = _introduce(scope)
            await self._app(scope, receive, _answering(send, request_id))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": GOING_AWAY})
        else:
            await self._app(scope, receive, send)


def _introduce(scope: Scope) -> str:
    """Puts what the front tells of the client where the app looks for it; returns the request's id."""
    told: dict[bytes, str] = {}
    kept: list[tuple[bytes, bytes]] = []
    for name, value in scope["headers"]:
        if name in (b"x-front-client", b"x-front-scheme", b"x-request-id"):
            told[name] = value.decode("latin-1")
        else:
            kept.append((name, value))
    scope["headers"] = kept
    if client := told.get(b"x-front-client"):
        scope["client"] = (client, 0)
    if scheme := told.get(b"x-front-scheme"):
        scope["scheme"] = scheme
    request_id = told.get(b"x-request-id") or secrets.token_hex(8)
    scope["request_id"] = request_id
    about_nothing()
    about(request_id=request_id, ip=(scope.get("client") or ("",))[0])
    return request_id


def _answering(send: Send, request_id: str) -> Send:
    """`send` with the request's id on the answer, and with an end that is sent whole.

    The server tells the app of the disconnection from inside its last `send`, upon which quart-trio cancels the task
    that is still at the server's own clearing up: the connection then stays open for good and a shutdown waits for
    it. So the last message is shielded, with a limit.
    """

    async def send_all(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = _labelled(message.get("headers", ()), request_id)
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await send(message)
            return
        with trio.move_on_after(LAST_WORDS_WITHIN, shield=True) as limit:
            await send(message)
        if limit.cancelled_caught:
            log.warning("answer_not_taken")

    return send_all


def _labelled(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    return [*headers, (b"x-request-id", request_id.encode("latin-1"))]
