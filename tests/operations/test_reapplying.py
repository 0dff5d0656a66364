"""A restore brings back who was removed: they go again before anybody is served, and only they."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from queunir_trio.errors import Lost
from queunir_trio.model.accounts import User, token_hash
from queunir_trio.model.slices import Slice
from queunir_trio.operations import provisioning, wipe_orders
from queunir_trio.operations.reapplying import Returned, reapply
from queunir_trio.operations.removal import Ways, destroy_here
from queunir_trio.operations.signing_in import BadCredentials, Visitor, sign_in
from queunir_trio.operations.wiping import wipe
from queunir_trio.outside import directories, erasure_log
from queunir_trio.outside.passwords import Hasher
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, erasures, jobs, receipts, sessions, slice_databases, slices
from queunir_trio.store.bridge import Database
from queunir_trio.store.leadership import leadership
from tests.doubles.premises import Premises, open_premises

HERE = Ways(destroy=destroy_here)
NOTHING = Returned([], [], [])
PASSWORD = "correct horse"


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened.with_doubles()


async def customer(place: Premises, email: str = "ana@example.com") -> tuple[User, Slice]:
    user = await accounts.add(place.db, email, await Hasher(4).hash(PASSWORD.encode()))
    await provisioning.provision(place.resources, await provisioning.reserve(place.resources))
    claimed = await slices.claim(place.db, user.id)
    assert claimed is not None
    return user, claimed


async def removed(place: Premises) -> tuple[User, Slice]:
    user, slice_ = await customer(place)
    await wipe_orders.order(place.db, user.id, "", "operator")
    receipt = await receipts.under_way(place.db, user.id)
    assert receipt is not None
    await wipe(place.resources, receipt.id, HERE)
    return user, slice_


async def restore(place: Premises, user: User, slice_: Slice | None, *, forgotten: bool = True) -> None:
    """As a restore of the gateway's database from before the removal, and of the slice's where one is given."""
    if forgotten:
        await place.db.execute("delete from gateway.erasures; delete from gateway.receipts; delete from gateway.jobs")
    await place.db.execute(
        "insert into gateway.users (id, email, password_hash, created_at) values ($1, $2, $3, $4)",
        user.id,
        user.email,
        await Hasher(4).hash(PASSWORD.encode()),
        user.created_at,
    )
    await sessions.begin(place.db, user.id, token_hash(b"old"), None, None)
    if slice_ is not None:
        await place.db.execute(
            """
            insert into gateway.slices (id, uuid, port, status, user_id, image)
            values ($1, $2, $3, 'assigned', $4, 'process')
            """,
            slice_.id,
            slice_.uuid,
            slice_.port,
            user.id,
        )
        await place.db.execute("update gateway.users set slice_id = $1", slice_.id)
        await provisioning_of(place, slice_)


async def provisioning_of(place: Premises, slice_: Slice) -> None:
    names = place.resources.names(slice_)
    await slice_databases.ensure_roles(place.resources.where, names, "x" * 64, slice_.uuid)
    await slice_databases.ensure_database(place.resources.where, names, slice_.uuid)
    await directories.ensure(names.directory.parent, names.directory, slice_.uuid)


async def test_where_nothing_came_back_there_is_nothing_to_do(place: Premises) -> None:
    assert await reapply(place.resources, HERE) == NOTHING
    await removed(place)
    await customer(place, "otro@example.com")
    assert await reapply(place.resources, HERE) == NOTHING
    assert await place.db.fetchval("select count(*) from gateway.jobs where kind = 'wipe' and finished_at is null") == 0


@pytest.mark.parametrize("forgotten", [True, False])
async def test_a_user_and_a_slice_that_came_back_are_removed_again(place: Premises, forgotten: bool) -> None:
    user, slice_ = await removed(place)
    other, other_slice = await customer(place, "otro@example.com")
    await place.db.execute("delete from gateway.slices where id = $1", slice_.id)
    if other_slice.port == slice_.port:  # numbers are reused after a proven destruction
        other_slice = replace(other_slice, port=other_slice.port + 10)
        await place.db.execute("update gateway.slices set port = $1", other_slice.port)
        await provisioning_of(place, other_slice)
    await restore(place, user, None, forgotten=forgotten)
    returned = await reapply(place.resources, HERE)
    assert returned.users == [user.id]
    assert await accounts.find(place.db, user.id) is None
    assert await accounts.find(place.db, other.id) is not None
    assert await slices.find(place.db, other_slice.id) is not None
    assert await reapply(place.resources, HERE) == NOTHING


async def test_a_slice_that_came_back_goes_in_every_layer(place: Premises) -> None:
    user, slice_ = await removed(place)
    await restore(place, user, slice_)
    returned = await reapply(place.resources, HERE)
    assert (returned.users, [row.id for row in returned.slices]) == ([user.id], [slice_.id])
    assert {key: value for key, value in (await place.everything()).items() if value} == {}
    assert await accounts.find(place.db, user.id) is None


async def test_a_database_that_no_row_tells_of_goes_by_its_mark(place: Premises) -> None:
    _, slice_ = await removed(place)
    await provisioning_of(place, slice_)
    assert await place.databases_and_roles() != set()
    returned = await reapply(place.resources, HERE)
    assert returned.strays == [(place.resources.number(slice_), slice_.uuid)]
    assert await place.databases_and_roles() == set()
    assert place.directories() == []


async def test_another_who_has_the_id_in_a_new_database_stays(place: Premises) -> None:
    """The file of one database beside another one: its ids begin at 1 again."""
    user, _ = await removed(place)
    await place.db.execute(
        "insert into gateway.users (id, email, password_hash) values ($1, 'nueva@example.com', 'x')", user.id
    )
    assert await reapply(place.resources, HERE) == NOTHING
    assert await accounts.find(place.db, user.id) is not None


async def test_nobody_gets_in_even_where_it_can_not_be_finished(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, slice_ = await removed(place)
    await restore(place, user, slice_)

    async def away(user_id: int) -> str:
        raise Lost("no answer")

    with pytest.raises(Lost):
        await reapply(place.resources, replace(HERE, cancel=away))
    with pytest.raises(BadCredentials):
        await sign_in(place.db, Hasher(4), user.email, PASSWORD, Visitor("203.0.113.7", None), None)
    assert await sessions.listed(place.db, user.id) == []
    assert await slices.find_of_user(place.db, user.id) is None
    job = await jobs.newest(place.db, "wipe", user_id=user.id)
    assert job is not None
    assert not job.is_finished, "the leader goes on with it"
    assert await place.db.fetchval("select count(*) from gateway.outbox") == 0, "they were told once"


async def test_what_only_the_file_knows_is_told_to_the_database_again(place: Premises) -> None:
    user, slice_ = await removed(place)
    await place.db.execute("delete from gateway.erasures")
    await reapply(place.resources, HERE)
    (erasure,) = await erasures.remembered(place.db)
    assert (erasure.user_id, erasure.slices) == (user.id, (slice_.uuid,))


async def test_a_damaged_line_hides_no_other(place: Premises) -> None:
    user, _ = await removed(place)
    path = place.data_dir / erasure_log.NAME
    path.write_text('{"user_id": 1, "user_cr\n' + path.read_text() + '\n{"user_id": "x"}\n[]\n\x00\n')
    assert [erasure.user_id for erasure in await erasure_log.read(place.data_dir)] == [user.id]


async def test_it_waits_for_a_leader_that_is_still_there(place: Premises) -> None:
    user, _ = await removed(place)
    await restore(place, user, None)
    async with leadership(place.resources.where):
        with trio.move_on_after(0.5) as scope:
            await reapply(place.resources, HERE)
    assert scope.cancelled_caught
    assert await accounts.find(place.db, user.id) is not None
    assert (await reapply(place.resources, HERE)) == NOTHING, "it is locked out, and a job is under way"
