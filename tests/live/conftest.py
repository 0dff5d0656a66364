"""Places in which what is wanted and what is come to agree."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from queunir_trio.live import attempts, reconciler, warm_pool
from queunir_trio.operations import steps
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Database
from tests.doubles.premises import Premises, open_premises


@pytest.fixture
async def real(
    database: Database, database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int
) -> AsyncIterator[Premises]:
    """With processes."""
    async with open_premises(database, database_settings, tmp_path, free_base_port) as opened:
        yield opened


@pytest.fixture
def place(real: Premises) -> Premises:
    """With slices in memory."""
    return real.with_doubles()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and tries again without the pauses of life."""
    monkeypatch.setattr(reconciler, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(reconciler, "PASSES_APART", 0.001)
    monkeypatch.setattr(reconciler, "TRIED_AGAIN_AFTER", 0.02)
    monkeypatch.setattr(steps, "ORDERED_AGAIN_AFTER", 0.005)
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(attempts, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(warm_pool, "LONGEST_PAUSE", 0.02)
