"""The many-slices double as its own process, and the steering of it."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from benchmarks.processes import HOST, Program, first_line_of_json, running

SCRIPT: Final = Path(__file__).parent.parent / "tests" / "doubles" / "slices.py"
STEERED_WITHIN: Final = 60.0  # seconds; a burst is answered when it has been sent
CONNECTED_WITHIN: Final = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Slice:
    """One of the double's slices, as it tells of itself."""

    number: int
    port: int
    canary: str
    emitted: int
    connected: int
    restarts: int


class Slices:
    """Steers the double over its control port."""

    def __init__(self, program: Program, client: httpx.AsyncClient) -> None:
        self.program = program
        self._client = client

    async def all(self) -> list[Slice]:
        answer = await self._client.get("/")
        answer.raise_for_status()
        return [Slice(**one) for one in answer.json()["slices"]]

    async def pace(self, per_second: float, size: int, numbers: Iterable[int] | None = None) -> list[Slice]:
        """A steady rate of events of `size` bytes from now on; the state right after."""
        said = await self._ask("pace", {"per_second": per_second, "bytes": size, **_chosen(numbers)})
        return [Slice(**one) for one in said["slices"]]

    async def burst(self, count: int, size: int, numbers: Iterable[int] | None = None) -> list[Slice]:
        """So many events at once; returns when they have been sent."""
        said = await self._ask("burst", {"count": count, "bytes": size, **_chosen(numbers)})
        return [Slice(**one) for one in said["slices"]]

    async def restart(self, number: int, seconds: float) -> None:
        """The slice goes away and comes back after so long; does not wait for it."""
        await self._ask("restart", {"slice": number, "seconds": seconds})

    async def freeze(self, number: int, seconds: float) -> None:
        """The slice neither says nor answers anything for so long; does not wait for it."""
        await self._ask("freeze", {"slice": number, "seconds": seconds})

    async def wait_until_connected(self) -> list[Slice]:
        """Returns once somebody listens to every slice. TooSlowError."""
        with trio.fail_after(CONNECTED_WITHIN):
            state = await self.all()
            while not all(slice_.connected for slice_ in state):
                await trio.sleep(0.1)
                state = await self.all()
        return state

    async def _ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.post(f"/{path}", json=content)
        answer.raise_for_status()
        said: dict[str, Any] = answer.json()
        return said


@asynccontextmanager
async def slices(directory: Path, count: int) -> AsyncIterator[Slices]:
    """So many slices in one process of their own."""
    command = [sys.executable, SCRIPT, "--count", str(count)]
    async with running("slices", command, directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        said = await first_line_of_json(program)
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{said['control']}", timeout=STEERED_WITHIN) as client:
            yield Slices(program, client)


def _chosen(numbers: Iterable[int] | None) -> dict[str, list[int]]:
    return {} if numbers is None else {"slices": list(numbers)}
