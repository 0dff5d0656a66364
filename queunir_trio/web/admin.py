"""Administration by HTTP: with the operator's key, or as a user who is an admin."""

from typing import Any

import structlog
from quart import Blueprint
from quart_schema import tag, validate_querystring, validate_request, validate_response

from queunir_trio.errors import Refused
from queunir_trio.operations import assignment
from queunir_trio.store import accounts, audit
from queunir_trio.web import identity
from queunir_trio.web.described import errors, needs_admin, needs_key
from queunir_trio.web.schemas import (
    AdminSliceAnswer,
    AdminUsers,
    AdminUsersQuery,
    Assignment,
    NewSlice,
)
from queunir_trio.web.showing import admin_slice_of, admin_user_of
from queunir_trio.web.world import the_world

THIS_MACHINE = "127.0.0.1"

log = structlog.get_logger()
admin = Blueprint("admin", __name__, url_prefix="/admin")


@admin.get("/users")
@tag(["administration"])
@needs_key
@validate_querystring(AdminUsersQuery)
@validate_response(AdminUsers)
@errors("bad_key", "invalid_fields", "rate_limited")
async def list_users(query_args: AdminUsersQuery) -> AdminUsers:
    """All users, by id."""
    await identity.admin(by_key_only=True)
    users = await accounts.listed(the_world().db, query_args.after, query_args.limit)
    more = len(users) == query_args.limit
    return AdminUsers(users=[admin_user_of(user) for user in users], next=users[-1].id if more else None)


@admin.post("/slices")
@tag(["administration"])
@needs_key
@validate_request(NewSlice)
@validate_response(AdminSliceAnswer, 201)
@errors("bad_key", "invalid_fields", "port_taken", "rate_limited")
async def register_slice(data: NewSlice) -> tuple[AdminSliceAnswer, int]:
    """Register a backend that something else runs.

    It is watched and routed to, but never started, stopped or asked who it is. Its status is `available`: assign it
    to a user with POST /admin/users/{user_id}/assign.
    """
    actor, world = await identity.admin(by_key_only=True), the_world()
    if data.port == world.settings.port:
        sentence = "This is the gateway's own port."
        raise Refused("invalid_fields", sentence, {"port": sentence})
    slice_ = await assignment.register_unmanaged(world.db, THIS_MACHINE, data.port)
    await note(actor, "slice_registered", f"slice:{slice_.id}", {"port": data.port})
    return AdminSliceAnswer(slice=admin_slice_of(slice_, world.settings)), 201


@admin.post("/users/<int:user_id>/assign")
@tag(["administration"])
@needs_admin
@validate_request(Assignment)
@validate_response(AdminSliceAnswer)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_user", "no_such_slice", "not_available", "rate_limited")
async def assign_slice(user_id: int, data: Assignment) -> AdminSliceAnswer:
    """Move a customer to an available slice.

    The one they had is detached and suspended; nothing is destroyed.
    """
    actor, world = await identity.admin(), the_world()
    if user_id >= 2**31:
        raise Refused("no_such_user", "There is no such user.")
    slice_ = await assignment.assign(world.db, user_id, data.slice_id)
    world.routes.forget_user(user_id)
    world.routes.forget_slice(slice_.id)
    await note(actor, "slice_assigned", f"user:{user_id}", {"slice_id": slice_.id})
    return AdminSliceAnswer(slice=admin_slice_of(slice_, world.settings))


async def note(actor: str, action: str, target: str, detail: dict[str, Any]) -> None:
    """What an admin changed, into the audit log and into ours."""
    world = the_world()
    await audit.record(world.db, actor, action, target, detail, identity.client_address())
    log.info("admin_changed", actor=actor, action=action, target=target)
