"""Signing up: all or nothing."""

import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.operations.registering import SignUp, checked_sign_up, register
from queunir_trio.operations.signing_in import Visitor
from queunir_trio.outside.passwords import Hasher
from queunir_trio.store import accounts, slices
from queunir_trio.store.bridge import Database

HERE = Visitor("203.0.113.7", None)


async def sign_up(database: Database, email: str, *, serve_at_once: bool = True) -> int | None:
    """Registers; the id of the slice that came with it."""
    signed_in = await register(
        database,
        Hasher(4),
        SignUp(email, b"correct horse"),
        HERE,
        language="en",
        old_hash=None,
        serve_at_once=serve_at_once,
    )
    return signed_in.facts.slice.id if signed_in.facts.slice else None


async def warm(database: Database, number: int) -> set[int]:
    ids = [(await slices.add(database, num=num, base_port=5001, status="available")).id for num in range(1, number + 1)]
    await slices.record_health(database, ids)
    return set(ids)


def test_what_is_good_is_made_ready() -> None:
    assert checked_sign_up(" Ana@Example.com ", "contraseña") == SignUp("ana@example.com", "contraseña".encode())


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(Refused) as refused:
        checked_sign_up("ana", "short")
    assert refused.value.code == "invalid_fields"
    assert refused.value.fields is not None
    assert set(refused.value.fields) == {"email", "password"}


async def test_many_sign_ups_at_once_share_no_slice_and_who_comes_late_waits(database: Database) -> None:
    ids = await warm(database, 3)
    got: list[int | None] = []

    async def one(number: int) -> None:
        got.append(await sign_up(database, f"user{number}@example.com"))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    served = [slice_id for slice_id in got if slice_id is not None]
    assert sorted(served) == sorted(ids)
    assert await accounts.count(database) == 8
    assert len(await slices.waiting_users(database, False)) == 5


async def test_of_two_with_the_same_address_one_is_refused_and_holds_no_slice(database: Database) -> None:
    await warm(database, 2)
    outcomes: list[str] = []

    async def one() -> None:
        try:
            await sign_up(database, "ana@example.com")
            outcomes.append("in")
        except Refused as refused:
            outcomes.append(refused.code)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(one)
    assert sorted(outcomes) == ["email_taken", "in"]
    assert (await slices.counts(database))["available"] == 1


async def test_where_payment_comes_first_no_slice_is_claimed(database: Database) -> None:
    await warm(database, 1)
    assert await sign_up(database, "ana@example.com", serve_at_once=False) is None
    assert (await slices.counts(database))["available"] == 1
