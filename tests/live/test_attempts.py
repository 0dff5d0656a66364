"""Pauses between attempts: none at first, then longer ones, and none again after a quiet spell."""

from itertools import pairwise

from queunir_trio.live.attempts import FIRST_PAUSE, FORGIVEN_AFTER, LONGEST_PAUSE, Attempts


def test_the_first_attempt_is_due_at_once_and_each_next_one_later() -> None:
    attempts, now = Attempts(), 1000.0
    pauses = []
    assert attempts.due <= now
    for count in range(1, 12):
        assert attempts.note(now) == count
        pauses.append(attempts.due - now)
        now = attempts.due
    assert 0.8 * FIRST_PAUSE <= pauses[0] <= 1.2 * FIRST_PAUSE
    assert all(later > earlier for earlier, later in pairwise(pauses[:6]))
    assert max(pauses) <= 1.2 * LONGEST_PAUSE


def test_after_a_quiet_spell_it_begins_anew() -> None:
    attempts = Attempts()
    for now in range(5):
        attempts.note(now)
    assert attempts.note(5 + FORGIVEN_AFTER + LONGEST_PAUSE) == 1


def test_what_succeeded_is_forgotten() -> None:
    attempts = Attempts()
    attempts.note(10)
    attempts.forget()
    assert attempts.count == 0
    assert attempts.due < 10
    assert repr(attempts) == "<Attempts 0>"
