"""What is shown of jobs, and of slices to those who look after them."""

from queunir_trio.model.jobs import Job as StoredJob
from queunir_trio.model.slices import MEDIA_QUOTA_BYTES
from queunir_trio.model.slices import Slice as StoredSlice
from queunir_trio.settings import Settings
from queunir_trio.store.events import EventRow
from queunir_trio.store.steps import StepRow
from queunir_trio.web.orchestrator_schemas import EventShown, Job, SliceDetail, StepShown
from queunir_trio.web.showing import admin_slice_of


def job_of(job: StoredJob) -> Job:
    """What is shown of a job to whoever may look at it."""
    return Job(
        id=job.id,
        kind=job.kind,
        state=job.state.value,
        step=job.step,
        percent=job.percent,
        code=job.code,
        error=job.error,
        slice_id=job.slice_id,
        result=job.result,
        created_at=job.created_at,
        finished_at=job.finished_at,
    )


def slice_detail_of(slice_: StoredSlice, healthy: set[int], settings: Settings) -> SliceDetail:
    """All that a slice's row tells."""
    return SliceDetail(
        **admin_slice_of(slice_, settings).model_dump(),
        wanted=slice_.wanted.value,
        healthy=slice_.id in healthy,
        image=slice_.image,
        suspended_for=slice_.suspended_for,
        wa_connected=slice_.wa_connected,
        wa_phone=slice_.wa_phone,
        wa_state=slice_.wa_state,
        storage_bytes=slice_.storage_bytes,
        media_quota_bytes=MEDIA_QUOTA_BYTES,
        failures=slice_.failures,
        failed_step=slice_.failed_step,
        failed_reason=slice_.failed_reason,
        last_health_at=slice_.last_health_at,
        created_at=slice_.created_at,
    )


def step_of(row: StepRow) -> StepShown:
    """A line of the step log."""
    reason = (row.detail or {}).get("reason")
    return StepShown(deed=row.deed, step=row.step, state=row.state, reason=reason, at=row.at)


def event_of(row: EventRow) -> EventShown:
    """A line of the alert log."""
    return EventShown(
        id=row.id,
        kind=row.kind,
        severity=row.severity,
        detail=row.detail,
        created_at=row.created_at,
        resolved_at=row.resolved_at,
    )
