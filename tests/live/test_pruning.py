"""What has had its time is deleted, and nothing else."""

import trio
from structlog.testing import capture_logs

from queunir_trio.live import pruning
from queunir_trio.live.pruning import prune, prune_hourly
from queunir_trio.store import accounts, outbox, sessions
from queunir_trio.store.bridge import Database


async def filled(database: Database) -> None:
    user = await accounts.add(database, "ana@example.com", "x")
    for name in ("good", "idle", "old"):
        await sessions.begin(database, user.id, name, None, None)
    await database.execute("update gateway.sessions set expires_at = gateway.clock() - interval '1s' where id = 'idle'")
    await database.execute(
        "update gateway.sessions set started_at = gateway.clock() - interval '91 days' where id = 'old'"
    )
    other = await accounts.add(database, "bea@example.com", "x")
    await accounts.add_reset(database, user.id, "good")
    await accounts.add_reset(database, other.id, "late")
    await database.execute("update gateway.password_resets set expires_at = gateway.clock() where token_hash = 'late'")
    for name in ("waiting", "sent", "forgotten"):
        await outbox.put(database, "password_reset", name, {})
    await database.execute("update gateway.outbox set sent_at = gateway.clock() where key = 'sent'")
    await database.execute(
        "update gateway.outbox set sent_at = gateway.clock() - interval '31 days' where key = 'forgotten'"
    )


async def test_only_what_is_over_goes(database: Database) -> None:
    await filled(database)
    assert await prune(database) == {"sessions": 2, "resets": 1, "mails": 1, "jobs": 0}
    assert await database.fetchval("select array_agg(id) from gateway.sessions") == ["good"]
    assert await database.fetchval("select array_agg(token_hash) from gateway.password_resets") == ["good"]
    assert await database.fetchval("select array_agg(key order by key) from gateway.outbox") == ["sent", "waiting"]
    assert await prune(database) == {"sessions": 0, "resets": 0, "mails": 0, "jobs": 0}


async def test_it_begins_at_once_and_says_what_it_did(database: Database, nursery: trio.Nursery) -> None:
    await filled(database)
    with capture_logs() as lines, trio.fail_after(5):
        nursery.start_soon(prune_hourly, database, 4)
        while not lines:  # noqa: ASYNC110  the line is what is waited for
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert lines[0]["event"] == "pruned"
    assert (lines[0]["epoch"], lines[0]["sessions"]) == (4, 2)
    assert pruning.PRUNED_EVERY == 3600
