"""Connections that were used once, so that what comes next may go the short way; and what must be left afterwards."""

import trio.testing

from queunir_trio.front.connection import Connection
from tests.doubles.upstreams import Talk, ok
from tests.front.house import Client, House, api


async def at_rest() -> None:
    """Waits until everybody waits: bytes that were sent have been read, and answers have been sent."""
    await trio.testing.wait_all_tasks_blocked()


async def warmed(house: House, *, window: int | None = None) -> tuple[Client, Talk]:
    """A client that was answered once, and the slice's end of the connection that its next request goes over."""
    client = await house.client(window=window)
    await client.send(api(b"/api/first"))
    talk = await house.slice.connection()
    await talk.request()
    await talk.say(ok(b"first"))
    assert (await client.answer()).body == b"first"
    await at_rest()
    return client, talk


async def under_way(house: House, request: bytes | None = None) -> tuple[Client, Talk]:
    """The same with the next request arrived at the slice, and no task awake for it."""
    client, talk = await warmed(house)
    await client.send(request or api())
    await talk.request()
    await at_rest()
    return client, talk


def the_connection(house: House) -> Connection:
    (connection,) = house.front.wheel.connections
    assert isinstance(connection, Connection)
    return connection


def watched(house: House) -> int:
    """How many sockets the front holds."""
    return len(house.front.readiness._sockets)


async def left_alone(house: House, *, idle: int) -> None:
    """The front holds no client, no place at the slice, and no more than so many idle connections to it."""
    await house.wait_until(lambda: not house.front.wheel.connections)
    await at_rest()
    assert repr(house.upstream) == f"<Upstream 0 in use, {idle} idle>"
    assert watched(house) == idle
    assert all(sock.on_readable is None for sock in house.front.readiness._sockets.values())
