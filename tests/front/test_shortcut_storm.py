"""Many customers on many connections, slices that dawdle and break off: nobody ever gets what is another's."""

import random
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import h11
import pytest
import trio
import trio.testing

from queunir_trio.front.exchange import Exchange
from queunir_trio.model.routing import SliceAddress
from tests.doubles.upstreams import Script, ScriptedUpstream, Talk, ok, scripted_upstream
from tests.front.conftest import OpenHouse
from tests.front.house import QUICK, TOKEN, Client, House, api

CUSTOMERS = 12
CONNECTIONS = 48
REQUESTS = 20  # a connection
LIMITS = replace(QUICK, idle=5.0, body=1.0, first_byte=1.0, linger=0.2, half_closed=0.2)


@dataclass
class Weather:
    """Chance, and what came of it."""

    chance: random.Random
    answered: int = 0
    failed: int = 0
    broken: int = 0
    addresses: list[SliceAddress] = field(default_factory=list)


def token(customer: int) -> bytes:
    return b"%064x" % (customer + 1)


def mark(customer: int, target: bytes) -> bytes:
    """What only this customer's slice says, and only of this target."""
    return b'"%d %b"' % (customer, target)


def capricious(customer: int, weather: Weather) -> Script:
    """A slice that is asked by its own customer only, and answers with the mark of what was asked."""
    chance = weather.chance

    async def script(talk: Talk) -> None:
        while True:
            request = await talk.request()
            assert request.values(b"x-user-id") == [b"%d" % customer]
            assert request.values(b"x-slice-id") == [b"%d" % (100 + customer)]
            method, target, _ = request.line.split(b" ")
            luck = chance.random()
            if luck < 0.04:
                return  # without a word
            if luck < 0.15:
                await trio.sleep(chance.random() * 0.02)
            said = answer_to(customer, target, method, chance)
            cut = chance.randrange(1, len(said))
            if luck > 0.97:
                await talk.say(said[:cut])
                return
            if luck > 0.9:
                await talk.say(said[:cut])
                await trio.sleep(chance.random() * 0.01)
                said = said[cut:]
            await talk.say(said)
            if luck > 0.85 and chance.random() < 0.4:
                return  # as if it had been idle for too long

    return script


def answer_to(customer: int, target: bytes, method: bytes, chance: random.Random) -> bytes:
    canary = mark(customer, target)
    fields = b"content-type: text/plain\r\netag: %b\r\n" % canary
    body = canary * chance.choice([1, 1, 1, 10, 3000])
    if method == b"HEAD":
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n" % (len(body), fields)
    if chance.random() < 0.1:
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            fields,
            len(body),
            body,
        )
    return ok(body, fields)


async def visit(house: House, number: int, weather: Weather) -> None:
    """One connection after another, on which now this customer asks and now that one."""
    chance = weather.chance
    client = await house.client()
    for count in range(REQUESTS):
        asked = [
            (
                chance.randrange(CUSTOMERS),
                b"/api/%d/%d/%d" % (number, count, each),
                chance.choice([b"GET", b"GET", b"HEAD"]),
            )
            for each in range(chance.choice([1, 1, 1, 1, 3]))
        ]
        try:
            for customer, target, method in asked:
                await client.send(api(target, method=method).replace(TOKEN, token(customer)))
            if chance.random() < 0.05:
                raise ConnectionError("it changed its mind")
            for customer, target, method in asked:
                await check(client, customer, target, method, weather)
        except (ConnectionError, h11.RemoteProtocolError):
            weather.broken += 1
            chance.choice([client.close, client.reset])()
            client = await house.client()
    client.close()


async def check(client: Client, customer: int, target: bytes, method: bytes, weather: Weather) -> None:
    answer = await client.answer(method.decode())
    if answer.status != 200:
        assert answer.status in (502, 503, 504)
        weather.failed += 1
        return
    canary = mark(customer, target)
    assert answer.field(b"etag") == canary
    assert answer.body.replace(canary, b"") == b""
    assert bool(answer.body) is (method == b"GET")
    weather.answered += 1


async def settle(house: House, weather: Weather) -> None:
    """Gives each customer a session and a slice of their own."""
    for customer in range(CUSTOMERS):
        slice_: ScriptedUpstream = await house.stack.enter_async_context(scripted_upstream())
        slice_.script = capricious(customer, weather)
        template = house.route().address
        assert template is not None
        address = replace(template, slice_id=100 + customer, port=slice_.port, key=f"key of {customer}")
        weather.addresses.append(address)
        house.sessions.by_token[token(customer)] = house.route(
            token_hash=str(customer), user_id=customer, slice_id=address.slice_id, address=address
        )


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_in_a_storm_nobody_gets_the_answer_to_another_s_request_and_nothing_is_left_behind(
    opened: OpenHouse, logged: list[MutableMapping[str, Any]], long_ways: list[Exchange], seed: int
) -> None:
    weather = Weather(random.Random(seed))
    async with opened(LIMITS) as house:
        await settle(house, weather)
        async with trio.open_nursery() as nursery:
            for number in range(CONNECTIONS):
                nursery.start_soon(visit, house, number, weather)
        await house.wait_until(lambda: not house.front.wheel.connections)
        await trio.testing.wait_all_tasks_blocked()
        upstreams = [house.front.upstreams.to(address) for address in weather.addresses]
        assert [upstream.in_use for upstream in upstreams] == [0] * CUSTOMERS
        assert len(house.front.readiness._sockets) == sum(len(upstream._idle) for upstream in upstreams)
        # the storm was one, and it blew on both ways
        assert weather.answered > 500
        assert weather.failed > 5
        assert weather.broken > 20
        assert sum(exchange.begun is not None for exchange in long_ways) > 20
        assert house.front.requests - len(long_ways) > 100
    assert [line for line in logged if line["event"] == "connection_crashed"] == []
