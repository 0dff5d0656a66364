"""What is done for a slice, one kind of deed at a time, and how many of a kind go on beside each other."""

import random
from typing import Final, Literal, assert_never

import trio

from queunir_trio.live.agreement import Deed
from queunir_trio.live.warm_pool import AT_ONCE
from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations import adopting, destruction, provisioning, starting
from queunir_trio.operations.steps import Resources, StepFailed, Superseded
from queunir_trio.store import slices

STARTS_AT_ONCE: Final = 4  # after a boot of the machine every slice wants to start
REMOVALS_AT_ONCE: Final = 4
STAGGERED_BY: Final = 0.5  # seconds at most that a start waits in addition while others wait for their turn


class Deeds:
    """Carries out deeds; one for the life of the process."""

    def __init__(self) -> None:
        self._makings = trio.CapacityLimiter(AT_ONCE)
        self._starts = trio.CapacityLimiter(STARTS_AT_ONCE)
        self._removals = trio.CapacityLimiter(REMOVALS_AT_ONCE)

    def __repr__(self) -> str:
        making, starting_, removing = (
            limiter.borrowed_tokens for limiter in (self._makings, self._starts, self._removals)
        )
        return f"<Deeds {making} making, {starting_} starting, {removing} removing>"

    async def carry_out(self, resources: Resources, row: Slice, deed: Deed, why: StepFailed | None) -> None:
        """Does it when it is its turn; `why` is for giving up.

        StepFailed, ProvisioningFailed, Superseded, StaleLeader, DatabaseUnavailable.
        """
        match deed:
            case "provision":
                async with self._makings:
                    await provisioning.provision(resources, row)
            case "start" | "restart":
                await slices.begin_start(resources.db, row.id, resources.epoch)
                async with self._starts:
                    await self._stagger()
                    await _bring_up(resources, row, deed)
            case "stop":
                async with self._starts:
                    await starting.stop(resources, row)
            case "undo":
                async with self._removals:
                    await destruction.undo(resources, row)
            case "destroy":
                async with self._removals:
                    await _mark(resources, row)
                    await destruction.destroy(resources, row)
            case "give up":
                assert why is not None
                await provisioning.give_up(resources, row, why)
            case _:
                assert_never(deed)

    async def _stagger(self) -> None:
        """Many that come up at once must not keep step with each other."""
        if self._starts.statistics().tasks_waiting:
            await trio.sleep(random.uniform(0, STAGGERED_BY))  # noqa: S311 - jitter, not a secret


async def _bring_up(resources: Resources, row: Slice, deed: Literal["start", "restart"]) -> None:
    if adopting.is_due(row):
        await adopting.renew(resources, row, deed)
    else:
        await (starting.start if deed == "start" else starting.restart)(resources, row)


async def _mark(resources: Resources, row: Slice) -> None:
    """Where an operator asked by `wanted` alone, and does so still, the row is marked first."""
    if row.status is Status.DESTROYING:
        return
    await resources.still_leads()
    if not await destruction.request(resources.db, row.id, if_unwanted=True):
        raise Superseded(f"slice {row.id} is wanted again, or is gone")
