"""python-socketio's own server as a slice would run it, steered by JSON lines on standard input.

What it sees it tells as JSON lines on standard output, the first of them `{"port": n}`. It ends when its input does.
`node/server.mjs` is the same on the server of Node.js, and takes the same orders.
"""

import asyncio
import base64
import json
import sys
from typing import Any

import socketio
from aiohttp import web


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def revive(value: Any) -> Any:
    """`{"$bytes": "<base64>"}` stands for binary data."""
    if isinstance(value, list):
        return [revive(inner) for inner in value]
    if isinstance(value, dict):
        if "$bytes" in value:
            return base64.b64decode(value["$bytes"])
        return {key: revive(inner) for key, inner in value.items()}
    return value


class Double:
    """The server and what it was told to do."""

    def __init__(self, options: dict[str, Any]) -> None:
        seconds = {"ping_interval": options.get("pingInterval", 25000) / 1000}
        seconds["ping_timeout"] = options.get("pingTimeout", 20000) / 1000
        self.server = socketio.AsyncServer(async_mode="aiohttp", **seconds)
        self.server.on("connect", self.connect)
        self.server.on("disconnect", self.disconnected)
        self.keys: dict[str, str | None] = {}  # by the sid of the connection
        self.refusal: str | None = None
        self.greeting: list[list[Any]] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def connect(self, sid: str, environment: dict[str, Any], auth: object = None) -> None:
        if self.refusal is not None:
            raise socketio.exceptions.ConnectionRefusedError(self.refusal)
        self.keys[sid] = environment.get("HTTP_X_SLICE_KEY")
        for name, *arguments in self.greeting:  # goes out before the namespace is granted
            await self.server.emit(name, tuple(arguments), to=sid)
        tell({"connected": self.keys[sid], "transport": self.server.transport(sid)})

    async def disconnected(self, sid: str, reason: str) -> None:
        tell({"disconnected": self.keys.pop(sid, None), "reason": reason})

    async def obey(self, order: dict[str, Any]) -> None:
        name, arguments = order.get("name", ""), tuple(revive(order.get("args", [])))
        match order["do"]:
            case "emit":
                await self.server.emit(name, arguments)
            case "ask":
                self.later(self.ask(name, arguments))
            case "flood":
                for number in range(1, order["count"] + 1):
                    await self.server.emit(name, number)
            case "big":
                await self.server.emit(name, "x" * order["bytes"])
            case "raw":
                for connection in self.server.eio.sockets.values():
                    await connection.queue.put(Raw(order["text"]))
            case "disconnect":
                for sid in list(self.keys):
                    await self.server.disconnect(sid)
            case "close":
                await self.close()
            case "refuse":
                self.refusal = order["message"]
            case "greet":
                self.greeting = order["events"]
            case "reset":
                self.refusal, self.greeting = None, []
                await self.close()
        tell({"done": order["do"]})

    async def close(self) -> None:
        for connection in list(self.server.eio.sockets.values()):
            await connection.close(wait=False)

    def later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def ask(self, name: str, arguments: tuple[Any, ...]) -> None:
        answers = []
        for sid in list(self.keys):
            try:
                answers.append(await self.server.call(name, arguments, to=sid, timeout=3))
            except socketio.exceptions.TimeoutError:
                answers.append("too late")
        tell({"acked": answers})


class Raw:
    """A packet that is already what goes over the wire."""

    binary = False

    def __init__(self, text: str) -> None:
        self.text = text

    def encode(self) -> str:
        return self.text


async def main() -> None:
    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    double = Double(options)
    application = web.Application()
    double.server.attach(application)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options.get("port", 0))
    await site.start()
    tell({"port": runner.addresses[0][1]})
    orders = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        await double.obey(json.loads(line))


if __name__ == "__main__":
    asyncio.run(main())
