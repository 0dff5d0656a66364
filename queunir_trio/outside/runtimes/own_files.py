"""Slices' directories where all that lies in them is the gateway's own user's: plain acts, in threads."""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from queunir_trio.outside.runtimes import parts
from queunir_trio.outside.runtimes.contract import Usage

_limiter: Final = trio.CapacityLimiter(4)  # threads that may wait for the disk at once


async def measure(directories: Sequence[Path]) -> dict[Path, Usage]:
    """As Runtime.measure has it."""
    return await trio.to_thread.run_sync(_measure, directories, limiter=_limiter)


async def copy(directory: Path, source: str, target: str) -> None:
    """As Runtime.copy has it."""
    await trio.to_thread.run_sync(parts.copy, directory, source, target, limiter=_limiter)


async def erase(directory: Path, names: Collection[str]) -> None:
    """As Runtime.erase has it."""
    await trio.to_thread.run_sync(parts.erase, directory, names, limiter=_limiter)


def _measure(directories: Sequence[Path]) -> dict[Path, Usage]:
    return {path: Usage(_size(path / "media"), _size(path / "session")) for path in directories}


def _size(top: Path) -> int:
    total = 0
    for folder, _, names in os.walk(top):
        for name in (".", *names):
            with suppress(FileNotFoundError):  # a slice is at work there
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
