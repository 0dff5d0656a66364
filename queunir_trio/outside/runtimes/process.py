"""Slices as plain processes of this machine: for demonstrations and tests, and wherever there is no Docker.

A slice outlives the gateway that started it: it leads a session of its own, holds no pipe to anybody and writes to a
file. That it is about to be started is written down first, and then who it became; where the gateway ended between
the two, the slice is found by the uuid in its environment.
"""

import os
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

import structlog
import trio

from queunir_trio.model.slices import MEDIA_QUOTA_BYTES
from queunir_trio.outside import processes
from queunir_trio.outside.archives import tar_of
from queunir_trio.outside.processes import ProcessId
from queunir_trio.outside.runtimes import own_files
from queunir_trio.outside.runtimes.contract import (
    LOG_LINES_AT_MOST,
    PARTS,
    STOPPED_WITHIN,
    Adopted,
    Instance,
    InstanceConflict,
    InstanceSpec,
    PortTaken,
    RuntimeUnavailable,
    Usage,
)
from queunir_trio.outside.runtimes.process_files import ProcessFiles, intent_of, write_private

COMMAND: Final = (sys.executable, "-I", "-u", "-m", "queunir_slice")
THREADS_AT_ONCE: Final = 4
PROCESS: Final = "process"  # what slices are said to be made from where they are what is installed
MARK: Final = "SLICE_UUID"  # the variable by which a process of ours is known

log = structlog.get_logger()
T = TypeVar("T")


class ProcessRuntime:
    """Slices as processes, remembered under `data_dir/run`.

    `images` gives names to further commands, so that slices can be moved from one to another; whatever else a slice is
    said to be made from runs `command`. `environment` holds further variables for every slice; `reached` is told of
    each point where a crash matters.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        command: Sequence[str] = COMMAND,
        images: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._files = ProcessFiles(data_dir / "run")
        self._command = tuple(command)
        self._images = {name: tuple(words) for name, words in (images or {}).items()}
        self._environment = dict(environment or {})
        self._reached = reached
        self._limiter = trio.CapacityLimiter(THREADS_AT_ONCE)
        self._locks: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)

    def __repr__(self) -> str:
        return f"<ProcessRuntime {self._files.run}>"

    async def ensure(self, spec: InstanceSpec) -> Instance:
        async with self._locks[spec.num]:
            return await self._in_thread(partial(self._ensure, spec))

    async def replace(self, spec: InstanceSpec) -> Instance:
        async with self._locks[spec.num]:
            found = await self._in_thread(partial(self._look, spec.num))
            if found is not None and found.running and found.uuid != spec.uuid:
                raise InstanceConflict(spec.num)
            if found is None or found.image != spec.image:
                await self._stop(spec.num, spec.uuid, STOPPED_WITHIN)
            return await self._in_thread(partial(self._ensure, spec))

    def recognise(self, adopted: Collection[Adopted]) -> None:
        pass  # an older gateway had containers: no process of its is known by a number

    async def renew(self, spec: InstanceSpec) -> Instance:
        async with self._locks[spec.num]:
            await self._stop(spec.num, spec.uuid, STOPPED_WITHIN)
            return await self._in_thread(partial(self._ensure, spec))

    async def settle(self, num: int, uuid: UUID, *, back: bool = False) -> None:
        pass  # a process that ended can not be kept

    async def mark(self, directory: Path, uuid: UUID) -> None:
        raise PermissionError(f"The directory {directory.name} is another user's")

    async def stop(self, num: int, uuid: UUID, within: float = STOPPED_WITHIN) -> None:
        async with self._locks[num]:
            await self._stop(num, uuid, within)

    async def remove(self, num: int, uuid: UUID) -> None:
        async with self._locks[num]:
            await self._stop(num, uuid, STOPPED_WITHIN)
            await self._in_thread(partial(self._files.forget, num, uuid))

    async def inspect(self, num: int) -> Instance | None:
        return await self._in_thread(partial(self._look, num))

    async def listed(self) -> list[Instance]:
        return await self._in_thread(self._look_at_all)

    async def logs(self, num: int, uuid: UUID, lines: int = 200) -> list[str]:
        tail = max(1, min(lines, LOG_LINES_AT_MOST))
        return await self._in_thread(partial(self._files.last_lines, num, uuid, tail))

    async def image_id(self, image: str) -> str | None:
        return image if image == PROCESS or image in self._images else None

    async def measure(self, directories: Sequence[Path]) -> dict[Path, Usage]:
        return await own_files.measure(directories)

    async def copy(self, directory: Path, source: str, target: str) -> None:
        await own_files.copy(directory, source, target)

    def archive(self, directory: Path, part: str) -> AsyncGenerator[bytes, None]:
        return tar_of(directory, part)

    async def erase(self, directory: Path, names: Collection[str] = PARTS) -> None:
        await own_files.erase(directory, names)

    async def tidy(self, keep: Collection[UUID]) -> None:
        for found in await self.listed():
            if not found.running and found.uuid not in keep:
                await self.remove(found.num, found.uuid)
                log.info("stale_instance_cleared", num=found.num)
        await self._in_thread(self._files.shorten_logs)

    async def stop_all(self, within: float = STOPPED_WITHIN) -> None:
        async with trio.open_nursery() as nursery:
            for found in await self.listed():
                nursery.start_soon(self.stop, found.num, found.uuid, within)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Never abandoned: what was begun on the disk or with a process is done when this returns or is cancelled."""
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _look_at_all(self) -> list[Instance]:
        return [found for num in self._files.numbers() if (found := self._look(num)) is not None]

    def _look(self, num: int) -> Instance | None:
        state = self._files.read(num)
        if state is None:
            return None
        if state.process is None:  # an intent: the gateway ended before it could write down whom it started
            return state.instance(_leader(UUID(state.uuid)))
        return state.instance(state.process if processes.is_alive(state.process) else None)

    def _ensure(self, spec: InstanceSpec) -> Instance:
        found = self._look(spec.num)
        if found is not None and found.running and found.uuid != spec.uuid:
            raise InstanceConflict(spec.num)
        process = self._process_of(spec.num, spec.uuid)
        intent = intent_of(spec)
        if process is not None and found is not None and found.uuid == spec.uuid:
            intent = replace(intent, image=found.image)  # it runs what it was started from
        if process is None:
            _kill_marked(spec.uuid)  # what an earlier one left behind may hold its port
            _refuse_taken_port(spec.host, spec.port)
            process = self._start(spec)
        state = intent.of(process)
        self._files.write(state)
        return state.instance(process)

    def _start(self, spec: InstanceSpec) -> ProcessId:
        home = self._files.home(spec.num)
        self._files.write(intent_of(spec))
        self._reached("intent")
        write_private(home / "database_url", spec.database_url)
        write_private(home / "key", spec.key)
        self._reached("secrets")
        process = processes.identify(self._spawn(spec, home))
        self._reached("spawned")
        if process is None:
            raise RuntimeUnavailable(f"slice {spec.slice_id} ended as soon as it was started")
        return process

    def _spawn(self, spec: InstanceSpec, home: Path) -> int:
        output = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = subprocess.Popen(
                self._images.get(spec.image or "", self._command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment, **_environment(spec, home)},
                cwd=home,
                start_new_session=True,
            )
        finally:
            os.close(output)
        # The child is meant to outlive this object, whose destructor would call that a leak. Nobody waits through
        # it: whoever next looks at the pid reaps it.
        child.returncode = 0
        return child.pid

    async def _stop(self, num: int, uuid: UUID, within: float) -> None:
        process = await self._in_thread(partial(self._process_of, num, uuid))
        if process is not None and not await processes.end(process, within):
            raise RuntimeUnavailable(f"process {process.pid} does not end")
        await self._in_thread(partial(_kill_marked, uuid))

    def _process_of(self, num: int, uuid: UUID) -> ProcessId | None:
        """The living process of this very slice, by what is written or else by its mark."""
        state = self._files.read(num)
        if state is not None and state.uuid == str(uuid) and state.process and processes.is_alive(state.process):
            return state.process
        return _leader(uuid)


def _leader(uuid: UUID) -> ProcessId | None:
    """The process that was started as this slice."""
    marked = processes.carrying(MARK, str(uuid))
    return marked[0] if marked and processes.leads_session(marked[0]) else None


def _kill_marked(uuid: UUID) -> None:
    for process in processes.carrying(MARK, str(uuid)):
        processes.kill(process)


def _environment(spec: InstanceSpec, home: Path) -> dict[str, str]:
    """All a slice gets to see: nothing of the gateway's own environment, and no secret."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        MARK: str(spec.uuid),
        "SLICE_ID": str(spec.slice_id),
        "HOST": spec.host,
        "PORT": str(spec.port),
        "APP_ENV": "production" if spec.production else "development",
        "MEDIA_QUOTA_BYTES": str(MEDIA_QUOTA_BYTES),
        "MEDIA_DIR": str(spec.directory / "media"),
        "SESSION_DIR": str(spec.directory / "session"),
        "DATABASE_URL_FILE": str(home / "database_url"),
        "SLICE_KEY_FILE": str(home / "key"),
    }


def _refuse_taken_port(host: str, port: int) -> None:
    """PortTaken where somebody listens: a stranger's port must never be taken for a slice's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that lingers is no listener
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            raise PortTaken(host, port) from None
