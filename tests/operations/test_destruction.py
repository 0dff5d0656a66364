"""Taking a slice away: layer by layer, each proven gone, and never anything that is not its own."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest
import trio

from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import destruction, provisioning, starting
from queunir_trio.operations.steps import StepFailed, Superseded
from queunir_trio.outside import directories
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slice_databases, slices
from queunir_trio.store.bridge import Database, DatabaseUnavailable, open_connection
from tests.doubles.premises import Killed, Premises, open_premises

NOTHING = {"rows": [], "steps": 0, "databases": set(), "directories": [], "instances": []}
LAYERS = [step.name for step in destruction.LAYERS]
Mark = Callable[[Premises, object], Awaitable[None]]


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened


async def provisioned(place: Premises) -> Slice:
    row = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, row)
    return row


async def marked(place: Premises, row: Slice) -> Slice:
    assert await destruction.request(place.db, row.id)
    found = await slices.find(place.db, row.id)
    assert found is not None
    return found


async def test_a_destroyed_slice_leaves_nothing_at_all(place: Premises) -> None:
    row = await provisioned(place)
    media = place.data_dir / "slices" / "1" / "media"
    (media / "photo").write_text("a customer's")
    (media / "link").symlink_to("/")
    await destruction.destroy(place.resources, await marked(place, row))
    assert await place.everything() == NOTHING


async def test_its_customer_loses_it_when_it_is_marked_and_not_later(place: Premises) -> None:
    place = place.with_doubles()
    row = await provisioned(place)
    user_id = await place.add_user()
    assert await slices.claim(place.db, user_id) is not None
    now = await marked(place, row)
    assert (now.status, now.wanted, now.user_id) == (Status.DESTROYING, Wanted.ABSENT, None)
    assert await slices.find_of_user(place.db, user_id) is None
    assert await slices.waiting_users(place.db, False) == [user_id]
    assert await slices.claim(place.db, user_id) is None, "what is to be destroyed is given to nobody"
    assert await destruction.request(place.db, row.id), "marking it again changes nothing"


async def test_a_slice_that_does_not_exist_can_not_be_marked(place: Premises) -> None:
    assert not await destruction.request(place.db, 4711)


async def test_an_unmanaged_slice_has_only_its_row_to_lose(place: Premises) -> None:
    row = await slices.add_unmanaged(place.db, "127.0.0.1", 4000)
    user_id = await place.add_user()
    await slices.assign(place.db, user_id, row.id)
    assert await destruction.request(place.db, row.id)
    assert await slices.listed(place.db) == []
    assert await slices.find_of_user(place.db, user_id) is None
    assert not await destruction.request(place.db, row.id)


@pytest.mark.parametrize("point", [f"destroy:{layer}:{m}" for layer in LAYERS for m in ("started", "acted")])
async def test_killed_after_any_layer_and_once_more_nothing_is_left_in_the_end(place: Premises, point: str) -> None:
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))
    place.reached.killed_at = point
    for _ in range(2):
        with pytest.raises(Killed):
            await destruction.destroy(place.resources, row)
        assert (await place.only_row()).status == Status.DESTROYING
    place.reached.killed_at = None
    await destruction.destroy(place.resources, row)
    assert await place.everything() == NOTHING


async def test_a_database_full_of_clients_is_dropped_all_the_same(place: Premises) -> None:
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))
    async with open_connection(place.resources.where, as_admin=True, database="wa_slice_1") as client:
        assert await client.fetchval("select 1") == 1
        await destruction.destroy(place.resources, row)
    assert await place.everything() == NOTHING


async def test_clients_that_connect_again_and_again_do_not_keep_a_database(place: Premises) -> None:
    place = place.with_doubles()
    row = await provisioned(place)
    told = starting.spec_of(place.resources, row).database_url
    parts = urlsplit(told)
    where = replace(place.resources.where, user=parts.username or "", password=unquote(parts.password or ""))
    connected = trio.Event()

    async def connect_for_ever() -> None:
        while True:
            with suppress(DatabaseUnavailable):
                async with open_connection(where, database="wa_slice_1") as client:
                    await client.fetchval("select 1")
                    connected.set()
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(connect_for_ever)
        with trio.fail_after(10):
            await connected.wait()
        await destruction.destroy(place.resources, await marked(place, row))
        nursery.cancel_scope.cancel()
    assert await place.everything() == NOTHING


async def test_a_link_in_place_of_the_media_leads_nobody_out_of_the_slices_directory(
    place: Premises, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("somebody else's")
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))
    media = place.data_dir / "slices" / "1" / "media"
    media.rmdir()
    media.symlink_to(outside)
    (media.parent / "session" / "up").symlink_to("/")
    await destruction.destroy(place.resources, row)
    assert await place.everything() == NOTHING
    assert (outside / "precious").read_text() == "somebody else's"


@pytest.mark.parametrize("layer", LAYERS)
async def test_a_layer_that_is_gone_already_stops_nothing(place: Premises, layer: str) -> None:
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))
    for step in destruction.LAYERS[: LAYERS.index(layer) + 1]:
        await step.act(place.resources, row)
    await destruction.destroy(place.resources, row)
    assert await place.everything() == NOTHING


async def test_a_destruction_that_is_repeated_finds_nothing_to_do(place: Premises) -> None:
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))
    await destruction.destroy(place.resources, row)
    with pytest.raises(Superseded, match="is gone"):
        await destruction.destroy(place.resources, row)
    assert {**await place.everything(), "steps": 0} == NOTHING


async def mark_database(place: Premises, uuid: object) -> None:
    async with open_connection(place.resources.where, as_admin=True) as admin:
        await admin.execute(f"comment on role wa_slice_1_owner is '{uuid}'")


async def mark_directory(place: Premises, uuid: object) -> None:
    (place.data_dir / "slices" / "1" / directories.LABEL).write_text(str(uuid))


async def mark_instance(place: Premises, uuid: object) -> None:
    runtime = place.resources.runtime
    runtime.instances[1] = replace(runtime.instances[1], uuid=uuid)


@pytest.mark.parametrize("mark", [mark_database, mark_directory, mark_instance])
async def test_what_is_not_its_own_is_a_conflict_and_nothing_is_removed(place: Premises, mark: Mark) -> None:
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))
    await mark(place, uuid4())
    before = {**await place.everything(), "steps": None}
    with pytest.raises(StepFailed) as failed:
        await destruction.destroy(place.resources, row)
    assert (failed.value.step, failed.value.code) == ("ownership", "conflict")
    assert {**await place.everything(), "steps": None} == before
    await mark(place, row.uuid)
    await destruction.destroy(place.resources, row)
    assert await place.everything() == NOTHING


@pytest.mark.parametrize(
    ("module", "name", "layer"),
    [(directories, "remove", "directories"), (slice_databases, "drop_roles", "roles")],
)
async def test_a_layer_that_is_still_there_is_not_taken_for_gone(
    place: Premises, monkeypatch: pytest.MonkeyPatch, module: object, name: str, layer: str
) -> None:
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))

    async def do_nothing(*arguments: object) -> None:
        pass

    with monkeypatch.context() as patched:
        patched.setattr(module, name, do_nothing)
        with pytest.raises(StepFailed, match="still there") as failed:
            await destruction.destroy(place.resources, row)
    assert failed.value.step == layer
    assert (await place.only_row()).status == Status.DESTROYING


async def test_an_instance_that_lies_about_its_removal_is_found_out(
    place: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place.with_doubles()
    row = await marked(place, await provisioned(place))

    async def pretend(num: int, uuid: object) -> None:
        pass

    monkeypatch.setattr(place.resources.runtime, "remove", pretend)
    with pytest.raises(StepFailed, match="instance is still there"):
        await destruction.destroy(place.resources, row)


async def test_the_next_slice_of_that_number_has_nothing_of_the_one_before(place: Premises) -> None:
    first = await provisioned(place)
    first_key = place.resources.address(first).key
    (place.data_dir / "slices" / "1" / "session" / "canary").write_text("first")
    await destruction.destroy(place.resources, await marked(place, first))
    second = await provisioned(place)
    assert place.resources.number(second) == 1
    assert second.id != first.id
    assert second.uuid != first.uuid
    assert place.resources.address(second).key != first_key
    assert place.resources.database_password(second) != place.resources.database_password(first)
    assert not (place.data_dir / "slices" / "1" / "session" / "canary").exists()
