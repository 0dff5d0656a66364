"""A slice says what is wrong with its environment, and shows nobody its secrets."""

import subprocess
import sys
from pathlib import Path

import pytest

from queunir_slice.settings import Misconfigured, read_settings

GOOD = {"SLICE_ID": "12", "DATABASE_URL": "postgresql://a:secret-word@/a", "SLICE_KEY": "x" * 64}


def faults_of(**changes: str) -> list[str]:
    with pytest.raises(Misconfigured) as caught:
        read_settings({**GOOD, **changes})
    return caught.value.faults


def test_the_least_environment_is_enough() -> None:
    settings = read_settings(GOOD)
    assert (settings.slice_id, settings.host, settings.port, settings.production) == ("12", "127.0.0.1", 3101, False)
    assert (settings.simulator_seed, settings.simulator_speed) == ("slice 12", 1.0)


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://b@/b\n")
    (tmp_path / "key").write_text("y" * 64 + "\n")
    settings = read_settings(
        {"SLICE_ID": "1", "DATABASE_URL_FILE": str(tmp_path / "url"), "SLICE_KEY_FILE": str(tmp_path / "key")}
    )
    assert (settings.database_url, settings.key) == ("postgresql://b@/b", "y" * 64)


def test_node_env_production_is_production() -> None:
    assert read_settings({**GOOD, "NODE_ENV": "production"}).production


def test_every_missing_value_is_named_at_once() -> None:
    with pytest.raises(Misconfigured) as caught:
        read_settings({})
    assert [fault.split()[0] for fault in caught.value.faults] == ["SLICE_ID", "DATABASE_URL", "SLICE_KEY"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "http"),
        ("APP_ENV", "staging"),
        ("SIMULATOR_SPEED", "nan"),
        ("SIMULATOR_SPEED", "fast"),
        ("LOG_LEVEL", "loud"),
        ("SLICE_KEY", "short"),
        ("DATABASE_URL", "mysql://a"),
        ("DATABASE_URL", "postgresql://a:port/b"),
        ("SLICE_KEY_FILE", "/nowhere/at/all"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str) -> None:
    assert any(fault.startswith(name) for fault in faults_of(**{name: value}))


def test_no_secret_is_ever_printed() -> None:
    shown = repr(read_settings(GOOD))
    assert "secret-word" not in shown
    assert "x" * 64 not in shown
    assert not any("hunter2" in fault for fault in faults_of(SLICE_KEY="hunter2", DATABASE_URL="mysql://hunter2@/a"))


def test_a_misconfigured_slice_ends_with_a_line_for_each_fault() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "queunir_slice"], env={"SLICE_ID": "1"}, capture_output=True, timeout=30
    )
    assert ended.returncode == 78
    assert [line.split()[0] for line in ended.stderr.decode().splitlines()] == ["DATABASE_URL", "SLICE_KEY"]
