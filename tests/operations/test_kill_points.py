"""Killed with SIGKILL at every point of every deed, twice in a row: then one whole slice, or nothing at all.

The points are not listed here: a run that nobody kills tells which there are, and the steps how many there must be.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Database
from tests.doubles.premises import Premises, open_premises
from tests.operations.lifecycle_child import SECRET, Forge, Life
from tests.operations.lives import SCENARIOS, Lives, Scenario

PER_TEST = 8  # points
PARTS = [
    pytest.param(scenario, part, id=f"{scenario}-{part + 1}")
    for scenario in SCENARIOS
    for part in range(-(-scenario.points // PER_TEST // (3 if scenario.only else 1)))
]


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    made = Forge(tmp_path_factory.mktemp("lives") / "log")
    yield made
    made.close()


@pytest.fixture
def life(database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int) -> Life:
    return Life(asdict(database_settings), str(tmp_path), free_base_port)


@pytest.fixture
async def place(database: Database, database_settings: DatabaseSettings, life: Life) -> AsyncIterator[Premises]:
    """Where children live; here we only look."""
    async with open_premises(database, database_settings, Path(life.data_dir), life.base_port, warm_pool_min=0) as made:
        settings = replace(made.resources.settings, secret=SECRET)
        yield replace(made, resources=replace(made.resources, settings=settings))


@pytest.mark.parametrize(("scenario", "part"), PARTS)
async def test_killed_at_any_point_and_again_there_it_comes_to_what_was_wanted(
    forge: Forge, place: Premises, life: Life, scenario: Scenario, part: int
) -> None:
    lives = Lives(forge, place, life, scenario)
    points = await lives.record()
    assert len(points) == scenario.points, points
    parts = sum(param.values[0] is scenario for param in PARTS)
    for point in lives.fatal(points)[part::parts]:
        await lives.kill_at(point)
