"""A gateway killed with SIGKILL after every act of a rollout, twice in a row: the slice is moved, or as it was before.

The reconciler runs beside it all the time and must leave the slice alone; the points are those that an undisturbed
run passes. The finer ones, between acts, are passed in memory by the tests of the deed itself.
"""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trio

from queunir_trio.model.rollout import RolloutState
from queunir_trio.model.slices import Slice
from queunir_trio.operations import provisioning
from queunir_trio.operations.starting import spec_of, wait_until_healthy
from queunir_trio.outside import processes
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import rollouts, slices
from queunir_trio.store.bridge import Database
from tests.doubles.moving import contents
from tests.doubles.premises import Premises, open_premises
from tests.operations.rollout_child import Forge, Life, runtime_of

pytestmark = pytest.mark.exhaustive

KILLED = -9
PARTS = 2  # how many tests share the points of a rollout
ACTS = {"good": 8, "sick": 6}  # on the way forward, and on the way back


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    made = Forge(tmp_path_factory.mktemp("rollouts") / "log")
    yield made
    made.close()


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port, warm_pool_min=0) as opened:
        yield replace(opened, resources=replace(opened.resources, runtime=runtime_of(tmp_path)))


async def add_slice(place: Premises) -> Slice:
    row = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, row)
    assert await slices.claim(place.db, await place.add_user(f"{row.id}@example.com")) is not None
    session = place.data_dir / "slices" / "1" / "session"
    (session / "pairing").write_text("34600")
    return row


async def begin(place: Premises, image: str) -> Life:
    rollout = await rollouts.begin(place.db, image, image, batch=1, canary=1, only=None, who="key")
    settings = place.resources.settings
    return Life(
        asdict(place.resources.where), str(place.data_dir), settings.base_port, settings.secret, rollout.id
    )  # fmt: skip


async def lived(forge: Forge, life: Life) -> int:
    return await trio.to_thread.run_sync(forge.run, life)


def chosen(passed: list[str], image: str) -> list[str]:
    """Where to be killed: what is done was not written down yet."""
    deed = "update" if image == "good" else "return"
    acts = [point for point in passed if point.startswith(f"{deed}:") and point.endswith((":acted", ":failed"))]
    assert len(acts) == ACTS[image], passed
    others = [point for point in passed if point.startswith(("runtime:", "rollout:", "update:health:"))]
    return list(dict.fromkeys(acts + (others if image == "sick" else [f"{deed}:replace:started", *others])))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("image", ["good", "sick"])
async def test_killed_anywhere_twice_it_ends_as_if_nobody_had_been_killed(
    place: Premises, forge: Forge, tmp_path: Path, image: str, part: int
) -> None:
    row = await add_slice(place)
    session = place.data_dir / "slices" / "1" / "session"
    before = contents(session)
    undisturbed = replace(await begin(place, image), record_to=str(tmp_path / "points"))
    assert await lived(forge, undisturbed) == 0, forge.said()
    points = chosen(json.loads((tmp_path / "points").read_text()), image)
    for point in points[part::PARTS]:
        await back_to_the_beginning(place, row)
        life = await begin(place, image)
        assert await lived(forge, replace(life, killed_at=point)) == KILLED, (point, forge.said())
        assert len(leaders(row)) <= 1
        again = await lived(forge, replace(life, killed_at=point))
        assert again in (KILLED, 0), (point, forge.said())
        assert await lived(forge, life) == 0, (point, forge.said())
        await assert_over(place, row, image, before)


async def back_to_the_beginning(place: Premises, row: Slice) -> None:
    """The old image runs again, as before the first rollout."""
    await place.db.execute("update gateway.slices set image = 'process' where id = $1", row.id)
    spec = spec_of(place.resources, replace(row, image="process"))
    await place.resources.runtime.replace(spec)
    await wait_until_healthy(place.resources, row)


def leaders(row: Slice) -> list[processes.ProcessId]:
    return [found for found in processes.carrying("SLICE_UUID", str(row.uuid)) if processes.leads_session(found)]


async def assert_over(place: Premises, row: Slice, image: str, before: dict[str, object]) -> None:
    newest = await rollouts.newest(place.db)
    assert newest is not None
    assert newest.state is (RolloutState.DONE if image == "good" else RolloutState.RETURNED)
    found = await place.resources.runtime.inspect(1)
    assert found is not None
    assert (found.running, found.image) == (True, image if image == "good" else "process")
    assert len(leaders(row)) == 1
    now = await slices.find(place.db, row.id)
    assert now is not None
    assert now.image == found.image
    directory = place.data_dir / "slices" / "1"
    assert contents(directory / "session") == before
    assert sorted(path.name for path in directory.iterdir()) == [".slice", "media", "session"]
    assert await rollouts.held(place.db) == set()
