"""What must be told to the outside, at least once; and the two logs."""

import pytest

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import audit, events, outbox
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.store.slices import StaleLeader


@pytest.fixture
async def epoch(database: Database) -> int:
    number: int = await database.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    return number


async def move_clock(where: DatabaseSettings, seconds: float) -> None:
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute("update gateway.clock_shift set shift = shift + make_interval(secs => $1)", seconds)


async def test_what_is_due_is_taken_once_and_again_after_its_lease(
    database: Database, database_settings: DatabaseSettings, epoch: int
) -> None:
    await outbox.put(database, "mail", "welcome:1", {"to": "a@example.com"})
    await outbox.put(database, "mail", "welcome:2", {"to": "b@example.com"})
    first, second = await outbox.take_due(database, 10, epoch)
    assert (first.kind, first.key, first.payload, first.attempts) == (
        "mail",
        "welcome:1",
        {"to": "a@example.com"},
        1,
    )
    assert second.key == "welcome:2"
    assert await outbox.take_due(database, 10, epoch) == []
    await move_clock(database_settings, outbox.LEASE + 1)
    again = await outbox.take_due(database, 1, epoch)
    assert [(row.id, row.attempts) for row in again] == [(first.id, 2)]


async def test_a_key_is_put_once(database: Database, epoch: int) -> None:
    await outbox.put(database, "mail", "key", {"n": 1})
    await outbox.put(database, "mail", "key", {"n": 2})
    (row,) = await outbox.take_due(database, 10, epoch)
    assert row.payload == {"n": 1}
    await outbox.done(database, row.id)
    await outbox.put(database, "mail", "key", {"n": 3})
    assert await outbox.seconds_to_next(database) is None


async def test_what_is_delivered_keeps_no_content(
    database: Database, database_settings: DatabaseSettings, epoch: int
) -> None:
    await outbox.put(database, "mail", "key", {"link": "https://example.com/secret"})
    (row,) = await outbox.take_due(database, 10, epoch)
    await outbox.failed(database, row.id, "an error", 0)
    await outbox.done(database, row.id)
    kept = await database.fetchrow("select payload, last_error, sent_at is not null from gateway.outbox")
    assert kept is not None
    assert tuple(kept) == ({}, None, True)
    await move_clock(database_settings, 29 * 86_400)
    assert await outbox.take_due(database, 10, epoch) == []
    assert await outbox.prune(database) == 0
    await move_clock(database_settings, 2 * 86_400)
    assert await outbox.prune(database) == 1


async def test_what_failed_is_tried_again_when_told(
    database: Database, database_settings: DatabaseSettings, epoch: int
) -> None:
    assert await outbox.seconds_to_next(database) is None
    await outbox.put(database, "mail", "key", {})
    soon = await outbox.seconds_to_next(database)
    assert soon is not None
    assert soon <= 0
    (row,) = await outbox.take_due(database, 10, epoch)
    await outbox.failed(database, row.id, "x" * 1000, 60)
    later = await outbox.seconds_to_next(database)
    assert later is not None
    assert 50 < later <= 60
    assert await database.fetchval("select length(last_error) from gateway.outbox") == outbox.ERROR_AT_MOST
    await move_clock(database_settings, 59)
    assert await outbox.take_due(database, 10, epoch) == []
    await move_clock(database_settings, 2)
    assert [row.attempts for row in await outbox.take_due(database, 10, epoch)] == [2]


async def test_what_is_given_up_is_forgotten_but_for_the_error(
    database: Database, database_settings: DatabaseSettings, epoch: int
) -> None:
    await outbox.put(database, "mail", "key", {"link": "https://example.com/secret"})
    (row,) = await outbox.take_due(database, 10, epoch)
    await outbox.give_up(database, row.id, "no such address")
    await move_clock(database_settings, 86_400)
    assert await outbox.take_due(database, 10, epoch) == []
    kept = await database.fetchrow("select payload, last_error from gateway.outbox")
    assert kept is not None
    assert tuple(kept) == ({}, "no such address")


async def test_who_leads_no_more_takes_nothing(database: Database, epoch: int) -> None:
    await outbox.put(database, "mail", "key", {})
    await database.execute("update gateway.leader set epoch = epoch + 1")
    with pytest.raises(StaleLeader):
        await outbox.take_due(database, 10, epoch)
    assert len(await outbox.take_due(database, 10, epoch + 1)) == 1


async def test_events_and_audits_are_kept(database: Database) -> None:
    await events.record(database, "conflict", "critical", {"num": 3}, slice_id=7)
    await audit.record(database, "user:1", "suspend", "slice:7", {"why": "abuse"}, "192.0.2.1")
    event = await database.fetchrow("select kind, severity, detail, slice_id, user_id from gateway.events")
    line = await database.fetchrow("select actor, action, target, detail, ip from gateway.audit_log")
    assert event is not None
    assert line is not None
    assert tuple(event) == ("conflict", "critical", {"num": 3}, 7, None)
    assert tuple(line) == ("user:1", "suspend", "slice:7", {"why": "abuse"}, "192.0.2.1")
