"""Hashing: what is accepted, that the work is always the same, and what happens under load."""

import threading

import bcrypt
import pytest
import trio
import trio.testing

from queunir_trio.outside import passwords
from queunir_trio.outside.passwords import COST, Hasher, HashesBusy, Verdict

CHEAP = 4


async def check(hasher: Hasher, password: str, hashed: str | None) -> Verdict:
    with hasher.place():
        return await hasher.check(password, hashed)


def stored(password: bytes, cost: int = CHEAP) -> str:
    return bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()


async def test_a_password_is_known_again_and_another_is_not() -> None:
    hasher = Hasher(CHEAP)
    with hasher.place():
        hashed = await hasher.hash(b"correct horse")
    assert hashed.startswith("$2b$04$")
    assert await check(hasher, "correct horse", hashed) is Verdict.RIGHT
    assert await check(hasher, "correct horsf", hashed) is Verdict.WRONG


async def test_the_cost_is_twelve_unless_a_test_says_otherwise() -> None:
    with Hasher().place() as hasher:
        assert (await hasher.hash(b"correct horse")).startswith("$2b$12$")
    assert COST == 12


@pytest.mark.parametrize("prefix", ["$2a", "$2b", "$2y"])
async def test_hashes_of_the_older_gateway_are_understood(prefix: str) -> None:
    old = prefix + stored("contraseña".encode())[3:]
    assert await check(Hasher(CHEAP), "contraseña", old) is Verdict.RIGHT


@pytest.mark.parametrize(
    ("password", "hashed", "verdict"),
    [
        ("whatever", None, Verdict.WRONG),
        ("x" * 73, stored(b"x" * 72), Verdict.WRONG),
        ("😀" * 19, stored(b"x" * 72), Verdict.WRONG),
        ("\ud800", stored(b"x"), Verdict.WRONG),
        ("", stored(b"x"), Verdict.WRONG),
        ("whatever", "", Verdict.HASH_INVALID),
        ("whatever", "md5:abcdef", Verdict.HASH_INVALID),
        ("whatever", stored(b"whatever")[:-1], Verdict.HASH_INVALID),
        ("whatever", stored(b"whatever") + "x", Verdict.HASH_INVALID),
        ("whatever", "$2b$31$" + "." * 53, Verdict.HASH_INVALID),
        ("whatever", "$2b$03$" + "." * 53, Verdict.HASH_INVALID),
        ("whatever", "$2b$04$" + "é" * 53, Verdict.HASH_INVALID),
    ],
    ids=[
        "nobody",
        "too long",
        "too long in bytes",
        "a lone surrogate",
        "empty",
        "an empty hash",
        "another function",
        "a hash cut short",
        "a hash too long",
        "a cost too high",
        "a cost too low",
        "a hash not ASCII",
    ],
)
async def test_every_answer_costs_exactly_one_hash_of_full_cost(
    password: str, hashed: str | None, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bytes] = []
    real = bcrypt.checkpw

    def counted(given: bytes, against: bytes) -> bool:
        matches = real(given, against)  # raises at once for what it will not work on
        calls.append(against)
        return matches

    monkeypatch.setattr(passwords.bcrypt, "checkpw", counted)
    hasher = Hasher(CHEAP)
    assert await check(hasher, password, hashed) is verdict
    assert [call[:7] for call in calls] == [b"$2b$04$"]
    assert hasher.work == 1


async def test_the_dummy_matches_nothing_even_for_who_is_not_there() -> None:
    hasher = Hasher(CHEAP)
    assert await check(hasher, "not the password of anybody", None) is Verdict.WRONG


async def test_a_hash_that_only_bcrypt_finds_malformed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes, __: bytes) -> bool:
        raise ValueError("Invalid salt")

    monkeypatch.setattr(passwords.bcrypt, "checkpw", refuse)
    assert await check(Hasher(CHEAP), "whatever", stored(b"whatever")) is Verdict.WRONG


async def test_beyond_the_waiting_room_one_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    at_once, highest, both = 0, 0, trio.Event()
    lock = threading.Lock()

    def slow(_: bytes, __: bytes) -> bool:
        nonlocal at_once, highest
        with lock:
            at_once += 1
            highest = max(highest, at_once)
        if at_once == 2:
            trio.from_thread.run_sync(both.set)
        gate.wait(10)
        with lock:
            at_once -= 1
        return False

    monkeypatch.setattr(passwords.bcrypt, "checkpw", slow)
    hasher = Hasher(CHEAP, threads=2, waiting_at_most=3)
    outcomes: list[str] = []

    async def one() -> None:
        try:
            outcomes.append((await check(hasher, "whatever", None)).value)
        except HashesBusy as busy:
            outcomes.append(f"busy {busy.retry_after}")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes == ["busy 3"] * 25
            assert repr(hasher) == "<Hasher cost 4, 2 at work, 5 of 5>"
            await both.wait()
            gate.set()
    assert outcomes.count("wrong") == 5
    assert highest == 2


async def test_a_thread_outlives_nobody_who_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun, left = threading.Event(), threading.Event(), trio.Event()

    def hold(_: bytes, __: bytes) -> bool:
        begun.set()
        return gate.wait(10)

    async def go_away(scope: trio.CancelScope) -> None:
        with scope:
            await check(hasher, "whatever", None)
        left.set()

    monkeypatch.setattr(passwords.bcrypt, "checkpw", hold)
    hasher, scope = Hasher(CHEAP, threads=1), trio.CancelScope()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_away, scope)
            await trio.to_thread.run_sync(begun.wait)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not left.is_set()
            assert "1 at work" in repr(hasher)
            gate.set()
            await left.wait()
    assert "0 at work" in repr(hasher)
