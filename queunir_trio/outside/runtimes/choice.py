"""Which home slices have, by the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from queunir_trio.errors import Misconfigured
from queunir_trio.outside.runtimes.contract import Runtime, RuntimeUnavailable
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.outside.runtimes.docker_client import Daemon
from queunir_trio.outside.runtimes.process import ProcessRuntime
from queunir_trio.settings import Settings

CHECK: Final = "check that it runs, that DOCKER_HOST names it, and that this user is in the group docker"

log = structlog.get_logger()


@asynccontextmanager
async def open_runtime(settings: Settings, *, must_work: bool = False) -> AsyncIterator[Runtime]:
    """The runtime of the settings. What keeps it from starting a slice is logged in one line, and may still mend;
    with `must_work` it is Misconfigured.
    """
    if settings.slices.runtime == "process":
        yield ProcessRuntime(settings.data_dir)
        return
    daemon = Daemon(settings.slices.docker_host)
    runtime = DockerRuntime(daemon, settings.data_dir, settings.slices.image, settings.slices.docker)
    try:
        fault = await _fault(runtime, settings.slices.image)
        if fault is not None and must_work:
            raise Misconfigured([fault])
        if fault is not None:
            log.warning("slices_can_not_start", reason=fault)
        yield runtime
    finally:
        daemon.close()


async def _fault(runtime: Runtime, image: str) -> str | None:
    """Why no slice could be started now, for a person to read; None where one could."""
    try:
        found = await runtime.image_id(image)
    except RuntimeUnavailable as unavailable:
        return f"{unavailable}: {CHECK}."
    if found is None:
        return f"The image {image} is not on this machine: build it with deploy/slice/build, or correct SLICE_IMAGE."
    return None
