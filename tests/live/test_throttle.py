"""Limits on how often somebody may try; time is moved by hand."""

import pytest

from queunir_trio.live.throttle import Throttle, Throttles, address_key


class Hand:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_sixth_try_within_a_minute_has_to_wait_for_the_first_to_be_a_minute_old() -> None:
    hand = Hand()
    throttle = Throttle(5, 60, clock=hand)
    for _ in range(5):
        assert throttle.take("a") == 0.0
        hand.now += 10
    assert throttle.take("a") == pytest.approx(10)
    hand.now += 9.9
    assert throttle.take("a") == pytest.approx(0.1)
    hand.now += 0.2
    assert throttle.take("a") == 0.0
    assert throttle.take("a") == pytest.approx(9.9)


def test_no_minute_ever_holds_more_than_five_however_the_tries_are_spread() -> None:
    hand = Hand()
    throttle = Throttle(5, 60, clock=hand)
    granted = []
    for _ in range(500):
        hand.now += 0.7
        if throttle.take("a") == 0.0:
            granted.append(hand.now)
    for first, sixth in zip(granted, granted[5:], strict=False):
        assert sixth - first >= 60


def test_a_refused_try_does_not_lengthen_the_wait() -> None:
    hand = Hand()
    throttle = Throttle(1, 60, clock=hand)
    throttle.take("a")
    for _ in range(59):
        hand.now += 1
        assert throttle.take("a") > 0
    hand.now += 1
    assert throttle.take("a") == 0.0


def test_keys_do_not_touch_each_other() -> None:
    throttle = Throttle(1, 60, clock=Hand())
    assert throttle.take("a") == 0.0
    assert throttle.take("b") == 0.0
    assert throttle.take("a") > 0


def test_looking_counts_nothing() -> None:
    throttle = Throttle(1, 60, clock=Hand())
    for _ in range(5):
        assert throttle.wait("a") == 0.0
    assert throttle.take("a") == 0.0
    assert throttle.wait("a") == pytest.approx(60)


def test_memory_is_bounded_and_the_oldest_is_forgotten_first() -> None:
    throttle = Throttle(1, 60, remembered=3, clock=Hand())
    for key in "abcd":
        throttle.take(key)
    assert repr(throttle) == "<Throttle 1 in 60 s, 3 keys>"
    assert throttle.wait("a") == 0.0
    assert throttle.wait("b") > 0


def test_a_huge_key_is_cut_and_still_counts() -> None:
    throttle = Throttle(1, 60, clock=Hand())
    throttle.take("x" * 100_000)
    assert all(len(key) < 300 for key in throttle._tries)
    assert throttle.take("x" * 100_000) > 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("<local>", "<local>"),
    ],
)
def test_an_address_counts_as_far_as_one_customer_reaches(address: str, key: str) -> None:
    assert address_key(address) == key


def test_a_process_starts_with_limits_of_its_own() -> None:
    first, second = Throttles(), Throttles()
    for _ in range(5):
        assert first.login_address.take("a") == 0.0
    assert first.login_address.take("a") > 0
    assert second.login_address.take("a") == 0.0
