"""What adopting the older gateway's database means beyond its tables: which databases on the server are whose."""

from uuid import UUID

import structlog

from queunir_trio.model.slices import number_of
from queunir_trio.store.bridge import Connection, NotPermitted
from queunir_trio.store.roles import literal, quoted

log = structlog.get_logger()


async def mark_databases(connection: Connection) -> None:
    """Writes each adopted slice's uuid on its database, so that it is known as its own from now on.

    Nothing else about those databases changes. A slice was adopted if nothing is known of what it was made from.
    """
    rows = await connection.fetch(
        "select id, uuid, port from gateway.slices where managed and image is null order by id"
    )
    for row in rows:
        database = f"wa_slice_{number_of(row['port'])}"
        if await connection.fetchval(
            "select shobj_description(oid, 'pg_database') is null from pg_database where datname = $1", database
        ):
            await _mark(connection, database, row["id"], row["uuid"])


async def _mark(connection: Connection, database: str, slice_id: int, uuid: UUID) -> None:
    try:
        await connection.execute(f"comment on database {quoted(database)} is {literal(str(uuid))}")
        log.info("slice_database_adopted", slice_id=slice_id, database=database)
    except NotPermitted:
        # it routes and runs all the same; whoever may drop it one day can mark it by then
        log.warning("slice_database_not_marked", slice_id=slice_id, database=database)
