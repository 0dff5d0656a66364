"""Calls to the Docker daemon: each in a thread, each with a deadline, and never two on one client at a time.

A daemon that hangs is given up in time: its connection is cut, so that the thread which waits for it ends too. What
the daemon does about a call that was given up is unknown, so whoever made it looks again before repeating it.
"""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import docker
import docker.errors
import requests
import trio
import urllib3.exceptions

from queunir_trio.outside.runtimes.contract import RuntimeUnavailable
from queunir_trio.outside.runtimes.docker_connections import Attempt, Client

DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
CALLS_AT_ONCE: Final = 24  # some of them wait for a slice to stop, or for files to be copied
IDLE_AT_MOST: Final = 4  # clients that are kept for the next call
ANSWERED_WITHIN: Final = 10.0  # seconds, for what the daemon knows by heart
MESSAGE_AT_MOST: Final = 200  # characters of the daemon's own words that are passed on

# what an answer that is none looks like: no connection, no JSON, or none with what belongs in it
NO_ANSWER: Final = (urllib3.exceptions.HTTPError, OSError, ValueError, LookupError)

T = TypeVar("T")
Reader = Callable[[], Awaitable[bytes]]  # the next piece; empty at the end
Api = docker.APIClient
Call = Callable[[Api], T]


class DaemonRefusal(RuntimeUnavailable):
    """The daemon answered with an error: the HTTP `status`, and its own words. Lost, where nobody knows better."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"Docker answered {status}: {message[:MESSAGE_AT_MOST]}")
        self.status = status
        self.message = message


class Daemon:
    """The Docker daemon at `host` (`unix:///path` or `tcp://name:port`). Every limit is taken times `patience`."""

    def __init__(self, host: str | None = None, *, patience: float = 1.0) -> None:
        self.host = host or DEFAULT_HOST
        self._patience = patience
        self._limiter = trio.CapacityLimiter(CALLS_AT_ONCE)
        self._guard = threading.Lock()
        self._idle: list[Client] = []
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Daemon {self.host} {self._limiter.borrowed_tokens}/{CALLS_AT_ONCE} calls>"

    @property
    def calls(self) -> int:
        """How many threads are with the daemon now, waited for or not."""
        return int(self._limiter.borrowed_tokens)

    async def ask(self, call: Call[T], within: float = ANSWERED_WITHIN) -> T:
        """What the call returns. DaemonRefusal: an error was the answer. RuntimeUnavailable: there was none in time."""
        within *= self._patience
        return await self._wait(lambda attempt: self._call(attempt, call, within), within)

    async def _wait(self, work: Callable[[Attempt], T], within: float) -> T:
        attempt = Attempt()
        try:
            with trio.fail_after(within):
                return await trio.to_thread.run_sync(work, attempt, abandon_on_cancel=True, limiter=self._limiter)
        except trio.TooSlowError:
            raise RuntimeUnavailable(f"Docker at {self.host} did not answer within {within:g} s") from None
        finally:
            attempt.end()

    @asynccontextmanager
    async def reading(self, call: Call[Iterable[bytes]], within: float = ANSWERED_WITHIN) -> AsyncIterator[Reader]:
        """A stream of bytes from the daemon, which has `within` seconds for every piece. Raises as `ask` does."""
        client = Client(self.host)
        pieces: Iterator[bytes] = iter(())
        try:
            pieces = iter(await self._ask_on(client, call, within))
            yield partial(self._ask_on, client, lambda _: next(pieces, b""), within)
        finally:
            client.cut()
            _let_end(pieces)
            client.close()

    async def _ask_on(self, client: Client, call: Call[T], within: float) -> T:
        within *= self._patience
        return await self._wait(lambda attempt: self._use(attempt, client, call, within), within)

    def close(self) -> None:
        """Closes what is idle; what still waits for the daemon closes itself when it returns."""
        with self._guard:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def _call(self, attempt: Attempt, call: Call[T], within: float) -> T:
        client = self._take()
        is_sound = False
        try:
            result = self._use(attempt, client, call, within)
            is_sound = True
        except DaemonRefusal:
            is_sound = True
            raise
        finally:
            self._give_back(client, is_sound)
        return result

    def _use(self, attempt: Attempt, client: Client, call: Call[T], within: float) -> T:
        try:
            with attempt.using(client):
                client.prepare(within)
                return call(client)
        except docker.errors.APIError as error:
            raise DaemonRefusal(error.status_code or 500, str(error.explanation or error)) from None
        except (requests.RequestException, docker.errors.DockerException, *NO_ANSWER) as error:
            raise RuntimeUnavailable(f"Docker at {self.host} does not answer: {_reason(error)}") from None

    def _take(self) -> Client:
        with self._guard:
            if self._idle:
                return self._idle.pop()
        return Client(self.host)

    def _give_back(self, client: Client, is_sound: bool) -> None:
        with self._guard:
            if is_sound and not (client.is_cut or self._is_closed or len(self._idle) >= IDLE_AT_MOST):
                self._idle.append(client)
                return
        client.close()


def _let_end(pieces: Iterator[bytes]) -> None:
    """Takes a stream that was cut to its end, which is near: only there the answer lets go of its socket."""
    try:
        for _ in pieces:
            pass
    except (requests.RequestException, docker.errors.DockerException, *NO_ANSWER):
        pass  # such an end is what was asked for; a thread that still reads comes to it by itself


def create_container(client: docker.APIClient, config: dict[str, Any], name: str) -> None:
    """Creates a container from the API's own JSON."""
    client.create_container_from_config(config, name)  # type: ignore[no-untyped-call]


def inspected(client: Api, container: str) -> dict[str, Any] | None:
    """What the daemon says of a container, within a call; None where there is none."""
    try:
        return dict(client.inspect_container(container))
    except docker.errors.NotFound:
        return None


def _reason(error: Exception) -> str:
    """The system's own words, from the bottom of what the libraries wrapped around them."""
    deepest: BaseException = error
    while (inner := deepest.__cause__ or deepest.__context__) is not None:
        deepest = inner
    if isinstance(deepest, OSError) and deepest.strerror:
        return deepest.strerror
    return type(deepest).__name__
