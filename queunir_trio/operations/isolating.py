"""Moving the slices of an older deployment from the one role they shared to roles of their own, while they run.

Everything is prepared while a slice works on under the shared role. It is let go of only when the slice logs in by its
own, for which its process or container must be started anew: when, is the operator's to say. What was done is read from
the database's catalogues, so a move that was cut short goes on where it ended.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import structlog
import trio

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Names, Slice, Status, Wanted, derived_secret, names_of, number_of
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store import audit, isolation, slice_databases, slices, suspensions
from queunir_trio.store.bridge import Database
from queunir_trio.store.isolation import OLD_ROLE, Standing

BACK_WITHIN: Final = 120.0  # seconds from the wish for a restart until a slice should have logged in again
ASKED_EVERY: Final = 0.5  # seconds
DEED: Final = "isolate"
_MOVABLE: Final = (Status.AVAILABLE, Status.ASSIGNED, Status.SUSPENDED)

State = Literal["missing", "shared", "prepared", "isolated"]
Restart = Callable[[int], Awaitable[object]]  # by the slice's id

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Move:
    """What moving slices works with. `old` is the role that they share."""

    db: Database
    where: DatabaseSettings
    settings: SliceSettings
    data_dir: Path
    old: str = OLD_ROLE
    restart: Restart | None = None  # None: the operator restarts slices, at another time
    rows_only: bool = False  # the slices' images change no tables
    back_within: float = BACK_WITHIN

    def names(self, slice_: Slice) -> Names:
        return names_of(number_of(slice_.port, self.settings.base_port), self.data_dir)


@dataclass(frozen=True, slots=True)
class Moved:
    """How a slice stands, what was done about it, and what is left to do.

    `missing`: it has no database. `shared`: others can enter. `prepared`: only the shared role still can. `isolated`.
    """

    slice_id: int
    database: str
    state: State
    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.slice_id,
            "database": self.database,
            "state": self.state,
            "done": self.done,
            "left": self.left,
        }


async def chosen(db: Database, slice_ids: list[int] | None) -> list[Slice]:
    """The slices of these ids, or all that have a database of theirs. Refused: `no_such_slice`, `transition`."""
    every = {slice_.id: slice_ for slice_ in await slices.listed(db)}
    if slice_ids is None:
        return [slice_ for slice_ in every.values() if _is_movable(slice_)]
    for slice_id in slice_ids:
        if slice_id not in every:
            raise Refused("no_such_slice", f"There is no slice {slice_id}.")
        if not _is_movable(every[slice_id]):
            raise Refused("transition", f"Slice {slice_id} is {every[slice_id].status} or something else runs it.")
    return [every[slice_id] for slice_id in dict.fromkeys(slice_ids)]


async def look(move: Move, slice_: Slice) -> Moved:
    """How a slice stands and what is left to do; changes nothing. Refused `conflict`: the database is another's."""
    names = move.names(slice_)
    return _told(slice_, names, await _standing(move, slice_, names), [])


async def isolate(move: Move, slice_: Slice) -> Moved:
    """Takes a slice as far as can be without it losing access for a moment, or to the end if it may be restarted.

    One that is isolated already gets back what it may have changed of its own roles. Repeatable.
    Refused: `conflict`, `shared_role_enters`. DatabaseUnavailable: to be tried again later.
    """
    names = move.names(slice_)
    standing = await _standing(move, slice_, names)
    if standing is None:
        return _told(slice_, names, None, [])
    done = await _prepare(move, slice_, names, standing)
    if standing.old_enters and await _is_back(move, slice_, names):
        ended = await isolation.shut_out(move.where, names, move.old)
        done.append(f"{move.old} shut out, {ended} connections ended")
    moved = _told(slice_, names, await _standing(move, slice_, names), done)
    await audit.record(move.db, "operator", "slice_isolate", f"slice:{slice_.id}", moved.as_json(), None)
    log.info("slice_isolated", slice_id=slice_.id, state=moved.state)
    return moved


async def drop_shared_role(move: Move) -> bool | None:
    """Ends the shared role; None where there is none, False where something is left of it and it only can not log in.

    Refused `shared_role_in_use`: a database still needs it.
    """
    databases = await isolation.databases_of(move.where, move.old)
    if databases is None:
        return None
    if databases:
        raise Refused("shared_role_in_use", f"{move.old} is still needed for {', '.join(databases)}.")
    gone = await isolation.drop_old(move.where, move.old)
    await audit.record(move.db, "operator", "shared_role_drop", f"role:{move.old}", {"gone": gone}, None)
    return gone


async def _prepare(move: Move, slice_: Slice, names: Names, standing: Standing) -> list[str]:
    """Everything short of taking anything from the shared role."""
    where = move.where
    password = derived_secret(move.settings.secret, "database", slice_.uuid)
    await slice_databases.ensure_roles(where, names, password, slice_.uuid)
    done = [f"roles {names.owner} and {names.role}"]
    if standing.old_enters:
        await isolation.keep_in(where, names, move.old)
    await isolation.take_database(where, names, slice_.uuid)
    done.append(f"database of {names.owner}, closed to all who are not named")
    if standing.old_enters or standing.old_owns or standing.old_is_granted:
        relations = await isolation.take_objects(where, names, move.old)
        done.append(f"{relations} relations and all else that {move.old} owned")
    if move.rows_only or not (standing.old_enters or standing.acts_as_owner):
        await isolation.act_on_rows(where, names)
        done.append(f"{names.role} reads and writes rows")
    else:
        await isolation.act_as_owner(where, names)
        done.append(f"{names.role} acts as {names.owner}")
    return done


async def _is_back(move: Move, slice_: Slice, names: Names) -> bool:
    """Whether the slice needs the shared role no more: it logs in by its own, or does not run at all.

    A restart is asked for where one may be. Without it the slice has gone over only if nobody comes as the shared role.
    The container of an adopted slice is made anew on that occasion, because its variables are those of the shared role.
    """
    if move.restart is not None:
        await suspensions.want_renewal(move.db, slice_.id)
    rests = slice_.wanted is not Wanted.RUNNING
    if rests or move.restart is None:
        now = await isolation.look(move.where, names, move.old)
        is_over = now is not None and now.old_sessions == 0 and (now.own_sessions > 0)
        return is_over or (rests and move.restart is not None)
    await move.restart(slice_.id)
    with trio.move_on_after(move.back_within):
        while True:
            now = await isolation.look(move.where, names, move.old)
            if now is not None and now.own_sessions > 0:
                return True
            await trio.sleep(ASKED_EVERY)
    return False


async def _standing(move: Move, slice_: Slice, names: Names) -> Standing | None:
    standing = await isolation.look(move.where, names, move.old)
    if standing is not None and not standing.is_ours(names, slice_.uuid):
        raise Refused("conflict", f"{names.database} belongs to another slice than {slice_.id}: look at it by hand.")
    return standing


def _told(slice_: Slice, names: Names, standing: Standing | None, done: list[str]) -> Moved:
    if standing is None:
        return Moved(slice_.id, names.database, "missing", done)
    left = standing.missing(names)
    state: State = "shared"
    if standing.is_prepared(names):
        state = "prepared" if standing.old_enters or standing.old_owns else "isolated"
    if standing.old_enters:
        left.append("start the slice anew with its own role, then shut the shared role out (--restart)")
    return Moved(slice_.id, names.database, state, done, left)


def _is_movable(slice_: Slice) -> bool:
    return slice_.managed and slice_.status in _MOVABLE and slice_.wanted is not Wanted.ABSENT
