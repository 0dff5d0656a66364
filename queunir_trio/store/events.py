"""The alert log: what an admin should hear of."""

from typing import Any

from queunir_trio.store.bridge import Queries


async def record(
    db: Queries,
    kind: str,
    severity: str,
    detail: dict[str, Any],
    slice_id: int | None = None,
    user_id: int | None = None,
) -> None:
    """One more event; `severity` is info, warning or critical. `detail` holds no secret."""
    await db.execute(
        """
        insert into gateway.events (kind, severity, detail, slice_id, user_id, created_at)
        values ($1, $2, $3, $4, $5, gateway.clock())
        """,
        kind,
        severity,
        detail,
        slice_id,
        user_id,
    )
