"""The composition root: resources outermost, then what goes on by itself, then the doors. Nothing else constructs.

The doors open last and close first, so that every request meets a complete world. Drain is an event and cancelling is
a scope: the event stops the sources, and when they have run dry the scopes end what is left, each within its limit.
"""

import errno
import gc
import socket
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio

from queunir_trio import __version__
from queunir_trio.errors import Lost, Misconfigured, Refused
from queunir_trio.front.gate import Gate
from queunir_trio.front.listener import Listener, listen
from queunir_trio.front.state import Front
from queunir_trio.front.streams import Streams
from queunir_trio.live.activity import Activity
from queunir_trio.live.alarms import Alarms
from queunir_trio.live.changes import Changes
from queunir_trio.live.connectors import Connectors
from queunir_trio.live.guesses import Guesses
from queunir_trio.live.hub import Hub
from queunir_trio.live.jobs import JobNews, Jobs
from queunir_trio.live.leader import Leader
from queunir_trio.live.leavers import look_after_leavers
from queunir_trio.live.metrics import Lag, Metrics
from queunir_trio.live.outbox import Outbox, letter_deliveries
from queunir_trio.live.progress import Progress, Queue
from queunir_trio.live.pruning import prune_hourly
from queunir_trio.live.reconciler import Reconciler
from queunir_trio.live.rollouts import Rollouts
from queunir_trio.live.routes import Routes
from queunir_trio.live.slice_limits import keep_slice_limits
from queunir_trio.live.slice_news import SliceNews
from queunir_trio.live.starts import Starts
from queunir_trio.live.storage import measure_storage
from queunir_trio.live.supervision import Backoff, keep_running
from queunir_trio.live.throttle import Throttles
from queunir_trio.model.routing import SliceAddress, address_of
from queunir_trio.model.slices import Status
from queunir_trio.operations.exporting import EXPORT, Exporting
from queunir_trio.operations.orders import DESTROY, PROVISION, Orders
from queunir_trio.operations.reapplying import lock_out, remove
from queunir_trio.operations.removal import Ways
from queunir_trio.operations.steps import Resources
from queunir_trio.operations.wipe_orders import WIPE
from queunir_trio.operations.wiping import Wiping
from queunir_trio.outside.mail import Post, open_post
from queunir_trio.outside.notify import Systemd
from queunir_trio.outside.passwords import Hasher
from queunir_trio.outside.readiness import Readiness
from queunir_trio.outside.runtimes.choice import open_runtime
from queunir_trio.outside.runtimes.contract import Runtime
from queunir_trio.outside.signals import stop_on_signals
from queunir_trio.outside.slice_control import SliceControl, open_slice_control
from queunir_trio.outside.upstream import Upstream, Upstreams
from queunir_trio.settings import Settings
from queunir_trio.store import rollouts, sessions, slices, steps
from queunir_trio.store.bridge import Database, DatabaseUnavailable, asyncio_loop, open_database
from queunir_trio.store.migrations import migrate
from queunir_trio.store.notifications import Change
from queunir_trio.web.app import make_app
from queunir_trio.web.door import AppDoor
from queunir_trio.web.world import ConnectorCounts, World

MIGRATED_WITHIN: Final = 120.0  # seconds, for a database that starts beside us too
REAPPLIED_WITHIN: Final = 120.0  # seconds for removing again what a restore brought back
READY_WITHIN: Final = 30.0  # seconds for each task of the tree to be ready
STREAMS_CLOSED_WITHIN: Final = 1.0  # seconds
APP_ENDS_WITHIN: Final = 3.0  # seconds
SLICES_ENDED_WITHIN: Final = 15.0  # seconds
EXPORTS_AT_ONCE: Final = 3  # they are long, and must not keep other jobs waiting

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Running:
    """A service whose doors are open."""

    port: int
    db: Database


async def run_service(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Misconfigured, Lost and OSError where it can not begin."""
    async with stop_on_signals() as stop:
        await run(settings, stop)


async def run(
    settings: Settings,
    stop: trio.Event,
    ends_slices: bool = False,
    *,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until `stop` is set, then drains. Started when the doors are open.

    `ends_slices`: slices end with the service, as in a demonstration; otherwise they run on and are found again.
    """
    async with asyncio_loop(), open_runtime(settings, must_work=ends_slices) as runtime:
        if not await _migrate(settings, stop):
            return
        async with (
            open_database(settings.database) as db,
            open_slice_control() as control,
            open_post(settings.mail) as post,
        ):
            service = Service(settings, db, control, runtime, post)
            try:
                await service.run(stop, task_status)
            finally:
                if ends_slices:
                    with trio.move_on_after(SLICES_ENDED_WITHIN, shield=True):
                        await runtime.stop_all()
    log.info("service_ended")


async def _listen(settings: Settings) -> list[socket.socket]:
    try:
        return await listen(settings.host, settings.port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        sentence = f"Port {settings.port} on {settings.host} can not be had ({error.strerror}): "
        raise Misconfigured(
            [sentence + "end the program that holds it, or choose another by PORT or --port."]
        ) from None


def _settle_collector() -> None:
    """What was made by now stays: the collector need not walk through it again, and may walk less often.

    Python's own thresholds are those of short programs; at them a tenth of a busy front's time goes to collections.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def _migrate(settings: Settings, stop: trio.Event) -> bool:
    """Brings the database up to date; one that is not there yet is waited for. False: we were stopped meanwhile."""
    reason = "PostgreSQL did not answer: check DB_HOST and DB_PORT, and that it runs."
    with trio.move_on_after(MIGRATED_WITHIN):
        while True:
            try:
                applied = await migrate(settings.database)
            except DatabaseUnavailable as unavailable:
                if reason != str(unavailable):
                    reason = str(unavailable)
                    log.warning("database_awaited", reason=reason)
                with trio.move_on_after(1):
                    await stop.wait()
                    return False
                continue
            if applied:
                log.info("migrated", versions=applied)
            return True
    raise Lost(reason)


class Service:
    """Everything that lives while the service runs, made in the order in which its parts depend on each other."""

    def __init__(
        self, settings: Settings, db: Database, control: SliceControl, runtime: Runtime, post: Post | None
    ) -> None:
        self.settings = settings
        self._db = db
        self._began = trio.current_time()
        where, slice_settings = settings.database, settings.slices
        self.routes = Routes(db, slice_settings.secret, slice_settings.base_port)
        self.changes = Changes(where, self.routes)
        self.activity = Activity(partial(slices.record_states, db))
        self.hub = Hub(self.activity.learn)
        self.connectors = Connectors(self.hub, self._find_address, control)
        self.streams = Streams(self.hub, self.routes, partial(sessions.valid, db), per_user=settings.streams_per_user)
        self.progress = Progress(self.hub, self._queue)
        self.readiness = Readiness()
        self.lag = Lag()
        self.systemd = Systemd()
        self.alarms = Alarms(db)
        self.guesses = Guesses(self.alarms.unknown_tokens)
        self.starts = Starts(db)
        self.resources = resources = Resources(
            db, where, runtime, control, slice_settings, settings.data_dir, settings.production, epoch=0
        )
        self.reconciler = Reconciler(resources, billing_enabled=settings.billing.enabled)
        self.outbox = Outbox(db, letter_deliveries(post) if post is not None else {})
        self.slice_news = SliceNews()
        orders = Orders(resources, self.slice_news.expect)
        self.rollouts = Rollouts(resources, self.reconciler.released)
        self.ways = Ways(letters=post is not None)
        wiping = Wiping(resources, self.ways)
        self.jobs = Jobs(
            db,
            {
                WIPE: wiping.work,
                EXPORT: Exporting(resources, settings.app_url).work,
                PROVISION: orders.provision,
                DESTROY: orders.destroy,
                rollouts.KIND: self.rollouts.work,
            },
            at_once={EXPORT: EXPORTS_AT_ONCE},
        )
        self.job_news = JobNews(db)
        self.leader = Leader(
            where,
            [
                ("reconciler", self.reconciler.run),
                ("jobs", self.jobs.run),
                ("storage", partial(measure_storage, resources)),
                ("outbox", self.outbox.run),
                ("pruning", partial(prune_hourly, db)),
                ("slice_limits", partial(keep_slice_limits, db, where)),
                ("leavers", partial(look_after_leavers, db, settings.data_dir)),
            ],
        )
        self._listen_to_changes()

    def _listen_to_changes(self) -> None:
        changes, reconciler, outbox = self.changes, self.reconciler, self.outbox
        changes.on("slices", lambda change: reconciler.nudge())
        changes.on("slices", self._look_at_slice)
        changes.on("slice_steps", lambda change: self.slice_news.heard(change.slice_id))
        changes.on("users", lambda change: reconciler.nudge())
        changes.on("pool", lambda change: reconciler.nudge())
        changes.on("outbox", lambda change: outbox.nudge())
        changes.on("jobs", self._hear_of_job)
        for table in ("slice_steps", "users"):
            changes.on(table, self.progress.heard)
        changes.on_resync(reconciler.nudge)
        changes.on_resync(outbox.nudge)
        changes.on_resync(self.jobs.nudge)

    def _hear_of_job(self, change: Change) -> None:
        if isinstance(change.id, int):
            self.job_news.heard(change.id)
        if change.op == "insert":
            self.jobs.nudge()

    def _look_at_slice(self, change: Change) -> None:
        if isinstance(change.id, int):
            self.connectors.look_again(change.id)
            self.slice_news.heard(change.id)

    async def _queue(self) -> Queue:
        """Who waits for a slice, and how far those are that are being made."""
        waiting = await slices.waiting_users(self._db, self.settings.billing.enabled)
        return Queue(waiting, await steps.making(self._db))

    def _wrong_peer(self, address: SliceAddress) -> None:
        self.alarms.wrong_peer(address)
        self.reconciler.nudge()

    async def _find_address(self, slice_id: int) -> SliceAddress | None:
        """Where a slice is that may be talked to."""
        found = await slices.find(self._db, slice_id)
        if found is None or found.status is Status.DESTROYING:
            return None
        return address_of(found, self.settings.slices.secret, self.settings.slices.base_port)

    async def _reapply_erasures(self) -> None:
        """Who was removed and is there again after a restore goes before anybody is served.

        Nothing opens before they are locked out. What can not be removed in time then goes on by itself.
        """
        returned = await lock_out(self.resources)
        if not returned:
            return
        try:
            with trio.fail_after(REAPPLIED_WITHIN):
                await remove(self.resources, self.ways, returned)
        except (Lost, OSError, Refused, trio.TooSlowError) as failed:
            log.error("erasures_not_reapplied_yet", reason=str(failed) or type(failed).__name__)

    async def run(self, stop: trio.Event, task_status: trio.TaskStatus[Running]) -> None:
        await self._reapply_erasures()
        async with trio.open_nursery() as services:
            for task in (self.readiness.run, self.streams.run, self.connectors.run):
                with trio.fail_after(READY_WITHIN):
                    await services.start(task)
            services.start_soon(self.activity.run)
            services.start_soon(self.lag.run)
            services.start_soon(self.progress.run)
            services.start_soon(self.alarms.run)
            services.start_soon(keep_running, "notifications", self.changes.session, Backoff(most=2.0))
            services.start_soon(keep_running, "leader", self.leader.session, Backoff(most=2.0))
            services.start_soon(self.systemd.feed_watchdog)
            await self._open_doors(stop, task_status)
            services.cancel_scope.cancel()

    async def _open_doors(self, stop: trio.Event, task_status: trio.TaskStatus[Running]) -> None:
        """The app behind its socket, the front before it; closed again in the opposite order when `stop` is set."""
        async with trio.open_nursery() as doors:
            app_door = AppDoor(make_app(self._world()), self.settings.data_dir / "run")
            with trio.fail_after(READY_WITHIN):
                await doors.start(app_door.run)
            front = self._front(app_door.upstream)
            self.front = front
            listener = Listener(front, await _listen(self.settings))
            await doors.start(listener.run)
            _settle_collector()
            self.systemd.say("READY=1", f"STATUS=Serving on port {listener.port}")
            log.info("ready", port=listener.port, version=__version__)
            task_status.started(Running(listener.port, self._db))
            await stop.wait()
            await self._drain(listener, app_door)
            doors.cancel_scope.cancel()

    async def _drain(self, listener: Listener, app_door: "AppDoor") -> None:
        """The sources first, then what is under way, then what answered it."""
        self.systemd.say("STOPPING=1")
        log.info("draining", streams=self.streams.open)
        listener.drain()
        await self.streams.close_all(STREAMS_CLOSED_WITHIN)
        await listener.drained()
        with trio.move_on_after(APP_ENDS_WITHIN):
            await app_door.close()

    def _front(self, app: Upstream) -> Front:
        settings = self.settings
        gate = Gate(
            self.routes,
            own_origin=settings.app_url,
            cors_origin=settings.cors_origin,
            trusted_proxies=settings.trusted_proxies,
            secure_cookies=settings.secure_cookies,
        )
        return Front(
            gate,
            Upstreams(self._wrong_peer, self.readiness),
            app,
            self.streams,
            readiness=self.readiness,
            guessed=self.guesses.unknown_token,
            is_starting=self.starts.is_starting,
        )

    def _world(self) -> World:
        return World(
            settings=self.settings,
            db=self._db,
            routes=self.routes,
            hasher=Hasher(),
            throttles=Throttles(),
            guesses=self.guesses,
            uptime=lambda: trio.current_time() - self._began,
            connectors=lambda: ConnectorCounts(self.connectors.open, self.connectors.lost),
            metrics=self._metrics().text,
            resources=self.resources,
            job_news=self.job_news,
        )

    def _metrics(self) -> Metrics:
        return Metrics(
            gauges={
                "tasks": ("Trio tasks alive.", lambda: trio.lowlevel.current_statistics().tasks_living),
                "loop_lag_seconds": ("How late the event loop is for its timers.", lambda: self.lag.seconds),
                "streams_open": ("Streams of live events.", lambda: self.streams.open),
                "connections_open": ("Client connections but for streams.", lambda: len(self.front.wheel.connections)),
                "connectors_open": ("Event connections to slices.", lambda: self.connectors.open),
                "connectors_lost": ("Event connections that are wanted and down.", lambda: self.connectors.lost),
                "leader": ("1 where this process leads.", lambda: float(self.leader.epoch is not None)),
                "listening": ("1 while changes are heard from PostgreSQL.", lambda: float(self.changes.listening)),
            },
            counters={
                "requests": ("Requests whose head was taken.", lambda: self.front.requests),
                "streams_stalled": ("Streams closed because nobody read.", lambda: self.streams.stalled),
            },
            refusals=lambda: self.front.refusals,
        )
