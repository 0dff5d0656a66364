"""What a simulated world is going to do, in order of time, done by one task and held while WhatsApp is away."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Final

from queunir_slice.engine import NotPossible

AT_MOST: Final = 20_000  # deeds that may wait at once

Deed = Callable[[], Awaitable[None]]


class Agenda:
    """Deeds with the moment each is due, on the clock of the running loop."""

    def __init__(self) -> None:
        self._deeds: list[tuple[float, int, Deed]] = []
        self._order = count()  # deeds due at the same moment keep the order they came in
        self._held = True
        self._stirred = asyncio.Event()

    def __len__(self) -> int:
        return len(self._deeds)

    def add(self, due: float, deed: Deed) -> None:
        """Does `deed` at the loop's time `due`, or as soon after it as nothing holds the agenda.

        NotPossible where so much waits already that nothing more is taken.
        """
        if len(self._deeds) >= AT_MOST:
            raise NotPossible("busy", "Too much is on its way already: try again in a moment.")
        heapq.heappush(self._deeds, (due, next(self._order), deed))
        self._stirred.set()

    def hold(self, held: bool) -> None:
        """Whether deeds wait although they are due."""
        self._held = held
        self._stirred.set()

    def clear(self) -> None:
        """Forgets everything that was going to happen."""
        self._deeds.clear()

    async def run(self) -> None:
        """Does what is due, one after another, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # a flood of deeds must leave the loop to others in between
            self._stirred.clear()
            wait = self._deeds[0][0] - loop.time() if self._deeds and not self._held else None
            if wait is not None and wait <= 0:
                await heapq.heappop(self._deeds)[2]()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stirred.wait()
