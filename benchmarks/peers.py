"""The peers from npm, each one Node process, installed from the lock file when missing."""

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from benchmarks.processes import HOST, DidNotStart, Program, running
from queunir_trio.settings import DatabaseSettings

FOLDER: Final = Path(__file__).parent / "peers"
INSTALLED_WITHIN: Final = 300.0  # seconds
_PRODUCTION: Final = {"NODE_ENV": "production"}


async def install() -> None:
    """`npm ci` where the installed packages are not those of the lock file. DidNotStart."""
    if _installed():
        return
    with trio.fail_after(INSTALLED_WITHIN):
        done = await trio.run_process(
            [_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=FOLDER,
            check=False,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
        )
    if done.returncode != 0:
        raise DidNotStart(f"npm ci failed in {FOLDER}:\n{done.stdout.decode(errors='replace')}")


def versions() -> dict[str, str]:
    """The version of each peer, as the lock file has it."""
    asked = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    locked = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    return {name: locked[f"node_modules/{name}"]["version"] for name in asked}


@asynccontextmanager
async def express(directory: Path, port: int, where: DatabaseSettings) -> AsyncIterator[Program]:
    """Express + http-proxy-middleware with a keep-alive agent and a session look-up in PostgreSQL per request."""
    database = {
        "PGHOST": where.host,
        "PGPORT": str(where.port),
        "PGUSER": where.user,
        "PGPASSWORD": where.password,
        "PGDATABASE": where.name,
    }
    command = [_program("node"), FOLDER / "express.js", str(port)]
    async with running("express", command, directory, port=port, environment=_PRODUCTION | database) as program:
        yield program


@asynccontextmanager
async def configurable_http_proxy(directory: Path, port: int, api_port: int, upstream: int) -> AsyncIterator[Program]:
    """JupyterHub's proxy with one default target; it keeps its upstream connections alive by itself."""
    script = FOLDER / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    where = ["--ip", HOST, "--port", str(port), "--api-ip", HOST, "--api-port", str(api_port)]
    target = ["--default-target", f"http://{HOST}:{upstream}", "--log-level", "error"]
    command = [_program("node"), script, *where, *target]
    async with running("configurable-http-proxy", command, directory, port=port, environment=_PRODUCTION) as program:
        yield program


@asynccontextmanager
async def fastify(directory: Path, port: int, upstream: int) -> AsyncIterator[Program]:
    """Fastify + @fastify/http-proxy on undici's connection pool."""
    command = [_program("node"), FOLDER / "fastify.js", str(port), f"http://{HOST}:{upstream}"]
    async with running("fastify", command, directory, port=port, environment=_PRODUCTION) as program:
        yield program


@asynccontextmanager
async def sse_server(directory: Path, port: int) -> AsyncIterator[Program]:
    """A plain SSE server: node:http and response.write."""
    command = [_program("node"), "--expose-gc", FOLDER / "sse.js", str(port)]
    async with running("node-sse", command, directory, port=port, environment=_PRODUCTION) as program:
        yield program


def _installed() -> bool:
    """Whether npm's own note of what it installed names the versions of our lock file."""
    note = FOLDER / "node_modules" / ".package-lock.json"
    if not note.exists():
        return False
    there = json.loads(note.read_text())["packages"]
    wanted = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    return all(there.get(name, {}).get("version") == one["version"] for name, one in wanted.items() if name)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise DidNotStart(f"{name} is not installed: the peers need Node.js 20 or newer with npm.")
    return found
