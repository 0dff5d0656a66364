"""Wishes about a slice that has a customer: that it rests, that it goes on, that it is started anew."""

from datetime import datetime

from queunir_trio.model.slices import Reason, Slice
from queunir_trio.store.bridge import Queries, Record
from queunir_trio.store.slice_rows import COLUMNS, changed, slice_of


async def suspend(db: Queries, slice_id: int, reason: Reason) -> Slice | None:
    """The slice rests from now on and keeps its data; None where it stands at no stage that can be suspended.

    Of two reasons an admin's is the one that stays.
    """
    return _found(
        await db.fetchrow(
            f"""
            update gateway.slices s
            set status = 'suspended', wanted = 'stopped', restart_wanted_at = null,
                suspended_for = case s.suspended_for when 'admin' then 'admin' else $2 end
            where s.id = $1 and s.status in ('assigned', 'suspended') and s.wanted <> 'absent' returning {COLUMNS}
            """,
            slice_id,
            reason,
        )
    )


async def resume(db: Queries, slice_id: int) -> Slice | None:
    """The slice goes on from now on; None where it has no customer to go on for, or does not rest."""
    return _found(
        await db.fetchrow(
            f"""
            update gateway.slices s set status = 'assigned', wanted = 'running', suspended_for = null
            where s.id = $1 and s.status in ('assigned', 'suspended') and s.user_id is not null
              and s.wanted <> 'absent'
            returning {COLUMNS}
            """,
            slice_id,
        )
    )


async def want_restart(db: Queries, slice_id: int) -> Slice | None:
    """The slice is to be started anew, once, however often it is asked for before; None where it should not run."""
    return _found(
        await db.fetchrow(
            f"""
            update gateway.slices s
            set restart_wanted_at = greatest(gateway.clock(), s.restart_wanted_at + interval '1 microsecond')
            where s.id = $1 and s.managed and s.status in ('available', 'assigned') and s.wanted = 'running'
            returning {COLUMNS}
            """,
            slice_id,
        )
    )


async def end_restart(db: Queries, slice_id: int, wanted_at: datetime, epoch: int | None = None) -> bool:
    """The wish of that moment is fulfilled; False where a newer one came meanwhile. StaleLeader."""
    return await changed(
        db,
        "update gateway.slices set restart_wanted_at = null where id = $1 and restart_wanted_at = $2",
        epoch,
        slice_id,
        wanted_at,
    )


async def want_renewal(db: Queries, slice_id: int) -> bool:
    """An adopted slice is to be made anew when it is next started; whether it is one."""
    return await changed(
        db,
        "update gateway.slices set renewal_wanted = true where id = $1 and managed and image is null",
        None,
        slice_id,
    )


async def pin_image(db: Queries, slice_id: int, image: str, epoch: int | None = None) -> bool:
    """What an adopted slice is made from, from now on, whatever a name comes to stand for. StaleLeader."""
    return await changed(
        db, "update gateway.slices set adopted_image = $2 where id = $1 and image is null", epoch, slice_id, image
    )


async def end_renewal(db: Queries, slice_id: int, epoch: int | None = None) -> bool:
    """It was made anew, or can not be and goes on as it was. StaleLeader."""
    return await changed(db, "update gateway.slices set renewal_wanted = false where id = $1", epoch, slice_id)


def _found(row: Record | None) -> Slice | None:
    return slice_of(row) if row is not None else None
