"""Bringing a slice's process or container to what is wanted of it: running and well, or stopped."""

from functools import partial
from typing import Final
from urllib.parse import quote, urlencode

import structlog
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.slices import HEALTH_ASKED_EVERY, HEALTHY_WITHIN, Names, Slice
from queunir_trio.operations.steps import Resources, Step, carry_out, ordered
from queunir_trio.outside.runtimes.contract import InstanceSpec
from queunir_trio.outside.slice_control import SliceUnreachable
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices, suspensions

FIRST_ASKED_AFTER: Final = 0.1  # seconds; the pause then grows up to HEALTH_ASKED_EVERY
PAUSE_GROWS_BY: Final = 1.5

log = structlog.get_logger()


class NeverHealthy(Lost):
    """The slice was started and did not become healthy."""


async def start(resources: Resources, slice_: Slice) -> None:
    """Starts what should run and waits until it is well; a running one is merely asked. StepFailed."""
    await carry_out(resources, slice_, "start", START)
    log.info("slice_started", slice_id=slice_.id)


async def stop(resources: Resources, slice_: Slice) -> None:
    """Stops what should not run and keeps its data. StepFailed."""
    await carry_out(resources, slice_, "stop", STOP)
    log.info("slice_stopped", slice_id=slice_.id)


async def restart(resources: Resources, slice_: Slice) -> None:
    """Ends what runs, if it does, and starts it anew, as its row wants it to be. StepFailed."""
    await carry_out(resources, slice_, "restart", RESTART)
    log.info("slice_restarted", slice_id=slice_.id)


async def ensure_instance(resources: Resources, slice_: Slice) -> None:
    """The slice's process or container runs."""
    await ordered(resources, partial(resources.runtime.ensure, spec_of(resources, slice_)))


def spec_of(resources: Resources, slice_: Slice) -> InstanceSpec:
    """All that a runtime must know to start this slice."""
    names = resources.names(slice_)
    return InstanceSpec(
        num=resources.number(slice_),
        slice_id=slice_.id,
        uuid=slice_.uuid,
        host=slice_.host,
        port=slice_.port,
        directory=names.directory,
        image=slice_.adopted_image if slice_.is_adopted else slice_.image,
        database_url=database_url(resources.where, names, resources.database_password(slice_)),
        key=resources.address(slice_).key,
        production=resources.production,
        adopted=slice_.is_adopted,
    )


async def wait_until_healthy(resources: Resources, slice_: Slice) -> None:
    """Asks until the slice answers that it is well. NeverHealthy; WrongSlice: somebody else answers in its place."""
    address, num = resources.address(slice_), resources.number(slice_)
    pause, last = FIRST_ASKED_AFTER, "it was not asked"
    with trio.move_on_after(HEALTHY_WITHIN):
        while True:
            try:
                await resources.control.health(address)
            except SliceUnreachable as unreachable:
                last = str(unreachable)
            else:
                return
            found = await resources.runtime.inspect(num)
            if found is None or not found.running:
                raise NeverHealthy("the slice ended while it was starting")
            await trio.sleep(pause)
            pause = min(pause * PAUSE_GROWS_BY, HEALTH_ASKED_EVERY)
    raise NeverHealthy(f"not healthy within {HEALTHY_WITHIN:.0f} s: {last}")


async def record_health(resources: Resources, slice_: Slice) -> None:
    """Writes down that the slice was well a moment ago."""
    await slices.record_health(resources.db, [slice_.id])


async def _stop_instance(resources: Resources, slice_: Slice) -> None:
    await ordered(resources, partial(resources.runtime.stop, resources.number(slice_), slice_.uuid))


async def record_restart(resources: Resources, slice_: Slice) -> None:
    """The wish is fulfilled; one that came meanwhile stays."""
    await record_health(resources, slice_)
    if slice_.restart_wanted_at is not None:
        await suspensions.end_restart(resources.db, slice_.id, slice_.restart_wanted_at, resources.epoch)


def database_url(where: DatabaseSettings, names: Names, password: str) -> str:
    """How a slice reaches its own database: by the socket's directory, or by host and port where there is none."""
    who = f"{quote(names.role, safe='')}:{quote(password, safe='')}"
    database = quote(names.database, safe="")
    if where.host.startswith("/"):
        return f"postgresql://{who}@/{database}?{urlencode({'host': where.host, 'port': where.port})}"
    host = f"[{where.host}]" if ":" in where.host else where.host
    return f"postgresql://{who}@{host}:{where.port}/{database}"


INSTANCE: Final = Step("instance", ensure_instance, 60, "Starting your workspace")
HEALTH: Final = Step("health", wait_until_healthy, 70, "Waiting for your workspace to answer")
START: Final = (INSTANCE, HEALTH, Step("recorded", record_health, 100, "Your workspace runs"))
STOPPED: Final = Step("stopped", _stop_instance, 30, "Stopping the workspace")
STOP: Final = (STOPPED,)
RESTART: Final = (STOPPED, INSTANCE, HEALTH, Step("recorded", record_restart, 100, "Your workspace runs"))
