"""Live streams over real sockets: what browsers get, when they lose it, and what becomes of those who do not read."""

import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queunir_trio.errors import Refused
from queunir_trio.front.streams import Streams
from queunir_trio.live.hub import Hub
from queunir_trio.live.ring import Ring
from queunir_trio.live.routes import Forgotten
from queunir_trio.model.routing import Route
from tests.doubles.streams import HEAD, Browser, Loopback, Sessions, Told, route


class Service:
    """Streams with all they need; constructor arguments of Streams may be given."""

    def __init__(self, loopback: Loopback, **durations: Any) -> None:
        self.hub = Hub()
        self.sessions = Sessions()
        self.streams = Streams(self.hub, self.sessions, self.sessions.valid, **durations)
        self._loopback = loopback
        self.browsers: list[Browser] = []

    def browse(self, known: Route | None = None, last: str | None = None, receive_buffer: int | None = None) -> Browser:
        """A browser of a session, adopted."""
        known = known or route()
        if known.token_hash not in self.sessions.routes:
            self.sessions.add(known)
        server, client = self._loopback.pair(receive_buffer)
        self.streams.adopt(server, HEAD, known, last)
        self.browsers.append(Browser(client))
        return self.browsers[-1]

    def say(self, slice_id: int = 1, payload: bytes = b"null") -> None:
        self.hub.channel(slice_id).publish("wa:message", payload)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Service"]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.streams.run)
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()
                for browser in self.browsers:
                    browser.close()


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    made = Loopback()
    yield made
    made.close()


@pytest.fixture
async def service(loopback: Loopback) -> AsyncIterator[Service]:
    async with Service(loopback).running() as running:
        yield running


async def until(holds: Callable[[], bool], within: float = 5.0) -> None:
    with trio.fail_after(within):
        while not holds():
            await trio.sleep(0.01)


async def test_a_stream_begins_with_the_head_a_retry_and_the_whole_state(service: Service) -> None:
    browser = service.browse()
    told = await browser.next()
    assert browser.reader.head == HEAD.removesuffix(b"\r\n\r\n")
    assert browser.reader.retry is not None
    assert 1_000 <= browser.reader.retry <= 4_000
    assert (told.name, told.data["connectionState"], told.data["gap"]) == ("wa:catchup", "starting", False)
    assert told.id == f"{service.hub.channel(1).ring.epoch}:0"


async def test_events_arrive_in_order_with_ids_that_go_on(service: Service) -> None:
    browser = service.browse()
    await browser.next()
    for number in range(1, 200):
        service.say(payload=b"%d" % number)
    events = await browser.events(199)
    assert [(told.number, told.data) for told in events] == [(n, n) for n in range(1, 200)]


async def test_an_event_arrives_although_no_other_task_runs_between(service: Service) -> None:
    """Publishing writes to the socket itself."""
    browser = service.browse()
    await browser.next()
    service.say()
    assert b"wa:message" in browser.sock.recv(65536)


async def test_the_retry_of_many_browsers_is_spread(service: Service) -> None:
    browsers = [service.browse(route(user_id=user)) for user in range(20)]
    for browser in browsers:
        await browser.next()
    assert len({browser.reader.retry for browser in browsers}) > 10


async def test_a_browser_that_comes_back_gets_exactly_what_it_missed(service: Service) -> None:
    browser = service.browse()
    await browser.next()
    for _ in range(5):
        service.say()
    await browser.events(5)
    browser.close()
    for _ in range(3):
        service.say()
    again = service.browse(last=browser.last_event_id)
    service.say()
    assert [told.number for told in await again.events(4)] == [6, 7, 8, 9]


async def test_a_browser_that_missed_nothing_is_told_nothing(service: Service) -> None:
    service.say()
    browser = service.browse(last=f"{service.hub.channel(1).ring.epoch}:1")
    service.say()
    assert (await browser.next()).number == 2


@pytest.mark.parametrize("last", ["ffff:1", "{epoch}:99", "garbage", "{epoch}:-1", "\x00" * 5000])
async def test_an_id_that_can_not_be_gone_on_from_is_answered_by_a_gap(service: Service, last: str) -> None:
    service.say()
    told = await service.browse(last=last.format(epoch=service.hub.channel(1).ring.epoch)).next()
    assert (told.gap, told.number) == (True, 1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 64), st.integers(50, 4000), st.integers(0, 5))
async def test_any_cut_is_replayed_without_a_hole_or_with_a_gap_that_is_told(
    loopback: Loopback, count: int, cut: int, frames: int, size: int, more: int
) -> None:
    async with Service(loopback).running() as service:
        channel = service.hub.channel(1)
        channel.ring = Ring(frames, size)
        for number in range(count):
            service.say(payload=b"%d" % number)
        browser = service.browse(last=f"{channel.ring.epoch}:{cut}")
        for _ in range(more):
            service.say()
        channel.publish("wa:end", b"null")
        events = [await browser.next()]
        while events[-1].name != "wa:end":
            events.append(await browser.next())
        place = cut
        if events[0].name == "wa:catchup":
            assert events[0].gap
            assert cut > count or cut < count - min(frames, count) or size < 4000
            place = events.pop(0).number
        assert [told.number for told in events] == list(range(place + 1, count + more + 2))


async def test_a_resync_is_not_replayed_across(service: Service) -> None:
    channel = service.hub.channel(1)
    channel.resync(Ready())
    service.say()
    browser = service.browse()
    old = await browser.next()
    service.say()
    channel.lost()
    channel.resync(Ready())
    assert [told.name for told in await browser.events(3)] == ["wa:message", "wa:state", "wa:catchup"]
    assert browser.last_event_id is not None
    told = await service.browse(last=old.id).next()
    assert told.gap
    again = service.browse(last=browser.last_event_id)
    service.say()
    assert [told.name for told in await again.events(1)] == ["wa:message"]


class Ready:
    state, phone_number, qr = "ready", None, None


# who goes


def leave_by_fin(browser: Browser) -> None:
    browser.close()


def leave_by_reset(browser: Browser) -> None:
    browser.reset()


def leave_half(browser: Browser) -> None:
    browser.sock.shutdown(socket.SHUT_WR)


def leave_behind_a_second_request(browser: Browser) -> None:
    browser.sock.send(b"GET /api/chats HTTP/1.1\r\nhost: a\r\n\r\n")
    browser.sock.shutdown(socket.SHUT_WR)


def talk_on(browser: Browser) -> None:
    browser.sock.send(b"x" * 70_000)


@pytest.mark.parametrize("leave", [leave_by_fin, leave_by_reset, leave_half, leave_behind_a_second_request, talk_on])
async def test_a_client_that_leaves_is_gone_at_once(service: Service, leave: Callable[[Browser], None]) -> None:
    browser, stays = service.browse(), service.browse()
    await browser.next()
    leave(browser)
    await until(lambda: service.streams.open == 1, within=1)
    assert service.hub.channel(1).viewers == 1
    await stays.next()
    service.say()
    assert (await stays.next()).name == "wa:message"


async def test_a_client_that_left_before_it_was_adopted_is_gone_at_once(service: Service) -> None:
    for _ in range(3):
        service.browse().close()
    await until(lambda: service.streams.open == 0, within=1)


async def test_a_second_request_alone_does_not_end_the_stream(service: Service) -> None:
    browser = service.browse()
    await browser.next()
    browser.sock.send(b"GET /api/chats HTTP/1.1\r\nhost: a\r\n\r\n")
    await trio.testing.wait_all_tasks_blocked(0.05)
    service.say()
    assert (await browser.next()).name == "wa:message"


async def test_the_end_of_a_stream_is_an_end_and_no_reset_even_behind_a_second_request(service: Service) -> None:
    browser = service.browse()
    browser.sock.send(b"GET /api/chats HTTP/1.1\r\nhost: a\r\n\r\n")
    await browser.next()
    service.sessions.revoke("token-1")
    assert [told.name for told in await browser.rest()] == ["wa:session_ended"]


async def test_nobody_left_means_nothing_kept(service: Service) -> None:
    for user in range(10):
        service.browse(route(user_id=user, slice_id=user + 1)).close()
    await until(lambda: service.streams.open == 0)
    assert service.hub.watched() == set()
    assert service.streams._audiences == {}
    assert all(channel._followers == () for channel in service.hub._slices.values())
    assert service.streams._entitlement._streams == {}
    assert service.streams._entitlement._users == {}
    assert service.streams._sockets._streams == {}


async def test_a_user_may_have_so_many_streams_and_no_more(loopback: Loopback) -> None:
    async with Service(loopback, per_user=2).running() as service:
        mine = route()
        for _ in range(2):
            service.streams.admit(mine)
            service.browse(mine)
        with pytest.raises(Refused) as refusal:
            service.streams.admit(route(token="another session"))
        assert refusal.value.code == "too_many_streams"
        service.streams.admit(route(user_id=2))
        service.browsers[0].close()
        await until(lambda: service.streams.open == 1)
        service.streams.admit(mine)


# who does not read


def stall(service: Service, known: Route | None = None) -> Browser:
    """A browser that does not read, with so much sent that its socket is full."""
    browser = service.browse(known, receive_buffer=4096)
    (stream,) = [
        stream for stream in service.streams._streams if stream.sock.getpeername() == browser.sock.getsockname()
    ]
    for _ in range(2000):
        if stream.stuck_since is not None:
            return browser
        stream.audience.quiet_until = 0.0
        service.say(known.slice_id if known and known.slice_id else 1, b'"%b"' % (b"x" * 1000))
    raise AssertionError("the socket never filled")


async def test_a_browser_that_does_not_read_delays_nobody(service: Service) -> None:
    reading = [service.browse(route(user_id=user)) for user in range(2, 6)]
    stall(service)
    before = service.hub.channel(1).ring.last
    for browser in reading:
        while (await browser.next()).number < before:
            pass
    for _ in range(50):
        service.say()
        for browser in reading:
            await browser.next(within=0.5)


async def test_a_browser_that_reads_again_in_time_goes_on_or_is_told_of_the_gap(service: Service) -> None:
    slow = stall(service)
    for _ in range(2000):
        service.say()
    events = [await slow.next()]
    while not events[-1].gap:
        events.append(await slow.next())
    service.say()
    events.append(await slow.next())
    for earlier, later in pairwise(events):
        assert later.number > earlier.number if later.gap else later.number == earlier.number + 1
    assert service.streams.stalled == 0


async def test_a_full_socket_is_closed_by_reset_after_its_time(loopback: Loopback) -> None:
    async with Service(loopback, stuck=0.3).running() as service:
        stalled = stall(service)
        reading = service.browse(route(user_id=2))
        await until(lambda: service.streams.stalled == 1, within=2)
        assert service.streams.open == 1
        with pytest.raises(ConnectionResetError):
            await stalled.rest()
        await reading.next()
        service.say()
        assert (await reading.next()).name == "wa:message"


async def test_a_reader_that_is_slow_but_reads_is_not_closed(loopback: Loopback) -> None:
    async with Service(loopback, stuck=0.5).running() as service:
        slow = service.browse(receive_buffer=65536)
        (stream,) = service.streams._streams
        times_full = 0
        with trio.move_on_after(1.5):
            while True:
                service.say(payload=b'"%b"' % (b"x" * 300_000))
                times_full += stream.stuck_since is not None
                await trio.sleep(0.02)
                with suppress(BlockingIOError):
                    slow.sock.recv(65536)
        assert times_full > 10
        assert service.streams.stalled == 0
        assert service.streams.open == 1


async def test_the_kernel_holds_little_for_a_client_and_gives_up_one_that_acknowledges_nothing(
    service: Service,
) -> None:
    service.browse()
    (stream,) = service.streams._streams
    assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    assert stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 65536
    assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_a_socket_that_is_closed_already_begins_no_stream(service: Service) -> None:
    server, client = service._loopback.pair()
    client.close()
    server.close()
    service.streams.adopt(server, HEAD, route(), None)
    service.streams.adopt(server, HEAD, route(refusal="suspended"), None)
    assert service.streams.open == 0


# sessions and routes


async def test_a_revoked_session_ends_its_streams_before_the_caller_goes_on(service: Service) -> None:
    mine, other = service.browse(route()), service.browse(route(user_id=2))
    service.sessions.revoke("token-1")
    assert service.streams.open == 1
    assert [told.name for told in await mine.rest()] == ["wa:catchup", "wa:session_ended"]
    await other.next()
    service.say()
    assert (await other.next()).name == "wa:message"


async def test_events_before_the_end_of_a_session_are_still_told(service: Service) -> None:
    browser = service.browse()
    for _ in range(5):
        service.say()
    service.sessions.revoke("token-1")
    assert [told.name for told in await browser.rest()] == ["wa:catchup", *["wa:message"] * 5, "wa:session_ended"]


async def test_a_session_that_ended_unheard_is_found_at_the_next_keepalive(loopback: Loopback) -> None:
    async with Service(loopback, keepalive=0.2).running() as service:
        service.sessions.remembered = False
        mine, other = service.browse(route()), service.browse(route(user_id=2))
        await other.until_comment()
        del service.sessions.routes["token-1"]
        assert [told.name for told in await mine.rest(within=2)][-1] == "wa:session_ended"
        assert service.streams.open == 1


async def test_all_sessions_that_are_not_remembered_are_asked_about_in_one_question(loopback: Loopback) -> None:
    async with Service(loopback, keepalive=0.2).running() as service:
        for user in range(1, 6):
            for _ in range(3):
                service.browse(route(user_id=user))
        await service.browsers[0].until_comment()
        assert service.sessions.asked == []
        service.sessions.remembered = False
        await until(lambda: bool(service.sessions.asked))
        assert sorted(service.sessions.asked[0]) == [f"token-{user}" for user in range(1, 6)]


async def test_streams_outlive_a_database_that_is_away(loopback: Loopback) -> None:
    async with Service(loopback, keepalive=0.1).running() as service:
        service.sessions.remembered = False
        service.sessions.away = True
        browser = service.browse()
        for _ in range(3):
            await browser.until_comment()
        service.sessions.tell(Forgotten(everything=True))
        for _ in range(2):
            await browser.until_comment()
        assert service.streams.open == 1
        service.sessions.away = False
        del service.sessions.routes["token-1"]
        assert [told.name for told in await browser.rest(within=2)][-1] == "wa:session_ended"


async def test_a_session_that_ended_while_its_request_was_judged_does_not_live_on(service: Service) -> None:
    server, client = service._loopback.pair()
    service.streams.adopt(server, HEAD, route(), None)  # no such session by now
    browser = Browser(client)
    assert [told.name for told in await browser.rest(within=1)] == ["wa:catchup", "wa:session_ended"]
    browser.close()


async def test_a_user_who_gets_another_slice_goes_over_to_it(service: Service) -> None:
    browser, other = service.browse(route(slice_id=1)), service.browse(route(user_id=2, slice_id=1))
    service.say(1)
    service.sessions.reroute(route(slice_id=2))
    await until(lambda: service.hub.watched() == {1, 2})
    service.say(1)
    service.say(2)
    events = await browser.events(4)
    epochs = [(told.name, (told.id or "").partition(":")[0]) for told in events]
    one, two = service.hub.channel(1).ring.epoch, service.hub.channel(2).ring.epoch
    assert epochs == [("wa:catchup", one), ("wa:message", one), ("wa:catchup", two), ("wa:message", two)]
    assert events[2].gap
    assert [told.name for told in await other.events(3)] == ["wa:catchup", "wa:message", "wa:message"]


async def test_one_who_does_not_read_hears_nothing_more_of_the_old_slice(service: Service) -> None:
    slow = stall(service, route(slice_id=1))
    service.sessions.reroute(route(slice_id=2))
    await until(lambda: service.hub.watched() == {2})
    last_of_old = service.hub.channel(1).ring.last
    service.say(1)
    service.say(2)
    old, new = service.hub.channel(1).ring.epoch, service.hub.channel(2).ring.epoch
    events = [await slow.next()]
    while not (events[-1].id or "").startswith(new):
        events.append(await slow.next())
    assert events[-1].gap
    assert all((told.id or "").startswith(old) and told.number <= last_of_old for told in events[:-1])


@pytest.mark.parametrize("refusal", ["payment_required", "suspended", "no_slice"])
async def test_a_slice_that_is_gone_or_suspended_ends_the_stream(service: Service, refusal: str) -> None:
    browser = service.browse()
    service.sessions.reroute(route(slice_id=1 if refusal == "payment_required" else None, refusal=refusal))
    assert [told.name for told in await browser.rest()] == ["wa:catchup", "wa:session_ended"]


async def test_news_of_the_slice_itself_is_heard_too(service: Service) -> None:
    mine, other = service.browse(route(slice_id=1)), service.browse(route(user_id=2, slice_id=2))
    service.sessions.add(route(slice_id=None, refusal="no_slice"))
    service.sessions.tell(Forgotten(slice_id=1))
    assert [told.name for told in await mine.rest()] == ["wa:catchup", "wa:session_ended"]
    assert service.streams.open == 1
    await other.next()


async def test_a_suspended_user_is_turned_away_with_the_last_event(service: Service) -> None:
    browser = service.browse(route(refusal="suspended"))
    assert [told.name for told in await browser.rest()] == ["wa:session_ended"]
    assert service.streams.open == 0


async def test_who_has_no_slice_yet_sees_it_being_made_and_goes_over(service: Service) -> None:
    browser = service.browse(route(slice_id=None))
    first = await browser.next()
    assert (first.name, first.data["step"], first.data["percent"]) == ("wa:provisioning", "queued", 0)
    service.hub.waiting(1).progress("database", 40, "Your database is being made.")
    assert (await browser.next()).data["step"] == "database"
    service.sessions.reroute(route(slice_id=4))
    told = await browser.next()
    assert (told.name, told.gap) == ("wa:catchup", False)
    service.say(4)
    assert (await browser.next()).name == "wa:message"
    assert service.hub.watched() == {4}


async def test_a_slice_that_came_while_the_request_was_judged_is_not_missed(service: Service) -> None:
    service.sessions.add(route(slice_id=4))
    browser = service.browse(route(slice_id=None))
    assert [told.name for told in await browser.events(2)] == ["wa:provisioning", "wa:catchup"]


async def test_who_waits_goes_over_although_nobody_told_of_the_slice(loopback: Loopback) -> None:
    async with Service(loopback, keepalive=0.2).running() as service:
        browser = service.browse(route(slice_id=None))
        await browser.until_comment()
        service.sessions.add(route(slice_id=4))
        assert [told.name for told in await browser.events(2)] == ["wa:provisioning", "wa:catchup"]


# time, and the end


async def test_idle_streams_are_kept_alive(loopback: Loopback) -> None:
    async with Service(loopback, keepalive=0.1).running() as service:
        browsers = [service.browse(route(user_id=user, slice_id=user)) for user in range(1, 5)]
        for browser in browsers:
            await browser.until_comment()
            await browser.until_comment()
            assert len(browser.waiting) == 1


async def test_streams_end_after_their_time_and_go_on_where_they_were(loopback: Loopback) -> None:
    async with Service(loopback, keepalive=0.1, rotation=0.3).running() as service:
        browser = service.browse()
        service.say()
        assert [told.name for told in await browser.rest(within=2)] == ["wa:catchup", "wa:message"]
        service.say()
        assert (await service.browse(last=browser.last_event_id).next()).number == 2


async def test_rotation_is_spread_over_two_fifths_of_its_time(service: Service) -> None:
    now = trio.current_time()
    for user in range(200):
        service.browse(route(user_id=user))
    ages = [stream.ends_at - now for stream in service.streams._streams]
    assert 480 <= min(ages) < 510
    assert 690 < max(ages) <= 725


async def test_a_thousand_streams_end_well_within_a_second_though_some_are_stalled(loopback: Loopback) -> None:
    async with Service(loopback).running() as service:
        stalled = [stall(service, route(user_id=9000 + n, slice_id=9)) for n in range(20)]
        browsers = [service.browse(route(user_id=user, slice_id=user % 50 + 10)) for user in range(1000)]
        began = trio.current_time()
        await service.streams.close_all(within=1.0)
        assert trio.current_time() - began < 0.8
        assert service.streams.open == 0
        for browser in browsers:
            assert [told.name for told in await browser.rest()] == ["wa:catchup"]
        for browser in stalled:
            with pytest.raises(ConnectionResetError):
                await browser.rest()


async def test_no_stream_begins_once_all_were_ended(service: Service) -> None:
    await service.streams.close_all(within=1.0)
    browser = service.browse()
    assert await browser.rest() == []
    assert service.streams.open == 0


async def test_cancelling_the_streams_leaves_no_socket(loopback: Loopback) -> None:
    service = Service(loopback)
    async with service.running():
        browsers = [service.browse(route(user_id=user)) for user in range(5)]
        watched = [stream.sock for stream in service.streams._streams]
    assert all(sock.fileno() == -1 for sock in watched)
    assert all(browser.sock.fileno() == -1 for browser in browsers)


async def test_a_broken_question_about_sessions_does_not_end_the_streams(
    loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(loopback, keepalive=0.1)
    answers = iter([KeyError("a bug")])

    async def find(hashed: str) -> Route | None:
        await trio.lowlevel.checkpoint()
        for fault in answers:
            raise fault
        return service.sessions.routes.get(hashed)

    service.sessions.find_by_hash = find  # type: ignore[method-assign]
    async with service.running():
        browser = service.browse(route(slice_id=None))
        await browser.next()
        service.sessions.add(route(slice_id=4))
        assert (await browser.next()).name == "wa:catchup"


# the canary


class Tenant:
    """A slice with its user's browsers, and everything they were ever told."""

    def __init__(self, slice_id: int) -> None:
        self.slice_id = slice_id
        self.canary = f"canary-{slice_id}-{random.getrandbits(64):x}"
        self.histories: list[list[Told]] = []


async def visit(service: Service, tenant: Tenant, chance: random.Random, stop: trio.Event) -> None:
    """One client that comes, reads a while, goes, and comes back to where it was."""
    history: list[Told] = []
    tenant.histories.append(history)
    last: str | None = None
    while not stop.is_set():
        browser = service.browse(route(user_id=tenant.slice_id, slice_id=tenant.slice_id), last)
        try:
            with trio.move_on_after(chance.uniform(0.02, 0.4)):
                while True:
                    history.append(await browser.next())
        finally:
            history += browser.waiting
            last = browser.last_event_id or last
            (browser.reset if chance.random() < 0.5 else browser.close)()


async def speak(service: Service, tenants: list[Tenant], chance: random.Random) -> None:
    """Slices that talk, fall silent and come back."""
    for tenant in chance.choices(tenants, k=3000):
        channel = service.hub.channel(tenant.slice_id)
        if chance.random() < 0.02:
            channel.lost()
            channel.resync(Ready())
        for _ in range(chance.choice((1, 1, 1, 20))):
            channel.publish("wa:message", f'"{tenant.canary}"'.encode())
        if chance.random() < 0.2:
            await trio.sleep(0.001)


async def test_no_tenant_ever_sees_anothers_canary_and_no_history_has_a_silent_hole(loopback: Loopback) -> None:
    chance = random.Random(20)
    async with Service(loopback, per_user=100).running() as service:
        tenants = [Tenant(number) for number in range(1, 51)]
        for tenant in tenants:
            service.hub.channel(tenant.slice_id).resync(Ready())
        stop = trio.Event()
        async with trio.open_nursery() as clients:
            for tenant in tenants:
                for _ in range(4):
                    clients.start_soon(visit, service, tenant, chance, stop)
            await speak(service, tenants, chance)
            stop.set()
    heard = 0
    for tenant in tenants:
        epoch = service.hub.channel(tenant.slice_id).ring.epoch
        for history in tenant.histories:
            heard += len(history)
            check_history(history, epoch, tenant.canary)
    assert heard > 10_000


def check_history(history: list[Told], epoch: str, canary: str) -> None:
    """Nothing of anyone else, nothing twice, nothing left out unsaid."""
    place: int | None = None
    for told in history:
        assert (told.id or "").startswith(f"{epoch}:")
        if told.name == "wa:message":
            assert told.data == canary
        if place is not None and not told.gap:
            assert told.number == place + 1
        elif place is not None:
            assert told.number >= place
        place = told.number
    assert place is not None


async def test_a_descriptor_that_is_used_again_is_another_stream(service: Service) -> None:
    descriptors = set()
    for turn in range(1, 50):
        browser = service.browse(route(user_id=turn, slice_id=turn))
        await browser.next()
        service.say(turn)
        assert (await browser.next()).name == "wa:message"
        descriptors.update(stream.fd for stream in service.streams._streams)
        service.sessions.revoke(f"token-{turn}")
        assert [told.name for told in await browser.rest()] == ["wa:session_ended"]
        browser.close()
    assert len(descriptors) < 10
    assert service.streams.open == 0
