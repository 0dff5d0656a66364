"""Work that takes longer than a request, as one who waits for it sees it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a job stands. `done` and `failed` are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the table. `error` is a sentence for a person and `code` its name for a program."""

    id: int
    kind: str
    key: str
    state: JobState
    step: str | None
    percent: int
    code: str | None
    error: str | None
    params: dict[str, Any]
    result: dict[str, Any] | None
    slice_id: int | None
    user_id: int | None
    attempts: int
    created_at: datetime
    finished_at: datetime | None

    @property
    def is_finished(self) -> bool:
        return self.state in (JobState.DONE, JobState.FAILED)
