"""Killed with SIGKILL once, in the middle of each deed: what every run of the tests sees of the exhaustive ones.

Every point of every deed, twice in a row, is killed at in test_kill_points.py and test_docker_kill_points.py.
"""

import pytest

from tests.docker_engine import Engine
from tests.doubles.containers import of_slices, on_engine
from tests.doubles.premises import Premises
from tests.operations.lifecycle_child import Forge, Life
from tests.operations.lives import SCENARIOS, Lives, Scenario

MIDDLE = {
    "provision": "provision:directories:acted",
    "undo": "undo:database:acted",
    "destroy": "destroy:database:acted",
    "wipe": "wipe:rows:acted",
    "start": "runtime:spawned",
    "suspend": "stop:stopped:acted",
    "resume": "start:instance:acted",
    "restart": "restart:stopped:acted",
    "assign": "assign:claim:acted",
    "refresh": "destroy:instance:acted",
}
IN_CONTAINERS = {"provision": "runtime:created", "destroy": "destroy:instance:acted"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_killed_in_the_middle_of_a_deed_it_comes_to_what_was_wanted(
    forge: Forge, process_place: Premises, process_life: Life, scenario: Scenario
) -> None:
    lives = Lives(forge, process_place, process_life, scenario)
    await lives.kill_at(MIDDLE[scenario.name], twice=False)


@pytest.mark.parametrize("scenario", [found for found in SCENARIOS if found.name in IN_CONTAINERS], ids=str)
async def test_killed_in_the_middle_of_a_container_it_comes_to_what_was_wanted(
    forge: Forge, docker_place: Premises, docker_life: Life, docker_engine: Engine, scenario: Scenario
) -> None:
    lives = Lives(forge, docker_place, docker_life, scenario)
    await lives.kill_at(IN_CONTAINERS[scenario.name], twice=False)
    left = of_slices(*([] if scenario.goal == "none_is_left" else [1]))
    assert on_engine(docker_engine, docker_place.data_dir) == left
