"""Who was removed, and what is told of it: nothing here names a person."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

BACKUPS_KEPT: Final = timedelta(days=30)  # the last backup that may hold what was removed is gone by then


@dataclass(frozen=True, slots=True)
class Erasure:
    """A user who was removed with these slices. Ids begin again with a new database: only with its time is one sure."""

    user_id: int
    user_created_at: datetime
    slices: tuple[UUID, ...]
    erased_at: datetime


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a removal has done so far. `document` is the receipt itself, once it is finished.

    `slices` is kept by uuid, `removed` counts rows by table, `steps` tells when each step was proven.
    """

    id: UUID
    user_id: int | None
    step: str | None
    percent: int
    steps: dict[str, str]
    slices: dict[str, dict[str, Any]]
    removed: dict[str, int]
    document: dict[str, Any] | None
    requested_at: datetime
    finished_at: datetime | None

    @property
    def is_finished(self) -> bool:
        return self.finished_at is not None
