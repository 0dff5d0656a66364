"""What a benchmark's figures amount to: floors, exit codes, flatness."""

import pytest

from benchmarks.flatness import Samples
from benchmarks.report import FAULTY, MISSED, SUCCESS, Floor, Report, Spread


@pytest.mark.parametrize(
    ("wanted", "measured", "at_most", "reached"),
    [(4.0, 4.0, False, True), (4.0, 3.9, False, False), (12.0, 12.0, True, True), (12.0, 12.1, True, False)],
)
def test_a_floor_is_reached_on_its_own_side(wanted: float, measured: float, at_most: bool, reached: bool) -> None:
    assert Floor("P2", "times express", wanted, measured, at_most).reached is reached


def test_an_error_outweighs_a_missed_floor() -> None:
    report = Report("proxy", floors=[Floor("P1", "of nginx", 0.4, 0.5)])
    assert report.exit_code == SUCCESS
    report.floors.append(Floor("P2", "times express", 4.0, 3.0))
    assert report.exit_code == MISSED
    report.faults.append("express answered 500 once")
    assert report.exit_code == FAULTY


def test_a_spread_is_told_with_its_ends() -> None:
    assert Spread.of([1000.0, 3000.0, 1200.0]).told() == "1,200 (1,000 to 3,000)"


def test_growth_in_the_last_third_is_no_flatness() -> None:
    samples = Samples({"resident_mb": [50.0] * 20 + [100.0] * 20 + [106.0] * 20, "tasks": [60.0] * 60})
    assert samples.growth("resident_mb") == (100.0, 106.0)
    assert {floor.what.split(",")[0]: floor.reached for floor in samples.floors()} == {
        "resident_mb": False,
        "tasks": True,
    }
