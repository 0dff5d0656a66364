"""The fan-out over sockets that take as much as they please: nobody is told twice, and no hole is left unsaid."""

import socket
from typing import Any, cast

import trio
from hypothesis import given
from hypothesis import strategies as st

from queunir_trio.front.audience import Audience, Stream
from queunir_trio.live.ring import Ring
from queunir_trio.live.slice_channel import SliceChannel
from tests.doubles.streams import HEAD, Reader, Told


class Wire:
    """A socket that takes `room` bytes and then is full."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""
        self.writes = 0
        self.broken = False

    def fileno(self) -> int:
        return 3

    def send(self, data: bytes | memoryview) -> int:
        self.writes += 1
        if self.broken:
            raise BrokenPipeError
        if not self.room:
            raise BlockingIOError
        piece = bytes(data[: self.room])
        self.taken += piece
        self.room -= len(piece)
        return len(piece)

    def sendmsg(self, pieces: list[bytes]) -> int:
        return self.send(b"".join(pieces))


class Owner:
    """Notes what the audience asks for, and does it when the test says so."""

    def __init__(self) -> None:
        self.full: set[Stream] = set()
        self.late: set[Audience] = set()
        self.dropped: list[Stream] = []

    def await_writable(self, stream: Stream) -> None:
        assert stream not in self.full
        self.full.add(stream)

    def writable_again(self, stream: Stream) -> None:
        self.full.remove(stream)

    def drop(self, stream: Stream) -> None:
        self.dropped.append(stream)
        stream.audience.leave(stream)

    def flush_later(self, audience: Audience) -> None:
        self.late.add(audience)


class World:
    """One channel, its audience and its wires."""

    def __init__(self, frames: int = 512, size: int = 2**20) -> None:
        self.channel = SliceChannel(1)
        self.channel.ring = Ring(frames, size)
        self.owner = Owner()
        self.audience = Audience(self.channel, self.owner)
        self.channel.follow(self.audience.take)
        self.wires: list[tuple[Wire, Stream]] = []

    def join(self, room: int = 10**9, last_event_id: str | None = None) -> Wire:
        wire = Wire(room)
        stream = Stream(cast(socket.socket, wire), None, 0.0)
        ring = self.channel.ring
        place = ring.known(last_event_id) if last_event_id else None
        first = HEAD
        if place is None:
            place = ring.last
            first += self.channel.greeting(gap=bool(last_event_id))
        self.audience.join(stream, first, place)
        self.wires.append((wire, stream))
        return wire

    def say(self, size: int = 0) -> None:
        self.channel.publish("wa:message", b'"%b"' % (b"x" * size))

    def make_room(self, wire: Wire, room: int) -> None:
        wire.room += room
        for known, stream in self.wires:
            if known is wire and stream in self.owner.full:
                self.audience.catch_up(stream)

    def settle(self) -> None:
        """All sockets are read to their end and every pause is over."""
        for wire, _ in self.wires:
            self.make_room(wire, 10**9)
        self.audience.flush()


def told(wire: Wire) -> list[Told]:
    reader = Reader()
    events = reader.feed(wire.taken)
    assert reader.buffer == b"", "half a frame"
    return events


def check(events: list[Told], last: int, *, after: int | None = None) -> None:
    """Every number once and in order; where some are missing a catch-up with a gap stands in for them."""
    place = after
    for event in events:
        if event.name == "wa:catchup" and (place is None or event.gap):
            assert place is None or event.number > place
        else:
            assert place is not None
            assert event.number == place + 1, f"{event.number} after {place}"
        place = event.number
    assert place == last


async def test_an_event_is_one_write_of_the_same_bytes_for_everyone() -> None:
    world = World()
    wires = [world.join() for _ in range(3)]
    before = [wire.writes for wire in wires]
    world.say()
    assert [wire.writes - had for wire, had in zip(wires, before, strict=True)] == [1, 1, 1]
    assert {wire.taken[-60:] for wire in wires} == {wires[0].taken[-60:]}


async def test_a_burst_is_gathered_into_few_writes_and_loses_nothing() -> None:
    world = World()
    wire = world.join()
    before = wire.writes
    for _ in range(100):
        world.say()
    assert world.owner.late == {world.audience}
    world.audience.flush()
    assert wire.writes - before == 2
    check(told(wire), 100)


async def test_a_large_burst_does_not_wait_for_its_pause() -> None:
    world = World()
    wire = world.join()
    for _ in range(100):
        world.say(2000)
    assert len(wire.taken) > 100_000


async def test_a_full_socket_keeps_what_it_began_and_the_others_go_on() -> None:
    world = World()
    slow, quick = world.join(room=300), world.join()
    for _ in range(20):
        world.say(100)
    world.audience.flush()
    check(told(quick), 20)
    (stream,) = world.owner.full
    assert stream.rest is not None
    world.make_room(slow, 10**6)
    check(told(slow), 20)
    assert world.owner.full == set()


async def test_a_stream_that_fell_off_the_ring_is_told_that_there_is_a_gap() -> None:
    world = World(frames=4)
    slow = world.join(room=len(HEAD) + 200)
    for _ in range(20):
        world.say(100)
    world.settle()
    events = told(slow)
    check(events, 20)
    assert [event.gap for event in events].count(True) == 1


async def test_what_a_stalled_stream_holds_does_not_grow() -> None:
    world = World()
    world.join(room=400)
    for _ in range(5000):
        world.say(100)
    world.audience.flush()
    (stream,) = world.owner.full
    assert stream.rest is not None
    assert len(stream.rest) < 70_000


async def test_a_socket_that_is_full_to_the_byte_holds_nothing_back() -> None:
    world = World()
    wire = world.join()
    world.say()
    frame = len((world.channel.ring.after(0) or [])[0])
    wire.room = frame
    world.audience.quiet_until = 0.0
    world.say()
    assert wire.room == 0
    world.audience.quiet_until = 0.0
    world.say()
    (stream,) = world.owner.full
    assert (stream.rest, stream.place) == (None, 2)
    world.settle()
    check(told(wire), 3)


async def test_a_comment_goes_only_to_those_who_are_up_to_date() -> None:
    world = World()
    slow, quick = world.join(room=300), world.join()
    for _ in range(20):
        world.say(100)
    world.audience.comment(b":here\n\n", [stream for _, stream in world.wires])
    assert quick.taken.endswith(b":here\n\n")
    world.settle()
    assert b":here" not in slow.taken
    check(told(slow), 20)


async def test_a_comment_that_fits_in_half_is_ended_before_anything_else() -> None:
    world = World()
    wire = world.join()
    wire.room = 3
    world.audience.comment(b":here\n\n", [stream for _, stream in world.wires])
    world.say()
    world.settle()
    assert b":here\n\nid:" in wire.taken
    check(told(wire), 1)


async def test_a_broken_socket_is_dropped_and_the_rest_hear_all_the_same() -> None:
    world = World()
    broken, sound = world.join(), world.join()
    broken.broken = True
    world.say()
    assert [stream.sock for stream in world.owner.dropped] == [broken]
    check(told(sound), 1)


async def test_a_socket_that_breaks_while_it_is_full_is_dropped() -> None:
    world = World()
    wire = world.join(room=300)
    world.say(1000)
    wire.broken = True
    world.make_room(wire, 1000)
    assert [stream.sock for stream in world.owner.dropped] == [wire]
    assert len(world.audience) == 0


async def test_progress_counts_as_not_being_stuck(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    wire = world.join(room=300)
    world.say(1000)
    (stream,) = world.owner.full
    began = stream.stuck_since
    await trio.sleep(3)
    world.make_room(wire, 10)
    assert stream.stuck_since == began + 3
    await trio.sleep(3)
    world.make_room(wire, 0)
    assert stream.stuck_since == began + 3


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(0, 400)),
        st.tuples(st.just("room"), st.integers(0, 7), st.integers(0, 900)),
        st.tuples(st.just("join"), st.integers(0, 1500), st.integers(-1, 40)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("pause")),
        st.tuples(st.just("comment")),
        st.tuples(st.just("resync")),
    ),
    max_size=60,
)


class Ready:
    state, phone_number, qr = "ready", None, None


def take(world: World, step: tuple[Any, ...], cuts: list[int | None]) -> None:
    match step:
        case ("say", size):
            world.say(size)
        case ("room", index, room) if world.wires:
            world.make_room(world.wires[index % len(world.wires)][0], room)
        case ("join", room, cut):
            known = world.channel.ring.known(f"{world.channel.ring.epoch}:{cut}")
            cuts.append(known)
            world.join(room, f"{world.channel.ring.epoch}:{cut}" if cut >= 0 else None)
        case ("flush",):
            world.audience.flush()
        case ("pause",):
            world.audience.quiet_until = 0.0
        case ("comment",):
            world.audience.comment(b":here\n\n", [stream for _, stream in world.wires])
        case ("resync",):
            world.channel.lost()
            world.channel.resync(Ready())


@given(STEPS, st.integers(1, 12), st.integers(200, 5000))
async def test_whatever_sockets_and_sources_do_numbers_go_on_or_a_gap_is_told(
    steps: list[tuple[Any, ...]], frames: int, size: int
) -> None:
    world = World(frames, size)
    cuts: list[int | None] = []
    for step in steps:
        take(world, step, cuts)
    world.settle()
    assert world.owner.full == set()
    assert world.owner.dropped == []
    for (wire, _), cut in zip(world.wires, cuts, strict=True):
        check(told(wire), world.channel.ring.last, after=cut)
