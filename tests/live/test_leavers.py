"""What is left to do for those who leave is done without anybody asking."""

from pathlib import Path

import trio

from queunir_trio.live.leavers import look_after_leavers
from queunir_trio.outside import export_files
from queunir_trio.store import accounts, jobs
from queunir_trio.store.bridge import Database


async def test_a_forsaken_removal_is_taken_up_and_an_old_export_goes(
    database: Database, tmp_path: Path, nursery: trio.Nursery
) -> None:
    user = await accounts.add(database, "ana@example.com", "x")
    await database.execute("update gateway.users set deleting_at = gateway.clock()")  # as by an operator's psql
    path = export_files.path_of(tmp_path, user.id, 99)
    await export_files.prepare(path)
    path.write_bytes(b"of a job that is no more")
    nursery.start_soon(look_after_leavers, database, tmp_path, 1)
    with trio.fail_after(5):
        while await export_files.listed(tmp_path):
            await trio.sleep(0.01)
    job = await jobs.newest(database, "wipe", user_id=user.id)
    assert job is not None
    assert job.params["receipt"] == str(await database.fetchval("select id from gateway.receipts"))
    nursery.cancel_scope.cancel()
