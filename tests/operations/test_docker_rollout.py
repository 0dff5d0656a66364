"""Rollouts of real containers: the session belongs to the slice's own user, and the pairing is there afterwards."""

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.live.jobs import Reporter
from queunir_trio.live.rollouts import Rollouts
from queunir_trio.model.rollout import RolloutState
from queunir_trio.model.slices import Slice
from queunir_trio.operations import provisioning
from queunir_trio.operations.rollout import Limits
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import jobs, rollouts, slices
from queunir_trio.store.bridge import Database
from tests.docker_engine import Engine
from tests.docker_image import IMAGE
from tests.doubles.moving import contents
from tests.doubles.premises import Premises, open_premises

FORGETFUL = "wank-slice:forgetful"
FORGETS = "rm -f /app/.wwebjs_auth/*; exec /opt/slice/venv/bin/python -I -u -m queunir_slice"


@pytest.fixture(scope="session")
def forgetful_image(docker_engine: Engine) -> str:
    """An image that loses the pairing when it starts."""
    with docker_engine.client() as client:
        made = client.create_container(IMAGE)
        client.commit(made["Id"], *FORGETFUL.split(":"), changes=f'CMD ["/bin/sh", "-c", "{FORGETS}"]')
        client.remove_container(made["Id"])
    return FORGETFUL


@pytest.fixture
async def place(
    database: Database,
    database_settings: DatabaseSettings,
    tmp_path: Path,
    free_base_port: int,
    docker_runtime: Callable[..., DockerRuntime],
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        settings = replace(opened.resources.settings, runtime="docker", image=IMAGE)
        yield replace(opened, resources=replace(opened.resources, runtime=docker_runtime(), settings=settings))


async def state_of(place: Premises, row: Slice) -> tuple[str, str | None]:
    found = await place.resources.control.state(place.resources.address(row))
    return found.state, found.phone_number


async def until_ready(place: Premises, row: Slice) -> str | None:
    with trio.fail_after(30):
        while (found := await state_of(place, row))[0] != "ready":
            await trio.sleep(0.1)
    return found[1]


async def add_paired(place: Premises) -> tuple[Slice, str | None]:
    row = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, row)
    assert await slices.claim(place.db, await place.add_user()) is not None
    address = place.resources.address(row)
    async with httpx.AsyncClient(headers={"x-slice-key": address.key}, trust_env=False, timeout=20) as client:
        scanned = await client.post(f"http://{address.host}:{address.port}/api/simulator/scan")
    assert scanned.status_code == 200, scanned.text
    return row, await until_ready(place, row)


async def roll_out(place: Premises, image: str) -> Any:
    image_id = await place.resources.runtime.image_id(image)
    assert image_id is not None
    epoch = await place.db.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    rollout = await rollouts.begin(place.db, image, image_id, batch=5, canary=1, only=None, who="key")
    job = await jobs.find(place.db, rollout.job_id or 0)
    assert job is not None

    async def released(slice_id: int) -> None:
        await trio.lowlevel.checkpoint()

    work = Rollouts(place.resources, released, Limits(8.0, 0.2))
    return await work.work(job, Reporter(place.db, job.id, epoch))


async def test_a_paired_container_is_moved_and_a_bad_image_is_taken_back(
    place: Premises, other_image: str, forgetful_image: str
) -> None:
    row, number = await add_paired(place)
    directory = place.data_dir / "slices" / "1"
    owner = (directory / "session" / "pairing.json").stat().st_uid
    assert owner != os.geteuid(), "the session is the slice's own user's"
    before = contents(directory / "session")

    await roll_out(place, other_image)
    found = await place.resources.runtime.inspect(1)
    assert found is not None
    assert (found.image, found.running) == (other_image, True)
    assert await state_of(place, row) == ("ready", number)
    assert contents(directory / "session") == before
    assert sorted(os.listdir(directory)) == [".slice", "media", "session"]

    with pytest.raises(Refused, match="WhatsApp was ready"):
        await roll_out(place, forgetful_image)
    assert await until_ready(place, row) == number
    assert contents(directory / "session") == before
    assert (directory / "session" / "pairing.json").stat().st_uid == owner
    found = await place.resources.runtime.inspect(1)
    assert found is not None
    assert found.image == other_image
    newest = await rollouts.newest(place.db)
    assert newest is not None
    assert newest.state is RolloutState.RETURNED
    assert sorted(os.listdir(directory)) == [".slice", "media", "session"]
