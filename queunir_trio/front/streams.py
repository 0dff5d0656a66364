"""Every stream of server-sent events: a socket and a place in a history, and no task of its own.

A stream comes here with the head of its answer unwritten and stays until its client, its session or its time is over.
The body has no framing but its end, so the same bytes serve every version of HTTP and all clients of a source.
"""

import random
import socket
from itertools import islice
from typing import Final

import trio

from queunir_trio.errors import Refused
from queunir_trio.front.audience import NOWHERE, Audience, Source, Stream
from queunir_trio.front.bursts import Bursts
from queunir_trio.front.entitlement import Entitlement, RouteBook, Valid
from queunir_trio.front.stream_sockets import StreamSockets, drained, prepared, turn_away
from queunir_trio.live.hub import Hub
from queunir_trio.live.supervision import keep_running
from queunir_trio.model.routing import Route
from queunir_trio.outside import sockets
from queunir_trio.wire import sse

SESSION_ENDED: Final = sse.frame("wa:session_ended", b"{}")
RETRY: Final = (1_000, 4_000)  # milliseconds, so that those who lost their streams together do not come back together
SWEEPS: Final = 10  # looks at the stuck ones within the time that they are borne with
AT_ONCE: Final = 200  # streams served between two chances for others to run
ROTATION_SPREAD: Final = 0.2


class Streams:
    """All streams of the front.

    `valid` tells which of some token hashes belong to good sessions. Durations are in seconds: `keepalive` between two
    comments, `stuck` that a full socket is borne with, `rotation` (± 20 %) after which a client must come anew.
    """

    def __init__(
        self,
        hub: Hub,
        routes: RouteBook,
        valid: Valid,
        *,
        per_user: int = 20,
        keepalive: float = 15.0,
        stuck: float = 10.0,
        rotation: float = 600.0,
    ) -> None:
        self._hub = hub
        self._per_user = per_user
        self._keepalive = keepalive
        self._stuck = stuck
        self._rotation = rotation
        self._entitlement = Entitlement(routes, valid, every=keepalive, end=self._end, move=self._move)
        self._sockets = StreamSockets(gone=self.drop, writable=self._writable)
        self._streams: dict[Stream, None] = {}  # in the order they came
        self._audiences: dict[Source, Audience] = {}
        self._bursts = Bursts()
        self._closing = False
        self.stalled = 0  # streams that were closed because their clients did not read

    def __repr__(self) -> str:
        return f"<Streams {self.open} open, {len(self._audiences)} sources>"

    @property
    def open(self) -> int:
        """How many streams there are."""
        return len(self._streams)

    def admit(self, route: Route) -> None:
        """Refused `too_many_streams`: this user has as many as one may have."""
        if self._entitlement.count(route.user_id) >= self._per_user:
            raise Refused("too_many_streams", "Too many pages are open at once. Close one and try again.")

    def adopt(self, sock: socket.socket, head: bytes, route: Route, last_event_id: str | None) -> None:
        """Makes the live stream of a session out of a connection, whose socket is ours from here on.

        `head` is the whole head of the answer; `last_event_id` what the client says it had last.
        """
        if route.address is not None:
            self.follow(sock, head, self._hub.channel(route.address.slice_id), last_event_id, route=route)
        elif route.refusal == "no_slice":
            self.follow(sock, head, self._hub.waiting(route.user_id), last_event_id, route=route)
        else:
            turn_away(sock, head + SESSION_ENDED)

    def follow(
        self,
        sock: socket.socket,
        head: bytes,
        source: Source,
        last_event_id: str | None = None,
        *,
        route: Route | None = None,
    ) -> None:
        """Lets a connection follow any source; with a `route`, for as long as that is good."""
        if self._closing:
            turn_away(sock, b"")
            return
        if not prepared(sock, self._stuck):
            return
        spread = random.uniform(1 - ROTATION_SPREAD, 1 + ROTATION_SPREAD)  # noqa: S311 - not a secret
        stream = Stream(sock, route, trio.current_time() + self._rotation * spread)
        self._streams[stream] = None
        self._sockets.add(stream)
        if route is not None:
            self._entitlement.add(stream, route)
        first = head + sse.retry(random.randint(*RETRY))  # noqa: S311 - not a secret
        place = source.ring.known(last_event_id) if last_event_id else None
        if place is None:
            place = source.ring.last
            first += source.greeting(gap=bool(last_event_id))
        self._join(stream, source, first, place)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the streams until it is cancelled; then none is left."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_running, "sockets of streams", self._sockets.run)
                nursery.start_soon(keep_running, "time of streams", self._tend)
                nursery.start_soon(keep_running, "bursts of streams", self._bursts.run)
                nursery.start_soon(keep_running, "entitlement of streams", self._entitlement.run)
                task_status.started()
        finally:
            self._closing = True
            for stream in list(self._streams):
                self.drop(stream)
            self._sockets.close()

    async def close_all(self, within: float) -> None:
        """Ends every stream and takes no more: politely, but for those whose clients do not read."""
        self._closing = True
        with trio.move_on_after(within):
            await trio.lowlevel.checkpoint()
            while self._streams:
                for stream in list(islice(self._streams, AT_ONCE)):
                    self.drop(stream, reset=stream.stuck_since is not None)
                await trio.lowlevel.checkpoint()
        for stream in list(self._streams):
            self.drop(stream, reset=True)

    # what an audience asks of its keeper

    def await_writable(self, stream: Stream) -> None:
        self._sockets.await_writable(stream, True)

    def writable_again(self, stream: Stream) -> None:
        self._sockets.await_writable(stream, False)

    def flush_later(self, audience: Audience) -> None:
        self._bursts.add(audience)

    def drop(self, stream: Stream, *, reset: bool = False) -> None:
        """Forgets a stream and closes its socket."""
        if stream not in self._streams:
            return
        del self._streams[stream]
        self._sockets.remove(stream)
        self._leave(stream)
        self._entitlement.remove(stream)
        if reset:
            sockets.reset(stream.sock)
        else:
            drained(stream)
            sockets.close(stream.sock)

    # coming and going

    def _join(self, stream: Stream, source: Source, first: bytes, place: int) -> None:
        audience = self._audiences.get(source)
        if audience is None:
            audience = self._audiences[source] = Audience(source, self)
            source.follow(audience.take)
        source.enter()
        audience.join(stream, first, place)

    def _leave(self, stream: Stream) -> None:
        audience = stream.audience
        audience.leave(stream)
        if not len(audience):
            audience.source.unfollow(audience.take)
            del self._audiences[audience.source]
        audience.source.leave()

    def _end(self, stream: Stream) -> None:
        """The session or the slice is over: the last event, where there is room for it, and the end."""
        audience = stream.audience
        audience.flush()
        audience.comment(SESSION_ENDED, [stream])
        self.drop(stream)

    def _move(self, stream: Stream, route: Route) -> None:
        """The user has another slice: its events from here on, and nothing more of the old one."""
        assert route.address is not None
        assert stream.route is not None
        had_slice = stream.route.address is not None
        stream.audience.flush()
        if stream not in self._streams:
            return
        self._leave(stream)
        stream.route = route
        source = self._hub.channel(route.address.slice_id)
        if stream.stuck_since is not None:  # what it holds of a frame must be ended first
            self._join(stream, source, b"", NOWHERE)
        else:
            self._join(stream, source, source.greeting(gap=had_slice), source.ring.last)

    def _writable(self, stream: Stream) -> None:
        stream.audience.catch_up(stream)

    # what happens by the clock

    async def _tend(self) -> None:
        due = trio.current_time() + self._keepalive
        while True:
            await trio.sleep(min(self._stuck, self._keepalive) / SWEEPS)
            now = trio.current_time()
            self._end_stuck(now)
            if now >= due:
                due = now + self._keepalive
                await self._rotate(now)
                await self._keep_alive()

    def _end_stuck(self, now: float) -> None:
        behind = [stream for audience in self._audiences.values() for stream in audience.behind]
        for stream in behind:
            if stream.stuck_since is not None and now - stream.stuck_since >= self._stuck:
                self.stalled += 1
                self.drop(stream, reset=True)

    async def _rotate(self, now: float) -> None:
        """Ends those whose time is over; they come again, perhaps to a gateway that was just begun."""
        for stream in [stream for stream in self._streams if stream.ends_at <= now]:
            stream.audience.flush()
            self.drop(stream)
        await trio.lowlevel.checkpoint()

    async def _keep_alive(self) -> None:
        for audience in list(self._audiences.values()):
            everyone = list(audience.upright)
            for start in range(0, len(everyone), AT_ONCE):
                audience.comment(sse.KEEPALIVE, everyone[start : start + AT_ONCE])
                await trio.lowlevel.checkpoint()
