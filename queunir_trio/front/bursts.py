"""Audiences whose sources speak faster than is worth a write each: flushed when their pause is over."""

import trio

from queunir_trio.front.audience import Audience


class Bursts:
    """The audiences that have something gathered."""

    def __init__(self) -> None:
        self._audiences: set[Audience] = set()
        self._added = trio.Event()

    def add(self, audience: Audience) -> None:
        self._audiences.add(audience)
        self._added.set()

    async def run(self) -> None:
        """Flushes each in time, until it is cancelled."""
        while True:
            await self._added.wait()
            self._added = trio.Event()
            while self._audiences:
                await trio.sleep_until(min(audience.quiet_until for audience in self._audiences))
                self._flush_due(trio.current_time())

    def _flush_due(self, now: float) -> None:
        for audience in [audience for audience in self._audiences if audience.quiet_until <= now]:
            self._audiences.discard(audience)
            audience.flush()
