"""Alarms from where nobody can wait: told synchronously, written to the alert log by a task, once an episode."""

import time
from typing import Final, NamedTuple

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.live.throttle import Clock, Throttle, address_key
from queunir_trio.model.routing import SliceAddress
from queunir_trio.store import events
from queunir_trio.store.bridge import Database

log = structlog.get_logger()

WAITING_AT_MOST: Final = 100  # alarms not yet written; more of them would say nothing new
AGAIN_AFTER: Final = 900.0  # seconds before the same alarm is raised again


class _Alarm(NamedTuple):
    """A row of the alert log to be."""

    kind: str
    severity: str
    detail: dict[str, object]
    slice_id: int | None = None


class Alarms:
    """Takes alarms and writes them."""

    def __init__(self, db: Database, clock: Clock = time.monotonic) -> None:
        self._db = db
        self._send, self._receive = trio.open_memory_channel[_Alarm](WAITING_AT_MOST)
        self._episodes = Throttle(1, AGAIN_AFTER, clock=clock)

    def wrong_peer(self, address: SliceAddress) -> None:
        """Somebody else answers where a slice should be."""
        if self._is_news(f"slice {address.slice_id}"):
            detail: dict[str, object] = {"host": address.host, "port": address.port}
            log.error("slice_identity_mismatch", slice_id=address.slice_id, **detail)
            self._write(_Alarm("slice_identity_mismatch", "critical", detail, address.slice_id))

    def unknown_tokens(self, client: str) -> None:
        """The client at this address sends one token after another of sessions that do not exist."""
        if self._is_news(f"client {address_key(client)}"):
            log.warning("unknown_tokens", ip=client)
            self._write(_Alarm("unknown_tokens", "warning", {"address": client}))

    def _is_news(self, whose: str) -> bool:
        return self._episodes.take(whose) == 0.0

    def _write(self, alarm: _Alarm) -> None:
        try:
            self._send.send_nowait(alarm)
        except trio.WouldBlock:
            log.error("alarm_not_written", kind=alarm.kind, slice_id=alarm.slice_id)

    async def run(self) -> None:
        """Writes until it is cancelled; an alarm that can not be written stands in the log all the same."""
        async for alarm in self._receive:
            try:
                await events.record(self._db, alarm.kind, alarm.severity, alarm.detail, slice_id=alarm.slice_id)
            except Lost as lost:
                log.error("alarm_not_written", kind=alarm.kind, slice_id=alarm.slice_id, reason=str(lost))
