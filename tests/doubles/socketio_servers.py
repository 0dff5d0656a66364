"""The real Socket.IO servers as processes: python-socketio's, and that of Node.js from npm.

One process serves a whole session of tests; each test begins with `reset` and has a key of its own.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.docker_engine import outward

HERE = Path(__file__).parent
NODE = HERE / "node"
STARTS_WITHIN = 20.0  # seconds


class SocketIoServer:
    """A server process; orders go in, what it saw comes out."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            [*command, json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if not first:
            self.end()
            raise AssertionError(f"{command} did not start")
        self.port: int = json.loads(first)["port"]
        os.set_blocking(self.process.stdout.fileno(), False)
        self._buffer = b""
        self._seen: deque[dict[str, Any]] = deque(maxlen=1000)

    async def order(self, deed: str, **details: Any) -> None:
        """Has something done, and returns when it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": deed, **details}).encode() + b"\n")
        await self.saw("done", deed)

    async def emit(self, name: str, *arguments: Any) -> None:
        await self.order("emit", name=name, args=list(arguments))

    async def saw(self, key: str, value: Any = ..., within: float = STARTS_WITHIN) -> dict[str, Any]:
        """Waits for a report with `key`, and takes it out of those to come."""
        with trio.fail_after(within):
            while True:
                for report in self._seen:
                    if key in report and value in (..., report[key]):
                        self._seen.remove(report)
                        return report
                await self._read()

    async def reset(self) -> None:
        await self.order("reset")
        self._seen.clear()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        await trio.lowlevel.wait_readable(self.process.stdout.fileno())
        data = os.read(self.process.stdout.fileno(), 65536)
        assert data, "the server ended"
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self._seen.extend(json.loads(line) for line in lines)


def python_command() -> list[str]:
    return [sys.executable, str(HERE / "socketio_server.py")]


def node_command() -> list[str]:
    """Installs the server's packages by the lock file where they are missing; skips where there is no Node.js."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Node.js with npm must be there: apt-get install nodejs npm")
        pytest.skip("needs Node.js with npm")
    name = hashlib.sha256(str(NODE).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"queunir-node-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # every worker of a test run comes here
        if not (NODE / "node_modules" / "socket.io").is_dir():
            install = outward([npm, "ci", "--no-audit", "--no-fund"])
            subprocess.run(install, cwd=NODE, check=True, stdout=subprocess.DEVNULL)
    return [node, str(NODE / "server.mjs")]
