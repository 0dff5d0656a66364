"""A customer's browser as far as the service can tell: a cookie, requests, and live events with their ids."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import trio

PASSWORD = "a good long password"


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str | None
    name: str
    data: Any


class Events:
    """An open stream: everything that came, in order."""

    def __init__(self) -> None:
        self.history: list[Event] = []
        self.ended = False
        self._news = trio.Event()

    def _add(self, event: Event) -> None:
        self.history.append(event)
        self._told()

    def _told(self) -> None:
        self._news.set()
        self._news = trio.Event()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.history]

    async def until(self, fits: Callable[[Event], bool], *, after: int = 0, within: float = 20.0) -> Event:
        """The first event from position `after` that fits."""
        with trio.move_on_after(within):
            while True:
                for event in self.history[after:]:
                    if fits(event):
                        return event
                assert not self.ended, f"the stream ended after {self.names}"
                await self._news.wait()
        raise AssertionError(f"not seen within {within} s; there were {self.history[-8:]}")

    async def named(self, name: str, *, after: int = 0, within: float = 20.0) -> Event:
        return await self.until(lambda event: event.name == name, after=after, within=within)

    async def code(self, within: float = 20.0) -> dict[str, Any]:
        """The code to scan, from an event of its own or from the state that a stream begins with."""

        def shows(event: Event) -> bool:
            return event.name == "wa:qr" or (event.name == "wa:catchup" and event.data["qr"] is not None)

        event = await self.until(shows, within=within)
        return dict(event.data if event.name == "wa:qr" else event.data["qr"])

    async def end(self, within: float = 10.0) -> None:
        with trio.fail_after(within):
            while not self.ended:
                await self._news.wait()


class Browser:
    """One customer at the gateway's address."""

    def __init__(self, url: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=20)

    async def register(self, email: str) -> dict[str, Any]:
        answer = await self.client.post("/auth/register", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def login(self, email: str, password: str = PASSWORD) -> httpx.Response:
        return await self.client.post("/auth/login", json={"email": email, "password": password})

    async def me(self) -> dict[str, Any]:
        answer = await self.client.get("/auth/me")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def simulate(self, what: str, **details: Any) -> None:
        answer = await self.client.post(f"/api/simulator/{what}", json=details)
        assert answer.is_success, answer.text

    @asynccontextmanager
    async def events(self, last_event_id: str | None = None) -> AsyncIterator[Events]:
        """An open stream of live events, read in the background."""
        headers = {"accept": "text/event-stream"}
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        events = Events()
        async with self.client.stream("GET", "/api/events", headers=headers, timeout=None) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read, answer, events)
                yield events
                nursery.cancel_scope.cancel()


async def _read(answer: httpx.Response, events: Events) -> None:
    fields: dict[str, str] = {}
    try:
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                if not line.startswith(":"):
                    fields[name] = value
            elif "data" in fields:
                events._add(Event(fields.get("id"), fields.get("event", "message"), json.loads(fields["data"])))
                fields = {}
            else:
                fields = {}
    except httpx.HTTPError:
        pass  # the gateway is gone; what was read stays
    events.ended = True
    events._told()
