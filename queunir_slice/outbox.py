"""Hands stored messages to WhatsApp, in order: the one place that sends."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any, Final

from queunir_slice import chats, messages
from queunir_slice.answers import as_json
from queunir_slice.broadcast import Broadcaster
from queunir_slice.database import Database, DatabaseUnavailable, persistently
from queunir_slice.engine import Ack, Engine, NotConnected, NotPossible, Outgoing, State
from queunir_slice.logs import Log

AT_ONCE: Final = 50  # messages looked up in one go
TAKEN_WITHIN: Final = 60.0  # seconds WhatsApp has to take one
RETRY_AFTER: Final = 1.0  # seconds
LOOK_EVERY: Final = 60.0  # seconds, at least; a nudge or a message that falls due brings it forward

log = Log(__name__)


class Outbox:
    """Level-triggered: it looks at what waits in the table whenever something may have changed."""

    def __init__(self, database: Database, engine: Engine, broadcaster: Broadcaster) -> None:
        self._database = database
        self._engine = engine
        self._broadcaster = broadcaster
        self._nudged = asyncio.Event()
        self._handed: set[str] = set()  # the session has these and has not acked them yet
        self._telling = asyncio.Lock()  # fair: what WhatsApp took is told before the ack that follows it

    def nudge(self) -> None:
        """Something may have changed: a message was stored, or the session's state."""
        self._nudged.set()

    def session_began(self) -> None:
        """A new session knows nothing of what the one before it was handed."""
        self._handed.clear()

    async def note_ack(self, wa_id: str, ack: Ack) -> None:
        """Stores an ack and tells it, unless the message was that far already."""
        async with self._telling:
            async with self._database.connection() as queries:
                chat_wa_id = await messages.note_ack(queries, wa_id, ack)
            self._handed.discard(wa_id)
            if chat_wa_id is not None:
                await self._tell_ack(wa_id, chat_wa_id, ack)

    async def run(self) -> None:
        """Sends what is due, until it is cancelled."""
        while True:
            await asyncio.sleep(0)  # nudged without end, it still leaves the loop to others
            self._nudged.clear()
            try:
                wait = await self._look()
            except (DatabaseUnavailable, TimeoutError) as lost:
                log.warning("outbox_waits", cause=type(lost).__name__)
                wait = RETRY_AFTER
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._nudged.wait()

    async def _look(self) -> float:
        """Does what can be done now; returns the seconds until it is worth looking again."""
        match self._engine.standing.state:
            case State.READY:
                return await self._send_due()
            case State.LOGGED_OUT | State.BLOCKED:
                await self._give_up()
        return LOOK_EVERY

    async def _send_due(self) -> float:
        while True:
            async with self._database.connection() as queries:
                rows = await messages.due(queries, self._handed, AT_ONCE)
                next_due_in = await messages.next_due_in(queries)
            if not rows:
                return LOOK_EVERY if next_due_in is None else max(0.0, min(next_due_in, LOOK_EVERY))
            for row in rows:
                try:
                    await self._send(Outgoing(**{name: row[name] for name in Outgoing.__slots__}))
                except NotConnected:
                    return LOOK_EVERY
                except NotPossible:
                    return RETRY_AFTER

    async def _send(self, message: Outgoing) -> None:
        async with asyncio.timeout(TAKEN_WITHIN):
            await self._engine.send(message)
        self._handed.add(message.wa_id)
        async with self._telling:
            for event, row in await persistently(partial(self._note_taken, message.wa_id)):
                await self._broadcaster.emit(event, as_json(row))

    async def _note_taken(self, wa_id: str) -> list[tuple[str, Any]]:
        """Notes that WhatsApp has a message; returns what to tell of it, which is nothing but the first time."""
        async with self._database.transaction() as queries:
            message = await messages.hand(queries, wa_id)
            if message is None:
                return []
            await chats.show_last(queries, message["chat_wa_id"], message["body"], message["timestamp"])
            chat = await chats.find(queries, message["chat_wa_id"])
        return [("wa:chat", chat), ("wa:message", message)]

    async def _give_up(self) -> None:
        """What should have gone while nobody is logged in does not go later, perhaps from another number."""
        self._handed.clear()
        async with self._database.connection() as queries:
            rows = await messages.give_up(queries)
        for row in rows:
            await self._tell_ack(row["wa_id"], row["chat_wa_id"], Ack.NOT_SENT)

    async def _tell_ack(self, wa_id: str, chat_wa_id: str, ack: Ack) -> None:
        payload = {"wa_id": wa_id, "chat_wa_id": chat_wa_id, "ack": int(ack)}
        await self._broadcaster.emit("wa:message_ack", payload)
