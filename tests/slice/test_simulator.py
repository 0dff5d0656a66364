"""The simulator by itself, a hundred times as fast as life: its states, its chance and what it reports."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from queunir_slice.engine import (
    Ack,
    Acked,
    Authenticated,
    CodeShown,
    Disconnected,
    Event,
    NotConnected,
    NotPossible,
    Outgoing,
    Ready,
    Received,
    Remembered,
    State,
    StateChanged,
    Synced,
)
from queunir_slice.simulator import CODES_LAST, Simulator
from queunir_slice.supervision import keep_running

WITHIN = 10.0  # seconds
NEW = Remembered(None, None)
PAIRED = Remembered("ready", "15550001111")
MESSAGE = Outgoing("true_34600@c.us_1", "34600111222@c.us", "hello", None, None)


class Ear:
    """Hears a simulator and waits for what it should say."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self._more = asyncio.Condition()

    async def hear(self, event: Event) -> None:
        async with self._more:
            self.heard.append(event)
            self._more.notify_all()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]

    def states(self) -> list[State]:
        return [event.standing.state for event in self.of(StateChanged)]

    async def wait(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(WITHIN), self._more:
            await self._more.wait_for(holds)

    async def state(self, state: State) -> None:
        await self.wait(lambda: self.states()[-1:] == [state])


def live(
    story: Callable[[Simulator, Ear], Awaitable[None]],
    remembered: Remembered = NEW,
    *,
    seed: str = "a",
    speed: float = 100.0,
) -> Ear:
    """Runs a simulator for as long as a story lasts, and returns what was heard."""

    async def main() -> Ear:
        simulator, ear = Simulator(seed, speed), Ear()
        running = asyncio.create_task(simulator.run(remembered, ear.hear))
        await story(simulator, ear)
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])
        return ear

    return asyncio.run(main())


async def pair(simulator: Simulator, ear: Ear) -> None:
    await ear.wait(lambda: ear.of(CodeShown))
    await simulator.scan()
    await ear.wait(lambda: ear.of(Ready))


def test_a_phone_is_paired_step_by_step() -> None:
    ear = live(pair)
    assert ear.states() == [State.STARTING, State.QR, State.AUTHENTICATED, State.SYNCING, State.READY]
    assert [event.percent for event in ear.of(Synced)] == [25, 50, 75, 100]
    assert len(ear.of(Authenticated)) == 1
    assert ear.of(Ready)[0].phone_number == ear.of(StateChanged)[-1].standing.phone_number


def test_six_codes_are_shown_one_after_another_and_then_it_idles_until_somebody_asks() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.STOPPED)
        assert simulator.standing.reason == "qr_timeout"
        assert simulator.standing.code is None
        assert [event.code.number for event in ear.of(CodeShown)] == [1, 2, 3, 4, 5, 6]
        simulator.ask_for_code()
        await ear.wait(lambda: len(ear.of(CodeShown)) > 6)
        assert ear.of(CodeShown)[6].code.number == 1

    ear = live(story, speed=1000.0)
    assert len({event.code.text for event in ear.of(CodeShown)}) == len(ear.of(CodeShown))


def test_the_first_code_lasts_sixty_seconds_and_the_others_twenty() -> None:
    assert CODES_LAST == (60, 20, 20, 20, 20, 20)
    before = datetime.now(UTC)
    ear = live(lambda simulator, ear: ear.wait(lambda: len(ear.of(CodeShown)) == 2), speed=200.0)
    first, second = (event.code.expires_at for event in ear.of(CodeShown))
    assert 0.3 <= (first - before).total_seconds() < 2
    assert 0.0 < (second - first).total_seconds() < 1


def test_the_same_seed_tells_the_same_story_and_another_seed_another() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await pair(simulator, ear)
        for number in range(3):
            await simulator.send(Outgoing(f"m{number}", "34600111222@c.us", "?", None, None))
            await ear.wait(lambda number=number: len(ear.of(Received)) > number)

    def told(seed: str) -> list[object]:
        ear = live(story, seed=seed)
        return [
            ear.of(CodeShown)[0].code.text,
            ear.of(Ready),
            [(event.body, event.push_name) for event in ear.of(Received)],
        ]

    assert told("one") == told("one")
    assert all(ours != theirs for ours, theirs in zip(told("one"), told("two"), strict=True))


def test_a_message_is_sent_delivered_read_and_answered() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await simulator.send(MESSAGE)
        await ear.wait(lambda: ear.of(Received))

    ear = live(story, PAIRED)
    assert [event.ack for event in ear.of(Acked)] == [Ack.SENT, Ack.DELIVERED, Ack.READ]
    answer = ear.of(Received)[0]
    assert (answer.chat_wa_id, answer.from_wa_id) == (MESSAGE.chat_wa_id, MESSAGE.chat_wa_id)


def test_in_a_group_a_member_answers() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await simulator.send(Outgoing("m", "120363@g.us", "?", None, None))
        await ear.wait(lambda: ear.of(Received))

    answer = live(story, PAIRED).of(Received)[0]
    assert answer.chat_wa_id == "120363@g.us"
    assert answer.from_wa_id.endswith("@c.us")


def test_a_paired_phone_needs_no_code_after_a_restart() -> None:
    ear = live(lambda simulator, ear: ear.wait(lambda: ear.of(Ready)), PAIRED)
    assert ear.states() == [State.STARTING, State.READY]
    assert ear.of(Ready)[0].phone_number == "15550001111"


@pytest.mark.parametrize("state", [State.BLOCKED, State.LOGGED_OUT])
def test_a_ban_and_a_log_out_are_remembered(state: State) -> None:
    number = "15550001111" if state is State.BLOCKED else None
    ear = live(lambda simulator, ear: ear.state(state), Remembered(state.value, number))
    assert ear.states() == [state]


def test_the_network_goes_and_comes_back() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await simulator.disconnect("network")
        await ear.wait(lambda: len(ear.of(Ready)) == 2)

    ear = live(story, PAIRED)
    assert ear.states() == [State.STARTING, State.READY, State.DEGRADED, State.READY]
    assert ear.of(Disconnected)[0].reason == "network"


def test_acks_wait_for_the_network() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await simulator.send(MESSAGE)
        await simulator.disconnect("network")
        with pytest.raises(NotConnected):
            await simulator.send(MESSAGE)
        assert not ear.of(Acked)
        await ear.wait(lambda: len(ear.of(Acked)) == 3)
        assert ear.states()[-1] is State.READY

    live(story, PAIRED, speed=20.0)


def test_after_an_authentication_failure_it_waits_until_somebody_asks() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await simulator.disconnect("auth_failure")
        await ear.wait(lambda: ear.of(Disconnected))
        assert simulator.standing.state is State.FAILED
        simulator.ask_for_code()
        await ear.state(State.READY)

    live(story, PAIRED)


@pytest.mark.parametrize("by_phone", [True, False])
def test_after_a_log_out_nothing_is_paired_and_a_code_is_shown_on_demand(by_phone: bool) -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await (simulator.log_out_on_phone() if by_phone else simulator.log_out())
        await ear.wait(lambda: ear.of(Disconnected))
        standing = simulator.standing
        assert (standing.state, standing.phone_number) == (State.LOGGED_OUT, None)
        assert standing.reason == ("phone" if by_phone else "user")
        with pytest.raises(NotConnected):
            await simulator.log_out()
        simulator.ask_for_code()
        await ear.state(State.QR)

    live(story, PAIRED)


def test_a_ban_is_final_until_it_is_logged_out() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await simulator.ban()
        await ear.wait(lambda: ear.of(Disconnected))
        assert simulator.standing.state is State.BLOCKED
        simulator.ask_for_code()
        with pytest.raises(NotConnected):
            simulator.receive("34600@c.us", "?")
        await simulator.log_out()
        assert simulator.standing.state is State.LOGGED_OUT

    assert State.STARTING not in live(story, PAIRED).states()[1:]


def test_a_freeze_says_nothing_and_a_thaw_says_what_was_held_back() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        await simulator.send(MESSAGE)
        simulator.freeze()
        heard = len(ear.heard)
        simulator.receive("34600111222@c.us", "are you there?")
        sending = asyncio.create_task(simulator.send(MESSAGE))
        # much longer than acks and answers take at this speed
        done, _ = await asyncio.wait([sending], timeout=0.3)
        assert not done
        assert len(ear.heard) == heard
        assert simulator.standing.state is State.READY
        for order in (simulator.log_out(), simulator.disconnect("network"), simulator.ban()):
            with pytest.raises(NotPossible):
                await order
        simulator.thaw()
        await sending
        await ear.wait(lambda: len(ear.of(Acked)) == 6 and len(ear.of(Received)) == 3)

    live(story, PAIRED)


def test_a_code_does_not_expire_in_a_freeze() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.wait(lambda: ear.of(CodeShown))
        simulator.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await ear.wait(lambda: len(ear.of(CodeShown)) > 1)
        simulator.thaw()
        await ear.wait(lambda: len(ear.of(CodeShown)) > 1)

    live(story, speed=1000.0)


def test_freezing_twice_and_thawing_twice_are_refused() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        with pytest.raises(NotPossible):
            simulator.thaw()
        simulator.freeze()
        with pytest.raises(NotPossible):
            simulator.freeze()

    live(story)


def test_a_flood_arrives_in_order_and_as_often_as_was_said() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        began = asyncio.get_running_loop().time()
        simulator.flood(200, 1000.0)
        await ear.wait(lambda: len(ear.of(Received)) == 200)
        assert asyncio.get_running_loop().time() - began >= 0.19

    ear = live(story, PAIRED)
    assert [event.body for event in ear.of(Received)] == [f"flood {number} of 200" for number in range(1, 201)]
    assert len({event.wa_id for event in ear.of(Received)}) == 200


def test_what_does_not_fit_the_state_is_refused() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        with pytest.raises(NotPossible):
            await simulator.scan()

    live(story, PAIRED)

    async def unpaired(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.QR)
        for order in (simulator.disconnect("network"), simulator.ban(), simulator.log_out_on_phone()):
            with pytest.raises(NotPossible):
                await order
        with pytest.raises(NotConnected):
            simulator.flood(1, 1.0)

    live(unpaired, speed=10.0)


def test_a_destroyed_session_stays_stopped_whoever_asks() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        simulator.freeze()
        await simulator.destroy()
        assert (simulator.standing.state, simulator.standing.reason) == (State.STOPPED, "destroyed")
        assert simulator.standing.phone_number == "15550001111"  # the next process goes on with it
        simulator.ask_for_code()
        await asyncio.wait([asyncio.create_task(ear.state(State.STARTING))], timeout=0.1)
        assert simulator.standing.state is State.STOPPED

    live(story, PAIRED)


def test_orders_given_at_once_are_followed_one_after_another() -> None:
    async def story(simulator: Simulator, ear: Ear) -> None:
        await ear.state(State.READY)
        results = await asyncio.gather(simulator.disconnect("one"), simulator.disconnect("two"), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), NotPossible]

    assert live(story, PAIRED, speed=10.0).states().count(State.DEGRADED) == 1


def test_a_fault_in_the_session_shows_and_it_starts_anew() -> None:
    class FaultyEar(Ear):
        async def hear(self, event: Event) -> None:
            await super().hear(event)
            if isinstance(event, CodeShown) and len(self.of(CodeShown)) == 1:
                raise ValueError("a bug")

    async def main() -> list[State]:
        simulator, ear = Simulator("a", 100.0), FaultyEar()
        running = asyncio.create_task(keep_running("engine", lambda: simulator.run(NEW, ear.hear)))
        await ear.wait(lambda: len(ear.of(CodeShown)) == 2)
        running.cancel()
        await asyncio.wait([running])
        return ear.states()

    assert asyncio.run(main()) == [State.STARTING, State.QR, State.FAILED, State.STARTING, State.QR]
