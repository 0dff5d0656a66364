"""Exports on the disk: `exports/<user>/<job>.zip`, for their owner's download and nobody else's eyes.

Whatever is not named like that in a user's directory is a file that was being written.
"""

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import trio

from queunir_trio.errors import Refused

DIRECTORY: Final = "exports"
PRIVATE: Final = 0o700
FREE_AT_LEAST: Final = 512 * 2**20  # bytes that an export leaves to everything else on the disk


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A finished export."""

    user_id: int
    job_id: int
    path: Path
    size: int  # bytes


def path_of(data_dir: Path, user_id: int, job_id: int) -> Path:
    """Where an export lies, or will."""
    return data_dir / DIRECTORY / str(user_id) / f"{job_id}.zip"


async def prepare(path: Path) -> None:
    """Makes the directory of an export, and clears it of what was never finished. OSError."""
    await trio.to_thread.run_sync(_prepare, path)


async def find(data_dir: Path, user_id: int, job_id: int) -> ExportFile | None:
    """The finished export of this job; None where there is none (any more)."""
    path = path_of(data_dir, user_id, job_id)
    try:
        size = (await trio.Path(path).stat()).st_size
    except FileNotFoundError:
        return None
    return ExportFile(user_id, job_id, path, size)


class OpenExport:
    """A finished export that is being read; removed or not, it can be read until it is closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    async def read(self, size: int, at: int) -> bytes:
        """Up to `size` bytes from the byte `at` on; none at the end. OSError."""
        return await trio.to_thread.run_sync(os.pread, self._file.fileno(), size, at)

    def close(self) -> None:
        self._file.close()


async def opened(file: ExportFile) -> OpenExport:
    """The file, for reading; to be closed by the caller. Refused `export_expired`: its time has just ended."""
    try:
        return OpenExport(await trio.to_thread.run_sync(_opened, file.path))
    except FileNotFoundError:
        raise expired() from None


def expired() -> Refused:
    """The refusal of an export that is gone."""
    return Refused("export_expired", "This export is no longer kept. Ask for a new one.")


async def remove_all(data_dir: Path, user_id: int) -> int:
    """Removes all exports of a user, finished or not; how many bytes. OSError."""
    return await trio.to_thread.run_sync(_remove_all, data_dir / DIRECTORY / str(user_id))


async def remove_others(data_dir: Path, user_id: int, but_job: int) -> None:
    """Removes all exports of a user but one."""
    for file in await listed(data_dir, user_id):
        if file.job_id != but_job:
            await trio.Path(file.path).unlink(missing_ok=True)


async def listed(data_dir: Path, user_id: int | None = None) -> list[ExportFile]:
    """The finished exports, of one user or of all."""
    return await trio.to_thread.run_sync(_listed, data_dir / DIRECTORY, user_id)


async def owners(data_dir: Path) -> list[int]:
    """The ids of those who have a directory here, whatever is in it."""
    names = await trio.to_thread.run_sync(_names, data_dir / DIRECTORY)
    return [int(name) for name in names if name.isdigit()]


async def keep_only(known: Collection[ExportFile], good_jobs: Collection[int]) -> int:
    """Removes those of the `known` exports whose job is not among the good ones; how many."""
    gone = [file for file in known if file.job_id not in good_jobs]
    for file in gone:
        await trio.Path(file.path).unlink(missing_ok=True)
        with suppress(OSError):  # it holds another
            await trio.Path(file.path.parent).rmdir()
    return len(gone)


async def free_bytes(directory: Path) -> int:
    """How much may still be written to the disk of this directory."""
    return (await trio.to_thread.run_sync(shutil.disk_usage, directory)).free


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb", buffering=0)


def _prepare(path: Path) -> None:
    path.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        if left.suffix != ".zip":
            left.unlink()


def _remove_all(directory: Path) -> int:
    if not directory.is_dir():
        return 0
    size = sum(path.lstat().st_size for path in directory.iterdir())
    shutil.rmtree(directory)
    return size


def _listed(base: Path, user_id: int | None) -> list[ExportFile]:
    found: list[ExportFile] = []
    names = [str(user_id)] if user_id is not None else _names(base)
    for name in names:
        for entry in _names(base / name) if name.isdigit() else ():
            number = entry.removesuffix(".zip")
            if entry.endswith(".zip") and number.isdigit():
                with suppress(FileNotFoundError):
                    path = base / name / entry
                    found.append(ExportFile(int(name), int(number), path, path.stat().st_size))
    return found


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
