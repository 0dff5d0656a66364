"""What lies on this machine's disk for a container: its secrets, in files that only it is shown, and its directory.

`run/container-N/` is closed to everybody but the gateway; in it `secrets/` is what the container gets to see, so its
files may be readable by any user there.
"""

import os
import shutil
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import trio

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes.contract import PARTS

OWNER: Final = "uuid"  # the file that says whose these papers are

_limiter: Final = trio.CapacityLimiter(4)  # threads that may wait for the disk at once


class Papers:
    """The directory `run` and what lies in it for containers."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def secrets(self, num: int) -> Path:
        """The directory that slice N's container is shown."""
        return self._home(num) / "secrets"

    async def write(self, num: int, uuid: UUID, secrets: Mapping[str, str]) -> None:
        """Puts down slice N's secrets, in place of anybody's before."""
        await trio.to_thread.run_sync(self._write, num, uuid, secrets, limiter=_limiter)

    async def forget(self, num: int, uuid: UUID) -> None:
        """Removes what is written for this slice."""
        await trio.to_thread.run_sync(self._forget, num, uuid, limiter=_limiter)

    async def tidy(self, keep: Collection[UUID]) -> None:
        """Removes what is written for slices outside `keep`."""
        await trio.to_thread.run_sync(self._tidy, {str(uuid) for uuid in keep}, limiter=_limiter)

    def _home(self, num: int) -> Path:
        return self._run / f"container-{num}"

    def _write(self, num: int, uuid: UUID, secrets: Mapping[str, str]) -> None:
        home, shown = self._home(num), self.secrets(num)
        if _owner(home) != str(uuid):
            with suppress(FileNotFoundError):
                shutil.rmtree(home)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(home / OWNER, str(uuid), 0o600)
        shown.mkdir(exist_ok=True)
        shown.chmod(0o755)
        for name, text in secrets.items():
            _replace(shown / name, text, 0o444)

    def _forget(self, num: int, uuid: UUID) -> None:
        if _owner(self._home(num)) == str(uuid):
            shutil.rmtree(self._home(num))

    def _tidy(self, keep: Collection[str]) -> None:
        for home in self._run.glob("container-*"):
            if _owner(home) not in keep:
                shutil.rmtree(home)


async def owner_of(directory: Path) -> int | None:
    """The user that both parts of a slice's directory belong to; None where they are not one user's.

    Refused `no_directory`: one of them is missing, or is no directory. A slice is not started without what it had.
    """
    return await trio.to_thread.run_sync(_owner_of, directory, limiter=_limiter)


def _owner_of(directory: Path) -> int | None:
    owners: set[int] = set()
    for part in PARTS:
        try:
            found = os.lstat(directory / part)
        except FileNotFoundError:
            found = None
        if found is None or not stat.S_ISDIR(found.st_mode):
            raise Refused("no_directory", f"The slice's directory {directory.name}/{part} is not there.")
        owners.add(found.st_uid)
    return owners.pop() if len(owners) == 1 else None


def _owner(home: Path) -> str | None:
    try:
        return (home / OWNER).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _replace(path: Path, text: str, mode: int) -> None:
    """Never half written, and never readable by more than `mode` says."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
    unfinished.replace(path)
