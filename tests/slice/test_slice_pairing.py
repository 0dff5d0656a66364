"""A pairing lives in the session's directory: with it a slice is ready again, without it no phone is paired."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slice.conftest import SliceDatabase


@pytest.fixture
def start(slice_database: SliceDatabase, free_port: int, tmp_path: Path, run_slice: Callable[..., Any]) -> Any:
    (tmp_path / "session").mkdir()
    return lambda: run_slice(slice_database, free_port, SESSION_DIR=str(tmp_path / "session"))


def test_the_phone_is_still_paired_after_a_restart(start: Any) -> None:
    with start() as first:
        first.pair()
        number = first.get("/api/status").json()["phoneNumber"]
    with start() as second:
        second.wait_for_state("ready")
        assert second.get("/api/status").json()["phoneNumber"] == number


def test_without_its_directory_the_session_is_gone_and_with_it_it_is_back(start: Any, tmp_path: Path) -> None:
    with start() as first:
        first.pair()
    shutil.copytree(tmp_path / "session", tmp_path / "kept")
    (tmp_path / "session" / "pairing.json").unlink()
    with start() as second:
        second.wait_for_state("qr")
        second.wait_for_code()
    shutil.rmtree(tmp_path / "session")
    shutil.copytree(tmp_path / "kept", tmp_path / "session")
    with start() as third:
        third.wait_for_state("ready")


@pytest.mark.parametrize("path", ["/api/status/logout", "/api/simulator/logout"])
def test_who_logs_out_leaves_nothing_in_it(start: Any, tmp_path: Path, path: str) -> None:
    with start() as paired:
        paired.pair()
        assert list((tmp_path / "session").iterdir()) == [tmp_path / "session" / "pairing.json"]
        assert paired.post(path).status_code == 200
        assert list((tmp_path / "session").iterdir()) == []


def test_a_damaged_pairing_is_none(start: Any, tmp_path: Path) -> None:
    for damaged in ("{half", "[]", '{"phone_number": 5}'):
        (tmp_path / "session" / "pairing.json").write_text(damaged)
        with start() as born:
            born.wait_for_state("qr")
