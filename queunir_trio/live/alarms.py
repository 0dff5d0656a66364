"""Alarms from where nobody can wait: told synchronously, written to the alert log by a task, once an episode."""

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.routing import SliceAddress
from queunir_trio.store import events
from queunir_trio.store.bridge import Database

log = structlog.get_logger()

WAITING_AT_MOST = 100  # alarms not yet written; more of them would say nothing new
AGAIN_AFTER = 900.0  # seconds before the same alarm is raised again


class Alarms:
    """Takes alarms and writes them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._send, self._receive = trio.open_memory_channel[tuple[str, int, dict[str, object]]](WAITING_AT_MOST)
        self._raised: dict[tuple[str, int], float] = {}

    def wrong_peer(self, address: SliceAddress) -> None:
        """Somebody else answers where a slice should be."""
        self._raise("slice_identity_mismatch", address.slice_id, {"host": address.host, "port": address.port})

    def _raise(self, kind: str, slice_id: int, detail: dict[str, object]) -> None:
        now = trio.current_time()
        if now < self._raised.get((kind, slice_id), 0.0):
            return
        self._raised[kind, slice_id] = now + AGAIN_AFTER
        log.error(kind, slice_id=slice_id, **detail)
        try:
            self._send.send_nowait((kind, slice_id, detail))
        except trio.WouldBlock:
            log.error("alarm_not_written", kind=kind, slice_id=slice_id)

    async def run(self) -> None:
        """Writes until it is cancelled; an alarm that can not be written stands in the log all the same."""
        async for kind, slice_id, detail in self._receive:
            try:
                await events.record(self._db, kind, "critical", detail, slice_id=slice_id)
            except Lost as lost:
                log.error("alarm_not_written", kind=kind, slice_id=slice_id, reason=str(lost))
