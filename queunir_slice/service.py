"""The composition root: everything a slice consists of is made here, once, and ended in the opposite order."""

import asyncio
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from queunir_slice import guard, media
from queunir_slice.bodies import BODY_AT_MOST
from queunir_slice.broadcast import Broadcaster, Greeting
from queunir_slice.chat_routes import ChatRoutes
from queunir_slice.connection import ConnectionRecord
from queunir_slice.contact_routes import ContactRoutes
from queunir_slice.database import Database, DatabaseUnavailable, open_database, persistently
from queunir_slice.logs import Log
from queunir_slice.media_routes import MediaRoutes
from queunir_slice.outbox import Outbox
from queunir_slice.pairing import Pairing
from queunir_slice.receiving import Receiver
from queunir_slice.relay import Relay, code_json
from queunir_slice.sending import Sender
from queunir_slice.settings import Settings
from queunir_slice.simulator import Simulator
from queunir_slice.simulator_routes import SimulatorRoutes
from queunir_slice.status_routes import StatusRoutes
from queunir_slice.storage import Storage, StorageUnavailable
from queunir_slice.supervision import keep_running

KEEP_ALIVE: Final = 120.0  # seconds, longer than the gateway keeps an idle connection
# seconds; together with the database's own limit less than the ten a slice has to stop
DRAIN_WITHIN: Final = 1.5  # for requests that are under way, and once more when they were cancelled
SETTLE_WITHIN: Final = 2.0

log = Log(__name__)


async def serve(settings: Settings) -> None:
    """Runs a slice until SIGTERM or SIGINT; a group with an OSError if its port can not be had."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with open_database(settings.database_url) as database:
        await _Slice(settings, database).run(stopped)


class _Slice:
    """The parts and how they hang together."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._engine = Simulator(settings.simulator_seed, settings.simulator_speed)
        self._broadcaster = Broadcaster()
        self._record = ConnectionRecord(database)
        self._outbox = Outbox(database, self._engine, self._broadcaster)
        self._storage = Storage(settings.media_dir, settings.media_quota)
        self._pairing = Pairing(settings.session_dir)
        receiver = Receiver(database, self._broadcaster, self._storage)
        self._relay = Relay(receiver, self._broadcaster, self._record, self._pairing, self._outbox)

    async def run(self, stopped: asyncio.Event) -> None:
        """Serves until `stopped`. Then the doors close, the engine ends, and what it had reported is stored."""
        await self._storage.open()
        async with asyncio.TaskGroup() as tasks:
            engine = tasks.create_task(keep_running("engine", self._run_engine))
            others = [
                tasks.create_task(keep_running("record", self._record.run)),
                tasks.create_task(keep_running("relay", self._relay.run)),
                tasks.create_task(keep_running("outbox", self._outbox.run)),
                tasks.create_task(self._sweep()),
            ]
            async with _listening(self._app(), self._broadcaster, self._settings):
                log.info("slice_started", slice_id=self._settings.slice_id, port=self._settings.port)
                await stopped.wait()
            engine.cancel()
            await self._settle()
            for task in others:
                task.cancel()
        log.info("slice_stopped", slice_id=self._settings.slice_id)

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(SETTLE_WITHIN):
                await self._relay.drained()
                await self._record.settled()
        except (TimeoutError, DatabaseUnavailable):
            log.warning("stopped_without_storing_everything", slice_id=self._settings.slice_id)

    async def _run_engine(self) -> None:
        remembered = self._pairing.recall(await self._record.load())
        await self._engine.run(remembered, self._relay.hear)

    async def _sweep(self) -> None:
        """Once: files that an earlier process stored and could not write down."""
        known = await persistently(self._places)
        try:
            if strays := await self._storage.sweep(known):
                log.info("stray_media_removed", files=strays)
        except StorageUnavailable:
            pass  # they are looked for again at the next start

    async def _places(self) -> Collection[str]:
        async with self._database.connection() as queries:
            return await media.places(queries)

    def _app(self) -> web.Application:
        app = web.Application(
            middlewares=[guard.explain_problems, guard.key_keeper(self._settings.key)],
            client_max_size=BODY_AT_MOST,
        )
        sender = Sender(self._database, self._engine, self._outbox)
        StatusRoutes(self._settings.slice_id, self._engine, self._record, self._broadcaster, self._storage).add_to(
            app.router
        )
        ChatRoutes(self._database, sender, self._broadcaster).add_to(app.router)
        ContactRoutes(self._database, self._broadcaster).add_to(app.router)
        MediaRoutes(self._database, self._storage).add_to(app.router)
        if not self._settings.production:
            SimulatorRoutes(self._engine).add_to(app.router)
        self._broadcaster.attach(app, self._greet)
        app.on_response_prepare.append(_stay_nameless)
        return app

    def _greet(self) -> Greeting | None:
        """A client that comes while a code is on show hears it at once; one that finds it idle wakes it."""
        self._engine.ask_for_code()
        code = self._engine.standing.code
        return None if code is None or self._engine.frozen else ("wa:qr", code_json(code))


async def _stay_nameless(_request: web.Request, response: web.StreamResponse) -> None:
    """What answers and in which version is nobody's business."""
    response.headers.pop("Server", None)


@asynccontextmanager
async def _listening(app: web.Application, broadcaster: Broadcaster, settings: Settings) -> AsyncIterator[None]:
    runner = web.AppRunner(
        app, access_log=None, handle_signals=False, keepalive_timeout=KEEP_ALIVE, shutdown_timeout=DRAIN_WITHIN
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port, reuse_address=True).start()
        yield
    finally:
        await broadcaster.close()
        await runner.cleanup()
