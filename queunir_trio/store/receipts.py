"""The receipts of removals: what has been done so far, and in the end what there was and that it is gone."""

from typing import Any, Final
from uuid import UUID

from queunir_trio.model.erasures import Receipt
from queunir_trio.store.bridge import Queries, Record
from queunir_trio.store.slice_rows import changed

_COLUMNS: Final = (
    "r.id, r.user_id, r.step, r.percent, r.steps, r.slices, r.removed, r.document, r.requested_at, r.finished_at"
)


async def begin(db: Queries, user_id: int, token_hash: str | None, removed: dict[str, int]) -> Receipt:
    """The receipt of a removal that begins; `removed` counts what went with the order itself. Conflict: it has begun.

    `token_hash`: of the secret of its link, where somebody is given one.
    """
    row = await db.fetchrow(
        f"insert into gateway.receipts as r (user_id, token_hash, removed) values ($1, $2, $3) returning {_COLUMNS}",
        user_id,
        token_hash,
        removed,
    )
    assert row is not None
    return _receipt_of(row)


async def find(db: Queries, receipt_id: UUID) -> Receipt | None:
    """The receipt of this id."""
    return _found(await db.fetchrow(f"select {_COLUMNS} from gateway.receipts r where r.id = $1", receipt_id))


async def find_by_token(db: Queries, token_hash: str) -> Receipt | None:
    """The receipt of the link whose secret has this hash."""
    return _found(await db.fetchrow(f"select {_COLUMNS} from gateway.receipts r where r.token_hash = $1", token_hash))


async def under_way(db: Queries, user_id: int) -> Receipt | None:
    """The receipt of a user's removal that is not finished."""
    return _found(
        await db.fetchrow(
            f"select {_COLUMNS} from gateway.receipts r where r.user_id = $1 and r.finished_at is null", user_id
        )
    )


async def begin_step(db: Queries, receipt_id: UUID, step: str, percent: int, epoch: int | None) -> None:
    """The step is about to be taken. StaleLeader: not by us."""
    await changed(
        db,
        "update gateway.receipts set step = $2, percent = $3 where id = $1 and finished_at is null",
        epoch,
        receipt_id,
        step,
        percent,
    )


async def end_step(db: Queries, receipt_id: UUID, step: str, epoch: int | None) -> None:
    """The step was taken and what it should have removed is proven gone. StaleLeader."""
    await changed(
        db,
        """
        update gateway.receipts set steps = steps || jsonb_build_object($2::text, gateway.clock())
        where id = $1 and finished_at is null
        """,
        epoch,
        receipt_id,
        step,
    )


async def note_slice(db: Queries, receipt_id: UUID, uuid: UUID, facts: dict[str, Any], epoch: int | None) -> None:
    """Adds to what is known of a slice; what was noted before counts, for there may be less to see now. StaleLeader."""
    await changed(
        db,
        """
        update gateway.receipts
        set slices = slices || jsonb_build_object($2::text, $3::jsonb || coalesce(slices -> $2, '{}'))
        where id = $1 and finished_at is null
        """,
        epoch,
        receipt_id,
        str(uuid),
        facts,
    )


async def count_removed(db: Queries, receipt_id: UUID, rows: dict[str, int], epoch: int | None) -> None:
    """Adds to the rows that were removed, by table; in the transaction that removes them. StaleLeader."""
    await changed(
        db,
        """
        update gateway.receipts set removed = removed || (
            select coalesce(jsonb_object_agg(key, value::bigint + coalesce((removed ->> key)::bigint, 0)), '{}')
            from jsonb_each_text($2)
        )
        where id = $1 and finished_at is null
        """,
        epoch,
        receipt_id,
        rows,
    )


async def finish(db: Queries, receipt_id: UUID, document: dict[str, Any], epoch: int | None) -> bool:
    """The removal is complete: this is the receipt, and whose it was is known no more. StaleLeader."""
    return await changed(
        db,
        """
        update gateway.receipts
        set document = $2, percent = 100, step = null, user_id = null, slices = '{}', removed = '{}', steps = '{}',
            finished_at = gateway.clock()
        where id = $1 and finished_at is null
        """,
        epoch,
        receipt_id,
        document,
    )


def _found(row: Record | None) -> Receipt | None:
    return _receipt_of(row) if row is not None else None


def _receipt_of(row: Record) -> Receipt:
    return Receipt(*row)
