"""Whether a slice that does not answer is merely being started: asked for refusals alone, never for what is carried."""

from typing import Final

import trio

from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable

ANSWERED_WITHIN: Final = 1.0  # seconds; a refusal should not wait longer to be worded well
REMEMBERED_FOR: Final = 0.5  # seconds; after a boot many ask at once


class Starts:
    """What the table says about slices that start. Made when the service begins."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._began = trio.current_time()
        self._known: dict[int, tuple[bool, float]] = {}

    def __repr__(self) -> str:
        return f"<Starts {sum(starting for starting, _ in self._known.values())} lately>"

    async def is_starting(self, slice_id: int) -> bool:
        """Whether it is being started; False too where PostgreSQL does not say."""
        now = trio.current_time()
        known = self._known.get(slice_id)
        if known is not None and now < known[1]:
            return known[0]
        starting = False
        with trio.move_on_after(ANSWERED_WITHIN):
            try:
                starting = await slices.is_starting(self._db, slice_id, now - self._began)
            except DatabaseUnavailable:
                pass
        self._known[slice_id] = starting, trio.current_time() + REMEMBERED_FOR
        return starting
