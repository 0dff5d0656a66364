"""What an operator wants of the pool of warm slices, and how it fares: one row, for every gateway process."""

from dataclasses import dataclass

from queunir_trio.store.bridge import Queries, Record
from queunir_trio.store.slice_rows import changed


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """`paused`: nothing is made by itself. `at_least` is None where the service's settings say how many stand warm.

    `failures` is how many in a row could not be made.
    """

    paused: bool = False
    at_least: int | None = None
    failures: int = 0


async def read(db: Queries) -> PoolSettings:
    """What is wanted now."""
    return _found(await db.fetchrow("select paused, at_least, failures from gateway.pool"))


async def set(db: Queries, *, paused: bool | None = None, at_least: int | None = None) -> PoolSettings:
    """Changes what is given and leaves what is None as it is; returns what is wanted from now on."""
    return _found(
        await db.fetchrow(
            """
            update gateway.pool set paused = coalesce($1, paused), at_least = coalesce($2, at_least)
            returning paused, at_least, failures
            """,
            paused,
            at_least,
        )
    )


async def record_failures(db: Queries, failures: int, epoch: int | None = None) -> None:
    """So many slices in a row could not be made. StaleLeader."""
    await changed(db, "update gateway.pool set failures = $1 where only_row", epoch, failures)


def _found(row: Record | None) -> PoolSettings:
    assert row is not None, "the migration makes it"
    return PoolSettings(*row)
