"""The containers of slices, one by one: found by name, proven by label, started, ended and removed.

Of an adopted slice that was told of, an unmarked container is proven by all that `docker_adopted` asks of it. What is
proven by neither is somebody else's.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from uuid import UUID

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes import docker_spec
from queunir_trio.outside.runtimes.contract import (
    Adopted,
    ImageMissing,
    Instance,
    InstanceConflict,
    InstanceSpec,
    PortTaken,
    RuntimeUnavailable,
)
from queunir_trio.outside.runtimes.docker_adopted import has_label, is_of
from queunir_trio.outside.runtimes.docker_client import Api, Call, Daemon, DaemonRefusal, create_container, inspected
from queunir_trio.outside.runtimes.docker_spec import LABEL_CONFIG, LABEL_IMAGE, name_of, number_in, uuid_in
from queunir_trio.settings import DockerSettings

CREATED_WITHIN: Final = 30.0  # seconds
STARTED_WITHIN: Final = 30.0  # seconds
ENDED_AFTER: Final = 10.0  # seconds that SIGKILL and the daemon's own work may take
REMOVED_WITHIN: Final = 30.0  # seconds
NOBODY: Final = UUID(int=0)
NAMELESS: Final = re.compile("[0-9a-f]{64}")  # what Docker calls a volume that nobody gave a name


@dataclass(frozen=True, slots=True)
class Found:
    """A container as the daemon describes it."""

    instance: Instance
    config: str | None  # the digest of what it was made for
    is_paused: bool
    id: str
    answer: dict[str, Any] = field(repr=False)  # all that the daemon said, secrets among it


def _nameless_volumes(answer: dict[str, Any]) -> list[str]:
    shown = [found.get("Name") or "" for found in answer.get("Mounts") or [] if found.get("Type") == "volume"]
    return [name for name in shown if NAMELESS.fullmatch(name)]


def kept_name(num: int) -> str:
    """What the older container of a slice is called while a new one is tried."""
    return f"{name_of(num)}-before"


class Containers:
    """The containers named wank-slice-N, and those that are kept beside them."""

    def __init__(self, daemon: Daemon, settings: DockerSettings) -> None:
        self._daemon = daemon
        self._settings = settings
        self._adopted: dict[int, Adopted] = {}
        self._judged: dict[tuple[str, Adopted], bool] = {}  # of unmarked ones, by id: what they are shown never changes

    def __repr__(self) -> str:
        return f"<Containers on {self._daemon!r}, {len(self._adopted)} adopted>"

    def recognise(self, adopted: Collection[Adopted]) -> None:
        """As Runtime.recognise has it."""
        self._adopted |= {told.num: told for told in adopted}

    def names(self, num: int) -> list[str]:
        """What a container of slice N may be called, its own name last: only an adopted one is ever kept."""
        return [*([kept_name(num)] if num in self._adopted else []), name_of(num)]

    async def listed(self) -> list[Instance]:
        """As Runtime.listed has it."""
        found = await self._daemon.ask(self._list)
        return sorted(found, key=lambda instance: instance.num)

    async def own(self, num: int, uuid: UUID, name: str | None = None) -> Found | None:
        """The slice's container. InstanceConflict: what has its name is not."""
        found = await self.look(num, name)
        if found is not None and found.instance.uuid != uuid:
            raise InstanceConflict(num)
        return found

    async def look(self, num: int, name: str | None = None) -> Found | None:
        """What has the name, whosever it is: slice N's own name, if nothing is said."""
        try:
            return await self._daemon.ask(
                lambda client: self._found(num, client.inspect_container(name or name_of(num)))
            )
        except DaemonRefusal as refusal:
            if refusal.status == 404:
                return None
            raise

    async def create(self, spec: InstanceSpec, config: dict[str, Any]) -> Found:
        """The container under the slice's own name. ImageMissing, Refused `runtime_refused`, InstanceConflict."""
        name = name_of(spec.num)
        try:
            await self._daemon.ask(partial(create_container, config=config, name=name), CREATED_WITHIN)
        except DaemonRefusal as refusal:
            if refusal.status == 404 and spec.image and await self._is_missing(spec.image):
                raise ImageMissing(spec.image) from None
            if refusal.status == 400:
                raise Refused("runtime_refused", str(refusal)) from None
            if refusal.status != 409:  # somebody was quicker, perhaps we ourselves: look whose it is
                raise
        found = await self.own(spec.num, spec.uuid)
        if found is None:
            raise RuntimeUnavailable(f"Docker says that {name} is there, and that it is not")
        return found

    async def start(self, found: Found, host: str, port: int) -> None:
        """PortTaken: something else listens there."""
        order = "unpause" if found.is_paused else "start"
        try:
            await self._daemon.ask(lambda client: getattr(client, order)(found.id), STARTED_WITHIN)
        except DaemonRefusal as refusal:
            if "port is already allocated" in refusal.message or "address already in use" in refusal.message:
                raise PortTaken(host, port) from None
            raise

    async def stop(self, found: Found, within: float) -> None:
        """Returns when it runs no more."""
        seconds = math.ceil(within)
        await self._unless_absent(lambda client: client.stop(found.id, timeout=seconds), within + ENDED_AFTER)
        still = await self.look(found.instance.num, found.id)
        if still is not None and still.instance.running:
            raise RuntimeUnavailable(f"{name_of(found.instance.num)} does not end")

    async def remove(self, found: Found, *, volumes: bool = True) -> None:
        """With the volumes that nobody gave a name, unless another container was given them."""
        await self._unless_absent(
            lambda client: client.remove_container(found.id, v=volumes, force=True), REMOVED_WITHIN
        )
        for name in _nameless_volumes(found.answer) if volumes else ():
            await self._remove_volume(name)

    async def rename(self, found: Found, name: str) -> None:
        """Gives it another name, that nobody has."""
        await self._daemon.ask(lambda client: client.rename(found.id, name))

    async def _remove_volume(self, name: str) -> None:
        """One that was handed on from container to container goes with the last of them."""
        try:
            await self._daemon.ask(lambda client: client.remove_volume(name))
        except DaemonRefusal as refusal:
            if refusal.status not in (404, 409):
                raise

    async def _unless_absent(self, call: Call[None], within: float) -> None:
        try:
            await self._daemon.ask(call, within)
        except DaemonRefusal as refusal:
            if refusal.status != 404:
                raise

    async def _is_missing(self, image: str) -> bool:
        try:
            await self._daemon.ask(lambda client: client.inspect_image(image))  # type: ignore[no-untyped-call]
        except DaemonRefusal as refusal:
            if refusal.status == 404:
                return True
            raise
        return False

    # ── whose it is ───────────────────────────────────────────────────────────────────────────────────────────────

    def _found(self, num: int, answer: dict[str, Any]) -> Found:
        """In a thread, as all that looks at an answer."""
        state, labels = answer["State"], answer["Config"].get("Labels") or {}
        adopted = self._adopted.get(num)
        is_adopted = adopted is not None and is_of(answer, adopted, self._settings)
        instance = Instance(
            num=num,
            uuid=adopted.uuid if adopted is not None and is_adopted else uuid_in(labels),
            running=bool(state["Running"]) and not state["Restarting"] and not state["Paused"],
            image=labels.get(LABEL_IMAGE, answer["Config"]["Image"]),
            image_id=answer["Image"],
            container=answer["Id"],
            unmarked=is_adopted,
        )
        return Found(instance, labels.get(LABEL_CONFIG), bool(state["Paused"]), answer["Id"], answer)

    def _list(self, client: Api) -> list[Instance]:
        """In a thread. What an unmarked container is shown is asked once."""
        entries = client.containers(all=True, filters={"name": docker_spec.NAME_PATTERN})
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("no list of containers")
        found = [instance for entry in entries if (instance := self._listed(client, entry)) is not None]
        there = {instance.container for instance in found}
        self._judged = {key: verdict for key, verdict in self._judged.items() if key[0] in there}
        return found

    def _listed(self, client: Api, entry: dict[str, Any]) -> Instance | None:
        labels = entry.get("Labels") or {}
        num = next((num for name in entry.get("Names") or () if (num := number_in(name)) is not None), None)
        if num is None:
            return None
        adopted = self._adopted.get(num)
        is_adopted = adopted is not None and not has_label(labels) and self._is_of(client, entry["Id"], adopted)
        return Instance(
            num=num,
            uuid=adopted.uuid if adopted is not None and is_adopted else uuid_in(labels),
            running=entry["State"] == "running",
            image=labels.get(LABEL_IMAGE, entry["Image"]),
            image_id=entry["ImageID"],
            container=entry["Id"],
            unmarked=is_adopted,
        )

    def _is_of(self, client: Api, container: str, adopted: Adopted) -> bool:
        key = container, adopted
        if key not in self._judged:
            answer = inspected(client, container)
            if answer is None:
                return False
            self._judged = {**self._judged, key: is_of(answer, adopted, self._settings)}
        return self._judged[key]
