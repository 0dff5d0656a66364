"""A slice's own directories: made whole or not at all, and removed without ever following a link out of them.

A directory carries its slice's uuid in a file, so that one which belongs to somebody else is neither used nor
deleted. It is built, and taken apart, under a name with the uuid in it: a crash in between leaves something whose
owner is known.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import UUID

import trio

from queunir_trio.errors import Refused

LABEL: Final = ".slice"  # the file that holds the uuid
PARTS: Final = ("media", "session")
PRIVATE: Final = 0o700

_limiter: Final = trio.CapacityLimiter(4)  # threads that may wait for the disk at once


class DirectoryConflict(Refused):
    """The place is taken by something that does not carry this slice's uuid."""

    def __init__(self, directory: Path) -> None:
        super().__init__("conflict", f"The directory {directory.name} belongs to another slice. Look at it by hand.")


async def ensure(base: Path, directory: Path, uuid: UUID) -> None:
    """Makes `directory` (an immediate child of `base`) with its media and session. DirectoryConflict; OSError."""
    await trio.to_thread.run_sync(_ensure, base, directory, uuid, limiter=_limiter)


async def remove(base: Path, directory: Path, uuid: UUID) -> None:
    """Removes this slice's directory and all in it; somebody else's is left alone. OSError: it could not be."""
    await trio.to_thread.run_sync(_remove, base, directory, uuid, limiter=_limiter)


async def exists(base: Path, directory: Path, uuid: UUID) -> bool:
    """Whether anything of this slice's is left on the disk, in place or half made or half removed."""
    return await trio.to_thread.run_sync(_exists, base, directory, uuid, limiter=_limiter)


async def is_foreign(base: Path, directory: Path, uuid: UUID) -> bool:
    """Whether something is in its place that does not carry this slice's uuid."""
    return await trio.to_thread.run_sync(_is_foreign, base, directory, uuid, limiter=_limiter)


async def mark(base: Path, directory: Path, uuid: UUID) -> None:
    """Marks a directory that carries no mark at all as this slice's. DirectoryConflict: it is marked as another's.

    PermissionError: it is another user's. OSError: media or session is missing, or is no directory.
    """
    await trio.to_thread.run_sync(_mark, base, directory, uuid, limiter=_limiter)


async def labels(base: Path) -> dict[str, UUID]:
    """Whose every directory under `base` is, by its name; those half made or half removed are left out."""
    return await trio.to_thread.run_sync(_labels, base, limiter=_limiter)


async def contents(base: Path, directory: Path, uuid: UUID) -> dict[Path, list[str]]:
    """Every place where something of this slice's is left, and the plain names of what lies in it.

    A runtime erases what is not the gateway's own to remove; `remove` then takes away the rest. OSError.
    """
    return await trio.to_thread.run_sync(_contents, base, directory, uuid, limiter=_limiter)


async def has(base: Path, directory: Path, name: str) -> bool:
    """Whether there is an entry of this name in a slice's directory."""
    return await trio.to_thread.run_sync(_has, base, directory, name, limiter=_limiter)


def _ensure(base: Path, directory: Path, uuid: UUID) -> None:
    base.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    with _opened(base, directory) as parent:
        assert parent is not None, "it was made a moment ago"
        if _is_there(parent, directory.name):
            if _label(parent, directory.name) != str(uuid):
                raise DirectoryConflict(directory)
            return
        apart = _name_apart(directory, uuid)
        with suppress(FileExistsError):
            os.mkdir(apart, PRIVATE, dir_fd=parent)
        for part in PARTS:
            with suppress(FileExistsError):
                os.mkdir(f"{apart}/{part}", PRIVATE, dir_fd=parent)
        label = os.open(f"{apart}/{LABEL}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=parent)
        with open(label, "w", encoding="ascii") as file:
            file.write(str(uuid))
        os.rename(apart, directory.name, src_dir_fd=parent, dst_dir_fd=parent)


def _remove(base: Path, directory: Path, uuid: UUID) -> None:
    with _opened(base, directory) as parent:
        if parent is None:
            return
        apart = _name_apart(directory, uuid)
        _delete(parent, apart)
        if _label(parent, directory.name) == str(uuid):
            os.rename(directory.name, apart, src_dir_fd=parent, dst_dir_fd=parent)
            _delete(parent, apart)


def _mark(base: Path, directory: Path, uuid: UUID) -> None:
    with _opened(base, directory) as parent:
        if parent is None:
            raise FileNotFoundError(f"{base} is not there")
        handle = os.open(directory.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if _is_there(handle, LABEL):
                if _label(parent, directory.name) != str(uuid):
                    raise DirectoryConflict(directory)
                return
            for part in PARTS:
                if not stat.S_ISDIR(os.lstat(part, dir_fd=handle).st_mode):
                    raise NotADirectoryError(f"{directory.name}/{part} is no directory")
            _write_label(handle, uuid)
        finally:
            os.close(handle)


def _write_label(handle: int, uuid: UUID) -> None:
    """Whole or not at all."""
    unfinished = f"{LABEL}.new"
    with suppress(FileNotFoundError):
        os.unlink(unfinished, dir_fd=handle)
    label = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=handle)
    with open(label, "w", encoding="ascii") as file:
        file.write(str(uuid))
    os.rename(unfinished, LABEL, src_dir_fd=handle, dst_dir_fd=handle)


def _exists(base: Path, directory: Path, uuid: UUID) -> bool:
    with _opened(base, directory) as parent:
        return parent is not None and (
            _is_there(parent, _name_apart(directory, uuid)) or _label(parent, directory.name) == str(uuid)
        )


def _is_foreign(base: Path, directory: Path, uuid: UUID) -> bool:
    with _opened(base, directory) as parent:
        return parent is not None and _is_there(parent, directory.name) and _label(parent, directory.name) != str(uuid)


def _labels(base: Path) -> dict[str, UUID]:
    found: dict[str, UUID] = {}
    for name in _listed(base):
        if name.startswith("."):
            continue
        with _opened(base, base / name) as parent, suppress(ValueError):
            found[name] = UUID((_label(parent, name) if parent is not None else None) or "")
    return found


def _contents(base: Path, directory: Path, uuid: UUID) -> dict[Path, list[str]]:
    with _opened(base, directory) as parent:
        if parent is None:
            return {}
        apart = _name_apart(directory, uuid)
        places = [apart] if _is_there(parent, apart) else []
        if _label(parent, directory.name) == str(uuid):
            places.append(directory.name)
    return {base / place: sorted({_plain(name) for name in os.listdir(base / place)} - {""}) for place in places}


def _plain(name: str) -> str:
    """The name that an entry goes by: what is half made or half removed of X is called .X.something."""
    return name[1:].rpartition(".")[0] if name.startswith(".") else name


def _has(base: Path, directory: Path, name: str) -> bool:
    with _opened(base, directory) as parent:
        if parent is None:
            return False
        try:
            handle = os.open(directory.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            return False
        try:
            return _is_there(handle, name)
        finally:
            os.close(handle)


@contextmanager
def _opened(base: Path, directory: Path) -> Iterator[int | None]:
    """A handle on `base`; every name is then taken relative to it, so none can lead anywhere else."""
    if directory.parent != base or directory.name.startswith("."):
        raise ValueError(f"{directory} is not a plain child of {base}")
    try:
        handle = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _name_apart(directory: Path, uuid: UUID) -> str:
    return f".{directory.name}.{uuid}"


def _is_there(parent: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def _label(parent: int, name: str) -> str | None:
    """The uuid a directory carries; None for none, for a link, and for what is no directory."""
    try:
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError:
        return None
    try:
        with open(os.open(LABEL, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        return None
    finally:
        os.close(directory)


def _delete(parent: int, name: str) -> None:
    assert shutil.rmtree.avoids_symlink_attacks, "this platform can not delete a tree safely"
    with suppress(FileNotFoundError):
        shutil.rmtree(name, dir_fd=parent)


async def listed(base: Path) -> list[str]:
    """The names of all directories of slices under `base`, those half made and half removed too."""
    return await trio.to_thread.run_sync(_listed, base, limiter=_limiter)


def _listed(base: Path) -> list[str]:
    try:
        with os.scandir(base) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
