"""Keeping a task running: a bug in it is logged and tried again, and takes nothing else down."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from queunir_slice.logs import Log

FIRST_WAIT: Final = 0.5  # seconds
MOST_WAIT: Final = 30.0  # seconds
HEALTHY_AFTER: Final = 60.0  # seconds without a fault, and the next wait is the first again

log = Log(__name__)


async def keep_running(name: str, session: Callable[[], Awaitable[None]]) -> None:
    """Runs `session` until it is cancelled, and again whenever it ends."""
    loop = asyncio.get_running_loop()
    wait = FIRST_WAIT
    while True:
        began = loop.time()
        try:
            await session()
            log.warning("task_ended", task=name)
        except Exception:
            log.exception("task_failed", task=name)
        if loop.time() - began >= HEALTHY_AFTER:
            wait = FIRST_WAIT
        await asyncio.sleep(wait)
        wait = min(wait * 2, MOST_WAIT)
