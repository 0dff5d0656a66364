"""Rollouts over the slice backend itself: real processes, a real pairing, and images that are good and bad."""

import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.live.jobs import Reporter
from queunir_trio.live.reconciler import Reconciler
from queunir_trio.live.rollouts import Rollouts
from queunir_trio.model.rollout import Phase, RolloutState
from queunir_trio.model.slices import Slice
from queunir_trio.operations import provisioning, starting
from queunir_trio.operations.rollout import Limits
from queunir_trio.outside.runtimes.process import COMMAND, ProcessRuntime
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import jobs, rollouts, slices
from queunir_trio.store.bridge import Database
from tests.doubles.moving import contents
from tests.doubles.premises import Premises, open_premises, stub_command

FORGETS = (
    "import os, pathlib, runpy, sys\n"
    "for left in pathlib.Path(os.environ['SESSION_DIR']).iterdir(): left.unlink()\n"
    "runpy.run_module('queunir_slice', run_name='__main__')"
)
LATE = "import time, runpy\ntime.sleep(1.5)\nrunpy.run_module('queunir_slice', run_name='__main__')"
IMAGES = {
    "new": COMMAND,
    "slow": (sys.executable, "-u", "-c", LATE),
    "forgetful": (sys.executable, "-u", "-c", FORGETS),
    "crashing": stub_command("--dies"),
    "sick": stub_command("--sick"),
}


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port, command=COMMAND) as opened:
        fast = {"SIMULATOR_SPEED": "20"}
        runtime = ProcessRuntime(tmp_path, command=COMMAND, images=IMAGES, environment=fast)
        yield replace(opened, resources=replace(opened.resources, runtime=runtime))


async def state_of(place: Premises, row: Slice) -> tuple[str, str | None]:
    found = await place.resources.control.state(place.resources.address(row))
    return found.state, found.phone_number


async def until_state(place: Premises, row: Slice, wanted: str) -> str | None:
    with trio.fail_after(20):
        while (found := await state_of(place, row))[0] != wanted:
            await trio.sleep(0.02)
    return found[1]


async def add_paired(place: Premises) -> tuple[Slice, str | None]:
    row = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, row)
    assert await slices.claim(place.db, await place.add_user(f"{row.id}@example.com")) is not None
    address = place.resources.address(row)
    async with httpx.AsyncClient(headers={"x-slice-key": address.key}, trust_env=False) as client:
        scanned = await client.post(f"http://{address.host}:{address.port}/api/simulator/scan", timeout=10)
    assert scanned.status_code == 200
    return row, await until_state(place, row, "ready")


async def roll_out(place: Premises, image: str, **options: Any) -> None:
    epoch = await place.db.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
    given = {"batch": 5, "canary": 1, "only": None, "who": "key"} | options
    rollout = await rollouts.begin(place.db, image, image, **given)
    job = await jobs.find(place.db, rollout.job_id or 0)
    assert job is not None
    reconciler = Reconciler(replace(place.resources, settings=warmless(place)), billing_enabled=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reconciler.run, epoch)  # which must keep its hands off
        work = Rollouts(place.resources, reconciler.released, Limits(2.0, 0.05))
        try:
            await work.work(job, Reporter(place.db, job.id, epoch))
        finally:
            nursery.cancel_scope.cancel()


def warmless(place: Premises) -> Any:
    return replace(place.resources.settings, warm_pool_min=0)


async def only_refusal(place: Premises, image: str) -> str:
    with pytest.raises(BaseExceptionGroup) as caught:
        await roll_out(place, image)
    fault: BaseException = caught.value
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    assert isinstance(fault, Refused)
    return fault.reason


async def pid_of(place: Premises, row: Slice) -> int | None:
    found = await place.resources.runtime.inspect(place.resources.number(row))
    assert found is not None
    return found.pid if found.running else None


@pytest.mark.parametrize("image", ["new", "slow"])
async def test_a_paired_slice_is_moved_and_its_phone_is_still_there(place: Premises, image: str) -> None:
    row, number = await add_paired(place)
    before = await pid_of(place, row)
    began = trio.current_time()
    await roll_out(place, image)
    print(f"moved after {trio.current_time() - began:.2f} s")
    assert await state_of(place, row) == ("ready", number)
    found = await place.resources.runtime.inspect(1)
    assert found is not None
    assert (found.image, found.running) == (image, True)
    assert found.pid != before
    assert sorted(os.listdir(place.data_dir / "slices" / "1")) == [".slice", "media", "session"]


@pytest.mark.parametrize("image", ["forgetful", "crashing", "sick"])
async def test_a_bad_image_is_found_out_and_the_phone_is_still_there(
    place: Premises, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    monkeypatch.setattr(starting, "HEALTHY_WITHIN", 3.0)
    (first, number), (second, other) = await add_paired(place), await add_paired(place)
    session = place.data_dir / "slices" / "1" / "session"
    before, untouched = contents(session), await pid_of(place, second)
    reason = await only_refusal(place, image)
    print(reason)
    assert f"Slice {first.id} was taken back" in reason
    assert await until_state(place, first, "ready") == number
    assert contents(session) == before
    assert (await pid_of(place, second), await state_of(place, second)) == (untouched, ("ready", other))
    newest = await rollouts.newest(place.db)
    assert newest is not None
    assert newest.state is RolloutState.RETURNED
    phases = {part.slice_id: part.phase for part in await rollouts.parts(place.db, newest.id)}
    assert phases == {first.id: Phase.RETURNED, second.id: Phase.PENDING}
    assert sorted(os.listdir(place.data_dir / "slices" / "1")) == [".slice", "media", "session"]
