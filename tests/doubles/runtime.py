"""A home of slices that exists in memory only, and is slow, dead or a liar when told to be."""

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import trio

from queunir_trio.outside.archives import tar_of
from queunir_trio.outside.runtimes import own_files
from queunir_trio.outside.runtimes.contract import (
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


class MemoryRuntime:
    """Keeps the contract; `slow` seconds, `dead`, `forgets_to_answer` and `taken_ports` spoil it on request."""

    def __init__(self) -> None:
        self.instances: dict[int, Instance] = {}
        self.specs: dict[int, InstanceSpec] = {}
        self.written: dict[int, list[str]] = {}  # what each wrote, line by line
        self.started: list[int] = []  # the numbers that were really started, in order
        self.slow = 0.0
        self.dead = False
        self.forgets_to_answer = 0  # how many orders are carried out and then not confirmed
        self.taken_ports: set[int] = set()
        self._next_pid = 1000

    async def _asked(self) -> None:
        await trio.sleep(self.slow)
        if self.dead:
            raise RuntimeUnavailable("the runtime is dead")

    def _answer(self) -> None:
        if self.forgets_to_answer:
            self.forgets_to_answer -= 1
            raise RuntimeUnavailable("no answer in time")

    async def ensure(self, spec: InstanceSpec) -> Instance:
        await self._asked()
        found = self.instances.get(spec.num)
        if found is not None and found.running:
            if found.uuid != spec.uuid:
                raise InstanceConflict(spec.num)
            return found
        if spec.port in self.taken_ports:
            raise PortTaken(spec.host, spec.port)
        self._next_pid += 1
        self.instances[spec.num] = Instance(spec.num, spec.uuid, True, self._next_pid, 1, spec.image)
        self.specs[spec.num] = spec
        self.started.append(spec.num)
        self._answer()
        return self.instances[spec.num]

    async def replace(self, spec: InstanceSpec) -> Instance:
        await self._asked()
        found = self.instances.get(spec.num)
        if found is not None and found.running and found.uuid != spec.uuid:
            raise InstanceConflict(spec.num)
        if found is not None and found.image != spec.image:
            del self.instances[spec.num]
        return await self.ensure(spec)

    def recognise(self, adopted: Collection[Adopted]) -> None:
        pass

    async def renew(self, spec: InstanceSpec) -> Instance:
        await self.stop(spec.num, spec.uuid)
        return await self.ensure(spec)

    async def settle(self, num: int, uuid: object, *, back: bool = False) -> None:
        await self._asked()

    async def mark(self, directory: Path, uuid: object) -> None:
        raise PermissionError(f"The directory {directory.name} is another user's")

    async def logs(self, num: int, uuid: object, lines: int = 200) -> list[str]:
        await self._asked()
        found = self.instances.get(num)
        return self.written.get(num, [])[-lines:] if found is not None and found.uuid == uuid else []

    async def image_id(self, image: str) -> str | None:
        await self._asked()
        return image

    async def measure(self, directories: Sequence[Path]) -> dict[Path, Usage]:
        await self._asked()
        return await own_files.measure(directories)

    async def copy(self, directory: Path, source: str, target: str) -> None:
        await self._asked()
        await own_files.copy(directory, source, target)

    def archive(self, directory: Path, part: str) -> AsyncGenerator[bytes, None]:
        return tar_of(directory, part)

    async def erase(self, directory: Path, names: Collection[str] = PARTS) -> None:
        await self._asked()
        await own_files.erase(directory, names)

    async def stop(self, num: int, uuid: object, within: float = STOPPED_WITHIN) -> None:
        await self._asked()
        found = self.instances.get(num)
        if found is not None and found.uuid == uuid:
            self.instances[num] = replace(found, running=False, pid=None, started=None)
        self._answer()

    async def remove(self, num: int, uuid: object) -> None:
        await self._asked()
        if num in self.instances and self.instances[num].uuid == uuid:
            del self.instances[num]
        self._answer()

    async def inspect(self, num: int) -> Instance | None:
        await self._asked()
        return self.instances.get(num)

    async def listed(self) -> list[Instance]:
        await self._asked()
        return list(self.instances.values())

    async def tidy(self, keep: Collection[object]) -> None:
        await self._asked()
        gone = {num for num, found in self.instances.items() if not found.running and found.uuid not in keep}
        self.instances = {num: found for num, found in self.instances.items() if num not in gone}

    async def stop_all(self, within: float = STOPPED_WITHIN) -> None:
        for found in list(self.instances.values()):
            await self.stop(found.num, found.uuid, within)

    def die(self, num: int) -> None:
        """As if the process had been killed."""
        self.instances[num] = replace(self.instances[num], running=False, pid=None, started=None)
