"""Duties run where the lock is held, with its epoch, and end with it."""

from collections.abc import AsyncIterator

import pytest
import trio
from structlog.testing import capture_logs

from queunir_trio.errors import Lost
from queunir_trio.live import leader as module
from queunir_trio.live.leader import Duty, Leader
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Connection, open_connection
from queunir_trio.store.leadership import LOCK

PATIENCE = 5.0  # seconds


@pytest.fixture
async def admin(asyncio_open: None, database_settings: DatabaseSettings) -> AsyncIterator[Connection]:
    async with open_connection(database_settings, as_admin=True) as connection:
        yield connection


class Duties:
    """Two duties that note what becomes of them."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.running = 0
        self.fails: Exception | None = None

    def listed(self) -> list[Duty]:
        return [("first", self._duty), ("second", self._duty)]

    async def _duty(self, epoch: int) -> None:
        self.notes.append(f"begun in {epoch}")
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        self.running += 1
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1

    async def until_running(self, count: int) -> None:
        with trio.fail_after(PATIENCE):
            while self.running != count:
                await trio.sleep(0.005)


async def test_a_leader_s_duties_run_with_its_epoch(admin: Connection, database_settings: DatabaseSettings) -> None:
    duties = Duties()
    leader = Leader(database_settings, duties.listed())
    assert leader.epoch is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leader.session)
        await duties.until_running(2)
        assert leader.epoch == await admin.fetchval("select epoch from gateway.leader")
        assert duties.notes == [f"begun in {leader.epoch}"] * 2
        nursery.cancel_scope.cancel()
    assert (leader.epoch, duties.running) == (None, 0)


async def test_duties_end_with_the_lock_and_another_follows(
    admin: Connection, database_settings: DatabaseSettings
) -> None:
    duties, others = Duties(), Duties()
    first, second = Leader(database_settings, duties.listed()), Leader(database_settings, others.listed())
    lost = trio.Event()

    async def lead() -> None:
        with pytest.RaisesGroup(Lost):
            await first.session()
        lost.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await duties.until_running(2)
        epoch = first.epoch
        assert epoch is not None
        nursery.start_soon(second.session)
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and objid = $1 and granted",
            LOCK,
        )
        with trio.fail_after(PATIENCE):
            await lost.wait()
        assert (first.epoch, duties.running) == (None, 0)
        await others.until_running(2)
        assert second.epoch is not None
        assert second.epoch > epoch
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("failure", [Lost("away"), ZeroDivisionError()])
async def test_a_duty_that_fails_is_begun_again_and_the_others_go_on(
    asyncio_open: None, database_settings: DatabaseSettings, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(module, "STALE_AFTER", 0.02)
    duties = Duties()
    duties.fails = failure
    leader = Leader(database_settings, duties.listed())
    with capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leader.session)
            await duties.until_running(2)
            assert len(duties.notes) == 3
            nursery.cancel_scope.cancel()
    events = {line["event"] for line in logged}
    assert events == {"leading", "session_lost" if isinstance(failure, Lost) else "session_crashed"}
