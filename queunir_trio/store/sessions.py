"""Sessions: rows keyed by the SHA-256 of the cookie's token, good for 30 days since last used and 90 at most."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from queunir_trio.model.accounts import SESSION_AT_MOST, SESSION_EXTENDED_AT_MOST_EVERY, SESSION_IDLE
from queunir_trio.model.routing import SessionFacts
from queunir_trio.store import accounts, slices
from queunir_trio.store.bridge import Queries

USER_AGENT_AT_MOST: Final = 400  # characters

# $2 is SESSION_AT_MOST; the clock is asked once a statement, not once a row
_GOOD: Final = "least(t.expires_at, t.started_at + $2::interval) > (select gateway.clock())"
_FACTS: Final = f"""
    select {accounts.COLUMNS}, t.ref,
           extract(epoch from least(t.expires_at, t.started_at + $2::interval) - (select gateway.clock()))::float8,
           {slices.COLUMNS}
    from gateway.sessions t
    join gateway.users u on u.id = t.user_id and u.deleting_at is null
    left join gateway.slices s on s.id = u.slice_id
    where t.id = $1 and {_GOOD}
"""
_REF: Final = accounts.COUNT


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session as its user sees it in a list; `ref` names it, for the hash is nobody's to see."""

    ref: UUID
    created_at: datetime
    extended_at: datetime
    expires_at: datetime
    ip: str | None
    user_agent: str | None
    token_hash: str


async def begin(db: Queries, user_id: int, token_hash: str, ip: str | None, user_agent: str | None) -> None:
    """A new session of the user."""
    await db.execute(
        """
        insert into gateway.sessions (id, user_id, expires_at, ip, user_agent)
        values ($1, $2, gateway.clock() + $3, $4, left($5, $6))
        """,
        token_hash,
        user_id,
        SESSION_IDLE,
        ip,
        user_agent,
        USER_AGENT_AT_MOST,
    )


async def end(db: Queries, token_hash: str) -> bool:
    """Whether there was such a session."""
    return await db.execute("delete from gateway.sessions where id = $1", token_hash) == "DELETE 1"


async def end_all(db: Queries, user_id: int, but: str | None = None) -> list[str]:
    """Ends the user's sessions but the one of the hash `but`; the hashes of those ended."""
    rows = await db.fetch(
        "delete from gateway.sessions where user_id = $1 and id is distinct from $2 returning id", user_id, but
    )
    return [row["id"] for row in rows]


async def end_by_ref(db: Queries, user_id: int, ref: UUID) -> str | None:
    """Ends one of the user's own sessions; its hash, or None where the user has none of this name."""
    ended: str | None = await db.fetchval(
        "delete from gateway.sessions where user_id = $1 and ref = $2 returning id", user_id, ref
    )
    return ended


async def listed(db: Queries, user_id: int) -> list[SessionRow]:
    """The user's good sessions, the one used last first."""
    rows = await db.fetch(
        f"""
        select t.ref, t.created_at, t.extended_at, least(t.expires_at, t.started_at + $2::interval), t.ip,
               t.user_agent, t.id
        from gateway.sessions t where t.user_id = $1 and {_GOOD} order by t.extended_at desc, t.ref
        """,
        user_id,
        SESSION_AT_MOST,
    )
    return [SessionRow(*row) for row in rows]


async def facts(db: Queries, token_hash: str) -> SessionFacts | None:
    """All that a request needs to know of its session, in one statement; None where it is not good.

    It is not where it is unknown or expired, or its user is being deleted.
    """
    row = await db.fetchrow(_FACTS, token_hash, SESSION_AT_MOST)
    if row is None:
        return None
    found = slices.slice_of(row[_REF + 2 :]) if row[_REF + 2] is not None else None
    return SessionFacts(token_hash, row[_REF], accounts.user_of(row), found, row[_REF + 1])


async def valid(db: Queries, token_hashes: Sequence[str]) -> set[str]:
    """Which of these hashes are of good sessions."""
    rows = await db.fetch(
        f"""
        select t.id from gateway.sessions t join gateway.users u on u.id = t.user_id and u.deleting_at is null
        where t.id = any($1) and {_GOOD}
        """,
        list(token_hashes),
        SESSION_AT_MOST,
    )
    return {row["id"] for row in rows}


async def extend(db: Queries, token_hash: str) -> bool:
    """Gives a good session its 30 days anew, never past its 90th; False where that was done within the hour."""
    tag = await db.execute(
        f"""
        update gateway.sessions t
        set extended_at = gateway.clock(), expires_at = least(gateway.clock() + $3::interval, t.started_at + $2)
        where t.id = $1 and {_GOOD} and t.extended_at <= gateway.clock() - $4::interval
        """,
        token_hash,
        SESSION_AT_MOST,
        SESSION_IDLE,
        SESSION_EXTENDED_AT_MOST_EVERY,
    )
    return tag == "UPDATE 1"


async def prune(db: Queries) -> int:
    """Deletes the sessions that are over; how many."""
    tag = await db.execute(
        """
        delete from gateway.sessions
        where expires_at <= (select gateway.clock()) or started_at <= (select gateway.clock()) - $1::interval
        """,
        SESSION_AT_MOST,
    )
    return int(tag.split()[-1])
