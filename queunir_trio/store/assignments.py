"""Who has which slice. A user's row and a slice's row name each other, and both change in one transaction."""

from typing import Final

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Slice, Status
from queunir_trio.store.bridge import Queries
from queunir_trio.store.slice_rows import COLUMNS, HEALTHY_FOR, slice_of

# the user's row is locked first, everywhere: two claims of one user wait for each other, and the second finds it served
_CLAIM: Final = f"""
    with asker as (
        select id from gateway.users where id = $1 and slice_id is null and deleting_at is null for no key update
    ), free as (
        select id from gateway.slices
        where status = 'available' and user_id is null and managed and wanted = 'running'
          and last_health_at > gateway.clock() - make_interval(secs => $2) and starting_since is null
          and id not in (select slice_id from gateway.held_slices)
          and exists (select from asker)
        order by id limit 1 for update skip locked
    ), taken as (
        update gateway.slices s set status = 'assigned', user_id = $1, assigned_at = gateway.clock()
        from free where s.id = free.id returning {COLUMNS}
    ), routed as (
        update gateway.users u set slice_id = taken.id from taken where u.id = $1
    )
    select * from taken
"""


async def claim(db: Queries, user_id: int) -> Slice | None:
    """Gives the user a slice of the warm pool: available, managed, wanted running, healthy; None where there is none.

    None too where the user has a slice already or is being deleted.
    """
    row = await db.fetchrow(_CLAIM, user_id, HEALTHY_FOR)
    return slice_of(row) if row is not None else None


async def waiting_users(db: Queries, billing_enabled: bool) -> list[int]:
    """The ids of those who should have a slice and have none, who came first first.

    With billing, those who pay: active, still in grace, or in a trial that a subscription began. Admins are no
    customers.
    """
    rows = await db.fetch(
        """
        select id from gateway.users
        where slice_id is null and deleting_at is null and suspended_at is null and not is_admin
          and (not $1 or subscription_status in ('active', 'past_due')
               or (subscription_status = 'trial' and subscription_id is not null))
        order by created_at, id
        """,
        billing_enabled,
    )
    return [row["id"] for row in rows]


async def assign(db: Queries, user_id: int, slice_id: int) -> Slice:
    """Moves the user to an available slice; the one they had is detached and suspended, nothing is destroyed.

    Refused: `no_such_user`, `no_such_slice`, `not_available`.
    """
    async with db.transaction() as connection:
        if not await connection.fetchval(
            "select true from gateway.users where id = $1 and deleting_at is null for no key update", user_id
        ):
            raise Refused("no_such_user", "There is no such user.")
        wanted = await connection.fetchrow(
            "select status, user_id from gateway.slices where id = $1 for update", slice_id
        )
        if wanted is None:
            raise Refused("no_such_slice", "There is no such slice.")
        if wanted["status"] != Status.AVAILABLE or wanted["user_id"] is not None:
            raise Refused("not_available", "This slice is not available: choose one whose status is available.")
        if await connection.fetchval("select true from gateway.held_slices where slice_id = $1", slice_id):
            raise Refused("not_available", "This slice is being moved to another image: choose another, or wait.")
        await connection.execute(
            """
            update gateway.slices
            set user_id = null, wanted = 'stopped',
                status = case status when 'assigned' then 'suspended' else status end
            where user_id = $1 and status <> 'destroying'
            """,
            user_id,
        )
        await connection.execute("update gateway.users set slice_id = $2 where id = $1", user_id, slice_id)
        row = await connection.fetchrow(
            f"""
            update gateway.slices s set status = 'assigned', user_id = $1, assigned_at = gateway.clock()
            where s.id = $2 returning {COLUMNS}
            """,
            user_id,
            slice_id,
        )
    assert row is not None
    return slice_of(row)


async def release(db: Queries, slice_id: int, *, if_unwanted: bool = False) -> bool:
    """Marks the slice for destruction and takes it from its customer; whether there is such a slice.

    A customer who should have one then waits for another. An unmanaged slice is not ours to destroy: its row goes.
    With `if_unwanted` nothing happens to one that is not wanted absent.
    """
    async with db.transaction() as connection:
        await connection.execute(
            """
            select from gateway.users
            where slice_id = $1 or id = (select user_id from gateway.slices where id = $1) for no key update
            """,
            slice_id,
        )
        managed = await connection.fetchval(
            """
            update gateway.slices set status = 'destroying', wanted = 'absent', user_id = null
            where id = $1 and (wanted = 'absent' or not $2) returning managed
            """,
            slice_id,
            if_unwanted,
        )
        if managed is None:
            return False
        await connection.execute("update gateway.users set slice_id = null where slice_id = $1", slice_id)
        if managed is False:
            await connection.execute("delete from gateway.telemetry where slice_id = $1", slice_id)
            await connection.execute("delete from gateway.slices where id = $1", slice_id)
    return True


async def release_free(db: Queries, slice_id: int) -> Slice:
    """`release`, but only where nobody has the slice; the slice as it was. Refused: `no_such_slice`, `has_customer`."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(f"select {COLUMNS} from gateway.slices s where s.id = $1 for update", slice_id)
        if row is None:
            raise Refused("no_such_slice", "There is no such slice.")
        found = slice_of(row)
        routed: int | None = await connection.fetchval("select id from gateway.users where slice_id = $1", slice_id)
        user_id = found.user_id or routed
        if user_id is not None:
            raise Refused(
                "has_customer",
                f"User {user_id} has this slice. Give them another with POST /admin/users/{user_id}/assign, or destroy "
                f"it with all its data with POST /orchestrator/destroy/{slice_id}.",
            )
        await release(connection, slice_id)
    return found
