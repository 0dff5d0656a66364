"""How a deed on a slice is carried out: step by step, each written down before it is taken and when it is done.

Every step may be taken again. A deed that was cut short is therefore carried out from its beginning: what is there is
found, what is missing is made. Writing a step down fails for a leader that is leader no more, so nothing outside is
touched by one whose time is over.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.routing import SliceAddress, address_of
from queunir_trio.model.slices import Names, Slice, derived_secret, names_of, number_of
from queunir_trio.outside.runtimes.contract import Runtime
from queunir_trio.outside.slice_control import SliceControl
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.store.slices import StaleLeader

REASON_AT_MOST = 300  # characters of an error that are kept

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Resources:
    """What deeds work with, and in whose name. `reached` is told of every point between two acts."""

    db: Database
    where: DatabaseSettings
    runtime: Runtime
    control: SliceControl
    settings: SliceSettings
    data_dir: Path
    production: bool
    epoch: int = 0  # the leader's; 0 is nobody's
    reached: Callable[[str], None] = lambda point: None

    def number(self, slice_: Slice) -> int:
        """The N in a slice's names."""
        return number_of(slice_.port, self.settings.base_port)

    def names(self, slice_: Slice) -> Names:
        return names_of(self.number(slice_), self.data_dir)

    def address(self, slice_: Slice) -> SliceAddress:
        return address_of(slice_, self.settings.secret, self.settings.base_port)

    def database_password(self, slice_: Slice) -> str:
        return derived_secret(self.settings.secret, "database", slice_.uuid)

    @property
    def image(self) -> str:
        """What new slices are made from; written into their rows."""
        return self.settings.image if self.settings.runtime == "docker" else "process"


Act = Callable[[Resources, Slice], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Step:
    """One repeatable act of a deed. `percent` and `message` tell a waiting customer how far it is when it begins."""

    name: str
    act: Act
    percent: int
    message: str


class Superseded(Exception):
    """Something else is wanted of the slice by now; the deed ends where it is and another takes over."""


class StepFailed(Exception):
    """A step could not be taken. `code` is a refusal's own, else `failed`; `reason` holds no secret."""

    def __init__(self, step: str, code: str, reason: str) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.code = code
        self.reason = reason


async def carry_out(resources: Resources, slice_: Slice, deed: str, steps: Sequence[Step]) -> None:
    """Takes every step in order.

    StepFailed: one could not be taken. DatabaseUnavailable, StaleLeader: the attempt is over, the deed is not.
    """
    for step in steps:
        await _take(resources, slice_, deed, step)


async def _take(resources: Resources, slice_: Slice, deed: str, step: Step) -> None:
    reached = resources.reached
    reached(f"{deed}:{step.name}:next")
    detail = {"percent": step.percent, "message": step.message}
    await slices.begin_step(resources.db, slice_.id, deed, step.name, detail, resources.epoch)
    reached(f"{deed}:{step.name}:started")
    try:
        await step.act(resources, slice_)
    except (DatabaseUnavailable, StaleLeader, Superseded):
        raise
    except Exception as error:
        failed = _failure(step.name, error)
        log.warning(
            "step_failed",
            deed=deed,
            step=step.name,
            slice_id=slice_.id,
            code=failed.code,
            reason=failed.reason,
            exc_info=None if isinstance(error, (Refused, Lost, OSError)) else error,
        )
        raise failed from error
    reached(f"{deed}:{step.name}:acted")
    await slices.end_step(resources.db, slice_.id, deed, step.name, "done", None, resources.epoch)
    reached(f"{deed}:{step.name}:done")


def _failure(step: str, error: Exception) -> StepFailed:
    if isinstance(error, Refused):
        return StepFailed(step, error.code, error.reason[:REASON_AT_MOST])
    return StepFailed(step, "failed", f"{type(error).__name__}: {error}"[:REASON_AT_MOST])
