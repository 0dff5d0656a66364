"""The app over a real database, asked by Quart's own client or through Hypercorn on its Unix socket."""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from structlog.testing import capture_logs

from queunir_trio.live.alarms import Alarms
from queunir_trio.live.guesses import Guesses
from queunir_trio.live.jobs import JobNews
from queunir_trio.live.throttle import Throttles
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.passwords import Hasher
from queunir_trio.settings import DatabaseSettings, Settings, read_settings
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.web.app import GatewayApp, make_app
from queunir_trio.web.server import serve_app
from queunir_trio.web.world import ConnectorCounts, World
from tests.doubles.premises import Answers
from tests.doubles.runtime import MemoryRuntime

ADMIN_KEY = "admin-key-for-tests-0123456789abcdef"
SOMEWHERE = "203.0.113.7"


@dataclass
class Routes:
    """Writes down what it is told to forget."""

    revoked: list[str] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    slices: list[int] = field(default_factory=list)

    def revoke(self, hashes: Iterable[str]) -> None:
        self.revoked += hashes

    def forget_user(self, user_id: int) -> None:
        self.users.append(user_id)

    def forget_slice(self, slice_id: int) -> None:
        self.slices.append(slice_id)


@pytest.fixture
def settings(database_settings: DatabaseSettings, tmp_path: Path) -> Settings:
    read = read_settings(
        {
            "ADMIN_KEY": ADMIN_KEY,
            "SLICE_DB_PASSWORD": "s" * 40,
            "DATA_DIR": str(tmp_path),
            "APP_URL": "https://app.example.com",
        }
    )
    return replace(read, database=database_settings)


@pytest.fixture
def routes() -> Routes:
    return Routes()


@pytest.fixture
def resources(settings: Settings, database: Database) -> Resources:
    """Slices that exist in memory only, on a real database."""
    where, data_dir = settings.database, settings.data_dir
    return Resources(database, where, MemoryRuntime(), Answers(), settings.slices, data_dir, False)


@pytest.fixture
def world(settings: Settings, database: Database, routes: Routes, nursery: trio.Nursery, resources: Resources) -> World:
    alarms = Alarms(database)
    nursery.start_soon(alarms.run)
    return World(
        settings=settings,
        db=database,
        routes=routes,
        hasher=Hasher(4),
        throttles=Throttles(),
        guesses=Guesses(alarms.unknown_tokens),
        uptime=lambda: 12.9,
        connectors=lambda: ConnectorCounts(open=3, lost=1),
        metrics=lambda: b"queunir_slices 4\n",
        resources=resources,
        job_news=JobNews(database),
    )


@pytest.fixture
def app(world: World) -> GatewayApp:
    return make_app(world)


class Browser:
    """Asks the app as the front would, and keeps cookies as a browser would."""

    def __init__(self, app: GatewayApp, address: str = SOMEWHERE) -> None:
        self._client: Any = app.test_client()
        self.address = address

    @property
    def cookie(self) -> str | None:
        return next((cookie.value for cookie in self._client.cookie_jar if cookie.name == "session"), None)

    @cookie.setter
    def cookie(self, value: str) -> None:
        self._client.set_cookie("localhost", "session", value)

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        headers = {"x-front-client": self.address, "x-front-scheme": "https", **more.pop("headers", {})}
        return await self._client.open(path, method=method, headers=headers, **more)

    async def get(self, path: str, **more: Any) -> Any:
        return await self.ask("GET", path, **more)

    async def post(self, path: str, json: object = None, **more: Any) -> Any:
        if json is not None:
            more["json"] = json
        return await self.ask("POST", path, **more)

    async def delete(self, path: str, **more: Any) -> Any:
        return await self.ask("DELETE", path, **more)

    async def register(self, email: str = "ana@example.com", password: str = "correct horse") -> Any:
        answer = await self.post("/auth/register", {"email": email, "password": password})
        assert answer.status_code == 201, await answer.get_data(as_text=True)
        return await answer.get_json()


@pytest.fixture
def browser(app: GatewayApp) -> Browser:
    return Browser(app)


@pytest.fixture
def another(app: GatewayApp) -> Callable[..., Browser]:
    """Another browser, at another address unless told otherwise."""
    numbers = iter(range(20, 250))

    def make(address: str | None = None) -> Browser:
        return Browser(app, address or f"198.51.100.{next(numbers)}")

    return make


@pytest.fixture
async def another_client(
    app: GatewayApp, tmp_path: Path, nursery: trio.Nursery
) -> AsyncIterator[Callable[[], httpx.AsyncClient]]:
    """Clients that speak to the app through Hypercorn, as the front does."""
    stop = trio.Event()
    socket = await nursery.start(serve_app, app, tmp_path / "run", stop)

    def make() -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)),
            base_url="http://app.example.com",
            headers={"x-front-client": SOMEWHERE, "x-front-scheme": "https"},
        )

    yield make
    stop.set()


@pytest.fixture
async def unix_client(another_client: Callable[[], httpx.AsyncClient]) -> AsyncIterator[httpx.AsyncClient]:
    """One of them."""
    async with another_client() as client:
        yield client


@pytest.fixture
async def move_clock(database_settings: DatabaseSettings, asyncio_open: None) -> Callable[[str], Any]:
    """Moves the database's clock: `await move_clock("29 days")`."""

    async def move(shift: str) -> None:
        async with open_connection(database_settings, as_admin=True) as connection:
            await connection.execute(f"update gateway.clock_shift set shift = interval '{shift}'")

    return move


@pytest.fixture
def logged() -> Any:
    """What is logged while the test runs."""
    with capture_logs() as lines:
        yield lines
