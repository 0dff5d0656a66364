"""LISTEN: what changes in the tables, heard as it is committed, whoever did it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, DatabaseUnavailable, open_connection

CHANNEL: Final = "gateway"
UNREAD_AT_MOST: Final = 10_000  # changes; who falls further behind begins anew
WATCHED_EVERY: Final = 5.0  # seconds
ANSWERED_WITHIN: Final = 5.0  # seconds

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Change:
    """A row that was inserted, updated or deleted, or a table that was truncated: `op` says which."""

    table: str
    op: str
    id: str | int | None
    user_id: int | None
    slice_id: int | None


@asynccontextmanager
async def listening(where: DatabaseSettings) -> AsyncIterator[trio.MemoryReceiveChannel[Change]]:
    """The changes from now on. Lost: the connection died, or too many were left unread.

    The body is cancelled then and Lost raised from the context; whoever begins anew must take it that everything
    changed meanwhile.
    """
    send, receive = trio.open_memory_channel[Change](UNREAD_AT_MOST)
    overflown = trio.Event()
    failure: Exception | None = None

    def heard(payload: str) -> None:
        # raising here would end the asyncio loop's callback unseen, so nothing may
        change = change_of(payload)
        if change is None:
            log.warning("notification_not_understood")
            return
        try:
            send.send_nowait(change)
        except trio.WouldBlock:
            overflown.set()
        except trio.BrokenResourceError:
            pass  # the receiver has been closed: nobody listens any more

    async with open_connection(where) as connection:
        await connection.listen(CHANNEL, heard)
        async with trio.open_nursery() as nursery:

            async def end_when_lost() -> None:
                nonlocal failure
                failure = await _loss(connection, overflown)
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_when_lost)
            try:
                yield receive
            except Exception as error:  # noqa: BLE001  raised again below, outside the nursery, which would wrap it
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def change_of(payload: str) -> Change | None:
    """What a notification tells; None for what our triggers did not send."""
    try:
        told = json.loads(payload)
        return Change(told["table"], told["op"], told.get("id"), told.get("user_id"), told.get("slice_id"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


async def _loss(connection: Connection, overflown: trio.Event) -> Lost:
    """Waits until nothing more can be relied on; what happened."""
    loss: Lost = Lost("too many notifications were left unread")
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal loss
            try:
                await connection.watch(WATCHED_EVERY, ANSWERED_WITHIN)
            except DatabaseUnavailable as error:
                loss = error
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await overflown.wait()
        nursery.cancel_scope.cancel()
    return loss
