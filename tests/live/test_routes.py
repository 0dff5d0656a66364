"""What is remembered of sessions, for how long, and how it is forgotten."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
import trio
from trio.testing import MockClock

from queunir_trio.live import routes as module
from queunir_trio.live.routes import ASKED_AT_MOST, REMEMBERED_FOR, Forgotten, Routes
from queunir_trio.model.accounts import User, new_token, token_hash
from queunir_trio.model.routing import SessionFacts
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.store.bridge import DatabaseUnavailable

NOW = datetime(2026, 11, 1, tzinfo=UTC)
USER = User(42, "a@example.com", "active", None, False, NOW, None, 7, None, None, "en")
SLICE = Slice(
    7, UUID(int=7), "127.0.0.1", 5003, Status.ASSIGNED, Wanted.RUNNING, True, 42, False, None, None, "wank-slice:1",
    0, None, None, None, None, NOW,
)  # fmt: skip


class Table:
    """The sessions as PostgreSQL would tell of them, and how often it was asked."""

    def __init__(self) -> None:
        self.rows: dict[str, SessionFacts] = {}
        self.asked: list[str] = []
        self.fails: Exception | None = None
        self.meanwhile: Callable[[], None] = lambda: None  # happens after the row was read and before it is told

    def add(self, user: User = USER, slice_: Slice | None = SLICE, seconds_left: float = 1e6) -> bytes:
        token = new_token().encode()
        hashed = token_hash(token)
        self.rows[hashed] = SessionFacts(hashed, UUID(int=1), user, slice_, seconds_left)
        return token

    async def facts(self, db: object, hashed: str) -> SessionFacts | None:
        self.asked.append(hashed)
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        found = self.rows.get(hashed)
        self.meanwhile()
        return found


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table()
    monkeypatch.setattr(module.sessions, "facts", made.facts)
    return made


@pytest.fixture
def routes() -> Routes:
    made = Routes(None, "master", 5001)  # type: ignore[arg-type]
    made.resume()
    return made


async def test_a_session_is_asked_for_once(table: Table, routes: Routes) -> None:
    token = table.add()
    assert routes.peek(token) is None
    route = await routes.find(token)
    assert route is not None
    assert (route.user_id, route.slice_id, route.refusal) == (42, 7, None)
    assert route.address is not None
    assert (route.address.num, route.address.port) == (2, 5003)
    assert routes.peek(token) is route
    assert await routes.find(token) is route
    assert await routes.find_by_hash(token_hash(token)) is route
    assert len(table.asked) == 1


async def test_a_session_that_is_unknown_is_asked_for_each_time(table: Table, routes: Routes) -> None:
    token = new_token().encode()
    assert await routes.find(token) is None
    assert await routes.find(token) is None
    assert len(table.asked) == 2


@pytest.mark.parametrize("token", [b"", b"short", b"A" * 64, b"g" * 64, b"a" * 65, b"\xff" * 64])
async def test_what_can_be_no_token_is_not_even_asked_for(table: Table, routes: Routes, token: bytes) -> None:
    assert await routes.find(token) is None
    assert table.asked == []


async def test_no_answer_is_not_a_no(table: Table, routes: Routes) -> None:
    token = table.add()
    table.fails = DatabaseUnavailable("away")
    with pytest.raises(DatabaseUnavailable):
        await routes.find(token)
    table.fails = None
    assert await routes.find(token) is not None


async def test_nothing_is_remembered_while_changes_can_not_be_heard(table: Table, routes: Routes) -> None:
    token = table.add()
    await routes.find(token)
    routes.suspend()
    assert routes.peek(token) is None
    assert await routes.find(token) is not None
    assert routes.peek(token) is None
    assert "asking every time" in repr(routes)
    routes.resume()
    assert "listening" in repr(routes)
    await routes.find(token)
    assert routes.peek(token) is not None
    assert len(table.asked) == 3


async def test_what_was_read_before_changes_were_heard_is_not_remembered(table: Table, routes: Routes) -> None:
    routes.suspend()
    token = table.add()

    def listen() -> None:
        routes.resume()
        table.meanwhile = lambda: None

    table.meanwhile = listen
    await routes.find(token)
    assert len(table.asked) == 2  # it was read again


FORGETTING: list[Callable[[Routes, bytes], None]] = [
    lambda routes, token: routes.revoke([token_hash(token)]),
    lambda routes, token: routes.forget_user(42),
    lambda routes, token: routes.forget_slice(7),
    lambda routes, token: routes.forget_all(),
    lambda routes, token: routes.suspend(),
]


@pytest.mark.parametrize("forget", FORGETTING)
async def test_what_is_forgotten_is_asked_for_again(
    table: Table, routes: Routes, forget: Callable[[Routes, bytes], None]
) -> None:
    token = table.add()
    await routes.find(token)
    forget(routes, token)
    assert routes.peek(token) is None
    await routes.find(token)
    assert len(table.asked) == 2


async def test_others_are_not_forgotten(table: Table, routes: Routes) -> None:
    other = replace(USER, id=43, slice_id=8)
    token = table.add(other, replace(SLICE, id=8, user_id=43))
    await routes.find(token)
    routes.revoke(["f" * 64])
    routes.forget_user(42)
    routes.forget_slice(7)
    assert routes.peek(token) is not None


async def test_an_answer_that_was_read_before_a_revocation_does_not_count(table: Table, routes: Routes) -> None:
    token = table.add()
    hashed = token_hash(token)

    def log_out() -> None:
        table.rows.pop(hashed, None)
        routes.revoke([hashed])
        table.meanwhile = lambda: None

    table.meanwhile = log_out
    assert await routes.find(token) is None
    assert routes.peek(token) is None
    assert len(table.asked) == 2


@pytest.mark.parametrize("forget", FORGETTING)
async def test_while_things_keep_changing_the_last_answer_is_given_and_not_kept(
    table: Table, routes: Routes, forget: Callable[[Routes, bytes], None]
) -> None:
    token = table.add()
    table.meanwhile = lambda: forget(routes, token)
    assert await routes.find(token) is not None
    assert routes.peek(token) is None
    assert len(table.asked) == ASKED_AT_MOST


async def test_subscribers_hear_at_once_and_in_order(routes: Routes) -> None:
    heard: list[tuple[str, Forgotten]] = []
    routes.subscribe(lambda forgotten: heard.append(("first", forgotten)))
    routes.subscribe(lambda forgotten: heard.append(("second", forgotten)))
    routes.revoke(["a", "b"])
    assert heard == [(name, Forgotten(frozenset({"a", "b"}), ended=True)) for name in ("first", "second")]
    heard.clear()
    routes.forget_user(42)
    routes.forget_slice(7)
    routes.forget_all()
    routes.suspend()
    assert [forgotten for name, forgotten in heard if name == "first"] == [
        Forgotten(user_id=42),
        Forgotten(slice_id=7),
        Forgotten(everything=True),
        Forgotten(everything=True),
    ]


async def test_what_is_forgotten_is_gone_when_subscribers_hear_of_it(table: Table, routes: Routes) -> None:
    token = table.add()
    await routes.find(token)
    known: list[bool] = []
    routes.subscribe(lambda forgotten: known.append(routes.peek(token) is not None))
    routes.revoke([token_hash(token)])
    assert known == [False]


async def test_only_so_many_are_remembered(table: Table, routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_AT_MOST", 3)
    tokens = [table.add() for _ in range(5)]
    for token in tokens:
        await routes.find(token)
    assert [routes.peek(token) is not None for token in tokens] == [False, False, True, True, True]
    assert "<Routes 3 remembered" in repr(routes)


@pytest.mark.parametrize(("seconds_left", "remembered_for"), [(1e6, REMEMBERED_FOR), (20.0, 20.0)])
async def test_a_route_is_not_remembered_beyond_its_session_or_some_minutes(
    table: Table, routes: Routes, mock_clock: MockClock, seconds_left: float, remembered_for: float
) -> None:
    token = table.add(seconds_left=seconds_left)
    await routes.find(token)
    mock_clock.jump(remembered_for - 1)
    assert routes.peek(token) is not None
    mock_clock.jump(2)
    assert routes.peek(token) is None
    await routes.find(token)
    assert len(table.asked) == 2


@pytest.mark.parametrize(
    ("user", "slice_", "refusal"),
    [
        (USER, None, "no_slice"),
        (USER, replace(SLICE, status=Status.SUSPENDED), "suspended"),
        (replace(USER, subscription_status="past_due"), replace(SLICE, status=Status.SUSPENDED), "payment_required"),
        (replace(USER, subscription_status="cancelled"), replace(SLICE, status=Status.SUSPENDED), "payment_required"),
        (USER, replace(SLICE, status=Status.DESTROYING), "no_slice"),
        (replace(USER, suspended_at=NOW), SLICE, "suspended"),
    ],
)
async def test_a_route_that_leads_nowhere_says_why(
    table: Table, routes: Routes, user: User, slice_: Slice | None, refusal: str
) -> None:
    route = await routes.find(table.add(user, slice_))
    assert route is not None
    assert (route.refusal, route.address) == (refusal, None)
