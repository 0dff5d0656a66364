"""Sessions begin with a new secret and end for good."""

from uuid import uuid4

import pytest

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User, is_token, token_hash
from queunir_trio.operations.signing_in import BadCredentials, Visitor, end_session, sign_in, sign_out
from queunir_trio.outside.passwords import Hasher
from queunir_trio.store import accounts, sessions
from queunir_trio.store.bridge import Database

HERE = Visitor("203.0.113.7", "Browser/1")


@pytest.fixture
def hasher() -> Hasher:
    return Hasher(4)


@pytest.fixture
async def ana(database: Database, hasher: Hasher) -> User:
    with hasher.place():
        hashed = await hasher.hash(b"correct horse")
    return await accounts.add(database, "ana@example.com", hashed)


async def test_every_session_has_a_secret_of_its_own_that_is_shown_nowhere(
    database: Database, hasher: Hasher, ana: User
) -> None:
    first, second = [await sign_in(database, hasher, "ana@example.com", "correct horse", HERE, None) for _ in range(2)]
    assert first.token != second.token
    assert is_token(first.token.encode())
    assert first.token not in repr(first)
    assert first.facts.token_hash == token_hash(first.token.encode())
    assert first.facts.user.id == ana.id
    assert first.facts.user.last_login_at is not None
    assert first.ended == []


async def test_the_session_that_came_along_ends_and_one_that_was_none_does_not_count(
    database: Database, hasher: Hasher, ana: User
) -> None:
    first = await sign_in(database, hasher, "ana@example.com", "correct horse", HERE, None)
    for old, ended in ((first.facts.token_hash, [first.facts.token_hash]), ("0" * 64, [])):
        assert (await sign_in(database, hasher, "ana@example.com", "correct horse", HERE, old)).ended == ended
    assert len(await sessions.listed(database, ana.id)) == 2


async def test_a_refusal_says_why_to_us_and_nothing_to_others(database: Database, hasher: Hasher, ana: User) -> None:
    with pytest.raises(BadCredentials) as wrong:
        await sign_in(database, hasher, "ana@example.com", "wrong horse", HERE, None)
    with pytest.raises(BadCredentials) as unknown:
        await sign_in(database, hasher, "bea@example.com", "correct horse", HERE, None)
    assert (wrong.value.code, wrong.value.reason) == (unknown.value.code, unknown.value.reason)
    assert (wrong.value.why, wrong.value.user_id) == ("wrong_password", ana.id)
    assert (unknown.value.why, unknown.value.user_id) == ("unknown_email", None)


async def test_a_session_is_ended_once(database: Database, hasher: Hasher, ana: User) -> None:
    begun = await sign_in(database, hasher, "ana@example.com", "correct horse", HERE, None)
    assert await sign_out(database, begun.facts.token_hash)
    assert not await sign_out(database, begun.facts.token_hash)
    with pytest.raises(Refused, match="no_such_session"):
        await end_session(database, ana.id, begun.facts.ref)
    with pytest.raises(Refused, match="no_such_session"):
        await end_session(database, ana.id, uuid4())
