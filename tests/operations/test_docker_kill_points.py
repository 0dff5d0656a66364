"""Killed with SIGKILL in every step of a deed on a real Docker engine: one whole container, or nothing at all."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.outside.runtimes.docker_client import Daemon
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Database
from tests.docker_engine import Engine
from tests.docker_image import IMAGE
from tests.doubles.premises import Premises, open_premises
from tests.operations.lifecycle_child import SECRET, Forge, Life
from tests.operations.lives import OF_THE_PROCESS_RUNTIME, SCENARIOS, Lives, Scenario

DEEDS = {scenario.name: scenario for scenario in SCENARIOS}
PARTS = {"provision": 4, "destroy": 2, "restart": 2}  # the tests over which the points of a deed are spread
HERE = [(deed, part) for deed, parts in PARTS.items() for part in range(parts)]


@pytest.fixture
def life(database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int, docker_host: str) -> Life:
    where = asdict(database_settings)
    return Life(where, str(tmp_path / "data"), free_base_port, docker_host=docker_host, image=IMAGE)


@pytest.fixture
def forge(life: Life, tmp_path: Path) -> Iterator[Forge]:
    made = Forge(tmp_path / "log")
    yield made
    made.close()


@pytest.fixture
async def place(database: Database, database_settings: DatabaseSettings, life: Life) -> AsyncIterator[Premises]:
    daemon = Daemon(life.docker_host)
    runtime = DockerRuntime(daemon, Path(life.data_dir), IMAGE)
    async with open_premises(database, database_settings, Path(life.data_dir), life.base_port) as made:
        chosen = replace(made.resources.settings, secret=SECRET, runtime="docker", image=IMAGE, warm_pool_min=0)
        place = replace(made, resources=replace(made.resources, runtime=runtime, settings=chosen))
        yield place
        await place.clear()
    daemon.close()


def networks(engine: Engine) -> set[str]:
    with engine.client() as client:
        return {network["Name"] for network in client.networks()} - {"bridge", "host", "none"}


def where_to_die(points: list[str], deed: str) -> list[str]:
    """After each act; and where the runtime makes a container from nothing, between its own acts too."""
    acted = [point for point in points if point.endswith(":acted")]
    return acted + [point for point in points if point.startswith("runtime:") and deed == "provision"]


@pytest.mark.parametrize(("deed", "part"), HERE)
async def test_killed_in_any_step_it_comes_to_what_was_wanted(
    forge: Forge, place: Premises, life: Life, docker_engine: Engine, deed: str, part: int
) -> None:
    scenario: Scenario = DEEDS[deed]
    lives = Lives(forge, place, life, scenario)
    points = await lives.record()
    starts = deed != "destroy"
    assert lives.steps_alone(points) == scenario.points - starts * OF_THE_PROCESS_RUNTIME, points
    for point in where_to_die(points, deed)[part :: PARTS[deed]]:
        await lives.kill_at(point, twice=deed == "provision")
    await place.clear()
    assert networks(docker_engine) == set()
