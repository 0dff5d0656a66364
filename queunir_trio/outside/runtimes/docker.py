"""Slices as containers of a Docker daemon.

A container or network is found by its name and proven by its label; one that does not carry the slice's uuid is never
touched. Whatever a call that was given up may have done, the next attempt sees by looking, and goes on from there:
names and subnets are fixed by the slice's number, so there can never be two.
"""

import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import structlog
import trio

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes import docker_spec
from queunir_trio.outside.runtimes.contract import (
    LOG_LINES_AT_MOST,
    PARTS,
    STOPPED_WITHIN,
    ImageMissing,
    Instance,
    InstanceConflict,
    InstanceSpec,
    PortTaken,
    RuntimeUnavailable,
    Usage,
)
from queunir_trio.outside.runtimes.docker_client import Call, Daemon, DaemonRefusal, create_container
from queunir_trio.outside.runtimes.docker_networks import Networks
from queunir_trio.outside.runtimes.docker_papers import Papers, owner_of
from queunir_trio.outside.runtimes.docker_spec import LABEL_CONFIG, LABEL_IMAGE, name_of, number_in, uuid_in
from queunir_trio.outside.runtimes.docker_tools import Tools
from queunir_trio.settings import DockerSettings

CREATED_WITHIN: Final = 30.0  # seconds
STARTED_WITHIN: Final = 30.0  # seconds
ENDED_AFTER: Final = 10.0  # seconds that SIGKILL and the daemon's own work may take
REMOVED_WITHIN: Final = 30.0  # seconds
NOBODY: Final = UUID(int=0)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Found:
    """A container as the daemon describes it."""

    instance: Instance
    config: str | None  # the digest of what it was made for
    is_paused: bool
    id: str


class DockerRuntime:
    """Slices as containers named wank-slice-N. The secrets' files lie under `data_dir/run`.

    `image` is what tools run from; `reached` is told of each point where a crash matters.
    """

    def __init__(
        self,
        daemon: Daemon,
        data_dir: Path,
        image: str,
        settings: DockerSettings | None = None,
        *,
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._daemon = daemon
        self._settings = settings or DockerSettings()
        self._papers = Papers(data_dir / "run")
        self._networks = Networks(daemon, self._settings)
        self._tools = Tools(daemon, self._settings.tools_image or image)
        self._reached = reached
        self._locks: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)

    def __repr__(self) -> str:
        return f"<DockerRuntime {self._daemon!r}>"

    async def ensure(self, spec: InstanceSpec) -> Instance:
        async with self._locks[spec.num]:
            return await self._ensure(spec)

    async def replace(self, spec: InstanceSpec) -> Instance:
        async with self._locks[spec.num]:
            wanted = await self.image_id(spec.image) if spec.image else None
            if wanted is None:
                raise ImageMissing(spec.image)
            found = await self._own(spec.num, spec.uuid)
            if found is not None and not (found.instance.image_id == wanted and self._is_as_asked(found, spec)):
                await self._stop(found, STOPPED_WITHIN)
                await self._remove_container(found)
                self._reached("replaced")
            return await self._ensure(spec)

    async def stop(self, num: int, uuid: UUID, within: float = STOPPED_WITHIN) -> None:
        async with self._locks[num]:
            found = await self._look(num)
            if found is None:
                await self._prove_absent(num, uuid, running=True)
            elif found.instance.uuid == uuid:
                await self._stop(found, within)

    async def remove(self, num: int, uuid: UUID) -> None:
        async with self._locks[num]:
            found = await self._look(num)
            if found is not None and found.instance.uuid == uuid:
                await self._stop(found, STOPPED_WITHIN)
                await self._remove_container(found)
            await self._networks.remove(num, uuid)
            await self._papers.forget(num, uuid)
            await self._prove_absent(num, uuid, running=False)

    async def inspect(self, num: int) -> Instance | None:
        found = await self._look(num)
        return found.instance if found else None

    async def listed(self) -> list[Instance]:
        filters = {"name": docker_spec.NAME_PATTERN}
        found = await self._daemon.ask(
            lambda client: [_listed(entry) for entry in client.containers(all=True, filters=filters)]
        )
        return sorted((instance for instance in found if instance is not None), key=lambda instance: instance.num)

    async def tidy(self, keep: Collection[UUID]) -> None:
        for found in await self.listed():
            if not found.running and found.uuid not in keep and found.uuid != NOBODY:
                await self.remove(found.num, found.uuid)
                log.info("stale_instance_cleared", num=found.num)
        there = {found.uuid for found in await self.listed()}
        await self._networks.tidy({*keep, *there})
        await self._papers.tidy({*keep, *there})
        await self._tools.tidy()

    async def stop_all(self, within: float = STOPPED_WITHIN) -> None:
        async with trio.open_nursery() as nursery:
            for found in await self.listed():
                if found.uuid != NOBODY:
                    nursery.start_soon(self.stop, found.num, found.uuid, within)

    async def logs(self, num: int, uuid: UUID, lines: int = 200) -> list[str]:
        found = await self._look(num)
        if found is None or found.instance.uuid != uuid:
            return []
        tail = max(1, min(lines, LOG_LINES_AT_MOST))
        answer = await self._daemon.ask(lambda client: client.logs(found.id, tail=tail))
        return answer.decode(errors="replace").splitlines()

    async def image_id(self, image: str) -> str | None:
        try:
            found = await self._daemon.ask(lambda client: str(client.inspect_image(image)["Id"]))  # type: ignore[no-untyped-call]
        except DaemonRefusal as refusal:
            if refusal.status == 404:
                return None
            raise
        return found

    async def measure(self, directories: Sequence[Path]) -> dict[Path, Usage]:
        return await self._tools.measure(directories)

    async def copy(self, directory: Path, source: str, target: str) -> None:
        await self._tools.copy(directory, source, target)

    def archive(self, directory: Path, part: str) -> AsyncGenerator[bytes, None]:
        return self._tools.archive(directory, part)

    async def erase(self, directory: Path, names: Collection[str] = PARTS) -> None:
        if await trio.Path(directory).is_dir():
            await self._tools.erase(directory, names)

    # ── one container ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _ensure(self, spec: InstanceSpec) -> Instance:
        found = await self._own(spec.num, spec.uuid)
        if found is not None and found.instance.running:
            return found.instance
        await self._give_files(spec)
        is_new = await self._networks.ensure(spec)
        self._reached("network")
        if found is not None and (is_new or not self._is_as_asked(found, spec)):
            await self._remove_container(found)
            found = None
        if found is None:
            found = await self._create(spec)
            self._reached("created")
        await self._start(spec, found)
        self._reached("started")
        found = await self._own(spec.num, spec.uuid)
        if found is None or not found.instance.running:
            raise RuntimeUnavailable(f"slice {spec.slice_id} ended as soon as it was started")
        return found.instance

    async def _give_files(self, spec: InstanceSpec) -> None:
        """The slice's directory is its own user's, and its secrets are where it reads them."""
        uid = docker_spec.user_of(spec.num, self._settings)
        if await owner_of(spec.directory) != uid:
            await self._tools.hand_over(spec.directory, uid)
        await self._papers.write(spec.num, spec.uuid, docker_spec.secrets_of(spec, self._settings))
        self._reached("files")

    def _config(self, spec: InstanceSpec) -> dict[str, Any]:
        return docker_spec.container_of(spec, self._settings, self._papers.secrets(spec.num))

    def _is_as_asked(self, found: _Found, spec: InstanceSpec) -> bool:
        """Whether it was made for what is asked for now; the image is another matter."""
        return bool(found.config == self._config(spec)["Labels"][LABEL_CONFIG])

    async def _create(self, spec: InstanceSpec) -> _Found:
        config, name = self._config(spec), name_of(spec.num)
        try:
            await self._daemon.ask(partial(create_container, config=config, name=name), CREATED_WITHIN)
        except DaemonRefusal as refusal:
            if refusal.status == 404 and spec.image and await self.image_id(spec.image) is None:
                raise ImageMissing(spec.image) from None
            if refusal.status == 400:
                raise Refused("runtime_refused", str(refusal)) from None
            if refusal.status != 409:  # somebody was quicker, perhaps we ourselves: look whose it is
                raise
        found = await self._own(spec.num, spec.uuid)
        if found is None:
            raise RuntimeUnavailable(f"Docker says that {name} is there, and that it is not")
        return found

    async def _start(self, spec: InstanceSpec, found: _Found) -> None:
        order = "unpause" if found.is_paused else "start"
        try:
            await self._daemon.ask(lambda client: getattr(client, order)(found.id), STARTED_WITHIN)
        except DaemonRefusal as refusal:
            if "port is already allocated" in refusal.message or "address already in use" in refusal.message:
                raise PortTaken(spec.host, spec.port) from None
            raise

    async def _stop(self, found: _Found, within: float) -> None:
        seconds = math.ceil(within)
        await self._unless_absent(lambda client: client.stop(found.id, timeout=seconds), within + ENDED_AFTER)
        still = await self._look(found.instance.num)
        if still is not None and still.id == found.id and still.instance.running:
            raise RuntimeUnavailable(f"{name_of(found.instance.num)} does not end")

    async def _remove_container(self, found: _Found) -> None:
        await self._unless_absent(lambda client: client.remove_container(found.id, v=True, force=True), REMOVED_WITHIN)

    async def _unless_absent(self, call: Call[None], within: float) -> None:
        try:
            await self._daemon.ask(call, within)
        except DaemonRefusal as refusal:
            if refusal.status != 404:
                raise

    async def _own(self, num: int, uuid: UUID) -> _Found | None:
        """The slice's container. InstanceConflict: what has its name is not."""
        found = await self._look(num)
        if found is not None and found.instance.uuid != uuid:
            raise InstanceConflict(num)
        return found

    async def _look(self, num: int) -> _Found | None:
        """What has the name, whosever it is."""
        try:
            return await self._daemon.ask(lambda client: _inspected(num, client.inspect_container(name_of(num))))
        except DaemonRefusal as refusal:
            if refusal.status == 404:
                return None
            raise

    async def _prove_absent(self, num: int, uuid: UUID, *, running: bool) -> None:
        """By another question than the one that was answered before."""
        for found in await self.listed():
            if (found.num, found.uuid) == (num, uuid) and (found.running or not running):
                raise RuntimeUnavailable(f"{name_of(num)} is still there")


def _inspected(num: int, answer: dict[str, Any]) -> _Found:
    state, labels = answer["State"], answer["Config"].get("Labels") or {}
    instance = Instance(
        num=num,
        uuid=uuid_in(labels),
        running=bool(state["Running"]) and not state["Restarting"] and not state["Paused"],
        image=labels.get(LABEL_IMAGE, answer["Config"]["Image"]),
        image_id=answer["Image"],
        container=answer["Id"],
    )
    return _Found(instance, labels.get(LABEL_CONFIG), bool(state["Paused"]), answer["Id"])


def _listed(entry: dict[str, Any]) -> Instance | None:
    if not isinstance(entry, dict):
        raise ValueError("no list of containers")
    labels = entry.get("Labels") or {}
    num = next((num for name in entry.get("Names") or () if (num := number_in(name)) is not None), None)
    if num is None:
        return None
    return Instance(
        num=num,
        uuid=uuid_in(labels),
        running=entry["State"] == "running",
        image=labels.get(LABEL_IMAGE, entry["Image"]),
        image_id=entry["ImageID"],
        container=entry["Id"],
    )
