"""Jobs: begun when due, taken up again where they were cut short, finished once, and followed by those who wait."""

from typing import Any

import pytest
import trio
import trio.testing

from queunir_trio.errors import Lost, Refused
from queunir_trio.live.jobs import GIVEN_UP_AFTER, JobNews, Jobs, Reporter
from queunir_trio.model.jobs import Job, JobState
from queunir_trio.store import jobs
from queunir_trio.store.bridge import Database, DatabaseUnavailable
from queunir_trio.store.slices import StaleLeader


async def leading(database: Database) -> int:
    epoch: int = await database.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    return epoch


class Work:
    """Does with each attempt what the script says; succeeds when the script is at its end."""

    def __init__(self, *script: BaseException) -> None:
        self.script = list(script)
        self.seen: list[Job] = []
        self.begun = trio.Event()
        self.may_end = trio.Event()
        self.may_end.set()

    async def __call__(self, job: Job, reporter: Reporter) -> dict[str, Any]:
        self.seen.append(job)
        self.begun.set()
        await reporter.at("half", 50)
        await self.may_end.wait()
        if self.script:
            raise self.script.pop(0)
        return {"made": len(self.seen)}


async def run_until_finished(database: Database, work: Work, job: Job, epoch: int) -> Job:
    runner, news = Jobs(database, {"test": work}), JobNews(database)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run, epoch)
        with trio.fail_after(10):
            while True:
                found = await news.finished(job.id, 0.05)
                assert found is not None
                if found.is_finished:
                    break
                await database.execute("update gateway.jobs set next_attempt_at = gateway.clock()")
                runner.nudge()
        nursery.cancel_scope.cancel()
    return found


async def test_a_job_is_done_and_keeps_its_result(database: Database) -> None:
    job = await jobs.put(database, "test", "a", {"n": 1}, user_id=None)
    found = await run_until_finished(database, Work(), job, await leading(database))
    assert (found.state, found.percent, found.step, found.result) == (JobState.DONE, 100, "half", {"made": 1})
    assert found.params == {"n": 1}
    assert found.finished_at is not None


async def test_two_jobs_of_one_key_are_one_until_it_is_finished(database: Database) -> None:
    first, second = await jobs.put(database, "test", "a"), await jobs.put(database, "test", "a")
    assert first.id == second.id
    await run_until_finished(database, Work(), first, await leading(database))
    assert (await jobs.put(database, "test", "a")).id != first.id


async def test_a_refusal_ends_the_job_with_its_code(database: Database) -> None:
    job = await jobs.put(database, "test", "a")
    found = await run_until_finished(
        database, Work(Refused("no_room", "There is no room.")), job, await leading(database)
    )
    assert (found.state, found.code, found.error) == (JobState.FAILED, "no_room", "There is no room.")


async def test_what_is_lost_or_crashes_is_tried_again(database: Database) -> None:
    work = Work(Lost("gone"), OSError("disk"), ValueError("a bug"))
    job = await jobs.put(database, "test", "a")
    found = await run_until_finished(database, work, job, await leading(database))
    assert found.state is JobState.DONE
    assert found.attempts == 4
    assert found.error is None


async def test_a_database_that_is_closed_is_not_asked_again_at_once(database: Database) -> None:
    work = Work(*(DatabaseUnavailable("closed") for _ in range(100)))
    job = await jobs.put(database, "test", "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Jobs(database, {"test": work}).run, await leading(database))
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    found = await jobs.find(database, job.id)
    assert found is not None
    assert found.attempts == 1
    assert not found.is_finished


async def test_a_job_that_never_works_is_given_up(database: Database) -> None:
    job = await jobs.put(database, "test", "a")
    await database.execute("update gateway.jobs set attempts = $1", GIVEN_UP_AFTER - 1)
    found = await run_until_finished(database, Work(Lost("gone")), job, await leading(database))
    assert (found.state, found.code, found.error) == (JobState.FAILED, "given_up", "gone")


async def test_a_job_cut_short_is_taken_up_by_the_next_leader(database: Database) -> None:
    job, work = await jobs.put(database, "test", "a"), Work()
    work.may_end = trio.Event()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Jobs(database, {"test": work}).run, await leading(database))
            await work.begun.wait()
            nursery.cancel_scope.cancel()
    cut = await jobs.find(database, job.id)
    assert cut is not None
    assert cut.state is JobState.RUNNING
    found = await run_until_finished(database, Work(), job, await leading(database))
    assert found.state is JobState.DONE
    assert found.attempts == 2


async def test_a_leader_whose_time_is_over_can_not_report(database: Database) -> None:
    job, stale = await jobs.put(database, "test", "a"), await leading(database)
    await leading(database)
    with pytest.raises(StaleLeader):
        await Reporter(database, job.id, stale).at("more", 60)
    with pytest.raises(StaleLeader):
        await jobs.begin(database, job.id, stale)


async def test_one_who_waits_is_woken_by_the_news(database: Database) -> None:
    job, news, epoch = await jobs.put(database, "test", "a"), JobNews(database), await leading(database)
    found: list[Job | None] = []

    async def wait() -> None:
        found.append(await news.finished(job.id, 10))

    with trio.fail_after(1.5):  # less than the pause after which it would look by itself
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await jobs.finish(database, job.id, {}, epoch)
            news.heard(job.id)
    assert found[0] is not None
    assert found[0].is_finished


async def test_nobody_waits_for_a_job_that_is_not(database: Database) -> None:
    assert await JobNews(database).finished(12345, 5) is None


async def test_finished_jobs_are_forgotten_after_a_month(database: Database) -> None:
    job = await jobs.put(database, "test", "a")
    await run_until_finished(database, Work(), job, await leading(database))
    assert await jobs.prune(database) == 0
    await database.execute("update gateway.jobs set finished_at = finished_at - interval '31 days'")
    assert await jobs.prune(database) == 1


async def test_long_jobs_of_one_kind_do_not_take_all_places(database: Database) -> None:
    slow, quick = Work(), Work()
    slow.may_end = trio.Event()
    for number in range(5):
        await jobs.put(database, "slow", f"slow:{number}")
    late = await jobs.put(database, "quick", "quick")
    runner, news = Jobs(database, {"slow": slow, "quick": quick}, at_once={"slow": 2}), JobNews(database)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run, await leading(database))
            done = await news.finished(late.id, 5)
            assert done is not None
            assert done.is_finished
            assert len(slow.seen) == 2
            slow.may_end.set()
            while await database.fetchval("select count(*) from gateway.jobs where finished_at is null"):
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert len(slow.seen) == 5
