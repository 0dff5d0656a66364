"""What a slice's row and what runs for it disagree about: one deed at a time, judged without asking anybody."""

from typing import Literal

from queunir_trio.model.slices import Slice, Status, Wanted

Deed = Literal["provision", "start", "stop", "restart", "undo", "destroy", "give up"]


def is_to_go(row: Slice) -> bool:
    """Whether it is marked for destruction, by its stage or by an operator's `wanted` alone."""
    return row.status == Status.DESTROYING or row.wanted == Wanted.ABSENT


def should_run(row: Slice) -> bool:
    """Whether its process or container should be there, complete and running."""
    lives = row.status in (Status.AVAILABLE, Status.ASSIGNED, Status.SUSPENDED)
    return row.managed and lives and row.wanted == Wanted.RUNNING


def missing_deed(row: Slice, runs: bool | None) -> Deed | None:
    """What is to be done for this slice next. `runs` is None where nobody can say."""
    if not row.managed:
        return None
    if is_to_go(row):
        return "destroy"
    if row.status == Status.FAILED:
        return "undo"
    if row.status == Status.PROVISIONING:
        return "provision"
    if runs is not None and row.wanted == Wanted.RUNNING and row.restart_wanted_at is not None:
        return "restart"
    if runs is False and row.wanted == Wanted.RUNNING:
        return "start"
    if runs is True and row.wanted == Wanted.STOPPED:
        return "stop"
    return None


def is_overtaken(deed: Deed, row: Slice) -> bool:
    """Whether a deed under way should end, because something else is wanted by now."""
    match deed:
        case "provision":
            return is_to_go(row)
        case "start" | "restart":
            return is_to_go(row) or row.wanted != Wanted.RUNNING
        case "stop":
            return is_to_go(row) or row.wanted == Wanted.RUNNING
        case "undo":
            return row.status == Status.PROVISIONING  # an operator wants it to be tried again
        case _:
            return False


def is_replaceable(row: Slice) -> bool:
    """Whether it may be given up for a new one: it is nobody's and was made by us, so nothing of worth is in it."""
    return row.managed and row.status == Status.AVAILABLE and row.user_id is None and row.image is not None
