"""Killed with SIGKILL at every point of every deed, twice in a row: then one whole slice, or nothing at all.

The points are not listed here: a run that nobody kills tells which there are, and the steps how many there must be.
"""

import pytest

from tests.doubles.premises import Premises
from tests.operations.lifecycle_child import Forge, Life
from tests.operations.lives import SCENARIOS, Lives, Scenario

pytestmark = pytest.mark.exhaustive

PER_TEST = 8  # points
PARTS = [
    pytest.param(scenario, part, id=f"{scenario}-{part + 1}")
    for scenario in SCENARIOS
    for part in range(-(-scenario.points // PER_TEST // (3 if scenario.only else 1)))
]


@pytest.mark.parametrize(("scenario", "part"), PARTS)
async def test_killed_at_any_point_and_again_there_it_comes_to_what_was_wanted(
    forge: Forge, process_place: Premises, process_life: Life, scenario: Scenario, part: int
) -> None:
    lives = Lives(forge, process_place, process_life, scenario)
    points = await lives.record()
    assert len(points) == scenario.points, points
    parts = sum(param.values[0] is scenario for param in PARTS)
    for point in lives.fatal(points)[part::parts]:
        await lives.kill_at(point)
