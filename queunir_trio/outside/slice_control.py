"""What the gateway itself asks of a slice: whether it is well, where its WhatsApp stands, and to log out.

Short questions with small answers, each over a connection of its own: a customer's traffic never comes this way.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.routing import SliceAddress

CONNECT_WITHIN: Final = 2.0  # seconds
READ_WITHIN: Final = 5.0  # seconds for each piece of an answer
ANSWERED_WITHIN: Final = 8.0  # seconds for the whole of it, so that a drip does not hold a place
ANSWER_AT_MOST: Final = 65536  # bytes
AT_ONCE: Final = 16  # questions under way


class SliceUnreachable(Lost):
    """It did not answer, or not in the way a slice does."""


class WrongSlice(Lost):
    """Somebody answers at that address who is not the slice it belongs to."""


@dataclass(frozen=True, slots=True)
class Health:
    """A healthy answer: who gave it (None where the image does not say) and for how many seconds it has run."""

    slice: str | None
    uptime: float | None


@dataclass(frozen=True, slots=True)
class SliceState:
    """Where a slice's WhatsApp stands. `qr` is as the slice sent it: an object, plain text or nothing."""

    state: str
    phone_number: str | None
    qr: dict[str, Any] | str | None


@dataclass(frozen=True, slots=True)
class StorageUse:
    """Bytes of a slice's media, and how many they may be (None where nobody says)."""

    used: int
    quota: int | None


class SliceControl:
    """Asks slices. SliceUnreachable: there was no good answer."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._places = trio.CapacityLimiter(AT_ONCE)

    async def health(self, address: SliceAddress) -> Health:
        """Asked without the key, for it may be a stranger who answers. WrongSlice: it is."""
        answer = await self._ask("GET", address, "/api/health", {})
        named = answer.get("slice")
        if address.proves_identity and named != str(address.slice_id):
            raise WrongSlice(f"{address!r} says it is {named!r:.80}")
        if answer.get("status") != "ok":
            raise SliceUnreachable(f"{address!r} says it is {answer.get('status')!r:.80}")
        return Health(named if isinstance(named, str) else None, _number(answer.get("uptime")))

    async def state(self, address: SliceAddress) -> SliceState:
        """Asked with the key: only the slice that was given it answers."""
        answer = await self._ask("GET", address, "/api/status/state", _key(address))
        state, phone, qr = answer.get("state"), answer.get("phoneNumber"), answer.get("qr")
        if not isinstance(state, str):
            raise SliceUnreachable(f"{address!r} tells no state")
        return SliceState(state, phone if isinstance(phone, str) else None, qr if isinstance(qr, dict | str) else None)

    async def storage(self, address: SliceAddress) -> StorageUse | None:
        """What its media take up; None where its image does not tell."""
        answer = await self._ask("GET", address, "/api/status", _key(address))
        used = _bytes(answer.get("media_bytes"))
        return StorageUse(used, _bytes(answer.get("media_quota_bytes"))) if used is not None else None

    async def log_out(self, address: SliceAddress) -> None:
        """Ends the WhatsApp session, so that the phone no longer lists this device."""
        await self._ask("POST", address, "/api/status/logout", _key(address))

    async def _ask(self, method: str, address: SliceAddress, path: str, headers: dict[str, str]) -> dict[str, Any]:
        host = f"[{address.host}]" if ":" in address.host else address.host
        try:
            async with self._places:
                with trio.fail_after(ANSWERED_WITHIN):
                    body = await self._answer(method, f"http://{host}:{address.port}{path}", headers)
            answer = json.loads(body) if body else {}
        except (httpx.HTTPError, httpx.InvalidURL, trio.TooSlowError, ValueError, RecursionError) as fault:
            raise SliceUnreachable(f"{address!r}: {type(fault).__name__} {fault}"[:200]) from None
        if not isinstance(answer, dict):
            raise SliceUnreachable(f"{address!r} answers with something else than an object")
        return answer

    async def _answer(self, method: str, url: str, headers: dict[str, str]) -> bytes:
        body = bytearray()
        async with self._client.stream(method, url, headers=headers) as response:
            if not response.is_success:
                raise ValueError(f"status {response.status_code}")
            async for piece in response.aiter_raw():  # raw, for a small body may unpack to a large one
                body += piece
                if len(body) > ANSWER_AT_MOST:
                    # not simply left: only a read that fails ends httpx's nested generators one by one
                    await response.aclose()
        if len(body) > ANSWER_AT_MOST:
            raise ValueError("an answer of more than 64 KB")
        return bytes(body)


@asynccontextmanager
async def open_slice_control() -> AsyncIterator[SliceControl]:
    """A SliceControl for as long as the context lasts. Proxies of the environment are never used."""
    client = httpx.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(READ_WITHIN, connect=CONNECT_WITHIN),
        # a pool shared by many slices would reconnect anyway, and would hold idle connections to slices that are gone
        limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0),
        headers={"accept": "application/json", "accept-encoding": "identity"},
    )
    async with client:
        yield SliceControl(client)


def _key(address: SliceAddress) -> dict[str, str]:
    return {"x-slice-key": address.key}


def _bytes(value: object) -> int | None:
    """A number of bytes as a disk may have them; anything else a slice says is nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**60 else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
