"""Health, how WhatsApp stands, logging out and stopping."""

import time

from aiohttp import web

from queunir_slice.answers import answer
from queunir_slice.broadcast import Broadcaster
from queunir_slice.connection import ConnectionRecord
from queunir_slice.engine import Engine
from queunir_slice.guard import HEALTH
from queunir_slice.relay import code_json
from queunir_slice.storage import Storage


class StatusRoutes:
    """The part of the contract that the gateway itself lives on."""

    def __init__(
        self, slice_id: str, engine: Engine, record: ConnectionRecord, broadcaster: Broadcaster, storage: Storage
    ) -> None:
        self._slice_id = slice_id
        self._engine = engine
        self._record = record
        self._broadcaster = broadcaster
        self._storage = storage
        self._began = time.monotonic()

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Adds the routes."""
        router.add_get(HEALTH, self.health)
        router.add_get("/api/status", self.status)
        router.add_get("/api/status/state", self.state)
        router.add_post("/api/status/logout", self.log_out)
        router.add_post("/api/status/destroy", self.destroy)

    async def health(self, _request: web.Request) -> web.Response:
        """That this process runs, and which slice it is; the database is not asked."""
        return answer({"status": "ok", "slice": self._slice_id, "uptime": self._uptime()})

    async def status(self, _request: web.Request) -> web.Response:
        """How WhatsApp stands, in short, and how full the media are."""
        standing = self._engine.standing
        return answer(
            {
                "state": standing.state.value,
                "phoneNumber": standing.phone_number,
                "uptime": self._uptime(),
                "media_bytes": self._storage.used,
                "media_quota_bytes": self._storage.quota,
            }
        )

    async def state(self, request: web.Request) -> web.Response:
        """How WhatsApp stands, with the code on show. Where a person looks, an idle session shows a code again.

        A monitor that only looks by the way names no user, and starts nothing.
        """
        standing = self._engine.standing
        if "X-User-Id" in request.headers or self._broadcaster.clients:
            self._engine.ask_for_code()
        code = None if standing.code is None else code_json(standing.code)
        return answer({"state": standing.state.value, "phoneNumber": standing.phone_number, "qr": code})

    async def log_out(self, request: web.Request) -> web.Response:
        """Ends the pairing, and answers when that is written down."""
        await self._engine.log_out()
        await self._record.settled()
        return await self.status(request)

    async def destroy(self, request: web.Request) -> web.Response:
        """Stops the session; the pairing stays and serves the next process."""
        await self._engine.destroy()
        await self._record.settled()
        return await self.status(request)

    def _uptime(self) -> float:
        return round(time.monotonic() - self._began, 3)  # seconds
