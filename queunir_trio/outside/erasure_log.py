"""Who was removed, in a file that only grows: it is still there when the database is restored from before."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog
import trio

from queunir_trio.model.erasures import Erasure

NAME: Final = "erasures.log"

log = structlog.get_logger()


async def append(data_dir: Path, erasure: Erasure) -> None:
    """Adds a line and returns when it is on the disk. One that stands there twice does no harm. OSError."""
    await trio.to_thread.run_sync(_append, data_dir / NAME, erasure)


async def read(data_dir: Path) -> list[Erasure]:
    """Everybody who was removed; a line that can not be read is told of in the log and passed over. OSError."""
    return await trio.to_thread.run_sync(_read, data_dir / NAME)


def _append(path: Path, erasure: Erasure) -> None:
    line = {
        "user_id": erasure.user_id,
        "user_created_at": erasure.user_created_at.isoformat(),
        "slices": [str(uuid) for uuid in erasure.slices],
        "erased_at": erasure.erased_at.isoformat(),
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # one write of one line, so that two processes never mix theirs; it begins a new one in case the last was cut short
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"\n{json.dumps(line)}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> list[Erasure]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [erasure for line in lines if line and (erasure := _parsed(line)) is not None]


def _parsed(line: str) -> Erasure | None:
    try:
        told = json.loads(line)
        return Erasure(
            user_id=int(told["user_id"]),
            user_created_at=datetime.fromisoformat(told["user_created_at"]),
            slices=tuple(UUID(uuid) for uuid in told["slices"]),
            erased_at=datetime.fromisoformat(told["erased_at"]),
        )
    except (ValueError, KeyError, TypeError):
        log.warning("erasure_unreadable")
        return None
