"""What the tables know of a customer: whose a slice was, and that no table is forgotten."""

import pytest

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import accounts, erasures, receipts, slices
from queunir_trio.store.bridge import Conflict, Database, open_connection
from queunir_trio.store.migrations import migrate


async def user_with_slice(database: Database) -> tuple[int, int]:
    user = await accounts.add(database, "ana@example.com", "x")
    row = await slices.add(database, num=1, base_port=5001, status="available")
    await slices.assign(database, user.id, row.id)
    return user.id, row.id


async def test_a_slice_remembers_whose_it_was_whoever_took_it(
    database: Database, database_settings: DatabaseSettings
) -> None:
    user_id, slice_id = await user_with_slice(database)
    async with open_connection(database_settings, as_admin=True) as psql:
        await psql.execute("update gateway.users set slice_id = null; update gateway.slices set user_id = null")
    assert [row.id for row in await erasures.slices_of(database, user_id)] == [slice_id]
    assert await erasures.slices_of(database, user_id + 1) == []


async def test_a_slice_that_is_being_destroyed_is_still_found(database: Database) -> None:
    user_id, slice_id = await user_with_slice(database)
    await slices.release(database, slice_id)
    assert [row.id for row in await erasures.slices_of(database, user_id)] == [slice_id]
    assert await erasures.left(database, user_id, [slice_id]) == {"users": 1, "slices": 1}


async def test_what_an_adoption_detached_is_known_by_its_event(
    database: Database, database_settings: DatabaseSettings
) -> None:
    user_id, slice_id = await user_with_slice(database)
    async with open_connection(database_settings, as_admin=True) as admin:
        await admin.execute(
            f"""
            drop trigger remember_former_user on gateway.slices;
            drop function gateway.remember_former_user();
            alter table gateway.slices drop column former_user_id;
            drop table gateway.receipts, gateway.erasures;
            delete from gateway.schema_migrations where version = '0009';
            update gateway.users set slice_id = null;
            update gateway.slices set user_id = null, status = 'suspended';
            insert into gateway.events (kind, slice_id, user_id) values ('slice_detached', {slice_id}, {user_id});
            """
        )
    assert await migrate(database_settings) == ["0009_wipe_and_export"]
    assert [row.id for row in await erasures.slices_of(database, user_id)] == [slice_id]


async def test_a_table_that_is_added_one_day_is_not_forgotten(
    database: Database, database_settings: DatabaseSettings
) -> None:
    user_id, slice_id = await user_with_slice(database)
    async with open_connection(database_settings, as_admin=True) as admin:
        await admin.execute(
            f"""
            create table gateway.invoices (id serial primary key, user_id int, slice_id int);
            grant select, delete on gateway.invoices to {database_settings.user};
            insert into gateway.invoices (user_id, slice_id) values
                ({user_id}, null), (null, {slice_id}), (4711, 4712);
            """
        )
    assert (await erasures.left(database, user_id, [slice_id]))["invoices"] == 2
    removed = await erasures.remove_rows(database, user_id, [slice_id])
    assert removed["invoices"] == 2
    assert await database.fetchval("select count(*) from gateway.invoices") == 1


async def test_one_removal_of_a_user_at_a_time(database: Database) -> None:
    user_id, _ = await user_with_slice(database)
    assert await erasures.mark(database, user_id)
    assert not await erasures.mark(database, user_id)
    await receipts.begin(database, user_id, None, {})
    with pytest.raises(Conflict):
        await receipts.begin(database, user_id, None, {})


async def test_rows_are_added_up_over_attempts_and_first_facts_count(database: Database) -> None:
    user_id, slice_id = await user_with_slice(database)
    receipt = await receipts.begin(database, user_id, "h", {"sessions": 2})
    (row,) = await erasures.slices_of(database, user_id)
    await receipts.count_removed(database, receipt.id, {"sessions": 1, "events": 5}, None)
    await receipts.note_slice(database, receipt.id, row.uuid, {"id": slice_id, "rows": 9}, None)
    await receipts.note_slice(database, receipt.id, row.uuid, {"rows": 0, "more": 1}, None)
    found = await receipts.find_by_token(database, "h")
    assert found is not None
    assert found.removed == {"sessions": 3, "events": 5}
    assert found.slices == {str(row.uuid): {"id": slice_id, "rows": 9, "more": 1}}
