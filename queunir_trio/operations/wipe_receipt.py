"""The receipt of a removal: numbers, times and random names, and nothing that tells whose it was."""

from datetime import datetime
from typing import Any, Final

from queunir_trio.model.erasures import BACKUPS_KEPT, Receipt

EXPORT_BYTES: Final = "export_bytes"  # counted among the rows, and shown apart
LAYERS: Final = ("sessions", "instance", "database", "roles", "directory", "exports", "rows", "account")


def document_of(receipt: Receipt, now: datetime, billing: str, *, was_there: bool) -> dict[str, Any]:
    """What the receipt says from now on; `was_there`: the user's own row was, until now."""
    rows = dict(receipt.removed)
    telemetry = sum(facts.get("telemetry", 0) for facts in receipt.slices.values())
    rows["telemetry"] = rows.get("telemetry", 0) + telemetry
    rows["slices"] = len(receipt.slices)
    rows["users"] = int(was_there)
    return {
        "receipt": str(receipt.id),
        "requested_at": _said(receipt.requested_at),
        "finished_at": _said(now),
        "backups_expire_at": _said(now + BACKUPS_KEPT),
        "billing": billing,
        "slices": [_slice_document(uuid, facts) for uuid, facts in receipt.slices.items()],
        "rows": {table: count for table, count in sorted(rows.items()) if count and table != EXPORT_BYTES},
        "export_bytes": rows.get(EXPORT_BYTES, 0),
        "layers": {layer: {"state": "absent", "looked_at": _said(now)} for layer in LAYERS},
        "steps": receipt.steps,
    }


def _slice_document(uuid: str, facts: dict[str, Any]) -> dict[str, Any]:
    tables = facts.get("tables", {})
    return {
        "uuid": uuid,
        "managed": facts["managed"],
        "whatsapp": facts.get("whatsapp"),
        "tables": tables,
        "rows": sum(tables.values()),
        "database_bytes": facts.get("database_bytes", 0),
        "media_bytes": facts.get("media_bytes"),
        "session_bytes": facts.get("session_bytes"),
    }


def _said(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
