"""Keeping one thing running: what is lost is sought again with growing pauses, a bug is shown and survived."""

import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from queunir_trio.errors import Lost, Refused

TOLD_AGAIN_AFTER: Final = 60.0  # seconds for which the same loss, over and over, is told once

log = structlog.get_logger()


class Backoff:
    """Pauses in seconds: short at first, doubled up to `most`, with jitter, and short again after a healthy spell."""

    def __init__(self, first: float = 0.5, most: float = 30.0, healthy_after: float = 30.0) -> None:
        self.first = first
        self.most = most
        self.healthy_after = healthy_after
        self._next = first

    def after(self, lasted: float) -> float:
        """How long to pause now that the attempt has `lasted` so many seconds."""
        if lasted >= self.healthy_after:
            self._next = self.first
        pause = self._next
        self._next = min(self.most, self._next * 2)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


async def keep_running(name: str, session: Callable[[], Awaitable[None]], backoff: Backoff | None = None) -> None:
    """Runs `session` for ever, again whenever it ends; only a cancellation or a refusal ends it.

    A loss (OSError, Lost) costs one line and a pause, a bug its traceback and a pause; a session that simply returns
    is treated as a loss, for it was meant to stay. The same loss again is told once a minute. Refused is raised on:
    asking again would not help.
    """
    backoff = backoff or Backoff()
    told, told_at = "", -math.inf
    while True:
        began = trio.current_time()
        refused: Refused | None = None
        try:
            await session()
            log.warning("session_ended", name=name)
        except* Refused as group:
            refused = _refusal(group)
        except* (OSError, Lost) as lost:
            reason, now = _told(lost), trio.current_time()
            if reason != told or now - told_at >= TOLD_AGAIN_AFTER:
                log.warning("session_lost", name=name, reason=reason)
                told, told_at = reason, now
        except* Exception:
            log.exception("session_crashed", name=name)
        if refused is not None:
            raise refused
        await trio.sleep(backoff.after(trio.current_time() - began))


def _told(group: BaseExceptionGroup[BaseException]) -> str:
    leaf = _first(group)
    return f"{type(leaf).__name__}: {leaf}"


def _refusal(group: BaseExceptionGroup[Refused]) -> Refused:
    """The refusal itself, so that a caller need not look for it in groups."""
    leaf = _first(group)
    assert isinstance(leaf, Refused)
    return leaf


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
