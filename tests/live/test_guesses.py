"""Tokens of no session, counted by where they came from; time is moved by hand."""

from queunir_trio.live.guesses import UNSUSPICIOUS, Guesses


class Hand:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_some_unknown_tokens_are_nothing_and_more_within_a_minute_are_told_of() -> None:
    told: list[str] = []
    guesses = Guesses(told.append, Hand())
    for _ in range(UNSUSPICIOUS):
        guesses.unknown_token("203.0.113.7")
    assert told == []
    guesses.unknown_token("203.0.113.7")
    assert told == ["203.0.113.7"]


def test_who_is_slow_is_not_told_of() -> None:
    told: list[str] = []
    hand = Hand()
    guesses = Guesses(told.append, hand)
    for _ in range(10 * UNSUSPICIOUS):
        guesses.unknown_token("203.0.113.7")
        hand.now += 60 / UNSUSPICIOUS
    assert told == []


def test_a_network_of_ipv6_is_one_client_and_two_addresses_of_ipv4_are_two() -> None:
    told: list[str] = []
    guesses = Guesses(told.append, Hand())
    for number in range(UNSUSPICIOUS + 1):
        guesses.unknown_token(f"2001:db8:1:2::{number:x}")
        guesses.unknown_token(f"203.0.113.{number}")
    assert told == [f"2001:db8:1:2::{UNSUSPICIOUS:x}"]
