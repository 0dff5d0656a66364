"""Slices as containers of a Docker daemon.

A container or network is found by its name and proven by its label; one that does not carry the slice's uuid is never
touched. Whatever a call that was given up may have done, the next attempt sees by looking, and goes on from there:
names and subnets are fixed by the slice's number, so there can never be two.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
import trio

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes import docker_adopted, docker_spec
from queunir_trio.outside.runtimes.contract import (
    LOG_LINES_AT_MOST,
    PARTS,
    STOPPED_WITHIN,
    Adopted,
    ImageMissing,
    Instance,
    InstanceConflict,
    InstanceSpec,
    RuntimeUnavailable,
    Usage,
)
from queunir_trio.outside.runtimes.docker_client import Daemon, DaemonRefusal
from queunir_trio.outside.runtimes.docker_containers import NOBODY, Containers, Found, kept_name
from queunir_trio.outside.runtimes.docker_networks import Networks
from queunir_trio.outside.runtimes.docker_papers import Papers, owner_of
from queunir_trio.outside.runtimes.docker_spec import LABEL_CONFIG, name_of
from queunir_trio.outside.runtimes.docker_tools import Tools
from queunir_trio.settings import DockerSettings

log = structlog.get_logger()


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
        self._containers = Containers(daemon, self._settings)
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
            found = await self._containers.own(spec.num, spec.uuid)
            if found is not None and found.instance.unmarked:
                raise Refused("conflict", f"{name_of(spec.num)} is an older gateway's and was not made anew yet.")
            if found is not None and not (found.instance.image_id == wanted and self._is_as_asked(found, spec)):
                await self._containers.stop(found, STOPPED_WITHIN)
                await self._containers.remove(found)
                self._reached("replaced")
            return await self._ensure(spec)

    def recognise(self, adopted: Collection[Adopted]) -> None:
        self._containers.recognise(adopted)

    async def renew(self, spec: InstanceSpec) -> Instance:
        async with self._locks[spec.num]:
            return await self._renew(spec)

    async def settle(self, num: int, uuid: UUID, *, back: bool = False) -> None:
        async with self._locks[num]:
            kept = await self._containers.own(num, uuid, kept_name(num))
            if kept is not None and back:
                await self._put_back(kept, uuid)
            elif kept is not None:
                found = await self._containers.own(num, uuid)
                if found is None or not found.instance.running:
                    raise RuntimeUnavailable(f"{name_of(num)} does not run: the one of before is still needed")
                await self._containers.remove(kept, volumes=False)
            self._reached("settled")

    async def mark(self, directory: Path, uuid: UUID) -> None:
        await self._tools.mark(directory, uuid)

    async def stop(self, num: int, uuid: UUID, within: float = STOPPED_WITHIN) -> None:
        async with self._locks[num]:
            for name in self._containers.names(num):
                found = await self._containers.look(num, name)
                if found is not None and found.instance.uuid == uuid:
                    await self._containers.stop(found, within)
            if found is None:
                await self._prove_absent(num, uuid, running=True)

    async def remove(self, num: int, uuid: UUID) -> None:
        async with self._locks[num]:
            for name in self._containers.names(num):
                found = await self._containers.look(num, name)
                if found is not None and found.instance.uuid == uuid:
                    await self._containers.stop(found, STOPPED_WITHIN)
                    await self._containers.remove(found)
            await self._networks.remove(num, uuid)
            await self._papers.forget(num, uuid)
            await self._prove_absent(num, uuid, running=False)

    async def inspect(self, num: int) -> Instance | None:
        found = await self._containers.look(num)
        return found.instance if found else None

    async def listed(self) -> list[Instance]:
        return await self._containers.listed()

    async def tidy(self, keep: Collection[UUID]) -> None:
        for found in await self.listed():
            if not found.running and found.uuid not in keep and found.uuid != NOBODY and not found.unmarked:
                await self.remove(found.num, found.uuid)
                log.info("stale_instance_cleared", num=found.num)
        there = {found.uuid for found in await self.listed()}
        await self._networks.tidy({*keep, *there})
        await self._papers.tidy({*keep, *there})
        await self._tools.tidy()

    async def stop_all(self, within: float = STOPPED_WITHIN) -> None:
        async with trio.open_nursery() as nursery:
            for found in await self.listed():
                if found.uuid != NOBODY and not found.unmarked:
                    nursery.start_soon(self.stop, found.num, found.uuid, within)

    async def logs(self, num: int, uuid: UUID, lines: int = 200) -> list[str]:
        found = await self._containers.look(num)
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
        containers = self._containers
        found = await containers.own(spec.num, spec.uuid)
        if found is not None and found.instance.running:
            return found.instance
        if spec.adopted:
            found = await self._without_renewal(spec, found)
        if found is None or not found.instance.unmarked:
            found = await self._ready(spec, found)
        return await self._started(spec, found)

    async def _ready(self, spec: InstanceSpec, found: Found | None) -> Found:
        """A container that is as asked for, with its files and its network; `found` is what there is of it."""
        await self._give_files(spec)
        is_new = await self._networks.ensure(spec)
        self._reached("network")
        if found is not None and not is_new and self._is_as_asked(found, spec):
            return found
        config = self._config(spec, found)
        if found is not None:
            await self._containers.remove(found, volumes=not spec.adopted)
        found = await self._containers.create(spec, config)
        self._reached("created")
        return found

    async def _started(self, spec: InstanceSpec, found: Found) -> Instance:
        if not found.instance.running:
            await self._containers.start(found, spec.host, spec.port)
            self._reached("started")
        again = await self._containers.own(spec.num, spec.uuid)
        if again is None or not again.instance.running:
            raise RuntimeUnavailable(f"slice {spec.slice_id} ended as soon as it was started")
        return again.instance

    async def _give_files(self, spec: InstanceSpec) -> None:
        """The slice's directory is its own user's, and its secrets are where it reads them.

        An older image has its own mind about users and reads no files: its directory must be there, and is left alone.
        """
        uid = docker_spec.user_of(spec.num, self._settings)
        if await owner_of(spec.directory) != uid and not spec.adopted:
            await self._tools.hand_over(spec.directory, uid)
        if not spec.adopted:
            await self._papers.write(spec.num, spec.uuid, docker_spec.secrets_of(spec, self._settings))
        self._reached("files")

    def _config(self, spec: InstanceSpec, found: Found | None) -> dict[str, Any]:
        if not spec.adopted:
            return docker_spec.container_of(spec, self._settings, self._papers.secrets(spec.num))
        if found is None and spec.image is None:
            raise Refused("no_container", f"{name_of(spec.num)} is gone, and what it was made from is not known.")
        return docker_adopted.container_of(spec, self._settings, found.answer if found is not None else None)

    def _is_as_asked(self, found: Found, spec: InstanceSpec, source: Found | None = None) -> bool:
        """Whether it was made for what is asked for now; the image is another matter."""
        return bool(found.config == self._config(spec, source or found)["Labels"][LABEL_CONFIG])

    # ── making an adopted one anew ────────────────────────────────────────────────────────────────────────────────

    async def _renew(self, spec: InstanceSpec) -> Instance:
        """What is found was left by this very deed: the older one in place or put aside, the new one made or not."""
        containers = self._containers
        kept = await containers.own(spec.num, spec.uuid, kept_name(spec.num))
        found = await containers.own(spec.num, spec.uuid)
        if kept is None and (found is None or (not found.instance.unmarked and self._is_as_asked(found, spec))):
            return await self._started(spec, await self._ready(spec, found))
        if kept is not None and found is not None and found.instance.unmarked:
            raise InstanceConflict(spec.num)  # two older ones: somebody else put one of them there
        await self._give_files(spec)
        is_new = await self._networks.ensure(spec)
        self._reached("network")
        if kept is None:
            kept, found = await self._put_aside(spec, found), None
        if found is not None and (is_new or not self._is_as_asked(found, spec, kept)):
            await containers.remove(found, volumes=False)
            found = None
        if found is None:
            found = await containers.create(spec, self._config(spec, kept))
            self._reached("created")
        return await self._started(spec, found)

    async def _put_aside(self, spec: InstanceSpec, found: Found | None) -> Found:
        assert found is not None, "there is one of the two"
        self._config(spec, found)  # what can be refused is refused while it still runs
        if await self.image_id(spec.image or "") is None:
            raise ImageMissing(spec.image)
        await self._containers.stop(found, STOPPED_WITHIN)
        self._reached("stopped")
        await self._containers.rename(found, kept_name(spec.num))
        self._reached("aside")
        return found

    async def _without_renewal(self, spec: InstanceSpec, found: Found | None) -> Found | None:
        """What there is once a renewal that was given up half-way is undone; of two that rest the older one stays."""
        kept = await self._containers.own(spec.num, spec.uuid, kept_name(spec.num))
        return found if kept is None else await self._to_its_name(kept, spec.uuid)

    async def _put_back(self, kept: Found, uuid: UUID) -> None:
        found = await self._to_its_name(kept, uuid)
        await self._containers.start(found, *docker_adopted.published(kept.answer))
        self._reached("back")

    async def _to_its_name(self, kept: Found, uuid: UUID) -> Found:
        num = kept.instance.num
        found = await self._containers.own(num, uuid)
        if found is not None and found.instance.unmarked:
            raise InstanceConflict(num)
        if found is not None:
            await self._containers.stop(found, STOPPED_WITHIN)
            await self._containers.remove(found, volumes=False)
            self._reached("taken away")
        await self._containers.rename(kept, name_of(num))
        self._reached("returned")
        return kept

    async def _prove_absent(self, num: int, uuid: UUID, *, running: bool) -> None:
        """By another question than the one that was answered before."""
        for found in await self.listed():
            if (found.num, found.uuid) == (num, uuid) and (found.running or not running):
                raise RuntimeUnavailable(f"{name_of(num)} is still there")
