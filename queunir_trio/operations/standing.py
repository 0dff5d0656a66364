"""How a user or a slice stands, changed by an admin's hand: only as the rules of their lives allow."""

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User
from queunir_trio.model.slices import TRANSITIONS, Slice, Status
from queunir_trio.operations import destruction, suspension
from queunir_trio.store import accounts, slices, suspensions
from queunir_trio.store.bridge import Database


async def suspend_user(db: Database, user_id: int) -> User:
    """Closes an account and lets its slice rest; nothing is lost, and doing it again changes nothing.

    Refused: `no_such_user`.
    """
    async with db.transaction() as connection:
        user = await accounts.set_suspended(connection, user_id, True)
        if user is None:
            raise _no_such_user()
        if user.slice_id is not None:
            await suspensions.suspend(connection, user.slice_id, "admin")
    return user


async def resume_user(db: Database, user_id: int) -> User:
    """Opens an account again, and its slice if an admin had closed it. Refused: `no_such_user`."""
    async with db.transaction() as connection:
        user = await accounts.set_suspended(connection, user_id, False)
        if user is None:
            raise _no_such_user()
        found = await slices.find(connection, user.slice_id) if user.slice_id is not None else None
        if found is not None and found.status is Status.SUSPENDED and found.suspended_for == "admin":
            await suspensions.resume(connection, found.id)
    return user


async def make_admin(db: Database, user_id: int) -> User:
    """From now on the user may administer. Refused: `no_such_user`."""
    if not await accounts.make_admin(db, user_id):
        raise _no_such_user()
    user = await accounts.find(db, user_id)
    if user is None:
        raise _no_such_user()
    return user


async def move_slice(db: Database, slice_id: int, to: Status) -> Slice:
    """Takes a slice on to another stage of its life. Refused: `no_such_slice`, `transition`."""
    found = await slices.find(db, slice_id)
    if found is None:
        raise Refused("no_such_slice", "There is no such slice.")
    if to not in TRANSITIONS[found.status]:
        raise Refused("transition", f"A slice that is {found.status} can not become {to}.")
    match to:
        case Status.SUSPENDED:
            return await suspension.suspend(db, slice_id, "admin")
        case Status.ASSIGNED if found.status is Status.SUSPENDED:
            return await suspension.resume(db, slice_id)
        case Status.ASSIGNED:
            raise Refused("transition", "Say to whom: POST /admin/users/{id}/assign gives it to a customer.")
        case Status.AVAILABLE:
            raise Refused("transition", "A slice becomes available by itself, once it is whole and well.")
        case Status.DESTROYING:
            await destruction.request(db, slice_id)
        case _:
            if not await slices.move(db, slice_id, to):
                raise Refused("transition", f"The slice has changed meanwhile and can not become {to}.")
    return await slices.find(db, slice_id) or found


def _no_such_user() -> Refused:
    return Refused("no_such_user", "There is no such user.")
