"""The short way and the long way are one: whatever a slice says, in whatever pieces, a client gets the same bytes."""

import re
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from unittest.mock import patch

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queunir_trio.front.carrying import Begun
from queunir_trio.front.exchange import Exchange
from queunir_trio.front.shortcut import Shortcut
from tests.doubles.upstreams import Talk, ok
from tests.front.house import Client, api, open_house

CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


class Said(NamedTuple):
    """What a slice says, and how its connection ends if it does."""

    data: bytes
    end: str = ""


SAID = {
    "plain": Said(ok(b"mine", b"content-type: application/json\r\n")),
    "empty": Said(ok(b"")),
    "an error": Said(ok(b"none", status=b"404 Not Found")),
    "no content": Said(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": Said(b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\ncontent-length: 7\r\n\r\n'),
    "a length alone": Said(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n", "close"),
    "many fields": Said(
        ok(b"mine", b"vary: a\r\nVary: b\r\nset-cookie: s=e\r\nx-own: 1\r\ncontent-type: text/html\r\n")
    ),
    "named fields": Said(ok(b"mine", b"connection: etag, keep-alive\r\netag: x\r\n")),
    "a name": Said(ok(b"mine", b'content-disposition: inline; filename="a"\r\ncontent-type: image/png\r\n')),
    "a place": Said(ok(b"", b"location: /api/other\r\n", b"302 Found")),
    "the last": Said(ok(b"mine", b"connection: close\r\n")),
    "the last, and closed": Said(ok(b"mine", b"connection: close\r\n"), "close"),
    "closed behind": Said(ok(b"mine"), "close"),
    "HTTP/1.0": Said(b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nmine", "close"),
    "chunks": Said(CHUNKED + b"4;x=y\r\nmine\r\n1\r\n!\r\n0\r\nt: u\r\n\r\n"),
    "no chunk": Said(CHUNKED + b"0\r\n\r\n"),
    "until the end": Said(b"HTTP/1.1 200 OK\r\n\r\nmine", "close"),
    "until the end, and reset": Said(b"HTTP/1.1 200 OK\r\n\r\nmine", "reset"),
    "hints": Said(HINTS + ok(b"mine")),
    "hints and no more": Said(HINTS, "close"),
    "a second answer": Said(ok(b"mine") + ok(b"poison")),
    "a byte too many": Said(ok(b"mine") + b"\n"),
    "large": Said(ok(b"l" * 200_000)),
    "as large as a read": Said(ok(b"r" * (65_536 - len(ok(b"")) - 4))),
    "a byte larger": Said(ok(b"r" * (65_536 - len(ok(b"")) - 3))),
    "another protocol": Said(b"HTTP/1.1 101 Go\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nbytes"),
    "nonsense": Said(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "a large head": Said(ok(b"mine", b"x-big: " + b"x" * 16_384 + b"\r\n")),
    "two lengths": Said(ok(b"mine", b"content-length: 5\r\n")),
    "a bad chunk": Said(CHUNKED + b"zz\r\n"),
    "a bad second chunk": Said(CHUNKED + b"4\r\nmine\r\n-1\r\n"),
    "half a head": Said(b"HTTP/1.1 200 OK\r\ncontent-le", "close"),
    "half a head, and reset": Said(b"HTTP/1.1 200 OK\r\ncontent-le", "reset"),
    "half a body": Said(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "close"),
    "half a chunk": Said(CHUNKED + b"9\r\nhalf", "close"),
}
SHORT = ["plain", "empty", "an error", "no content", "not modified", "many fields", "named fields", "a name", "a place"]


class Outcome(NamedTuple):
    """What a client was sent, how its connection ended, and what the slice was asked over which connections."""

    answers: bytes
    clean: bool
    asked: list[list[bytes]]
    refusals: dict[str, int]
    dropped: int
    held: str  # places taken and connections kept


async def outcome(said: Said, cuts: list[int], method: bytes) -> Outcome:
    """Of three requests on one connection, the second of which is answered by `said`, cut into pieces at `cuts`."""
    finished = trio.Event()
    pieces = [
        said.data[a:b] for a, b in pairwise([0, *sorted(min(cut, len(said.data)) for cut in cuts), len(said.data)])
    ]

    async def script(talk: Talk) -> None:
        while True:
            if b"/api/case" not in (await talk.request()).line:
                await talk.say(ok(b"other"))
                continue
            try:
                for piece in pieces:
                    await talk.say(piece)
                    await trio.testing.wait_all_tasks_blocked(0.001)
            finally:
                finished.set()
            if said.end:
                getattr(talk, said.end)()
                return

    with TemporaryDirectory(prefix="ways") as directory:
        async with open_house(Path(directory)) as house:
            house.slice.script = script
            client = await house.client()
            assert (await client.ask(api(b"/api/first"))).body == b"other"
            await trio.testing.wait_all_tasks_blocked(0.001)
            await client.send(api(b"/api/case", method=method))
            with trio.fail_after(10):
                await finished.wait()
            await trio.testing.wait_all_tasks_blocked(0.001)
            clean = await sent(client, api(b"/api/last", b"connection: close\r\n"))
            clean = await read_to_the_end(client) and clean
            client.close()
            await house.wait_until(lambda: not house.front.wheel.connections)
            asked = [re.findall(rb"(?m)^[A-Z]+ /\S+", talk.received) for talk in house.slice.talks]
            return Outcome(
                re.sub(rb"[0-9a-f]{8}-[0-9a-f]+", b"an id", client.buffer),
                clean,
                asked,
                dict(house.front.refusals),
                len(house.front._reported),
                repr(house.upstream),
            )


async def sent(client: Client, request: bytes) -> bool:
    try:
        await client.send(request)
    except (ConnectionResetError, BrokenPipeError):
        return False
    return True


async def read_to_the_end(client: Client) -> bool:
    """Whether there was a clean one."""
    try:
        while data := await client.receive():
            client.buffer += data
    except ConnectionResetError:
        return False
    return True


async def woken(_: Shortcut) -> None:
    """Leaves every request to the connection's task."""


async def compared(said: Said, cuts: list[int], method: bytes) -> Outcome:
    short = await outcome(said, cuts, method)
    with patch.object(Shortcut, "carry", woken):
        long = await outcome(said, cuts, method)
    assert short == long
    assert short.answers
    return short


@pytest.mark.parametrize("name", SAID)
async def test_an_answer_in_one_piece_and_in_two_is_the_same_either_way(name: str) -> None:
    said = SAID[name]
    head = said.data.find(b"\r\n\r\n") + 4
    for method, cuts in ((b"GET", []), (b"GET", [head]), (b"GET", [head - 1]), (b"HEAD", [])):
        await compared(said, cuts, method)


@pytest.mark.parametrize("name", SHORT)
async def test_what_is_compared_did_go_the_short_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_over: list[bytes] = []
    real = Shortcut._hand_over

    def hand_over(shortcut: Shortcut, exchange: Exchange, begun: Begun, data: bytes) -> None:
        handed_over.append(data)
        real(shortcut, exchange, begun, data)

    monkeypatch.setattr(Shortcut, "_hand_over", hand_over)
    await outcome(SAID[name], [], b"GET")
    assert handed_over == []
    await outcome(SAID[name], [5], b"GET")
    assert handed_over == [SAID[name].data[:5]]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SAID)),
    st.lists(st.integers(1, 250), max_size=4),
    st.sampled_from([b"GET", b"HEAD"]),
)
async def test_an_answer_in_any_pieces_is_the_same_either_way(name: str, cuts: list[int], method: bytes) -> None:
    await compared(SAID[name], cuts, method)
