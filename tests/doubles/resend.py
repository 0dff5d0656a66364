"""A stand-in for Resend's API on a loopback port that misbehaves on request.

`script` holds what to do with the next requests, one entry each: a status to answer, `slow` (never answer), `reset`
(cut the connection with a reset), `garbage`. When it is empty, letters are taken as the real one takes them: the same
idempotency key is sent once.
"""

import json
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import h11
import trio


@dataclass
class ResendDouble:
    script: deque[int | str] = field(default_factory=deque)
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""

    async def run(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, listeners)
            task_status.started(self.url)

    async def _serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        body = b""
        async with stream:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Request):
                    head = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            await self._answer(stream, connection, head, json.loads(body))

    async def _answer(
        self, stream: trio.SocketStream, connection: h11.Connection, head: dict[str, str], letter: dict[str, Any]
    ) -> None:
        self.requests.append((head, letter))
        deed = self.script.popleft() if self.script else 200
        if deed == "slow":
            await trio.sleep_forever()
        if deed == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if deed == "garbage":
            await stream.send_all(b"\x16\x03\x01 what is this\r\n\r\n")
            return
        assert isinstance(deed, int)
        if deed == 200:
            self.sent.setdefault(head["idempotency-key"], letter)
        said = json.dumps({"id": "1"} if deed == 200 else {"name": "fault", "message": "no"}).encode()
        start = h11.Response(status_code=deed, headers=[("content-length", str(len(said))), ("connection", "close")])
        for event in (start, h11.Data(data=said), h11.EndOfMessage()):
            await stream.send_all(connection.send(event) or b"")
