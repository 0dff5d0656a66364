"""Rolling updates by HTTP, with the operator's key: begun, followed, paused, resumed and aborted."""

from collections import Counter
from collections.abc import Sequence

from quart import Blueprint
from quart_schema import tag, validate_request, validate_response

from queunir_trio.errors import Refused
from queunir_trio.model import rollout as model
from queunir_trio.model.rollout import Part, RolloutState
from queunir_trio.model.slices import Slice, number_of
from queunir_trio.store import jobs, rollouts, slices
from queunir_trio.web import identity
from queunir_trio.web.admin import note
from queunir_trio.web.described import errors, needs_key
from queunir_trio.web.orchestrator_showing import job_of
from queunir_trio.web.rollout_schemas import NewRollout, Rollout, RolloutAnswer, RolloutSlice
from queunir_trio.web.world import the_world

rollout = Blueprint("rollout", __name__, url_prefix="/orchestrator/rollout")


@rollout.post("")
@tag(["orchestrator"])
@needs_key
@validate_request(NewRollout)
@validate_response(RolloutAnswer, 202)
@errors("bad_key", "image_missing", "no_such_slice", "rollout_under_way", "rate_limited")
async def begin_rollout(data: NewRollout) -> tuple[RolloutAnswer, int, dict[str, str]]:
    """Move slices to another image.

    Warm slices go first, then the canaries, then the others in batches. Each one's session is copied before the new
    image runs; a slice whose WhatsApp does not stand as before goes back to its old image and session, and the rollout
    stops. When it is done, new slices are made from this image too.
    """
    actor, world = await identity.admin(by_key_only=True), the_world()
    image_id = await world.resources.runtime.image_id(data.image)
    if image_id is None:
        sentence = f"There is no image {data.image} on this machine: build it or load it first."
        raise Refused("image_missing", sentence, {"image": sentence})
    await _check_slices(data.slices)
    begun = await rollouts.begin(
        world.db, data.image, image_id, batch=data.batch, canary=data.canary, only=data.slices, who=actor
    )
    await note(actor, "rollout_begun", f"rollout:{begun.id}", data.model_dump(exclude_none=True))
    return await _shown(), 202, {"Location": f"/orchestrator/jobs/{begun.job_id}"}


@rollout.get("")
@tag(["orchestrator"])
@needs_key
@validate_response(RolloutAnswer)
@errors("bad_key", "rate_limited")
async def show_rollout() -> RolloutAnswer:
    """The rollout that is under way, or else the last one, with every slice."""
    await identity.admin(by_key_only=True)
    return await _shown()


@rollout.post("/pause")
@tag(["orchestrator"])
@needs_key
@validate_response(RolloutAnswer)
@errors("bad_key", "no_rollout", "rate_limited")
async def pause_rollout() -> RolloutAnswer:
    """Begin no further slice; those that are under way are brought to their end. Again: no change."""
    return await _changed(RolloutState.PAUSED)


@rollout.post("/resume")
@tag(["orchestrator"])
@needs_key
@validate_response(RolloutAnswer)
@errors("bad_key", "no_rollout", "rate_limited")
async def resume_rollout() -> RolloutAnswer:
    """Go on after a pause. Again: no change."""
    return await _changed(RolloutState.RUNNING)


@rollout.post("/abort")
@tag(["orchestrator"])
@needs_key
@validate_response(RolloutAnswer)
@errors("bad_key", "no_rollout", "rate_limited")
async def abort_rollout() -> RolloutAnswer:
    """End it once the slices under way are at their end.

    Slices that were moved keep the new image: to take them back, roll out the old one.
    """
    return await _changed(RolloutState.ABORTED)


async def _changed(to: RolloutState) -> RolloutAnswer:
    actor, world = await identity.admin(by_key_only=True), the_world()
    newest = await rollouts.newest(world.db)
    if newest is None or newest.finished_at is not None:
        raise Refused("no_rollout", "No rollout is under way.")
    if await rollouts.change(world.db, newest.id, to):
        await note(actor, f"rollout_{to}", f"rollout:{newest.id}", {})
    elif (await rollouts.newest(world.db) or newest).state is not to:
        raise Refused("no_rollout", "The rollout is over.")
    return await _shown()


async def _check_slices(only: Sequence[int] | None) -> None:
    known = {row.id for row in await slices.listed(the_world().db)} if only else set()
    for slice_id in only or ():
        if slice_id not in known:
            raise Refused("no_such_slice", f"There is no slice {slice_id}.")


async def _shown() -> RolloutAnswer:
    world = the_world()
    newest = await rollouts.newest(world.db)
    parts = await rollouts.parts(world.db, newest.id) if newest is not None else []
    job = await jobs.find(world.db, newest.job_id) if newest is not None and newest.job_id is not None else None
    rows = {row.id: row for row in await slices.listed(world.db)}
    return RolloutAnswer(
        rollout=_rollout_of(newest, parts, rows) if newest is not None else None,
        job=job_of(job) if job is not None else None,
        current_image=await rollouts.current_image(world.db, world.resources.image),
    )


def _rollout_of(found: model.Rollout, parts: Sequence[Part], rows: dict[int, Slice]) -> Rollout:
    return Rollout(
        id=found.id,
        image=found.image,
        batch=found.batch,
        canary=found.canary,
        state=found.state.value,
        reason=found.reason,
        who=found.who,
        counts=dict(Counter(part.phase.value for part in parts)),
        slices=[_part_of(part, rows.get(part.slice_id)) for part in parts],
        created_at=found.created_at,
        finished_at=found.finished_at,
    )


def _part_of(part: Part, row: Slice | None) -> RolloutSlice:
    managed = row is not None and row.managed
    base_port = the_world().settings.slices.base_port
    return RolloutSlice(
        slice_id=part.slice_id,
        num=number_of(row.port, base_port) if row is not None and managed else None,
        phase=part.phase.value,
        stage=part.stage.value if part.stage is not None else None,
        step=part.step,
        reason=part.reason,
        wa_state_before=part.wa_state_before,
        began_at=part.began_at,
        finished_at=part.finished_at,
    )
