"""The websocket to a slice: whole messages in and out, over a connection that ends when the context does.

A slice is a stranger that may break in any way: the handshake has its limits of time and size, a message its own, and
however the connection goes wrong it is a loss, which only this connection feels.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.routing import SliceAddress

OPEN_WITHIN: Final = 5.0  # seconds for connection and handshake together
CLOSE_WITHIN: Final = 1.0  # seconds for a polite end
HANDSHAKE_AT_MOST: Final = 65536  # bytes
MESSAGES_AHEAD: Final = 8  # taken in before they are asked for; what is more waits in the kernel and at the slice
REFUSALS: Final = frozenset({401, 403})  # statuses that the same request would meet again


class SliceSocketClosed(Lost):
    """The connection to the slice could not be opened, or is over."""


class SliceSocket:
    """An open connection. SliceSocketClosed: it is over."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    async def receive(self) -> str | bytes:
        """The next message."""
        try:
            return await self._connection.get_message()
        except ConnectionClosed as closed:
            raise SliceSocketClosed(f"the connection closed ({closed.reason})") from None

    async def send(self, text: str) -> None:
        """Sends one text message; waits while the slice does not read."""
        try:
            await self._connection.send_message(text)
        except ConnectionClosed as closed:
            raise SliceSocketClosed(f"the connection closed ({closed.reason})") from None


@asynccontextmanager
async def open_slice_socket(address: SliceAddress, path: str, *, message_at_most: int) -> AsyncIterator[SliceSocket]:
    """A websocket to `path` of a slice, with its key. `message_at_most`: bytes, or characters of a text message.

    SliceSocketClosed, OSError: it can not be opened. Refused `slice_refused`: the slice does not accept the key. What
    the body of the context raises comes out as it was raised, not in a group.
    """
    stream = _Guarded(await _reached(address))
    fault: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                connection = await _shaken(nursery, stream, address, path, message_at_most)
                yield SliceSocket(connection)
                with trio.move_on_after(CLOSE_WITHIN):
                    await connection.aclose()
            except Exception as error:  # noqa: BLE001 - raised again below, outside of the nursery's group
                fault = error
            stream.guarded = False
            nursery.cancel_scope.cancel()
    except* Exception as group:  # noqa: BLE001 - left to raise is trio-websocket's reader, with any error of its parts
        fault = fault or _translated(group)
    finally:
        stream.close()
    if fault is not None:
        raise fault from None


async def _reached(address: SliceAddress) -> trio.SocketStream:
    with trio.move_on_after(OPEN_WITHIN):
        return await trio.open_tcp_stream(address.host, address.port)
    raise SliceSocketClosed(f"{address!r} could not be reached in time")


async def _shaken(
    nursery: trio.Nursery, stream: "_Guarded", address: SliceAddress, path: str, message_at_most: int
) -> WebSocketConnection:
    with trio.move_on_after(OPEN_WITHIN):
        connection = await wrap_client_stream(
            nursery,
            cast(trio.SocketStream, stream),
            f"{address.host}:{address.port}",
            path,
            extra_headers=[(b"x-slice-key", address.key.encode())],
            message_queue_size=MESSAGES_AHEAD,
            max_message_size=message_at_most,
            receive_buffer_size=None,
        )
        stream.guarded = False
        return connection
    raise SliceSocketClosed(f"{address!r} did not finish the handshake in time")


class _Guarded(trio.abc.Stream):
    """A stream that notices during the handshake what trio-websocket would wait out: an end, or too long an answer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.guarded = True
        self._stream = stream
        self._received = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        if self.guarded:
            self._received += len(data)
            if not data or self._received > HANDSHAKE_AT_MOST:
                raise SliceSocketClosed("the handshake was not finished")
        return data

    async def send_all(self, data: Any) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()
        if self.guarded:
            raise SliceSocketClosed("the handshake was not one")

    def close(self) -> None:
        self._stream.socket.close()


def _translated(group: BaseExceptionGroup[Any]) -> Exception:
    """What went wrong first, in our own words."""
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if isinstance(leaf, ConnectionRejected):
        if leaf.status_code in REFUSALS:
            return Refused("slice_refused", f"The slice refused the connection with status {leaf.status_code}.")
        return SliceSocketClosed(f"the slice answered with status {leaf.status_code}")
    return leaf if isinstance(leaf, Lost) else SliceSocketClosed(f"the slice broke the protocol: {leaf!r:.200}")
