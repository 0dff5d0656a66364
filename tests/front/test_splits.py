"""However the bytes of a connection are split into writes, the same requests arrive and the same answers return."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.doubles.upstreams import Talk, ok
from tests.front.house import COOKIE, House, api, open_house, page

UNKNOWN = COOKIE.replace(b"a" * 64, b"c" * 64)

MESSAGES = [
    api(b"/api/get"),
    api(b"/api/post", method=b"POST", body=b"seven!!"),
    api(b"/api/put", b"transfer-encoding: chunked\r\n", b"PUT")
    + b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nt: u\r\n\r\n",
    api(b"/api/head", method=b"HEAD"),
    page(b"/page"),
    page(b"/form", b"transfer-encoding: chunked\r\n", b"POST") + b"2\r\nhi\r\n0\r\n\r\n",
    api(b"/api/refused").replace(COOKIE, UNKNOWN),
    api(b"/api/refused", method=b"POST", body=b"dropped").replace(COOKIE, UNKNOWN),
]
ENDINGS = [
    b"",
    api(b"/api/last", b"connection: close\r\n"),
    b"GET /api/old HTTP/1.0\r\nhost: x\r\n%b\r\n" % COOKIE,
    b"\0garbage\r\n\r\n",
    api(b"/api/../admin"),
    api(b"/api/bad", b"transfer-encoding: chunked\r\n", b"POST") + b"-1\r\n\r\n",
    page(b"/bad", b"content-length: 3\r\ncontent-length: 4\r\n", b"POST"),
]


async def echo(talk: Talk) -> None:
    while True:
        request = await talk.request()
        body = b"" if request.line.startswith(b"HEAD") else request.line + b"|" + request.body
        await talk.say(ok(body))


async def conversation(house: House, pieces: list[bytes]) -> bytes:
    """Everything that comes back to these writes."""
    client = await house.client()
    told = b""

    async def send() -> None:
        for piece in pieces:
            try:
                await client.send(piece)
            except OSError:
                return  # it was refused before, and says no more
            await trio.lowlevel.checkpoint()
        client.half_close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        told = await client.rest()
    assert not client.buffer
    return told


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted({cut % len(data) for cut in cuts} - {0}), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


async def compare(messages: list[bytes], ending: bytes, cuts: list[int]) -> None:
    data = b"".join(messages) + ending
    if not data:
        return
    with TemporaryDirectory(prefix="front") as directory:
        async with open_house(Path(directory)) as house:
            house.slice.script = house.app.script = echo
            house.front.next_id = lambda: b"same"  # type: ignore[method-assign]
            whole = await conversation(house, [data])
            assert whole.count(b"HTTP/1.1 ") >= len(messages)
            assert await conversation(house, split(data, cuts)) == whole


@given(
    messages=st.lists(st.sampled_from(MESSAGES), max_size=6),
    ending=st.sampled_from(ENDINGS),
    cuts=st.lists(st.integers(0, 3000), max_size=40),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_split_of_requests_gives_the_same_answers(messages: list[bytes], ending: bytes, cuts: list[int]) -> None:
    trio.run(compare, messages, ending, cuts)


def test_single_bytes_give_the_same_answers() -> None:
    trio.run(compare, MESSAGES, ENDINGS[1], list(range(3000)))
