"""Two small nginx: the stub that stands for a slice, and the bare reverse proxy that everything is measured against."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks.processes import HOST, Program, running

BODIES: Final = {"106": 106, "1024": 1024}  # bytes of the stub's two answers, by the name of their path

# One worker each, as every other contender has one process. Connections are not closed after a number of requests,
# so that all contenders meet the same unbroken upstream.
_FRAME: Final = """
worker_processes 1;
daemon off;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_timeout 3600s;
    keepalive_requests 100000000;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
{inner}
}}
"""

_STUB: Final = """
    server {{
        listen {host}:{port} backlog=2048;
{locations}
    }}
"""

_BARE: Final = """
    upstream stub {{
        server {host}:{upstream};
        keepalive 64;
        keepalive_requests 100000000;
        keepalive_timeout 3600s;
    }}
    server {{
        listen {host}:{port} backlog=2048;
        location / {{
            proxy_pass http://stub;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
        }}
    }}
"""


def stub_path(body: str) -> str:
    """The path whose answer has the body called so in `BODIES`."""
    return f"/api/bench/{body}"


@asynccontextmanager
async def stub(directory: Path, port: int) -> AsyncIterator[Program]:
    """The stub slice: `return 200` with bodies of fixed sizes, and a healthy /api/health."""
    answers = {stub_path(name): _body(size) for name, size in BODIES.items()}
    answers["/api/health"] = '{"status":"ok","slice":"1","uptime":1}'
    answers["/api/status/state"] = '{"state":"ready","phoneNumber":null,"qr":null}'
    locations = "\n".join(f"        location = {path} {{ return 200 '{body}'; }}" for path, body in answers.items())
    async with _nginx("stub", directory, port, _STUB.format(host=HOST, port=port, locations=locations)) as program:
        yield program


@asynccontextmanager
async def bare(directory: Path, port: int, upstream: int) -> AsyncIterator[Program]:
    """The bare reverse proxy: `proxy_pass` with keep-alive on both sides, no session, no rules."""
    async with _nginx("nginx", directory, port, _BARE.format(host=HOST, port=port, upstream=upstream)) as program:
        yield program


@asynccontextmanager
async def _nginx(name: str, directory: Path, port: int, inner: str) -> AsyncIterator[Program]:
    prefix = directory / name
    prefix.mkdir()
    config = prefix / "nginx.conf"
    config.write_text(_FRAME.format(prefix=prefix, inner=inner))
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or "nginx"
    command = [program, "-p", prefix, "-e", prefix / "error.log", "-c", config]
    async with running(name, command, directory, port=port) as started:
        yield started


def _body(size: int) -> str:
    """A JSON object of exactly so many bytes."""
    frame = '{"items":[""],"next":null}'
    return frame.replace('""', '"' + "x" * (size - len(frame)) + '"')
