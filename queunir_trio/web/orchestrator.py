"""Slices made and destroyed to order, what is under way, and how all of it stands: with the operator's key only."""

import secrets
from collections import Counter
from typing import Any, Final, TypeVar

from quart import Blueprint, Response
from quart_schema import tag, validate_querystring, validate_request, validate_response

from queunir_trio.errors import Refused
from queunir_trio.model.jobs import Job, JobState
from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations import inventory, orders
from queunir_trio.outside import host
from queunir_trio.outside.runtimes.contract import Instance
from queunir_trio.store import jobs, pool, slices
from queunir_trio.web import identity
from queunir_trio.web.admin import note
from queunir_trio.web.described import errors, needs_key
from queunir_trio.web.errors import STATUSES, problem
from queunir_trio.web.orchestrator_schemas import (
    DisagreementShown,
    InstanceShown,
    JobAnswer,
    Jobs,
    MemoryShown,
    OrchestratorStatus,
    Order,
    Pool,
    PoolAnswer,
    PoolWish,
    Receipt,
    ReceiptAnswer,
    Wait,
)
from queunir_trio.web.orchestrator_showing import job_of
from queunir_trio.web.schemas import AdminSliceAnswer
from queunir_trio.web.showing import admin_slice_of
from queunir_trio.web.world import the_world

WAITED_FOR: Final = 90.0  # seconds that an answer may wait for a job; below what a handler may take
ASK_AGAIN_IN: Final = 2  # seconds
JOBS_LISTED: Final = 100
ID_AT_MOST: Final = 2**31 - 1
JOB_AT_MOST: Final = 2**63 - 1

orchestrator = Blueprint("orchestrator", __name__, url_prefix="/orchestrator")

T = TypeVar("T")
Headers = dict[str, str]
Answer = tuple[T | JobAnswer, int, Headers] | Response


@orchestrator.post("/provision")
@tag(["orchestrator"])
@needs_key
@validate_querystring(Order)
@validate_response(AdminSliceAnswer, 201)
@validate_response(JobAnswer, 202)
@errors("bad_key", "invalid_fields", "provision_failed", "no_capacity", "rate_limited")
async def provision_slice(query_args: Order) -> Answer[AdminSliceAnswer]:
    """Make one more slice.

    Waits until it is healthy. With `wait=0`, and where it takes longer than an answer may, the answer is 202 with the
    job, whose address is in `Location`; the work goes on whether or not anybody waits. What could not be made is
    undone, and the error has `step` and `reason` beside the usual fields.
    """
    actor, world = await identity.admin(by_key_only=True), the_world()
    job = await orders.order_slice(world.db, query_args.key or secrets.token_hex(16))
    await note(actor, "slice_ordered", f"job:{job.id}", {})
    found = await _waited(job, query_args.wait)
    if not found.is_finished:
        return _under_way(found)
    if found.state is JobState.FAILED:
        return _failed(found)
    slice_ = await slices.find(world.db, (found.result or {})["slice_id"])
    if slice_ is None:
        raise Refused("no_such_slice", "The slice was made and is gone again.")
    return AdminSliceAnswer(slice=admin_slice_of(slice_, world.settings)), 201, {}


@orchestrator.post("/destroy/<int:slice_id>")
@tag(["orchestrator"])
@needs_key
@validate_querystring(Wait)
@validate_response(ReceiptAnswer)
@validate_response(JobAnswer, 202)
@errors("bad_key", "invalid_fields", "no_such_slice", "conflict", "given_up", "rate_limited")
async def destroy_slice(slice_id: int, query_args: Wait) -> Answer[ReceiptAnswer]:
    """Remove a slice and all its data, for good.

    A customer who has it loses it, and waits for a new one. The receipt names what was removed, each thing looked for
    again and not found; asking once more gives the same receipt. 202 as with /orchestrator/provision. `conflict`:
    something under the slice's names is not its own, and nothing was removed.
    """
    actor, world = await identity.admin(by_key_only=True), the_world()
    if slice_id > ID_AT_MOST:
        raise Refused("no_such_slice", "There is no such slice.")
    job = await orders.order_destruction(world.db, slice_id, world.settings.slices.base_port)
    if not job.is_finished:
        await note(actor, "destruction_ordered", f"slice:{slice_id}", {"job_id": job.id})
    found = await _waited(job, query_args.wait)
    if not found.is_finished:
        return _under_way(found)
    if found.state is JobState.FAILED:
        return _failed(found)
    return ReceiptAnswer(receipt=Receipt.model_validate(found.result)), 200, {}


@orchestrator.get("/jobs")
@tag(["orchestrator"])
@needs_key
@validate_response(Jobs)
@errors("bad_key", "rate_limited")
async def list_jobs() -> Jobs:
    """The newest jobs."""
    await identity.admin(by_key_only=True)
    return Jobs(jobs=[job_of(job) for job in await jobs.listed(the_world().db, JOBS_LISTED)])


@orchestrator.get("/jobs/<int:job_id>")
@tag(["orchestrator"])
@needs_key
@validate_response(JobAnswer)
@errors("bad_key", "no_such_job", "rate_limited")
async def show_job(job_id: int) -> JobAnswer:
    """How far a job is, and what came of it."""
    await identity.admin(by_key_only=True)
    job = await jobs.find(the_world().db, job_id) if job_id <= JOB_AT_MOST else None
    if job is None:
        raise Refused("no_such_job", "There is no such job.")
    return JobAnswer(job=job_of(job))


@orchestrator.get("/status")
@tag(["orchestrator"])
@needs_key
@validate_response(OrchestratorStatus)
@errors("bad_key", "rate_limited")
async def show_orchestrator() -> OrchestratorStatus:
    """How everything that slices are made of stands, and what of it disagrees with the table."""
    await identity.admin(by_key_only=True)
    found = await inventory.take(the_world().resources)
    by_status = Counter(row.status.value for row in found.rows)
    memory = host.memory()
    return OrchestratorStatus(
        slices={"total": len(found.rows), **{status.value: by_status[status.value] for status in Status}},
        runtime_answers=found.instances is not None,
        instances=_instances(found.rows, found.instances or []),
        memory=MemoryShown(
            total_bytes=memory.total,
            available_bytes=memory.available,
            swap_total_bytes=memory.swap_total,
            swap_used_bytes=memory.swap_used,
        ),
        pool=await _pool(),
        disagreements=[
            DisagreementShown(kind=one.kind, name=one.name, slice_id=one.slice_id) for one in found.disagreements
        ],
    )


@orchestrator.post("/pool")
@tag(["orchestrator"])
@needs_key
@validate_request(PoolWish)
@validate_response(PoolAnswer)
@errors("bad_key", "rate_limited")
async def change_pool(data: PoolWish) -> PoolAnswer:
    """Say how many slices stand ready, or let none be made for a while.

    It holds for every gateway process and across restarts. While it is paused, slices that are ready are still given
    to those who sign up, and POST /orchestrator/provision still makes one.
    """
    actor, world = await identity.admin(by_key_only=True), the_world()
    wish = data.model_dump(exclude_none=True)
    if wish:
        await pool.set(world.db, paused=data.paused, at_least=data.min)
        await note(actor, "pool_changed", "pool", wish)
    return PoolAnswer(pool=await _pool())


# what the routes share ----------------------------------------------------------------------------------------------


async def _waited(job: Job, wait: bool) -> Job:
    if not wait or job.is_finished:
        return job
    return await the_world().job_news.finished(job.id, WAITED_FOR) or job


def _under_way(job: Job) -> tuple[JobAnswer, int, Headers]:
    """202: it goes on, and may be looked at there."""
    headers = {"Location": f"/orchestrator/jobs/{job.id}", "Retry-After": str(ASK_AGAIN_IN)}
    return JobAnswer(job=job_of(job)), 202, headers


def _failed(job: Job) -> Response:
    code, sentence = job.code or "failed", job.error or "It failed."
    more: dict[str, Any] = {"step": job.step, "reason": sentence, "job_id": job.id}
    return problem(STATUSES.get(code, 502), code, sentence, more=more)


async def _pool() -> Pool:
    world = the_world()
    wish, counts = await pool.read(world.db), await slices.counts(world.db)
    waiting = await slices.waiting_users(world.db, world.settings.billing.enabled)
    return Pool(
        wanted=world.settings.slices.warm_pool_min if wish.at_least is None else wish.at_least,
        available=counts["available"],
        making=counts["provisioning"],
        waiting=len(waiting),
        failures=wish.failures,
        paused=wish.paused,
    )


def _instances(rows: list[Slice], found: list[Instance]) -> list[InstanceShown]:
    ids = {row.uuid: row.id for row in rows}
    return [
        InstanceShown(
            num=instance.num,
            slice_id=ids.get(instance.uuid),
            running=instance.running,
            image=instance.image,
            memory_bytes=host.resident(instance.pid) if instance.running else None,
        )
        for instance in found
    ]
