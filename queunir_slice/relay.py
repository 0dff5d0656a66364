"""What the engine reports, on its way in: states go straight out as events, messages are stored first and told then."""

import asyncio
from functools import partial
from itertools import groupby
from typing import Any, Final

from queunir_slice import engine
from queunir_slice.answers import rfc3339
from queunir_slice.broadcast import Broadcaster
from queunir_slice.connection import ConnectionRecord
from queunir_slice.database import persistently
from queunir_slice.engine import State
from queunir_slice.outbox import Outbox
from queunir_slice.pairing import Pairing
from queunir_slice.receiving import Receiver

WAITING_AT_MOST: Final = 1_000  # reports; beyond them the engine waits
STORED_AT_ONCE: Final = 200  # reports


def code_json(code: engine.Code) -> dict[str, Any]:
    """A code as events and answers show it."""
    return {"qr": code.text, "expires_at": rfc3339(code.expires_at), "n": code.number}


class Relay:
    """Hears the engine; nothing that arrived is told before it is stored, and nothing is lost while it can not be."""

    def __init__(
        self,
        receiver: Receiver,
        broadcaster: Broadcaster,
        record: ConnectionRecord,
        pairing: Pairing,
        outbox: Outbox,
    ) -> None:
        self._receiver = receiver
        self._broadcaster = broadcaster
        self._record = record
        self._pairing = pairing
        self._outbox = outbox
        self._reports: asyncio.Queue[engine.Received | engine.Acked] = asyncio.Queue(WAITING_AT_MOST)

    async def hear(self, event: engine.Event) -> None:
        """Takes one report of the engine; waits while too many wait to be stored."""
        match event:
            case engine.StateChanged(standing):
                await self._enter(standing)
            case engine.CodeShown(code):
                await self._broadcaster.emit("wa:qr", code_json(code))
            case engine.Authenticated():
                await self._broadcaster.emit("wa:authenticated", {})
            case engine.Synced(percent):
                await self._broadcaster.emit("wa:sync", {"percent": percent})
            case engine.Ready(phone_number):
                await self._broadcaster.emit("wa:ready", {"phoneNumber": phone_number})
            case engine.Disconnected(reason):
                await self._broadcaster.emit("wa:disconnected", {"reason": reason})
            case engine.Received() | engine.Acked():
                await self._reports.put(event)

    async def run(self) -> None:
        """Stores and tells what was reported, until it is cancelled."""
        while True:
            batch = [await self._reports.get()]
            while len(batch) < STORED_AT_ONCE and not self._reports.empty():
                batch.append(self._reports.get_nowait())
            try:
                for is_message, reports in groupby(batch, key=lambda report: isinstance(report, engine.Received)):
                    await self._take(list(reports), is_message)
            finally:
                for _ in batch:
                    self._reports.task_done()

    async def drained(self) -> None:
        """Returns when everything that was reported is stored and told."""
        await self._reports.join()

    async def _enter(self, standing: engine.Standing) -> None:
        self._pairing.note(standing)
        self._record.note(standing)
        if standing.state is State.STARTING:
            self._outbox.session_began()
        self._outbox.nudge()
        payload = {"state": standing.state.value, "reason": standing.reason, "since": rfc3339(standing.since)}
        await self._broadcaster.emit("wa:state", payload)

    async def _take(self, reports: list[Any], is_message: bool) -> None:
        if is_message:
            await self._receiver.take(reports)
            return
        for acked in reports:
            await persistently(partial(self._outbox.note_ack, acked.wa_id, acked.ack))
