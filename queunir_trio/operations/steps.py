"""How a deed on a slice is carried out: step by step, each written down before it is taken and when it is done.

Every step may be taken again. A deed that was cut short is therefore carried out from its beginning: what is there is
found, what is missing is made. Writing a step down fails for a leader that is leader no more, and each act that
changes something outside asks once more right before it: one whose time is over touches nothing.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog
import trio
from structlog.contextvars import bound_contextvars

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.routing import SliceAddress, address_of
from queunir_trio.model.slices import Names, Slice, derived_secret, names_of, number_of
from queunir_trio.outside.runtimes.contract import Adopted, Runtime, RuntimeUnavailable
from queunir_trio.outside.slice_control import SliceControl
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.store.slice_rows import check_leader
from queunir_trio.store.slices import StaleLeader

REASON_AT_MOST: Final = 300  # characters of an error that are kept
DEED_WITHIN: Final = 180.0  # seconds for all steps of a deed; who needs longer stops by himself and begins anew
ORDERED_WITHIN: Final = 60.0  # seconds for the runtime to carry out one order
ORDERED_AT_MOST: Final = 3  # times
ORDERED_AGAIN_AFTER: Final = 0.5  # seconds, and longer each time

log = structlog.get_logger()
T = TypeVar("T")


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

    def recognise(self, rows: Iterable[Slice]) -> None:
        """Tells the runtime which of these were adopted: their containers carry no mark that it could go by."""
        self.runtime.recognise(
            [
                Adopted(self.number(row), row.uuid, row.host, row.port, self.names(row).directory)
                for row in rows
                if row.is_adopted
            ]
        )

    async def still_leads(self) -> None:
        """Asked right before anything outside is touched. StaleLeader: another leads by now, and this one is done."""
        await check_leader(self.db, self.epoch)

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


async def carry_out(
    resources: Resources, slice_: Slice, deed: str, steps: Sequence[Step], within: float | None = None
) -> None:
    """Takes every step in order; whatever is logged on the way names the slice.

    `within`: seconds for all of them, DEED_WITHIN if nothing is said.

    StepFailed: one could not be taken, or all together took too long. DatabaseUnavailable, StaleLeader: the attempt is
    over, the deed is not.
    """
    step, within = steps[0], DEED_WITHIN if within is None else within
    resources.recognise([slice_])
    with bound_contextvars(slice_id=slice_.id), trio.move_on_after(within) as limit:
        for step in steps:
            await _take(resources, slice_, deed, step)
    if limit.cancelled_caught:
        log.warning("deed_took_too_long", deed=deed, step=step.name, slice_id=slice_.id)
        raise StepFailed(step.name, "failed", f"The {deed} was not done within {within:.0f} s.")


async def ordered(resources: Resources, order: Callable[[], Awaitable[T]]) -> T:
    """Has the runtime change something, for one who leads.

    An order that nobody confirms may have been carried out all the same. It is given again, and the runtime goes on
    with what it finds. StaleLeader; RuntimeUnavailable: not confirmed in the end.
    """
    for attempt in range(1, ORDERED_AT_MOST + 1):
        await resources.still_leads()
        try:
            with trio.fail_after(ORDERED_WITHIN):
                return await order()
        except (RuntimeUnavailable, trio.TooSlowError) as unavailable:
            reason = str(unavailable) or f"no answer within {ORDERED_WITHIN:.0f} s"
        log.warning("order_not_confirmed", attempt=attempt, reason=reason)
        if attempt < ORDERED_AT_MOST:
            await trio.sleep(ORDERED_AGAIN_AFTER * attempt)
    raise RuntimeUnavailable(reason)


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
