"""How many slices are made: those who wait first, never more than two at a time, ever more rarely while it fails."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from queunir_trio.live.warm_pool import AVOIDED_FOR, PAUSED_AFTER, TOLD_AGAIN_AFTER, WarmPool
from queunir_trio.model.slices import Slice, Status, Wanted


def slice_(status: Status, wanted: Wanted = Wanted.RUNNING, managed: bool = True) -> Slice:
    user = 1 if status == Status.ASSIGNED else None
    return Slice(
        id=1, uuid=uuid4(), host="127.0.0.1", port=5001, status=status, wanted=wanted, managed=managed, user_id=user,
        wa_connected=False, wa_phone=None, wa_state=None, image="process", failures=0, retry_at=None,
        failed_step=None, failed_reason=None, last_health_at=None, created_at=datetime.now(UTC),
    )  # fmt: skip


WARM, MAKING, TAKEN = slice_(Status.AVAILABLE), slice_(Status.PROVISIONING), slice_(Status.ASSIGNED)


@pytest.mark.parametrize(
    ("at_least", "slices", "waiting", "missing"),
    [
        (0, [], 0, 0),
        (1, [], 0, 1),
        (1, [WARM], 0, 0),
        (1, [TAKEN], 0, 1),
        (1, [MAKING], 0, 0),
        (0, [], 1, 1),
        (1, [], 1, 2),
        (1, [WARM], 1, 1),
        (10, [], 0, 2),
        (10, [MAKING], 0, 1),
        (10, [MAKING, MAKING], 5, 0),
        (1, [slice_(Status.AVAILABLE, Wanted.STOPPED)], 0, 1),
        (1, [slice_(Status.AVAILABLE, managed=False)], 0, 1),
        (1, [slice_(Status.FAILED)], 0, 1),
    ],
)
def test_what_is_missing(at_least: int, slices: list[Slice], waiting: int, missing: int) -> None:
    assert WarmPool(at_least).missing(slices, waiting, now=0) == missing


def test_while_it_fails_there_are_pauses_and_one_attempt_at_a_time_and_one_alarm() -> None:
    pool, now = WarmPool(10), 0.0
    alarms = []
    for _ in range(2 * PAUSED_AFTER):
        alarms.append(pool.failed(None, now))
        assert pool.missing([], 5, now) == 0
        assert now < pool.due < now + 1000
        now = pool.due
        assert pool.missing([], 5, now) == 1
        assert pool.missing([MAKING], 5, now) == 0
    assert alarms == [count == PAUSED_AFTER for count in range(1, 2 * PAUSED_AFTER + 1)]
    pool.succeeded()
    assert pool.missing([], 5, now) == 2


def test_a_number_to_blame_is_avoided_for_a_while() -> None:
    pool = WarmPool(1)
    pool.failed(3, now=0)
    pool.failed(None, now=0)
    assert pool.avoided(now=1) == {3}
    assert pool.avoided(now=AVOIDED_FOR) == set()


def test_that_there_is_no_room_is_told_once_until_there_was_room_for_a_while() -> None:
    pool = WarmPool(1)
    assert [pool.is_news_that_full(now) for now in (0, 30, 60)] == [True, False, False]
    assert pool.is_news_that_full(60 + TOLD_AGAIN_AFTER)
    assert "WarmPool of 1" in repr(pool)
