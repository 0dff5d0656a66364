"""The slice backend itself, made, asked, killed and destroyed as a customer's would be."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from queunir_trio.operations import destruction, provisioning, starting
from queunir_trio.outside import processes
from queunir_trio.outside.runtimes.process import COMMAND
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database
from tests.doubles.premises import Premises, open_premises


@pytest.fixture
async def place(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    async with open_premises(database, database_settings, tmp_path, free_base_port, command=COMMAND) as opened:
        yield opened


async def test_a_real_slice_lives_dies_lives_again_and_is_gone(place: Premises) -> None:
    row = await provisioning.reserve(place.resources)
    address = place.resources.address(row)
    began = trio.current_time()
    await provisioning.provision(place.resources, row)
    print(f"cold provisioning took {trio.current_time() - began:.2f} s")
    assert (await place.resources.control.health(address)).slice == str(row.id)
    with trio.fail_after(10):
        while (state := await place.resources.control.state(address)).state != "qr":
            await trio.sleep(0.05)
    assert state.qr is not None

    first = (await place.resources.runtime.listed())[0]
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    began = trio.current_time()
    with trio.fail_after(10):
        while processes.identify(first.pid) is not None:  # noqa: ASYNC110 - a process tells no Event
            await trio.sleep(0.01)
    await starting.start(place.resources, row)
    print(f"killed and back after {trio.current_time() - began:.2f} s")
    again = (await place.resources.runtime.listed())[0]
    assert again.pid != first.pid
    assert (await place.resources.control.health(address)).slice == str(row.id)

    began = trio.current_time()
    await starting.stop(place.resources, row)
    print(f"stopped after {trio.current_time() - began:.2f} s")
    await destruction.request(place.db, row.id)
    marked = await slices.find(place.db, row.id)
    assert marked is not None
    await destruction.destroy(place.resources, marked)
    everything = await place.everything()
    assert everything == {"rows": [], "steps": 0, "databases": set(), "directories": [], "instances": []}
