"""Killed with SIGKILL in every step of every deed, twice in a row, on a real Docker engine: one whole container, or
nothing at all.
"""

from dataclasses import replace

import pytest

from tests.docker_engine import Engine
from tests.doubles.containers import of_slices, on_engine
from tests.doubles.premises import Premises
from tests.operations.lifecycle_child import Forge, Life
from tests.operations.lives import OF_THE_PROCESS_RUNTIME, SCENARIOS, Lives

pytestmark = pytest.mark.exhaustive

DEEDS = {scenario.name: scenario for scenario in SCENARIOS}
MAKING = ["runtime:files", "runtime:network", "runtime:created", "runtime:started"]
STARTING = ["runtime:files", "runtime:network", "runtime:started"]
OF_THE_RUNTIME = {
    "provision": MAKING, "undo": MAKING, "start": STARTING, "resume": STARTING, "restart": STARTING,
}  # fmt: skip
PARTS = {  # the tests over which the points of a deed are spread
    "provision": 3, "undo": 2, "destroy": 1, "start": 1, "suspend": 1, "resume": 1, "restart": 1, "assign": 1,
}  # fmt: skip
HERE = [(deed, part) for deed, parts in PARTS.items() for part in range(parts)]


def where_to_die(points: list[str], deed: str) -> list[str]:
    """After each act and each failure; and where the runtime makes a container from nothing, between its acts too."""
    if deed == "assign":
        return points
    acted = [point for point in points if point.endswith((":acted", ":failed"))]
    return acted + [point for point in points if point.startswith("runtime:") and deed == "provision"]


@pytest.mark.parametrize(("deed", "part"), HERE)
async def test_killed_in_any_step_and_again_there_it_comes_to_what_was_wanted(
    forge: Forge,
    docker_place: Premises,
    docker_life: Life,
    docker_engine: Engine,
    alien_image: str,
    deed: str,
    part: int,
) -> None:
    scenario = DEEDS[deed]
    life = replace(docker_life, image=alien_image) if deed == "undo" else docker_life
    lives = Lives(forge, docker_place, life, scenario)
    points = await lives.record()
    assert [point for point in points if point.startswith("runtime:")] == OF_THE_RUNTIME.get(deed, [])
    of_steps = scenario.points - OF_THE_PROCESS_RUNTIME * (deed in OF_THE_RUNTIME)
    assert lives.steps_alone(points) == of_steps, points
    left = of_slices(*([] if scenario.goal == "none_is_left" else [1]))
    for point in where_to_die(points, deed)[part :: PARTS[deed]]:
        await lives.kill_at(point)
        assert on_engine(docker_engine, docker_place.data_dir) == left, point
    await docker_place.clear()
    assert on_engine(docker_engine, docker_place.data_dir) == of_slices()
