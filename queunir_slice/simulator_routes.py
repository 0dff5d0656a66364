"""Steering the simulator by HTTP, in development only: what the phone, the network and other people do."""

from typing import Final

from aiohttp import web

from queunir_slice.addresses import wa_id_from
from queunir_slice.answers import answer
from queunir_slice.bodies import Fields, read_object, read_optional_object
from queunir_slice.chat_routes import BODY_AT_MOST
from queunir_slice.relay import code_json
from queunir_slice.simulator import Simulator
from queunir_slice.simulator_phone import attachment

FLOOD_AT_MOST: Final = 1_000_000  # messages
PER_SECOND_AT_MOST: Final = 100_000
REASON_AT_MOST: Final = 100  # characters
MEDIA_AT_MOST: Final = 2**30  # bytes


class SimulatorRoutes:
    """Each answers with how the simulator stands after it."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        router.add_get("/api/simulator", self.show)
        for deed in (
            self.scan,
            self.message,
            self.flood,
            self.disconnect,
            self.logout,
            self.ban,
            self.freeze,
            self.thaw,
        ):
            router.add_post(f"/api/simulator/{deed.__name__}", deed)

    async def show(self, _request: web.Request) -> web.Response:
        """How the simulator stands."""
        return self._shown()

    async def scan(self, _request: web.Request) -> web.Response:
        """A phone scans the code on show."""
        await self._simulator.scan()
        return self._shown()

    async def message(self, request: web.Request) -> web.Response:
        """Somebody writes `body`; `from` is a telephone number or an id. With `media_bytes` a file comes along."""
        fields = Fields(await read_object(request), ("from", "body", "media_bytes", "media_type"))
        sender = wa_id_from(fields.text("from", 100, required=True) or "")
        body = fields.text("body", BODY_AT_MOST, required=True, lines=True)
        if sender is None:
            fields.fault("from", "Must be a telephone number or an id such as 34600111222@c.us.")
        size = fields.whole("media_bytes", 0, MEDIA_AT_MOST)
        mime_type = fields.text("media_type", 100) or "image/jpeg"
        fields.check()
        came_along = attachment(mime_type, size) if size is not None else None
        self._simulator.receive(sender or "", body or "", came_along)
        return self._shown(202)

    async def flood(self, request: web.Request) -> web.Response:
        """`count` messages arrive, `per_second` of them each second."""
        fields = Fields(await read_object(request), ("count", "per_second"))
        count = fields.whole("count", 1, FLOOD_AT_MOST)
        per_second = fields.number("per_second", 0.01, PER_SECOND_AT_MOST, 10.0)
        if count is None:
            fields.fault("count", "Is missing.")
        fields.check()
        self._simulator.flood(count or 0, per_second)
        return self._shown(202)

    async def disconnect(self, request: web.Request) -> web.Response:
        """The network goes and comes back; after the reason `auth_failure` it does not."""
        fields = Fields(await read_optional_object(request), ("reason",))
        reason = fields.text("reason", REASON_AT_MOST) or "network"
        fields.check()
        await self._simulator.disconnect(reason)
        return self._shown()

    async def logout(self, _request: web.Request) -> web.Response:
        """The owner logs the CRM out on the phone."""
        await self._simulator.log_out_on_phone()
        return self._shown()

    async def ban(self, _request: web.Request) -> web.Response:
        """WhatsApp blocks the number."""
        await self._simulator.ban()
        return self._shown()

    async def freeze(self, _request: web.Request) -> web.Response:
        """Connected but dead, from now on."""
        self._simulator.freeze()
        return self._shown()

    async def thaw(self, _request: web.Request) -> web.Response:
        """Alive again."""
        self._simulator.thaw()
        return self._shown()

    def _shown(self, status: int = 200) -> web.Response:
        simulator, standing = self._simulator, self._simulator.standing
        return answer(
            {
                "state": standing.state.value,
                "reason": standing.reason,
                "phoneNumber": standing.phone_number,
                "qr": None if standing.code is None else code_json(standing.code),
                "frozen": simulator.frozen,
                "waiting": len(simulator.agenda),
                "seed": simulator.seed,
                "speed": simulator.speed,
            },
            status,
        )
