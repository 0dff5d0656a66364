"""Being asked to stop: SIGTERM and SIGINT become an event."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

log = structlog.get_logger()


@asynccontextmanager
async def stop_on_signals() -> AsyncIterator[trio.Event]:
    """An event that the first signal sets. A second Ctrl-C waits no longer: it cancels all that runs inside."""
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, signals, stop, nursery.cancel_scope)
            yield stop
            nursery.cancel_scope.cancel()


async def _watch(signals: AsyncIterator[int], stop: trio.Event, scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("signal_received", signal=signal.Signals(number).name)
        if stop.is_set() and number == signal.SIGINT:
            scope.cancel()
        stop.set()
