"""The complete removal of a customer: step by step, each written down, taken, proven, and the user's row last.

Every step may be taken again, and all are, whenever the removal was cut short: what is there is removed, what is gone
stays gone.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import structlog

from queunir_trio.model.jobs import Job
from queunir_trio.operations.orders import Teller
from queunir_trio.operations.removal import Removal, Ways
from queunir_trio.operations.steps import Resources
from queunir_trio.operations.wipe_steps import STEPS
from queunir_trio.store import receipts

log = structlog.get_logger()


class Wiping:
    """Carries out jobs of kind `wipe`."""

    def __init__(self, resources: Resources, ways: Ways) -> None:
        self._resources = resources
        self._ways = ways

    async def work(self, job: Job, teller: Teller) -> dict[str, Any]:
        """What a job's work is. Lost, OSError: to be tried again."""
        resources = replace(self._resources, epoch=teller.epoch)
        return await wipe(resources, UUID(job.params["receipt"]), self._ways, tell=teller.at, job_id=job.id)


async def wipe(
    resources: Resources,
    receipt_id: UUID,
    ways: Ways,
    *,
    tell: Callable[[str, int], Awaitable[None]] | None = None,
    job_id: int | None = None,
) -> dict[str, Any]:
    """Removes everything of the user whose removal this receipt is of; the receipt's document.

    Lost, OSError: a step could not be taken or proven, and the whole is to be done again. StaleLeader: by another.
    """
    receipt = await receipts.find(resources.db, receipt_id)
    assert receipt is not None, "a removal is ordered with its receipt"
    if receipt.document is not None:  # ended between its last step and the word of it
        return receipt.document
    assert receipt.user_id is not None
    removal = Removal(resources, receipt, receipt.user_id, ways, job_id)
    for name, percent, act in STEPS:
        await removal.take(name, percent, act, tell)
    finished = await receipts.find(resources.db, receipt_id)
    assert finished is not None
    assert finished.document is not None
    log.info("user_wiped", user_id=receipt.user_id, receipt=str(receipt_id))
    return finished.document
