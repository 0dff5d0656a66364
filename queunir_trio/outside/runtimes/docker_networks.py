"""A network for each slice, with nobody else in it. Two can not come to be: the subnet follows from the number."""

from collections.abc import Collection
from typing import Any, Final
from uuid import UUID

import structlog

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes.contract import InstanceConflict, InstanceSpec, RuntimeUnavailable
from queunir_trio.outside.runtimes.docker_client import Daemon, DaemonRefusal
from queunir_trio.outside.runtimes.docker_spec import LABEL_UUID, name_of, network_of, number_in, subnet_of, uuid_in
from queunir_trio.settings import DockerSettings

MADE_WITHIN: Final = 20.0  # seconds

log = structlog.get_logger()


class Networks:
    """The networks named wank-slice-N."""

    def __init__(self, daemon: Daemon, settings: DockerSettings) -> None:
        self._daemon = daemon
        self._settings = settings

    async def ensure(self, spec: InstanceSpec) -> bool:
        """Makes the slice's network if it is missing; whether it was made anew.

        InstanceConflict: one of that name is not the slice's. Refused `conflict`: its subnet is another's.
        """
        found = await self._own(spec.num, spec.uuid)
        if found is not None and self._is_as_asked(found, spec):
            return False
        if found is not None:
            await self._remove(found["Id"])
        try:
            wanted = network_of(spec, self._settings)
            await self._daemon.ask(lambda client: client.create_network(**wanted), MADE_WITHIN)
        except DaemonRefusal as refusal:
            if refusal.status not in (403, 409):
                raise
            found = await self._own(spec.num, spec.uuid)  # perhaps an earlier order of ours was late
            if found is None or not self._is_as_asked(found, spec):
                taken = f"The subnet {subnet_of(spec.num, self._settings)} or its bridge is another network's."
                raise Refused("conflict", f"{taken} Look at it by hand, or change SLICE_SUBNETS.") from None
        return True

    async def remove(self, num: int, uuid: UUID) -> None:
        """Removes the slice's network; anybody else's is left alone."""
        found = await self._look(num)
        if found is not None and uuid_in(found.get("Labels")) == uuid:
            await self._remove(found["Id"])
        for left in await self._listed():
            if number_in(left["Name"]) == num and uuid_in(left.get("Labels")) == uuid:
                raise RuntimeUnavailable(f"the network {name_of(num)} is still there")

    async def tidy(self, keep: Collection[UUID]) -> None:
        """Removes networks of slices outside `keep`."""
        for found in await self._listed():
            num = number_in(found["Name"])
            if num is not None and uuid_in(found.get("Labels")) not in keep:
                await self.remove(num, uuid_in(found.get("Labels")))
                log.info("stale_network_removed", num=num)

    def _is_as_asked(self, found: dict[str, Any], spec: InstanceSpec) -> bool:
        subnets = [config.get("Subnet") for config in (found.get("IPAM") or {}).get("Config") or []]
        return subnets == [str(subnet_of(spec.num, self._settings))]

    async def _own(self, num: int, uuid: UUID) -> dict[str, Any] | None:
        found = await self._look(num)
        if found is not None and uuid_in(found.get("Labels")) != uuid:
            raise InstanceConflict(num)
        return found

    async def _look(self, num: int) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._daemon.ask(lambda client: client.inspect_network(name_of(num)))
        except DaemonRefusal as refusal:
            if refusal.status == 404:
                return None
            raise
        return found

    async def _listed(self) -> list[dict[str, Any]]:
        """The networks that carry a label of ours."""
        filters = {"label": LABEL_UUID}
        return list(await self._daemon.ask(lambda client: client.networks(filters=filters)))

    async def _remove(self, network_id: str) -> None:
        try:
            await self._daemon.ask(lambda client: client.remove_network(network_id), MADE_WITHIN)
        except DaemonRefusal as refusal:
            if refusal.status != 404:
                raise
