"""What has had its time is deleted: sessions, links for passwords, sent mail, finished jobs. Hourly, by the leader."""

from typing import Final

import structlog
import trio

from queunir_trio.store import accounts, jobs, outbox, sessions
from queunir_trio.store.bridge import Database

PRUNED_EVERY: Final = 3600.0  # seconds

log = structlog.get_logger()


async def prune_hourly(db: Database, epoch: int) -> None:
    """Prunes at once and then every hour until it is cancelled. DatabaseUnavailable."""
    while True:
        log.info("pruned", epoch=epoch, **await prune(db))
        await trio.sleep(PRUNED_EVERY)


async def prune(db: Database) -> dict[str, int]:
    """Deletes what is over, once; how many rows of what. Two at the same time do no harm."""
    return {
        "sessions": await sessions.prune(db),
        "resets": await accounts.prune_resets(db),
        "mails": await outbox.prune(db),
        "jobs": await jobs.prune(db),
    }
