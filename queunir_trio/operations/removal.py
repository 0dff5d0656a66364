"""One attempt at removing a customer: what every step of it works with, and how a step is written down and proven."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import trio

from queunir_trio.errors import Lost
from queunir_trio.model.accounts import User
from queunir_trio.model.erasures import Receipt
from queunir_trio.operations import destruction
from queunir_trio.operations.destruction import StillThere
from queunir_trio.operations.steps import Resources, StepFailed, Superseded
from queunir_trio.store import accounts, receipts, slices

FOLLOWED_FOR: Final = 60.0  # seconds at a stretch that a slice's destruction is waited for
LOOKED_EVERY: Final = 0.2  # seconds

# In: the user's id. Out: what became of the subscription, in one word for the receipt. Asked again at every attempt.
Cancel = Callable[[int], Awaitable[str]]


async def nothing_to_cancel(user_id: int) -> str:
    """While nobody pays there is nothing that could go on being paid."""
    return "off"


async def follow_destruction(resources: Resources, slice_id: int) -> None:
    """Has the reconciler destroy the slice, and waits for it. StillThere: it is not done yet."""
    await destruction.request(resources.db, slice_id)
    with trio.move_on_after(FOLLOWED_FOR):
        while await slices.find(resources.db, slice_id) is not None:  # noqa: ASYNC110
            await trio.sleep(LOOKED_EVERY)  # a change may be missed, and this is short
        return
    raise StillThere(f"slice {slice_id} is being destroyed")


async def destroy_here(resources: Resources, slice_id: int) -> None:
    """Destroys the slice where no reconciler runs. Lost: a step could not be taken."""
    await destruction.request(resources.db, slice_id)
    marked = await slices.find(resources.db, slice_id)
    if marked is not None:
        try:
            await destruction.destroy(resources, marked)
        except (StepFailed, Superseded) as failed:
            raise Lost(str(failed)) from failed


@dataclass(frozen=True, slots=True)
class Ways:
    """How a removal does what depends on where it is done: `letters` tells whether any are being sent."""

    cancel: Cancel = nothing_to_cancel
    destroy: Callable[[Resources, int], Awaitable[None]] = follow_destruction
    letters: bool = False


@dataclass(slots=True)
class Removal:
    """One attempt."""

    resources: Resources
    receipt: Receipt
    user_id: int
    ways: Ways
    job_id: int | None
    billing: str = "off"

    async def take(
        self,
        name: str,
        percent: int,
        act: Callable[["Removal"], Awaitable[None]],
        tell: Callable[[str, int], Awaitable[None]] | None,
    ) -> None:
        resources, receipt = self.resources, self.receipt
        resources.reached(f"wipe:{name}:next")
        await receipts.begin_step(resources.db, receipt.id, name, percent, resources.epoch)
        if tell is not None:
            await tell(name, percent)
        resources.reached(f"wipe:{name}:started")
        await act(self)
        resources.reached(f"wipe:{name}:acted")
        await receipts.end_step(resources.db, receipt.id, name, resources.epoch)
        resources.reached(f"wipe:{name}:done")
        self.receipt = await receipts.find(resources.db, receipt.id) or receipt

    async def user(self) -> User | None:
        return await accounts.find(self.resources.db, self.user_id)

    async def note(self, uuid: UUID, facts: dict[str, Any]) -> None:
        """Of a slice; what was noted before counts."""
        await receipts.note_slice(self.resources.db, self.receipt.id, uuid, facts, self.resources.epoch)

    @property
    def slices(self) -> dict[UUID, dict[str, Any]]:
        """What is known of the slices that are to go, gone by now or not."""
        return {UUID(uuid): facts for uuid, facts in self.receipt.slices.items()}

    @property
    def slice_ids(self) -> list[int]:
        return [facts["id"] for facts in self.receipt.slices.values()]
