"""What admins look at and do about one slice or one user."""

from collections.abc import Awaitable, Callable

from quart import Blueprint
from quart_schema import tag, validate_querystring, validate_request, validate_response

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User
from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations import orders, standing, suspension
from queunir_trio.store import events, jobs, slices
from queunir_trio.store.bridge import Database
from queunir_trio.web import identity
from queunir_trio.web.admin import note
from queunir_trio.web.described import answers_nothing, errors, needs_admin, needs_key
from queunir_trio.web.orchestrator_schemas import (
    AdminUserAnswer,
    JobAnswer,
    LogQuery,
    NewStatus,
    SliceDetailAnswer,
    SliceDetails,
    SliceLog,
    SliceStory,
)
from queunir_trio.web.orchestrator_showing import event_of, job_of, slice_detail_of, step_of
from queunir_trio.web.showing import admin_user_of
from queunir_trio.web.world import the_world

STEPS_SHOWN = 50
EVENTS_SHOWN = 20
ID_AT_MOST = 2**31 - 1

admin_slices = Blueprint("admin_slices", __name__, url_prefix="/admin")


@admin_slices.get("/slices")
@tag(["administration"])
@needs_key
@validate_response(SliceDetails)
@errors("bad_key", "rate_limited")
async def list_slices() -> SliceDetails:
    """Every slice, by id."""
    await identity.admin(by_key_only=True)
    world = the_world()
    healthy = await slices.healthy(world.db)
    rows = await slices.listed(world.db)
    return SliceDetails(slices=[slice_detail_of(row, healthy, world.settings) for row in rows])


@admin_slices.get("/slice/<int:slice_id>")
@tag(["administration"])
@needs_admin
@validate_response(SliceStory)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_slice", "rate_limited")
async def show_slice(slice_id: int) -> SliceStory:
    """A slice, with what was done to it lately and what happened to it."""
    await identity.admin()
    world, slice_ = the_world(), await _found(slice_id)
    job = await jobs.newest_of_slice(world.db, slice_id)
    steps = await slices.steps(world.db, slice_id)
    happened = await events.of_slice(world.db, slice_id, EVENTS_SHOWN)
    return SliceStory(
        slice=slice_detail_of(slice_, await slices.healthy(world.db), world.settings),
        steps=[step_of(row) for row in steps[-STEPS_SHOWN:]],
        events=[event_of(row) for row in reversed(happened)],
        job=job_of(job) if job is not None else None,
    )


@admin_slices.get("/slice/<int:slice_id>/logs")
@tag(["administration"])
@needs_key
@validate_querystring(LogQuery)
@validate_response(SliceLog)
@errors("bad_key", "invalid_fields", "no_such_slice", "busy", "rate_limited")
async def show_log(slice_id: int, query_args: LogQuery) -> SliceLog:
    """The last lines that a slice wrote; none for a slice that something else runs."""
    await identity.admin(by_key_only=True)
    slice_, resources = await _found(slice_id), the_world().resources
    if not slice_.managed:
        return SliceLog(lines=[])
    lines = await resources.runtime.logs(resources.number(slice_), slice_.uuid, query_args.lines)
    return SliceLog(lines=lines)


@admin_slices.post("/slice/<int:slice_id>/suspend")
@tag(["administration"])
@needs_admin
@validate_response(SliceDetailAnswer)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_slice", "transition", "rate_limited")
async def suspend_slice(slice_id: int) -> SliceDetailAnswer:
    """Let a customer's slice rest.

    It is stopped and keeps its data; its customer can log in, pay, export and leave.
    """

    async def suspend(db: Database, slice_id: int) -> Slice:
        return await suspension.suspend(db, slice_id, "admin")

    return await _change(slice_id, "slice_suspended", suspend)


@admin_slices.post("/slice/<int:slice_id>/resume")
@tag(["administration"])
@needs_admin
@validate_response(SliceDetailAnswer)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_slice", "transition", "rate_limited")
async def resume_slice(slice_id: int) -> SliceDetailAnswer:
    """Let a suspended slice go on; it is started."""
    return await _change(slice_id, "slice_resumed", suspension.resume)


@admin_slices.post("/slice/<int:slice_id>/restart")
@tag(["administration"])
@needs_admin
@validate_response(SliceDetailAnswer)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_slice", "transition", "rate_limited")
async def restart_slice(slice_id: int) -> SliceDetailAnswer:
    """Stop a slice and start it again, soon; its WhatsApp session stays paired."""
    return await _change(slice_id, "slice_restarted", suspension.restart)


@admin_slices.post("/slices/<int:slice_id>/status")
@tag(["administration"])
@needs_key
@validate_request(NewStatus)
@validate_response(SliceDetailAnswer)
@errors("bad_key", "no_such_slice", "transition", "rate_limited")
async def set_slice_status(slice_id: int, data: NewStatus) -> SliceDetailAnswer:
    """Take a slice on to another stage of its life.

    Only the moves that its life has; a customer is given a slice with /admin/users/{user_id}/assign.
    """

    async def move(db: Database, slice_id: int) -> Slice:
        return await standing.move_slice(db, slice_id, Status(data.status))

    return await _change(slice_id, "slice_status_set", move, {"status": data.status}, by_key_only=True)


@admin_slices.delete("/slices/<int:slice_id>")
@tag(["administration"])
@needs_key
@answers_nothing
@validate_response(JobAnswer, 202)
@errors("bad_key", "no_such_slice", "has_customer", "rate_limited")
async def delete_slice(slice_id: int) -> tuple[JobAnswer, int, dict[str, str]] | tuple[str, int]:
    """Remove a slice that nobody has.

    204 for one that something else runs: it is only forgotten. 202 with a job for one of ours, which is removed with
    all its data. `has_customer`: the sentence says what can be done instead.
    """
    actor, world = await identity.admin(by_key_only=True), the_world()
    _check_id(slice_id)
    base_port = world.settings.slices.base_port
    slice_ = await slices.release_free(world.db, slice_id)
    world.routes.forget_slice(slice_id)
    job = await orders.order_destruction_of(world.db, slice_, base_port) if slice_.managed else None
    await note(actor, "slice_deleted", f"slice:{slice_id}", {"job_id": job.id if job else None})
    if job is None:
        return "", 204
    return JobAnswer(job=job_of(job)), 202, {"Location": f"/orchestrator/jobs/{job.id}"}


@admin_slices.post("/users/<int:user_id>/suspend")
@tag(["administration"])
@needs_admin
@validate_response(AdminUserAnswer)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_user", "rate_limited")
async def suspend_user(user_id: int) -> AdminUserAnswer:
    """Close an account and let its slice rest.

    Its owner can still log in, pay, export and leave.
    """
    return await _change_user(user_id, "user_suspended", standing.suspend_user)


@admin_slices.post("/users/<int:user_id>/resume")
@tag(["administration"])
@needs_admin
@validate_response(AdminUserAnswer)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_user", "rate_limited")
async def resume_user(user_id: int) -> AdminUserAnswer:
    """Open an account again, and its slice if an admin had closed it."""
    return await _change_user(user_id, "user_resumed", standing.resume_user)


@admin_slices.post("/users/<int:user_id>/make-admin")
@tag(["administration"])
@needs_admin
@validate_response(AdminUserAnswer)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_user", "rate_limited")
async def make_admin(user_id: int) -> AdminUserAnswer:
    """Let a user administer from now on."""
    return await _change_user(user_id, "admin_made", standing.make_admin)


# what the routes share ----------------------------------------------------------------------------------------------


def _check_id(slice_id: int) -> None:
    if slice_id > ID_AT_MOST:
        raise Refused("no_such_slice", "There is no such slice.")


async def _found(slice_id: int) -> Slice:
    _check_id(slice_id)
    slice_ = await slices.find(the_world().db, slice_id)
    if slice_ is None:
        raise Refused("no_such_slice", "There is no such slice.")
    return slice_


async def _change(
    slice_id: int,
    action: str,
    change: Callable[[Database, int], Awaitable[Slice]],
    detail: dict[str, object] | None = None,
    *,
    by_key_only: bool = False,
) -> SliceDetailAnswer:
    """Changes a slice, forgets its route before the answer goes out, and writes down who did it."""
    actor, world = await identity.admin(by_key_only=by_key_only), the_world()
    _check_id(slice_id)
    slice_ = await change(world.db, slice_id)
    world.routes.forget_slice(slice_id)
    await note(actor, action, f"slice:{slice_id}", detail or {})
    healthy = await slices.healthy(world.db)
    return SliceDetailAnswer(slice=slice_detail_of(slice_, healthy, world.settings))


async def _change_user(
    user_id: int, action: str, change: Callable[[Database, int], Awaitable[User]]
) -> AdminUserAnswer:
    actor, world = await identity.admin(), the_world()
    if user_id > ID_AT_MOST:
        raise Refused("no_such_user", "There is no such user.")
    user = await change(world.db, user_id)
    world.routes.forget_user(user_id)
    await note(actor, action, f"user:{user_id}", {})
    return AdminUserAnswer(user=admin_user_of(user))
