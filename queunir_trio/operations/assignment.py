"""Who gets which slice: at sign-up, from the queue of those who wait, and by an admin's hand."""

from collections.abc import Callable

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Slice
from queunir_trio.store import slices
from queunir_trio.store.bridge import Conflict, Database, Queries

PORT_FIRST, PORT_LAST = 1, 65535


async def claim_for_new_user(db: Queries, user_id: int) -> Slice | None:
    """A warm slice for this user, in the caller's transaction; None where none is warm, and the user then waits."""
    return await slices.claim(db, user_id)


async def serve_waiting(
    db: Database, *, billing_enabled: bool, reached: Callable[[str], None] = lambda point: None
) -> list[int]:
    """Gives warm slices to those who wait, oldest first, each in a transaction of its own; returns who still waits.

    `reached` is told of each point where a crash matters.
    """
    for user_id in await slices.waiting_users(db, billing_enabled):
        reached("assign:claim:next")
        async with db.transaction() as connection:
            served = await slices.claim(connection, user_id) or await slices.find_of_user(connection, user_id)
            reached("assign:claim:acted")
        reached("assign:claim:done")
        if served is None:
            return await slices.waiting_users(db, billing_enabled)
    return []


async def assign(db: Queries, user_id: int, slice_id: int) -> Slice:
    """Moves a customer to an available slice; the one they had is detached and stopped, and nothing is destroyed.

    Refused: `no_such_user`, `no_such_slice`, `not_available`.
    """
    return await slices.assign(db, user_id, slice_id)


async def register_unmanaged(db: Database, host: str, port: int) -> Slice:
    """A slice that something else runs: watched and routed to, never started or stopped. Refused: `port_taken`."""
    if not PORT_FIRST <= port <= PORT_LAST:
        sentence = f"Give a port from {PORT_FIRST} to {PORT_LAST}."
        raise Refused("invalid_fields", sentence, {"port": sentence})
    try:
        return await slices.add_unmanaged(db, host, port)
    except Conflict:
        raise Refused("port_taken", f"A slice with port {port} is registered already.") from None
