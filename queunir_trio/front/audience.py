"""The fan-out: everyone who follows one source of events, as sockets and places in its ring.

A frame is sent to each socket as the same bytes, at once and without waiting. A socket that is full keeps what it has
not taken and stays behind, alone, until it can be written again; then it catches up from the ring, or is told that
there is a gap where the ring no longer holds its place. No stream has a queue.
"""

import socket
from collections.abc import Iterable
from typing import Final, Protocol

import trio

from queunir_trio.live.channel import Follower
from queunir_trio.live.ring import Ring
from queunir_trio.model.routing import Route

BURST_PAUSE: Final = 0.004  # seconds after a send in which further events are gathered into one
BURST_PAUSE_AT_MOST: Final = 0.05
BURST_BYTES: Final = 65536  # gathered bytes that are sent without waiting for the pause to end
CATCH_UP_FRAMES: Final = 64  # of one write; a write takes no more parts than the system allows (IOV_MAX)
NOWHERE: Final = -1  # the place of a stream that must be greeted anew


class Source(Protocol):
    """What a stream can follow: a ring, and a frame that tells the present state."""

    @property
    def ring(self) -> Ring: ...
    def greeting(self, gap: bool) -> bytes: ...
    def follow(self, follower: Follower) -> None: ...
    def unfollow(self, follower: Follower) -> None: ...
    def enter(self) -> None: ...
    def leave(self) -> None: ...


class Stream:
    """One browser's stream. `place` is the number of the last frame that its socket has taken or holds in `rest`."""

    __slots__ = ("audience", "dropped_bytes", "ends_at", "fd", "place", "rest", "route", "send", "sock", "stuck_since")

    audience: "Audience"

    def __init__(self, sock: socket.socket, route: Route | None, ends_at: float) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.send = sock.send
        self.route = route
        self.ends_at = ends_at
        self.place = NOWHERE
        self.rest: memoryview | None = None
        self.stuck_since: float | None = None  # since when its socket is full
        self.dropped_bytes = 0  # that the client sent although there is nothing to say

    def __repr__(self) -> str:
        return f"<Stream {self.fd} at {self.place}{'' if self.stuck_since is None else ', full'}>"


class Keeper(Protocol):
    """Who owns the streams of an audience."""

    def await_writable(self, stream: Stream) -> None:
        """The stream's socket is full."""

    def writable_again(self, stream: Stream) -> None:
        """It is not full any more."""

    def drop(self, stream: Stream) -> None:
        """Its connection is broken."""

    def flush_later(self, audience: "Audience") -> None:
        """Call `flush` at `audience.quiet_until`."""


class Audience:
    """The streams of one source: those that are up to date, and those that are behind because their socket is full."""

    __slots__ = ("_gathered", "_gathered_size", "_keeper", "_sent", "behind", "quiet_until", "source", "upright")

    def __init__(self, source: Source, keeper: Keeper) -> None:
        self.source = source
        self.upright: set[Stream] = set()
        self.behind: set[Stream] = set()
        self.quiet_until = 0.0
        self._keeper = keeper
        self._gathered: list[bytes] = []  # frames that the upright ones are still to be sent
        self._gathered_size = 0
        self._sent = source.ring.last  # the place of all upright streams

    def __len__(self) -> int:
        return len(self.upright) + len(self.behind)

    def __repr__(self) -> str:
        return f"<Audience of {self.source!r}: {len(self.upright)} up to date, {len(self.behind)} behind>"

    def take(self, frame: bytes) -> None:
        """A new frame of the source: sent at once, or in a burst together with those around it."""
        if not self._gathered and trio.current_time() >= self.quiet_until:
            self._send(frame)
            return
        self._gathered.append(frame)
        self._gathered_size += len(frame)
        if self._gathered_size >= BURST_BYTES:
            self.flush()
        elif len(self._gathered) == 1:
            self._keeper.flush_later(self)

    def flush(self) -> None:
        """Sends what has been gathered."""
        if self._gathered:
            frames, self._gathered, self._gathered_size = self._gathered, [], 0
            self._send(b"".join(frames))

    def comment(self, comment: bytes, streams: Iterable[Stream]) -> None:
        """Sends what is no event to those of `streams` that are up to date."""
        self.flush()
        self._write(comment, self._sent, self.upright.intersection(streams))

    def join(self, stream: Stream, first: bytes, place: int) -> None:
        """Takes in a stream: `first` is written, then what follows `place`."""
        stream.audience = self
        stream.place = place
        if stream.rest is None and first:
            stream.rest = memoryview(first)
        self.behind.add(stream)
        if stream.stuck_since is None:
            self.catch_up(stream)

    def leave(self, stream: Stream) -> None:
        self.upright.discard(stream)
        self.behind.discard(stream)

    def catch_up(self, stream: Stream) -> None:
        """Writes what a stream has not had, as far as its socket takes it."""
        try:
            done = self._write_rest(stream) and self._write_missed(stream)
        except BlockingIOError:
            done = False
        except OSError:
            self._keeper.drop(stream)
            return
        if not done:
            self._wait_for(stream)
            return
        self.flush()  # the ring held what the others are still to be sent
        if stream.stuck_since is not None:
            stream.stuck_since = None
            self._keeper.writable_again(stream)
        self.behind.discard(stream)
        self.upright.add(stream)

    def _send(self, data: bytes) -> None:
        """Writes the frames between `_sent` and now."""
        began = trio.current_time()
        newest = self.source.ring.last
        self._write(data, newest, self.upright)
        self._sent = newest
        now = trio.current_time()
        # a burst over many streams has half of the process at most: as long as a send took, the next one waits
        self.quiet_until = now + min(max(BURST_PAUSE, now - began), BURST_PAUSE_AT_MOST)

    def _write(self, data: bytes, place: int, streams: Iterable[Stream]) -> None:
        """Writes `data`, after which a stream is at `place`; who does not take all of it falls behind."""
        size = len(data)
        full: list[tuple[Stream, int]] = []
        broken: list[Stream] = []
        for stream in streams:
            try:
                sent = stream.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                broken.append(stream)
                continue
            if sent != size:
                full.append((stream, sent))
        for stream, sent in full:
            self._fall_behind(stream, data, sent, place)
        for stream in broken:
            self._keeper.drop(stream)

    def _fall_behind(self, stream: Stream, data: bytes, sent: int, place: int) -> None:
        # what was begun must be ended, or the next frame would be read as part of it; what was not is left to the ring
        stream.place = place if sent else self._sent
        stream.rest = memoryview(data)[sent:] if sent else None
        self.upright.discard(stream)
        self.behind.add(stream)
        self._wait_for(stream)

    def _wait_for(self, stream: Stream) -> None:
        if stream.stuck_since is None:
            stream.stuck_since = trio.current_time()
            self._keeper.await_writable(stream)

    def _write_rest(self, stream: Stream) -> bool:
        if stream.rest is None:
            return True
        sent = stream.send(stream.rest)
        _progressed(stream)
        stream.rest = stream.rest[sent:] if sent < len(stream.rest) else None
        return stream.rest is None

    def _write_missed(self, stream: Stream) -> bool:
        """What the ring holds since the stream's place, or the present state where it does not reach back so far."""
        ring = self.source.ring
        while stream.place != ring.last:
            place = stream.place
            frames = ring.after(place, CATCH_UP_FRAMES)
            if frames is None:
                frames, place = [self.source.greeting(gap=True)], ring.last - 1
            sent = stream.sock.sendmsg(frames)
            _progressed(stream)
            for frame in frames:
                if not sent:
                    return False
                place += 1
                stream.place = place
                if sent < len(frame):
                    stream.rest = memoryview(frame)[sent:]
                    return False
                sent -= len(frame)
        return True


def _progressed(stream: Stream) -> None:
    if stream.stuck_since is not None:
        stream.stuck_since = trio.current_time()
