"""The removal of a customer: everything goes, nobody else's does, and it is taken up wherever it was cut short."""

import json
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from queunir_trio.errors import Lost, Refused
from queunir_trio.model.accounts import token_hash
from queunir_trio.model.slices import Slice
from queunir_trio.operations import destruction, provisioning, wipe_orders, wipe_steps, wiping
from queunir_trio.operations.orders import Teller
from queunir_trio.operations.removal import Ways, destroy_here
from queunir_trio.operations.signing_in import BadCredentials, Visitor, sign_in
from queunir_trio.operations.steps import Resources
from queunir_trio.operations.wipe_orders import Ordered
from queunir_trio.operations.wipe_steps import STEPS
from queunir_trio.operations.wiping import wipe
from queunir_trio.outside import directories, erasure_log, export_files
from queunir_trio.outside.passwords import Hasher
from queunir_trio.outside.slice_control import SliceUnreachable
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, erasures, events, jobs, outbox, receipts, sessions, slice_databases, slices
from queunir_trio.store.bridge import Database, open_connection
from queunir_trio.store.slice_rows import StaleLeader
from tests.doubles.premises import Answers, Killed, Premises, open_premises

EMAIL = "ana.canary@example.com"
PHONE = "34600111222"
PASSWORD = "correct horse"
HERE = Ways(destroy=destroy_here)
APP = "https://app.example.com"


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened.with_doubles()


async def customer(place: Premises, email: str = EMAIL) -> tuple[int, Slice]:
    """Somebody with a session, a slice, rows and files in it, and traces in all the gateway's tables."""
    user = await accounts.add(place.db, email, await Hasher(4).hash(PASSWORD.encode()), "es")
    await provisioning.provision(place.resources, await provisioning.reserve(place.resources))
    claimed = await slices.claim(place.db, user.id)
    assert claimed is not None
    names = place.resources.names(claimed)
    async with open_connection(place.resources.where, as_admin=True, database=names.database) as connection:
        await connection.execute("insert into contacts (wa_id) values ('1@c.us'), ('2@c.us')")
        await connection.execute(f"insert into connection_state (phone_number) values ('{PHONE}')")
    (names.directory / "media" / "photo.jpg").write_bytes(b"x" * 5000)
    await sessions.begin(place.db, user.id, token_hash(f"{user.id}".encode()), "203.0.113.7", "a browser")
    await accounts.add_reset(place.db, user.id, token_hash(f"reset {user.id}".encode()))
    await events.record(place.db, "slice_ended", "info", {}, slice_id=claimed.id, user_id=user.id)
    await place.db.execute(
        "insert into gateway.telemetry (slice_id, rss_bytes) select $1, n from generate_series(1, 3) n", claimed.id
    )
    await outbox.put(place.db, "password_changed", f"password_changed:{user.id}:1", {"email": email})
    await jobs.put(place.db, "export", f"export:{user.id}", user_id=user.id)
    await place.db.execute("update gateway.jobs set finished_at = gateway.clock() where kind = 'export'")
    path = export_files.path_of(place.data_dir, user.id, 1)
    await export_files.prepare(path)
    path.write_bytes(b"a customer's data")
    return user.id, claimed


async def order(place: Premises, user_id: int) -> Ordered:
    return await wipe_orders.order(place.db, user_id, APP, "operator")


async def carry_out(place: Premises, ordered: Ordered, ways: Ways = HERE) -> dict[str, Any]:
    receipt = await receipts.find_by_token(place.db, token_hash((ordered.token or "").encode()))
    assert receipt is not None
    return await wipe(place.resources, receipt.id, ways, job_id=ordered.job.id)


async def traces(place: Premises, user_id: int, slice_id: int) -> dict[str, int]:
    return await erasures.left(place.db, user_id, [slice_id])


async def text_of_all_tables(db: Database) -> str:
    names = [row[0] for row in await db.fetch("select tablename from pg_tables where schemaname = 'gateway'")]
    return "".join([str(await db.fetch(f"select * from gateway.{name}")) for name in names])


async def test_nothing_is_left_of_who_leaves_and_nothing_is_missing_of_who_stays(place: Premises) -> None:
    user_id, slice_ = await customer(place)
    other_id, other = await customer(place, "otro@example.com")
    before = await traces(place, other_id, other.id)
    other_directory = place.resources.names(other).directory
    await carry_out(place, await order(place, user_id))
    assert await traces(place, user_id, slice_.id) == {}
    assert await slice_databases.exists(place.resources.where, place.resources.names(slice_)) == []
    assert place.directories() == [other_directory.name]
    assert await export_files.listed(place.data_dir, user_id) == []
    assert EMAIL not in await text_of_all_tables(place.db)
    assert str(slice_.uuid) not in str(await place.db.fetch("select * from gateway.slices"))
    assert await traces(place, other_id, other.id) == before
    assert (other_directory / "media" / "photo.jpg").stat().st_size == 5000
    assert len(await export_files.listed(place.data_dir, other_id)) == 1


async def test_the_receipt_tells_what_was_removed_and_nothing_of_whom(place: Premises) -> None:
    user_id, slice_ = await customer(place)
    document = await carry_out(place, await order(place, user_id))
    (gone,) = document["slices"]
    assert gone["uuid"] == str(slice_.uuid)
    assert gone["tables"]["contacts"] == 2
    assert gone["rows"] == sum(gone["tables"].values()) >= 3
    assert gone["media_bytes"] >= 5000
    assert gone["database_bytes"] > 100_000
    assert gone["whatsapp"] == "logged_out"
    assert document["rows"] | {"users": 1, "slices": 1, "sessions": 1, "telemetry": 3} == document["rows"]
    assert document["rows"]["outbox"] >= 1
    assert document["export_bytes"] == len(b"a customer's data")
    assert set(document["layers"]) == {
        "sessions", "instance", "database", "roles", "directory", "exports", "rows", "account"
    }  # fmt: skip
    assert {layer["state"] for layer in document["layers"].values()} == {"absent"}
    assert document["backups_expire_at"] > document["finished_at"]
    said = json.dumps(document)
    for personal in (EMAIL, PHONE, "ana.", "203.0.113.7", "@"):
        assert personal not in said
    stored = await receipts.find(place.db, (await place.db.fetchval("select id from gateway.receipts")))
    assert stored is not None
    assert stored.is_finished
    assert (stored.document, stored.user_id) == (document, None)


async def test_from_the_order_on_nobody_gets_in(place: Premises) -> None:
    user_id, _ = await customer(place)
    ordered = await order(place, user_id)
    assert ordered.ended == [token_hash(f"{user_id}".encode())]
    assert await sessions.listed(place.db, user_id) == []
    with pytest.raises(BadCredentials):
        await sign_in(place.db, Hasher(4), EMAIL, PASSWORD, Visitor("203.0.113.7", None), None)
    assert await slices.waiting_users(place.db, False) == []


async def test_an_order_given_twice_is_one(place: Premises) -> None:
    user_id, _ = await customer(place)
    first, second = await order(place, user_id), await order(place, user_id)
    assert second.job.id == first.job.id
    assert second.token is None, "a link is shown once"
    with pytest.raises(Refused, match="no_such_user"):
        await order(place, 4711)


async def test_only_the_hash_of_the_links_secret_is_kept(place: Premises) -> None:
    user_id, _ = await customer(place)
    ordered = await order(place, user_id)
    assert ordered.token is not None
    assert ordered.token not in str(await place.db.fetch("select * from gateway.receipts"))
    assert ordered.token not in str(await place.db.fetch("select * from gateway.jobs"))
    assert ordered.token not in repr(ordered)
    letter = await place.db.fetchrow("select kind, payload from gateway.outbox where kind = 'account_deletion'")
    assert letter["payload"] == {"email": EMAIL, "language": "es", "link": f"{APP}/receipts/{ordered.token}"}


async def test_the_account_is_closed_by_its_password_only(place: Premises) -> None:
    user_id, _ = await customer(place)
    user = await accounts.find(place.db, user_id)
    assert user is not None
    own = token_hash(f"{user_id}".encode())
    with pytest.raises(BadCredentials):
        await wipe_orders.close_account(place.db, Hasher(4), user, "wrong", own, APP)
    with pytest.raises(BadCredentials):  # by who was logged out meanwhile
        await wipe_orders.close_account(place.db, Hasher(4), user, PASSWORD, token_hash(b"another"), APP)
    assert len(await sessions.listed(place.db, user_id)) == 1
    ordered = await wipe_orders.close_account(place.db, Hasher(4), user, PASSWORD, own, APP)
    assert ordered.ended == [own]


POINTS = [f"wipe:{name}:{moment}" for name, _, _ in STEPS for moment in ("started", "acted", "done")]


async def test_killed_at_every_point_twice_it_comes_to_the_same_end(place: Premises) -> None:
    user_id, slice_ = await customer(place)
    ordered = await order(place, user_id)
    destroying = ["destroy:instance:started", "destroy:database:acted", "destroy:directories:acted", "destroy:row:next"]
    points = POINTS[: POINTS.index("wipe:destroy:acted")] + destroying + POINTS[POINTS.index("wipe:destroy:acted") :]
    for point in [*points[:-2], "wipe:account:logged"]:
        place.reached.killed_at = point
        for _ in range(2):
            with pytest.raises(Killed):
                await carry_out(place, ordered)
            assert await accounts.find(place.db, user_id) is not None, "the user's row goes last"
            assert (await receipts.under_way(place.db, user_id)) is not None
    place.reached.killed_at = "wipe:account:acted"  # nothing is left then but to say so
    with pytest.raises(Killed):
        await carry_out(place, ordered)
    document = await carry_out(place, ordered)
    assert await traces(place, user_id, slice_.id) == {}
    assert {key: value for key, value in (await place.everything()).items() if value} == {}
    assert document["rows"]["users"] == 1
    assert document["slices"][0]["tables"]["contacts"] == 2
    assert len(await erasures.remembered(place.db)) == 1


@pytest.mark.parametrize("unpaired", [False, True])
async def test_a_slice_that_can_not_be_logged_out_keeps_nobody_waiting(place: Premises, unpaired: bool) -> None:
    user_id, _ = await customer(place)
    control = place.resources.control
    assert isinstance(control, Answers)
    control.log_out_fails = SliceUnreachable("status 409")
    control.state_fails = None if unpaired else SliceUnreachable("status 409")
    document = await carry_out(place, await order(place, user_id))
    assert document["slices"][0]["whatsapp"] == ("not_paired" if unpaired else "could_not_be_told")


async def test_a_suspended_customer_is_removed_as_well(place: Premises) -> None:
    user_id, slice_ = await customer(place)
    await place.db.execute(
        "update gateway.slices set status = 'suspended', wanted = 'stopped' where id = $1", slice_.id
    )
    document = await carry_out(place, await order(place, user_id))
    assert document["slices"][0]["whatsapp"] == "not_running"
    assert await place.databases_and_roles() == set()


async def test_the_slice_that_was_taken_from_a_customer_goes_with_them(place: Premises) -> None:
    user_id, first = await customer(place)
    second = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, second)
    await slices.assign(place.db, user_id, second.id)
    document = await carry_out(place, await order(place, user_id))
    assert {gone["uuid"] for gone in document["slices"]} == {str(first.uuid), str(second.uuid)}
    assert await place.databases_and_roles() == set()
    assert place.directories() == []


async def test_who_has_no_slice_yet_is_removed_too(place: Premises) -> None:
    user_id = await place.add_user()
    document = await carry_out(place, await order(place, user_id))
    assert document["slices"] == []
    assert await accounts.find(place.db, user_id) is None


async def test_of_a_backend_that_something_else_runs_only_the_row_is_ours(place: Premises) -> None:
    user_id = await place.add_user()
    row = await slices.add_unmanaged(place.db, "127.0.0.1", 4000)
    await slices.assign(place.db, user_id, row.id)
    document = await carry_out(place, await order(place, user_id))
    assert document["slices"][0]["managed"] is False
    assert await slices.listed(place.db) == []


async def test_while_the_subscription_can_not_be_cancelled_nothing_is_removed(place: Premises) -> None:
    user_id, slice_ = await customer(place)

    async def unreachable(user_id: int) -> str:
        raise Lost("no answer")

    ordered = await order(place, user_id)
    with pytest.raises(Lost):
        await carry_out(place, ordered, replace(HERE, cancel=unreachable))
    assert await slices.find(place.db, slice_.id) is not None

    async def cancelled(user_id: int) -> str:
        return "cancelled"

    assert (await carry_out(place, ordered, replace(HERE, cancel=cancelled)))["billing"] == "cancelled"


async def test_a_layer_that_is_still_there_is_not_called_removed(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id, _ = await customer(place)
    ordered = await order(place, user_id)

    async def pretend(resources: Resources, slice_id: int) -> None:
        await resources.db.execute("update gateway.users set slice_id = null")
        await resources.db.execute("delete from gateway.telemetry")
        await resources.db.execute("delete from gateway.slices where id = $1", slice_id)

    with pytest.raises(Lost, match=r"database .*directory"):
        await carry_out(place, ordered, replace(HERE, destroy=pretend))
    assert await accounts.find(place.db, user_id) is not None


async def test_the_letter_with_the_receipt_leaves_first(place: Premises, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wipe_steps, "LETTER_AWAITED", 0.3)
    user_id, _ = await customer(place)
    ordered, sending = await order(place, user_id), replace(HERE, letters=True)
    with pytest.raises(Lost, match="letter"):
        await carry_out(place, ordered, sending)
    (kind,) = await place.db.fetch("select kind from gateway.outbox")
    assert kind[0] == "account_deletion"
    await place.db.execute("update gateway.outbox set sent_at = gateway.clock(), payload = '{}'")
    await carry_out(place, ordered, sending)
    assert await place.db.fetchval("select count(*) from gateway.outbox") == 0


async def test_a_leader_whose_time_is_over_removes_nothing_more(place: Premises) -> None:
    user_id, slice_ = await customer(place)
    ordered = await order(place, user_id)
    epoch = await place.db.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    with pytest.raises(StaleLeader):
        await wipe(replace(place.resources, epoch=epoch - 1), *(await _receipt(place, ordered)), HERE)
    assert await slices.find(place.db, slice_.id) is not None


async def _receipt(place: Premises, ordered: Ordered) -> tuple[Any]:
    found = await receipts.find_by_token(place.db, token_hash((ordered.token or "").encode()))
    assert found is not None
    return (found.id,)


async def test_the_destruction_is_asked_for_and_waited_for(place: Premises, nursery: trio.Nursery) -> None:
    """As in the service, where the reconciler does it."""
    user_id, slice_ = await customer(place)
    ordered = await order(place, user_id)

    async def reconcile() -> None:
        while (row := await slices.find(place.db, slice_.id)) is None or row.status != "destroying":
            await trio.sleep(0.01)
        await destruction.destroy(place.resources, row)

    nursery.start_soon(reconcile)
    with trio.fail_after(20):
        await carry_out(place, ordered, Ways())
    assert await traces(place, user_id, slice_.id) == {}


async def test_an_address_in_the_audit_log_goes_and_the_deed_stays(place: Premises) -> None:
    user_id = await place.add_user()
    await place.db.execute(
        """
        insert into gateway.audit_log (actor, action, target, ip)
        values ($1, 'slice_assigned', 'user:9', '203.0.113.9')
        """,
        f"user:{user_id}",
    )
    await carry_out(place, await order(place, user_id))
    rows = await place.db.fetch("select action, ip from gateway.audit_log order by id")
    assert [tuple(row) for row in rows] == [("slice_assigned", None), ("user_wiped", None)]


async def test_a_removal_that_was_given_up_is_taken_up_again(place: Premises) -> None:
    user_id, _ = await customer(place)
    ordered = await order(place, user_id)
    assert await wipe_orders.take_up_all(place.db) == 0
    await jobs.fail(place.db, ordered.job.id, "given_up", "It did not work.", None)
    assert await wipe_orders.take_up_all(place.db) == 1
    job = await jobs.newest(place.db, "wipe", user_id=user_id)
    assert job is not None
    assert job.id != ordered.job.id
    assert job.params == ordered.job.params, "with the receipt that was promised"
    await carry_out(place, replace(ordered, job=job))
    assert "wipe_taken_up" not in await place.events(), "what tells of the user goes with them"


async def test_who_was_removed_is_written_where_a_restore_does_not_reach(place: Premises) -> None:
    user_id, slice_ = await customer(place)
    user = await accounts.find(place.db, user_id)
    assert user is not None
    await carry_out(place, await order(place, user_id))
    (erasure,) = await erasure_log.read(place.data_dir)
    assert (erasure.user_id, erasure.user_created_at, erasure.slices) == (user_id, user.created_at, (slice_.uuid,))
    assert await erasures.remembered(place.db) == [erasure]
    path = place.data_dir / erasure_log.NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert EMAIL not in path.read_text()


async def test_as_a_job_it_tells_how_far_it_is(place: Premises) -> None:
    user_id, _ = await customer(place)
    ordered = await order(place, user_id)
    told: list[tuple[str, int]] = []

    class Told:
        epoch = 0

        async def at(self, step: str, percent: int) -> None:
            told.append((step, percent))
            receipt = await receipts.under_way(place.db, user_id)
            assert receipt is not None
            assert (receipt.step, receipt.percent) == (step, percent)

    teller: Teller = Told()
    document = await wiping.Wiping(place.resources, HERE).work(ordered.job, teller)
    assert told == [(name, percent) for name, percent, _ in STEPS]
    assert set(document["steps"]) == {name for name, _, _ in STEPS[:-1]}


async def test_what_came_up_again_meanwhile_goes_again(place: Premises) -> None:
    """A directory of the slice that is put back while the last steps are taken is found by the last look."""
    user_id, slice_ = await customer(place)
    ordered = await order(place, user_id)
    directory = place.resources.names(slice_).directory

    def put_back(point: str) -> None:
        if point == "wipe:letters:done":
            directory.mkdir(parents=True)
            (directory / directories.LABEL).write_text(str(slice_.uuid))

    resources = replace(place.resources, reached=put_back)
    with pytest.raises(Lost, match="directory"):
        await wipe(resources, *(await _receipt(place, ordered)), HERE, job_id=ordered.job.id)
    assert await accounts.find(place.db, user_id) is not None
