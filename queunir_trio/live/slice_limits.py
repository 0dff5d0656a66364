"""Keeps slices' connections to PostgreSQL within limits that their roles could lift for themselves. By the leader."""

from typing import Final

import structlog
import trio

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import events
from queunir_trio.store.bridge import Database, NotPermitted
from queunir_trio.store.slice_sessions import Limits, end_overlong

LOOKED_EVERY: Final = 60.0  # seconds

log = structlog.get_logger()


async def keep_slice_limits(db: Database, where: DatabaseSettings, epoch: int) -> None:
    """Looks every minute until it is cancelled. DatabaseUnavailable."""
    log.info("slice_limits_kept", epoch=epoch)
    while True:
        await end_and_tell(db, where)
        await trio.sleep(LOOKED_EVERY)


async def end_and_tell(db: Database, where: DatabaseSettings, limits: Limits | None = None) -> None:
    """Ends what is over a limit, once, and an event tells an admin whose it was."""
    try:
        ended = await end_overlong(where, limits)
    except NotPermitted as error:
        log.warning("slice_limits_not_kept", reason=str(error))
        return
    for session in ended:
        log.warning("slice_session_ended", role=session.role, why=session.why)
        detail = {"role": session.role, "why": session.why}
        await events.record(db, "database_session_ended", "warning", detail)
