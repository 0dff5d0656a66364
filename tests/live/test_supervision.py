"""Losses are borne, bugs are shown, refusals are final, and pauses grow and shrink."""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from itertools import pairwise
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from queunir_trio.errors import Lost, Refused
from queunir_trio.live.supervision import Backoff, keep_running

Logged = list[MutableMapping[str, Any]]


@pytest.fixture
def logged() -> Iterator[Logged]:
    with capture_logs() as lines:
        yield lines


class Sessions:
    """One ending after another, and when each began."""

    def __init__(self, *endings: Exception | float | None) -> None:
        self._endings = list(endings)
        self.began: list[float] = []

    async def __call__(self) -> None:
        self.began.append(trio.current_time())
        if not self._endings:
            await trio.sleep_forever()
        ending = self._endings.pop(0)
        if isinstance(ending, Exception):
            raise ending
        await trio.sleep(ending or 0)

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in pairwise(self.began)]


async def run(sessions: Callable[[], Awaitable[None]], backoff: Backoff | None = None, seconds: float = 1e5) -> None:
    with trio.move_on_after(seconds):
        await keep_running("test", sessions, backoff)


@pytest.mark.parametrize(
    "loss", [Lost("away"), OSError("refused"), ConnectionResetError(), ExceptionGroup("", [Lost("x")])]
)
async def test_a_loss_costs_one_line_and_a_pause(autojump_clock: MockClock, logged: Logged, loss: Exception) -> None:
    sessions = Sessions(loss)
    await run(sessions)
    assert len(sessions.began) == 2
    (line,) = logged
    assert (line["event"], line["name"], line["log_level"]) == ("session_lost", "test", "warning")
    assert "exc_info" not in line
    leaf = loss.exceptions[0] if isinstance(loss, ExceptionGroup) else loss
    assert line["reason"] == f"{type(leaf).__name__}: {leaf}"


@pytest.mark.parametrize("bug", [ZeroDivisionError(), ExceptionGroup("", [KeyError("x")])])
async def test_a_bug_is_shown_and_survived(autojump_clock: MockClock, logged: Logged, bug: Exception) -> None:
    sessions = Sessions(bug)
    await run(sessions)
    assert len(sessions.began) == 2
    (line,) = logged
    assert (line["event"], line["log_level"], line["exc_info"]) == ("session_crashed", "error", True)


async def test_a_bug_beside_a_loss_is_shown_too(autojump_clock: MockClock, logged: Logged) -> None:
    sessions = Sessions(ExceptionGroup("", [Lost("x"), ZeroDivisionError()]))
    await run(sessions)
    assert {line["event"] for line in logged} == {"session_lost", "session_crashed"}


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_refusal_is_final_and_comes_as_itself(autojump_clock: MockClock, logged: Logged, wrapped: bool) -> None:
    refusal = Refused("forbidden", "No.")
    sessions = Sessions(ExceptionGroup("", [ExceptionGroup("", [refusal])]) if wrapped else refusal)
    with pytest.raises(Refused) as refused:
        await run(sessions)
    assert refused.value is refusal
    assert len(sessions.began) == 1


async def test_a_session_that_simply_returns_is_begun_again(autojump_clock: MockClock, logged: Logged) -> None:
    sessions = Sessions(None, None)
    await run(sessions)
    assert len(sessions.began) == 3
    assert [line["event"] for line in logged] == ["session_ended", "session_ended"]


async def test_pauses_double_up_to_a_limit_with_some_chance(autojump_clock: MockClock, logged: Logged) -> None:
    sessions = Sessions(*[Lost("x")] * 10)
    await run(sessions, Backoff(first=0.5, most=30.0))
    for pause, full in zip(sessions.pauses, [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30], strict=True):
        assert full / 2 <= pause <= full
    again = Sessions(*[Lost("x")] * 10)
    await run(again, Backoff(first=0.5, most=30.0))
    assert again.pauses != sessions.pauses


async def test_a_loss_that_stays_the_same_is_told_once_a_minute(autojump_clock: MockClock, logged: Logged) -> None:
    await run(Sessions(*[Lost("x")] * 60, Lost("y"), Lost("x")), Backoff(first=2.0, most=2.0))
    told = [line["reason"] for line in logged]
    assert 2 <= told[:-2].count("Lost: x") <= 3, "sixty losses in one to two minutes"
    assert told[-2:] == ["Lost: y", "Lost: x"], "another reason is news at once"


async def test_a_healthy_spell_makes_pauses_short_again(autojump_clock: MockClock, logged: Logged) -> None:
    sessions = Sessions(*[Lost("x")] * 5, 29.0, 31.0, Lost("x"))
    await run(sessions, Backoff(first=1.0, most=64.0, healthy_after=30.0))
    unhealthy, healthy, next_one = sessions.pauses[5:8]
    assert unhealthy - 29.0 >= 16.0  # not long enough to be called healthy
    assert healthy - 31.0 <= 1.0
    assert 1.0 <= next_one <= 2.0


async def test_a_cancellation_ends_it_whatever_else_happens(autojump_clock: MockClock, logged: Logged) -> None:
    async def session() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise Lost("on the way out")

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_running, "test", session)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert [line["event"] for line in logged] == ["session_lost"]
