"""Requests that two readers could take apart differently, through a real nginx in front of the front.

Both must come to one verdict: no request at all, or exactly the one that both saw. Never may a part of one message
become a request of its own, neither at once nor as the beginning of somebody else's.
"""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.doubles.upstreams import PATIENCE, Talk, ok
from tests.front.conftest import OpenHouse
from tests.front.house import COOKIE, Answer, Client, House, api

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")

CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream front {{ server 127.0.0.1:{front}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://front;
            proxy_http_version 1.1;
            proxy_request_buffering {buffering};
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""

HIDDEN = b"GET /api/smuggled HTTP/1.1\r\nhost: crm.example\r\n%b\r\n" % COOKIE
LENGTH = b"content-length: %d\r\n" % len(HIDDEN)
CHUNKED = b"transfer-encoding: chunked\r\n"


def post(fields: bytes, body: bytes) -> bytes:
    return api(b"/api/outer", fields, b"POST") + body


def get(fields: bytes, behind: bytes = b"") -> bytes:
    return api(b"/api/outer", fields) + behind


CASES = {
    "CL and TE": post(b"content-length: 5\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE and CL": post(CHUNKED + b"content-length: %d\r\n" % (5 + len(HIDDEN)), b"0\r\n\r\n" + HIDDEN),
    "two CL that differ": post(b"content-length: 0\r\ncontent-length: %d\r\n" % len(HIDDEN), HIDDEN),
    "two CL alike": post(b"content-length: 4\r\ncontent-length: 4\r\n", b"body" + HIDDEN),
    "a list of CL": post(b"content-length: 0, %d\r\n" % len(HIDDEN), HIDDEN),
    "CL with a plus": post(b"content-length: +%d\r\n" % len(HIDDEN), HIDDEN),
    "CL in hexadecimal": post(b"content-length: 0x5\r\n", b"hello" + HIDDEN),
    "a negative CL": post(b"content-length: -1\r\n", HIDDEN),
    "CL with a blank inside": post(b"content-length: 0 0\r\n", HIDDEN),
    "TE with a blank before the colon": post(b"transfer-encoding : chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE behind a tab": post(b"transfer-encoding:\tchunked\r\n", b"0\r\n\r\n"),
    "TE with a vertical tab": post(b"transfer-encoding: \x0bchunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE in a folded line": post(b"x: y\r\n transfer-encoding: chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE with a folded value": post(b"transfer-encoding:\r\n chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE twice": post(b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE identity": post(b"transfer-encoding: identity\r\ncontent-length: 4\r\n", b"body" + HIDDEN),
    "TE unknown": post(b"transfer-encoding: xchunked\r\ncontent-length: 4\r\n", b"body" + HIDDEN),
    "TE with more codings": post(b"transfer-encoding: gzip, chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE in quotes": post(b'transfer-encoding: "chunked"\r\n', b"0\r\n\r\n" + HIDDEN),
    "TE with a comma": post(b"transfer-encoding: ,chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "TE with an underscore": post(b"transfer_encoding: chunked\r\ncontent-length: 4\r\n", b"body"),
    "TE of HTTP/1.0": post(CHUNKED, b"0\r\n\r\n" + HIDDEN).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "a chunk line that ends in LF": post(CHUNKED, b"4\nbody\r\n0\r\n\r\n"),
    "a chunk that ends in LF": post(CHUNKED, b"4\r\nbody\n0\r\n\r\n"),
    "a last chunk that ends in LF": post(CHUNKED, b"4\r\nbody\r\n0\n\n"),
    "a chunk extension with LF": post(CHUNKED, b"2;\nxx\r\n4c\r\n0\r\n\r\n" + HIDDEN),
    "a chunk size with a sign": post(CHUNKED, b"+4\r\nbody\r\n0\r\n\r\n" + HIDDEN),
    "a chunk size with 0x": post(CHUNKED, b"0x4\r\nbody\r\n0\r\n\r\n" + HIDDEN),
    "a chunk size that overflows": post(CHUNKED, b"10000000000000004\r\nbody\r\n0\r\n\r\n" + HIDDEN),
    "a trailer that frames": post(CHUNKED, b"0\r\ncontent-length: 5\r\n\r\n"),
    "a folded line": get(b"x: y\r\n\tz: w\r\n"),
    "lines that end in LF": b"GET /api/outer HTTP/1.1\nhost: crm.example\n%b\n" % COOKIE.replace(b"\r", b""),
    "a bare CR": get(b"x: y\rcontent-length: 5\r\n", HIDDEN),
    "NUL in a value": get(b"x: y\0z\r\n"),
    "two hosts": get(b"host: evil\r\n"),
    "an upgrade with a body": post(b"connection: upgrade\r\nupgrade: h2c\r\n" + LENGTH, HIDDEN),
    "an expectation with a body": post(b"expect: 100-continue\r\n" + LENGTH, HIDDEN),
    "a body of GET": get(LENGTH, HIDDEN),
}  # fmt: skip
# both readers understand these alike, and the slice sees one request
PLAIN = {
    "TE behind a tab",
    "TE with an underscore",
    "an upgrade with a body",
    "an expectation with a body",
    "a body of GET",
}


@asynccontextmanager
async def nginx(front_port: int, port: int, directory: Path, buffering: str) -> AsyncIterator[None]:
    """A real nginx that passes everything on to the front."""
    configuration = directory / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(directory=directory, front=front_port, port=port, buffering=buffering)
    )
    assert NGINX is not None
    command = [NGINX, "-c", str(configuration), "-e", str(directory / "error.log"), "-p", str(directory)]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, check=False, stderr=subprocess.DEVNULL)
        )
        try:
            await _wait_for(port, process)
            yield
        finally:
            process.terminate()
            with trio.fail_after(PATIENCE):
                await process.wait()


async def _wait_for(port: int, process: trio.Process) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            assert process.poll() is None, "nginx ended"
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.01)
            else:
                await stream.aclose()
                return


class Echo:
    """A slice that answers each request with its line, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def script(self, talk: Talk) -> None:
        while True:
            request = await talk.request()
            self.seen.append(request.line)
            await talk.say(ok(request.line))


async def answers(house: House, port: int, raw: bytes) -> list[Answer]:
    """The answers to these bytes, and to a harmless request behind them where the connection lives on."""
    sock = trio.socket.socket()
    house.stack.callback(sock.close)
    await sock.connect(("127.0.0.1", port))
    client = Client(sock)
    await client.send(raw)
    told = [await client.answer()]
    if told[0].field(b"connection") != b"close":
        await client.send(api(b"/api/behind", b"connection: close\r\n"))
    while told[-1].field(b"connection") != b"close":
        told.append(await client.answer())
    assert await client.rest() == b""
    return told


async def is_understood(house: House, echo: Echo, port: int, name: str) -> bool:
    """Whether the message was one request, and not none: anything between the two is a fault."""
    echo.seen.clear()
    told = await answers(house, port, CASES[name])
    assert [answer.body for answer in told if answer.status == 200] == echo.seen
    refused = [answer.status for answer in told if answer.status != 200]
    if refused:
        assert refused in ([400], [501])
        assert echo.seen == []
    else:
        assert [line.split()[1] for line in echo.seen] == [b"/api/outer", b"/api/behind"], name
    echo.seen.clear()  # whoever comes next through the same connections gets the answer to what was asked
    (answer,) = await answers(house, port, api(b"/api/next", b"connection: close\r\n"))
    assert [answer.body] == [b"GET /api/next HTTP/1.1"] == echo.seen
    return not refused


@pytest.mark.parametrize("buffering", ["on", "off"])
async def test_nginx_and_the_front_never_see_two_requests_where_there_is_one(
    opened: OpenHouse, free_port: int, tmp_path: Path, buffering: str
) -> None:
    if NGINX is None:
        assert os.environ.get("CI") != "true", "nginx is missing, and here it must not be"
        pytest.skip("nginx is not installed")
    async with opened(trusted=("127.0.0.1/32",)) as house, nginx(house.port, free_port, tmp_path, buffering):
        echo = Echo()
        house.slice.script = echo.script
        understood = {name for name in CASES if await is_understood(house, echo, free_port, name)}
        # what nginx understands otherwise than we do, it frames anew, so that we understand it as nginx did
        assert understood >= {"an expectation with a body", "a body of GET"}


async def test_the_front_alone_never_sees_two_requests_where_there_is_one(house: House) -> None:
    echo = Echo()
    house.slice.script = echo.script
    understood = {name for name in CASES if await is_understood(house, echo, house.port, name)}
    assert understood == PLAIN
