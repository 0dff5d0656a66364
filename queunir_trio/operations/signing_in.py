"""Logging in and out: a session begins with a new secret, and ends for good."""

from dataclasses import dataclass, field
from uuid import UUID

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User, new_token, token_hash
from queunir_trio.model.routing import SessionFacts
from queunir_trio.outside.passwords import Hasher, Verdict
from queunir_trio.store import accounts, sessions
from queunir_trio.store.bridge import Database, Queries


@dataclass(frozen=True, slots=True)
class Visitor:
    """What is remembered of the client beside a session it begins."""

    ip: str
    user_agent: str | None


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session that has begun: its secret, for the cookie and nowhere else, and the hashes of sessions it ended."""

    token: str = field(repr=False)
    facts: SessionFacts
    ended: list[str]


class BadCredentials(Refused):
    """The same to the client whatever was wrong; `why` and `user_id` are for the log."""

    def __init__(self, why: str, user_id: int | None = None) -> None:
        super().__init__("bad_credentials", "The e-mail address or the password is wrong.")
        self.why = why
        self.user_id = user_id


async def sign_in(
    db: Database, hasher: Hasher, email: str, password: str, visitor: Visitor, old_hash: str | None
) -> SignedIn:
    """Begins a session of the user with this address and password; the one of `old_hash` ends.

    BadCredentials otherwise, after exactly the same work. HashesBusy, DatabaseUnavailable.
    """
    with hasher.place():
        found = await accounts.find_by_email(db, email.strip().lower())
        user, stored = found if found is not None else (None, None)
        await _judge(hasher, password, user, stored)
    assert user is not None
    async with db.transaction() as connection:
        # This locks the user's row, so a change of the password is either complete by now, and then the hash that was
        # checked is no longer there, or it waits for us and ends the session we begin here.
        await accounts.record_login(connection, user.id)
        now = await accounts.find_by_email(connection, user.email)
        if now is None or now[1] != stored or now[0].deleting_at is not None:
            raise BadCredentials("changed_meanwhile", user.id)
        return await begin_session(connection, user.id, visitor, old_hash)


async def _judge(hasher: Hasher, password: str, user: User | None, stored: str | None) -> None:
    """BadCredentials unless this is the password; one hash of the same cost in every case."""
    verdict = await hasher.check(password, stored)
    if user is None:
        raise BadCredentials("unknown_email")
    if stored is None or verdict is Verdict.HASH_INVALID:
        raise BadCredentials("hash_invalid", user.id)
    if verdict is Verdict.WRONG:
        raise BadCredentials("wrong_password", user.id)
    if user.deleting_at is not None:
        raise BadCredentials("being_deleted", user.id)


async def begin_session(db: Queries, user_id: int, visitor: Visitor, old_hash: str | None) -> SignedIn:
    """A session with a secret of its own, in the caller's transaction.

    The one whose cookie came along ends: whoever planted that cookie must not share what begins here.
    """
    ended = [old_hash] if old_hash is not None and await sessions.end(db, old_hash) else []
    token = new_token()
    hashed = token_hash(token.encode())
    await sessions.begin(db, user_id, hashed, visitor.ip, visitor.user_agent)
    facts = await sessions.facts(db, hashed)
    assert facts is not None
    return SignedIn(token, facts, ended)


async def sign_out(db: Queries, hashed: str) -> bool:
    """Ends the session of this hash; whether there was one."""
    return await sessions.end(db, hashed)


async def end_session(db: Queries, user_id: int, ref: UUID) -> str:
    """Ends one of the user's own sessions; its hash. Refused: `no_such_session`."""
    ended = await sessions.end_by_ref(db, user_id, ref)
    if ended is None:
        raise Refused("no_such_session", "There is no such session.")
    return ended
