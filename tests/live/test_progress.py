"""Those who wait for a slice hear how far one is, whatever else happens to slices meanwhile."""

from datetime import UTC, datetime

import trio
import trio.testing

from queunir_trio.live.hub import Hub
from queunir_trio.live.progress import Progress
from queunir_trio.store.bridge import DatabaseUnavailable
from queunir_trio.store.notifications import Change
from queunir_trio.store.steps import StepRow

STEP = Change("slice_steps", "insert", 1, None, 7)


def row(deed: str, step: str) -> StepRow:
    return StepRow(1, deed, step, "started", None, datetime.now(UTC))


async def heard(newest: list[StepRow | Exception | None]) -> list[bytes]:
    """What one waiting user is told when the log's newest lines are these, one after another."""
    hub, told = Hub(), list[bytes]()
    waiting = hub.waiting(3)
    waiting.enter()
    waiting.follow(told.append)
    asked = trio.Event()

    async def read(slice_id: int) -> StepRow | None:
        assert slice_id == 7
        line = newest.pop(0)
        if not newest:
            asked.set()
        if isinstance(line, Exception):
            raise line
        return line

    progress = Progress(hub, read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.run)
        with trio.fail_after(5):
            while newest:
                progress.heard(STEP)
                await trio.testing.wait_all_tasks_blocked()
            await asked.wait()
        nursery.cancel_scope.cancel()
    return told


async def test_each_step_of_a_slices_making_is_told() -> None:
    told = await heard([row("provision", "database"), row("provision", "health")])
    assert [b'"percent":20' in told[0], b'"percent":70' in told[1]] == [True, True]
    assert b"event: wa:provisioning" in told[0]


async def test_other_deeds_and_a_database_that_is_away_are_passed_over() -> None:
    told = await heard([row("stop", "instance"), None, DatabaseUnavailable("away"), row("provision", "roles")])
    assert len(told) == 1
    assert b'"step":"roles"' in told[0]


async def test_nothing_is_asked_while_nobody_waits() -> None:
    async def read(slice_id: int) -> StepRow | None:
        raise AssertionError("nobody waits")

    progress = Progress(Hub(), read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.run)
        progress.heard(STEP)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
