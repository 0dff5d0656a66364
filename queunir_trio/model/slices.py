"""What a slice is: its names and numbers, the stages of its life, and who may be carried to it.

`status` is where a slice stands in its life; only the moves of `TRANSITIONS` exist. `wanted` is what its process or
container should be doing; the reconciler makes the two worlds agree and never invents a wish of its own.
"""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

DEFAULT_BASE_PORT: Final = 5001
PORT_STEP: Final = 2  # the port above each slice's own stays free for its debugger
SLICE_PORT: Final = 3101  # inside a container
HEALTHY_WITHIN: Final = 60.0  # seconds from start to the first healthy answer
HEALTH_ASKED_EVERY: Final = 2.0  # seconds
MEDIA_QUOTA_BYTES: Final = 2 * 2**30


class Status(StrEnum):
    """The stages of a slice's life."""

    PROVISIONING = "provisioning"
    AVAILABLE = "available"
    ASSIGNED = "assigned"
    SUSPENDED = "suspended"
    DESTROYING = "destroying"
    FAILED = "failed"


Reason = Literal["admin", "money"]  # of a suspension


class Wanted(StrEnum):
    """What a slice's process or container should be doing."""

    RUNNING = "running"
    STOPPED = "stopped"
    ABSENT = "absent"


# A slice that was ever assigned never becomes available again: it is born empty and dies with its customer.
TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    Status.PROVISIONING: frozenset({Status.AVAILABLE, Status.FAILED, Status.DESTROYING}),
    Status.AVAILABLE: frozenset({Status.ASSIGNED, Status.FAILED, Status.DESTROYING}),
    Status.ASSIGNED: frozenset({Status.SUSPENDED, Status.DESTROYING}),
    Status.SUSPENDED: frozenset({Status.ASSIGNED, Status.DESTROYING}),
    Status.FAILED: frozenset({Status.PROVISIONING, Status.DESTROYING}),
    Status.DESTROYING: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Slice:
    """A row of the table, and nothing that changes more often than its life does."""

    id: int
    uuid: UUID
    host: str
    port: int
    status: Status
    wanted: Wanted
    managed: bool
    user_id: int | None
    wa_connected: bool
    wa_phone: str | None
    wa_state: str | None
    image: str | None
    failures: int
    retry_at: datetime | None
    failed_step: str | None
    failed_reason: str | None
    last_health_at: datetime | None
    created_at: datetime
    suspended_for: Reason | None = None  # None too where nobody has said why
    restart_wanted_at: datetime | None = None  # None once it was done
    storage_bytes: int | None = None  # of its media, as last measured
    adopted_image: str | None = None  # what one without `image` was last seen to be made from, for good
    renewal_wanted: bool = False  # such a one is to be made anew when it is next started

    @property
    def is_adopted(self) -> bool:
        """Whether an older gateway made it, and it is still made from what that gateway gave it."""
        return self.managed and self.image is None


def port_of(num: int, base_port: int = DEFAULT_BASE_PORT) -> int:
    """Slice N's host port."""
    return base_port + (num - 1) * PORT_STEP


def number_of(port: int, base_port: int = DEFAULT_BASE_PORT) -> int:
    """The N in a slice's names, from its port."""
    return (port - base_port) // PORT_STEP + 1


@dataclass(frozen=True, slots=True)
class Names:
    """What the resources of slice N are called."""

    container: str
    database: str
    role: str  # may log in
    owner: str  # owns the database, may not log in
    directory: Path  # holds media/ and session/


def names_of(num: int, data_dir: Path) -> Names:
    """The names of slice N's resources; they are reused after a proven destruction, ids and uuids never."""
    return Names(
        container=f"wank-slice-{num}",
        database=f"wa_slice_{num}",
        role=f"wa_slice_{num}",
        owner=f"wa_slice_{num}_owner",
        directory=data_dir / "slices" / str(num),
    )


def derived_secret(master: str, purpose: str, uuid: UUID) -> str:
    """A slice's own secret for one purpose (`key`, `database`), 64 hexadecimal characters.

    Derived and not stored: a copy of the table opens no slice.
    """
    return hmac.new(master.encode(), f"{purpose}:{uuid}".encode(), hashlib.sha256).hexdigest()
