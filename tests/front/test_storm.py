"""Clients and slices that break off wherever chance has it: nothing is left behind, and nothing crashes."""

import random
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest
import trio

from tests.doubles.upstreams import Talk, ok
from tests.front.conftest import OpenHouse
from tests.front.house import QUICK, House, api, page

CLIENTS = 250
LIMITS = replace(QUICK, idle=1.0, head=1.0, body=0.5, first_byte=0.5, linger=0.2, half_closed=0.2)

REQUESTS = [
    api(b"/api/get"),
    api(b"/api/get") * 5,
    api(b"/api/head", method=b"HEAD"),
    api(b"/api/post", method=b"POST", body=b"p" * 20_000),
    api(b"/api/put", b"transfer-encoding: chunked\r\n", b"PUT")
    + (b"400\r\n" + b"c" * 1024 + b"\r\n") * 30
    + b"0\r\n\r\n",
    api(b"/api/expect", b"expect: 100-continue\r\ncontent-length: 10\r\n", b"POST") + b"0123456789",
    page(b"/page"),
    page(b"/form", method=b"POST", body=b"f" * 5000),
    api(b"/api/get") + b"\0garbage\r\n\r\n",
    api(b"/api/../bad"),
]
ANSWERS = [
    ok(b"short"),
    ok(b"l" * 200_000),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"3e8\r\n%b\r\n" % (b"c" * 1000) * 50 + b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n" + b"until the end" * 100,
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok(b"hinted", b"connection: close\r\n"),
    b"nonsense\r\n\r\n",
]


async def client(house: House, chance: random.Random) -> None:
    """Sends a part of something, reads a part of the answer, and goes in one of the ways there are."""
    one = await house.client(window=chance.choice([None, 4096]))
    data = chance.choice(REQUESTS)
    try:
        await one.send(data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.5 else data)
        for _ in range(chance.randrange(3)):
            with trio.move_on_after(0.05):
                await one.receive()
        getattr(one, chance.choice(["close", "reset", "half_close"]))()
        with trio.move_on_after(0.3):
            while one.sock.fileno() >= 0 and await one.receive():
                pass
    except OSError:
        pass  # the front was first
    one.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_of_departures_leaves_nothing_behind(
    opened: OpenHouse, logged: list[MutableMapping[str, Any]], seed: int
) -> None:
    chance = random.Random(seed)

    async def answer(talk: Talk) -> None:
        while True:
            await (talk.request() if chance.random() < 0.8 else talk.head())
            said = chance.choice(ANSWERS)
            await talk.say(said[: chance.randrange(len(said))] if chance.random() < 0.2 else said)
            match chance.random():
                case luck if luck < 0.1:
                    return
                case luck if luck < 0.2:
                    talk.reset()
                    return
                case luck if luck < 0.25:
                    await trio.sleep(1)

    async with opened(LIMITS) as house:
        house.slice.script = house.app.script = answer
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client, house, chance)
        await house.wait_until(lambda: not house.front.wheel.connections)
        assert house.upstream.in_use == house.front.app.in_use == 0
        assert house.front.requests > CLIENTS / 2
        crashed = [line for line in logged if line["event"] == "connection_crashed"]
        assert crashed == []
