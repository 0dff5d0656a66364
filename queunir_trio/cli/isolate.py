"""`queunir-trio slice isolate`: slices of an older deployment get roles of their own, straight in the database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import cyclopts

from queunir_trio.cli.running import DONE, FAILED, EnvFile, Json, fail, print_json, run, say
from queunir_trio.errors import Lost, Refused
from queunir_trio.model.slices import Slice
from queunir_trio.operations import isolating, suspension
from queunir_trio.operations.isolating import Move, Moved
from queunir_trio.settings import Settings
from queunir_trio.store import isolation
from queunir_trio.store.access import explained
from queunir_trio.store.bridge import asyncio_loop, open_database

Flag = Annotated[bool, cyclopts.Parameter(negative="")]
TOLD: Final = {
    "missing": "has no database",
    "shared": "can still be entered by others",
    "prepared": "is ready for its own role; the shared one can still enter until the slice is started anew",
    "isolated": "is entered by its own role only",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    slice_ids: list[int] | None
    check: bool
    restart: bool
    rows_only: bool
    drop_shared_role: bool
    shared_role: str


def isolate(
    *slice_ids: int,
    every: Annotated[bool, cyclopts.Parameter(name="--all", negative="")] = False,
    check: Flag = False,
    restart: Flag = False,
    rows_only: Flag = False,
    drop_shared_role: Flag = False,
    shared_role: str = isolation.OLD_ROLE,
    json_output: Json = False,
    env_file: EnvFile = None,
) -> int:
    """Give slices of an older deployment roles of their own, while they run.

    It can be broken off and repeated. Until a slice is started anew it goes on under the role that all shared; then
    that role is shut out of its database. A slice that has its own role gets back what it changed about it.

    Parameters
    ----------
    slice_ids
        The ids of the slices to move.
    every
        Move all of them.
    check
        Change nothing; list what is left to do and exit with 1 if anything is.
    restart
        Have the running gateway start each slice anew, one after the other, and then shut the shared role out.
    rows_only
        The slices' image changes no tables, so their roles shall not be able to; older images mostly do.
    drop_shared_role
        Afterwards end the shared role's log-in and drop it; refused while any database needs it.
    shared_role
        What the role is called that all slices shared.
    """
    if bool(slice_ids) == every and not (drop_shared_role and not slice_ids and not every):
        return fail("Name the slices to move by their ids, or say --all.")
    chosen = None if every else list(slice_ids)
    asked = Asked(chosen, check, restart, rows_only, drop_shared_role, shared_role)
    return run(env_file, partial(_work, asked, json_output))


async def _work(asked: Asked, json_output: bool, settings: Settings) -> int:
    async with _moving(asked, settings) as move:
        moved, failed = await _all(asked, move)
        role = await _end_shared_role(asked, move) if not failed else {}
    if json_output:
        print_json({"slices": [one.as_json() for one in moved], "failed": failed, "shared_role": role})
    else:
        _tell(asked, moved, role)
    if asked.check:
        return FAILED if any(one.left for one in moved) or failed else DONE
    unfinished = [one for one in moved if one.state == "shared" or (asked.restart and one.state == "prepared")]
    return FAILED if failed or unfinished else DONE


@asynccontextmanager
async def _moving(asked: Asked, settings: Settings) -> AsyncIterator[Move]:
    where = settings.database
    async with asyncio_loop(), open_database(where, at_most=2) as db:
        restart = partial(suspension.restart, db) if asked.restart else None
        move = Move(db, where, settings.slices, settings.data_dir, asked.shared_role, restart, asked.rows_only)
        with explained(where, as_admin=True):
            async with isolation.alone(where):
                yield move


async def _all(asked: Asked, move: Move) -> tuple[list[Moved], list[dict[str, Any]]]:
    """One slice after the other; what goes wrong with one does not keep the next from being moved."""
    moved: list[Moved] = []
    failed: list[dict[str, Any]] = []
    every = await isolating.chosen(move.db, asked.slice_ids)
    for number, slice_ in enumerate(every, 1):
        if not asked.check:
            say(f"{number} of {len(every)}: slice {slice_.id}")
        try:
            moved.append(await _one(asked, move, slice_))
        except (Refused, Lost) as error:
            reason = error.reason if isinstance(error, Refused) else str(error)
            fail(f"slice {slice_.id}: {reason}")
            failed.append({"id": slice_.id, "reason": reason})
    return moved, failed


async def _one(asked: Asked, move: Move, slice_: Slice) -> Moved:
    return await (isolating.look if asked.check else isolating.isolate)(move, slice_)


async def _end_shared_role(asked: Asked, move: Move) -> dict[str, Any]:
    databases = await isolation.databases_of(move.where, asked.shared_role)
    found: dict[str, Any] = {"name": asked.shared_role, "exists": databases is not None, "databases": databases or []}
    if asked.drop_shared_role and not asked.check:
        found["dropped"] = await isolating.drop_shared_role(move)
    return found


def _tell(asked: Asked, moved: list[Moved], role: dict[str, Any]) -> None:
    for one in moved:
        print(f"Slice {one.slice_id} ({one.database}) {TOLD[one.state]}.")
        for deed in one.done:
            print(f"  done: {deed}")
        for deed in one.left:
            print(f"  left: {deed}")
    if role.get("databases"):
        print(f"The shared role {asked.shared_role} still enters: {', '.join(role['databases'])}.")
    elif role.get("dropped") is not None:
        print(f"The shared role {asked.shared_role} " + ("is gone." if role["dropped"] else "can not log in any more."))
    elif role.get("exists"):
        print(f"No database needs the shared role {asked.shared_role} any more: --drop-shared-role ends it.")
    elif asked.drop_shared_role:
        print(f"There is no role {asked.shared_role}.")
