"""Connections of slices' roles that stay beyond the limits of their role, which every role may lift for itself.

A statement that runs for ever costs CPU. A transaction that is left open keeps the queue of notifications, which all
databases share, from being emptied. Locks lie in one table for the whole server. So somebody must end them who is not
the slice.
"""

from dataclasses import dataclass
from typing import Final

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import open_connection

ROLES: Final = "^wa_slice_[0-9]+$"  # those that log in for slices
QUEUE_AT_MOST: Final = 0.25  # of the notifications that the server can hold; beyond it no transaction is old enough


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, and a number of locks. The roles' own limits come first, so that only who lifted them is met."""

    statement: float = 120.0
    idle: float = 120.0  # inside a transaction
    transaction: float = 3600.0  # a long export is one
    locks: int = 2000


@dataclass(frozen=True, slots=True)
class Ended:
    """A connection that was ended, and why: `statement`, `idle`, `transaction`, `locks` or `queue`."""

    role: str
    pid: int
    why: str


async def end_overlong(where: DatabaseSettings, limits: Limits | None = None) -> list[Ended]:
    """Ends the connections of slices that are over a limit. DatabaseUnavailable, NotPermitted."""
    limits = limits or Limits()
    async with open_connection(where, as_admin=True, search_path="pg_catalog") as connection:
        rows = await connection.fetch(
            _OVER, ROLES, limits.statement, limits.idle, limits.transaction, limits.locks, QUEUE_AT_MOST
        )
        ended = [Ended(*row) for row in rows]
        for session in ended:
            await connection.execute("select pg_terminate_backend($1)", session.pid)
    return ended


_OVER: Final = """
    with held as (select pid, count(*) as locks from pg_locks group by pid),
    judged as (
        select usename::text as role, a.pid, case
            when state = 'active' and clock_timestamp() - query_start > make_interval(secs => $2) then 'statement'
            when state ~ '^idle in' and clock_timestamp() - state_change > make_interval(secs => $3) then 'idle'
            when clock_timestamp() - xact_start > make_interval(secs => $4) then 'transaction'
            when h.locks > $5 then 'locks'
            when xact_start is not null and pg_notification_queue_usage() > $6 then 'queue'
        end as why
        from pg_stat_activity a left join held h on h.pid = a.pid
        where usename ~ $1 and backend_type = 'client backend' and a.pid <> pg_backend_pid()
    )
    select role, pid, why from judged where why is not null
"""
