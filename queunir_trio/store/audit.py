"""The audit log: who changed what, and when."""

from typing import Any

from queunir_trio.store.bridge import Queries


async def record(
    db: Queries, actor: str, action: str, target: str, detail: dict[str, Any] | None, ip: str | None
) -> None:
    """One more line, in the transaction of the change. `actor` is `user:7`, `key` or `operator`."""
    await db.execute(
        "insert into gateway.audit_log (actor, action, target, detail, ip) values ($1, $2, $3, $4, $5)",
        actor,
        action,
        target,
        detail,
        ip,
    )
