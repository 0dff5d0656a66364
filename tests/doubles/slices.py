"""Many slices in one cheap process: each on its own port, with health, state and Socket.IO, steered by a control port.

Engine.IO 4 and Socket.IO 5 are spoken directly on aiohttp's websockets, because a hundred emitters must cost next to
nothing beside what is measured. Every event carries its slice's canary and a number that rises by one with each event
of that slice and never starts again, so whoever reads it can tell a foreign, a lost and a doubled event apart. WhatsApp
does not wait for a slice: the numbers go on while a slice is away, and what was sent meanwhile is lost.

Run `python tests/doubles/slices.py --count 50`; the first line on stdout is JSON: `{control, slices: [{number, port,
canary}]}`. It ends with SIGTERM, or when its standard input ends, so that it never outlives who started it.

The control port speaks JSON:
  GET  /         {"slices": [{number, port, canary, emitted, connected, restarts}]}
  POST /pace     {"per_second": 10, "bytes": 200, "slices": [1, 2]}   a steady rate from now on; all slices by default
  POST /burst    {"count": 500, "bytes": 200, "slices": [1, 2]}       at once; the answer comes when all is sent
  POST /restart  {"slice": 3, "seconds": 1.5}   connections reset, the port closed for so long
  POST /freeze   {"slice": 3, "seconds": 12}    the slice accepts, but neither says nor answers anything for so long
"""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp import WSMsgType, web

PING_EVERY: Final = 5.0  # seconds; Engine.IO's own default of 25 would let a freeze outlast a short run
PING_ANSWERED_WITHIN: Final = 4.0  # seconds
HOST: Final = "127.0.0.1"
PORTS: Final = range(20_000, 32_000)


class Slice:
    """One slice: its port, its connections and what it emits."""

    def __init__(self, number: int, port: int) -> None:
        self.number = number
        self.port = port
        self.canary = secrets.token_hex(8)
        self.emitted = 0
        self.restarts = 0
        self.per_second = 0.0
        self.bytes = 150
        self.began = time.monotonic()
        self._connected: dict[web.WebSocketResponse, asyncio.Transport] = {}
        self._awake = asyncio.Event()
        self._awake.set()
        self._paced = asyncio.Event()
        self._runner: web.AppRunner | None = None

    def told(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "port": self.port,
            "canary": self.canary,
            "emitted": self.emitted,
            "connected": len(self._connected),
            "restarts": self.restarts,
        }

    async def open(self) -> None:
        app = web.Application()
        app.router.add_get("/socket.io/", self._socket)
        app.router.add_route("*", "/{path:.*}", self._answer)
        # a slice that goes away does so at once: nothing is waited for
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port, reuse_address=True, backlog=1024).start()

    async def close(self) -> None:
        for transport in list(self._connected.values()):
            transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
        self._connected.clear()

    async def restart(self, seconds: float) -> None:
        await self.close()
        await asyncio.sleep(seconds)
        self.restarts += 1
        self.began = time.monotonic()
        await self.open()

    async def freeze(self, seconds: float) -> None:
        self._awake.clear()
        await asyncio.sleep(seconds)
        self._awake.set()

    def pace(self, per_second: float, size: int) -> None:
        self.per_second = per_second
        self.bytes = size
        self._paced.set()

    async def emit_at_pace(self) -> None:
        """Emits for ever, at the rate set by `pace`."""
        due = time.monotonic()
        while True:
            if not self.per_second:
                self._paced.clear()
                await self._paced.wait()
                due = time.monotonic()
                continue
            due += 1 / self.per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._awake.wait()
            await self.emit()

    async def emit(self) -> None:
        """One event to whoever is connected."""
        self.emitted += 1
        # the tilde occurs once in each event and nowhere else: a reader may count it instead of parsing
        data = {"slice": str(self.number), "canary": self.canary, "n": self.emitted, "mark": "~", "body": ""}
        data["body"] = "x" * max(0, self.bytes - len(json.dumps(data, separators=(",", ":"))))
        packet = f'42["wa:message",{json.dumps(data, separators=(",", ":"))}]'
        for connected in list(self._connected):
            try:
                await connected.send_str(packet)
            except (ConnectionError, RuntimeError):
                self._connected.pop(connected, None)

    async def _answer(self, request: web.Request) -> web.Response:
        await self._awake.wait()
        match request.path:
            case "/api/health":
                uptime = time.monotonic() - self.began
                return web.json_response({"status": "ok", "slice": str(self.number), "uptime": uptime})
            case "/api/status" | "/api/status/state":
                return web.json_response({"state": "ready", "phoneNumber": f"+1000{self.number:04}", "qr": None})
        return web.json_response({"slice": str(self.number), "canary": self.canary, "path": request.path_qs})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        await self._awake.wait()
        if request.query.get("transport") != "websocket" or request.query.get("EIO") != "4":
            return web.json_response({"code": 0, "message": "Transport unknown"}, status=400)
        answer = web.WebSocketResponse(compress=False, autoping=True, max_msg_size=1_000_000)
        await answer.prepare(request)
        await answer.send_str("0" + json.dumps(_handshake()))
        pinging = asyncio.create_task(self._ping(answer))
        try:
            await self._converse(request, answer)
        finally:
            pinging.cancel()
            self._connected.pop(answer, None)
        return answer

    async def _converse(self, request: web.Request, answer: web.WebSocketResponse) -> None:
        async for message in answer:
            if message.type is not WSMsgType.TEXT:
                continue
            await self._awake.wait()
            text = message.data
            if text.startswith("40") and request.transport is not None:
                await answer.send_str("40" + json.dumps({"sid": secrets.token_urlsafe(15)}))
                self._connected[answer] = request.transport
            elif text in ("1", "41"):
                await answer.close()

    async def _ping(self, answer: web.WebSocketResponse) -> None:
        while not answer.closed:
            await asyncio.sleep(PING_EVERY)
            await self._awake.wait()
            await answer.send_str("2")


class Control:
    """The control port: what a test or a benchmark may ask of the slices."""

    def __init__(self, slices: list[Slice]) -> None:
        self.slices = slices
        self._going_on: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._tell)
        for path in ("pace", "burst", "restart", "freeze"):
            app.router.add_post(f"/{path}", getattr(self, f"_{path}"))
        return app

    def _chosen(self, numbers: Iterable[int] | None) -> list[Slice]:
        return self.slices if numbers is None else [self.slices[number - 1] for number in numbers]

    def _start(self, deed: Any) -> web.Response:
        task = asyncio.create_task(deed)
        self._going_on.add(task)
        task.add_done_callback(self._going_on.discard)
        return web.json_response({"started": True})

    async def _tell(self, request: web.Request) -> web.Response:
        return web.json_response({"slices": [slice_.told() for slice_ in self.slices]})

    async def _pace(self, request: web.Request) -> web.Response:
        asked = await request.json()
        for slice_ in self._chosen(asked.get("slices")):
            slice_.pace(float(asked["per_second"]), int(asked.get("bytes", slice_.bytes)))
        return await self._tell(request)

    async def _burst(self, request: web.Request) -> web.Response:
        asked = await request.json()
        for _ in range(int(asked.get("count", 1))):
            for slice_ in self._chosen(asked.get("slices")):
                slice_.bytes = int(asked.get("bytes", slice_.bytes))
                await slice_.emit()
            await asyncio.sleep(0)  # pings and answers go on during a long burst
        return await self._tell(request)

    async def _restart(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return self._start(self.slices[int(asked["slice"]) - 1].restart(float(asked.get("seconds", 1))))

    async def _freeze(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return self._start(self.slices[int(asked["slice"]) - 1].freeze(float(asked.get("seconds", 10))))


def _handshake() -> dict[str, Any]:
    return {
        "sid": secrets.token_urlsafe(15),
        "upgrades": [],
        "pingInterval": int(PING_EVERY * 1000),
        "pingTimeout": int(PING_ANSWERED_WITHIN * 1000),
        "maxPayload": 1_000_000,
    }


def free_ports(count: int) -> list[int]:
    """So many ports of the loopback interface that nothing listens on.

    They lie below those that the kernel gives to outgoing connections: one of these could else take the port of a
    slice that is away for a moment.
    """
    held: list[socket.socket] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(held) == count:
            break
        with contextlib.suppress(OSError):
            held.append(socket.create_server((HOST, port)))
    ports: list[int] = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


async def run(count: int) -> None:
    """Serves until SIGTERM, SIGINT or the end of standard input."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    threading.Thread(target=_watch_stdin, args=(loop, over.set), daemon=True).start()

    control_port, *ports = free_ports(count + 1)
    slices = [Slice(number, port) for number, port in enumerate(ports, 1)]
    for slice_ in slices:
        await slice_.open()
    runner = web.AppRunner(Control(slices).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, control_port).start()
    emitting = [asyncio.create_task(slice_.emit_at_pace()) for slice_ in slices]
    print(json.dumps({"control": control_port, "slices": [slice_.told() for slice_ in slices]}), flush=True)
    await over.wait()
    for task in emitting:
        task.cancel()
    for slice_ in slices:
        await slice_.close()
    await runner.cleanup()


def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
    sys.stdin.read()
    loop.call_soon_threadsafe(ended)


def main() -> None:
    parser = argparse.ArgumentParser(description="Many slices in one cheap process.")
    parser.add_argument("--count", type=int, default=1, help="how many slices")
    asyncio.run(run(parser.parse_args().count))


if __name__ == "__main__":
    main()
