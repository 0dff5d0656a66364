"""What is left to do for those who leave: removals that nobody is at are taken up, exports that had their time go."""

from pathlib import Path
from typing import Final

import structlog
import trio

from queunir_trio.operations import exporting, wipe_orders
from queunir_trio.store.bridge import Database

LOOKED_EVERY: Final = 600.0  # seconds

log = structlog.get_logger()


async def look_after_leavers(db: Database, data_dir: Path, epoch: int) -> None:
    """Looks at once and then every so often until it is cancelled. DatabaseUnavailable, OSError."""
    while True:
        taken_up = await wipe_orders.take_up_all(db)
        if taken_up:
            log.warning("wipes_taken_up", count=taken_up, epoch=epoch)
        gone = await exporting.prune(db, data_dir)
        if gone:
            log.info("exports_expired", count=gone)
        await trio.sleep(LOOKED_EVERY)
