"""The parts of a slice's directory where the gateway's own user owns them: copied whole and erased.

Every name is taken relative to an open directory and no link is ever followed, for what lies there was written by a
slice. A copy is made under a name of its own, forced to the disk and renamed then: a half one is never taken for whole.
"""

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from queunir_trio.outside.runtimes.names import check_names

CHUNK: Final = 2**20  # bytes
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def copy(directory: Path, source: str, target: str) -> None:
    """As Runtime.copy has it. OSError."""
    check_names([source, target])
    unfinished, replaced = f".{target}.part", f".{target}.old"
    with _opened(directory) as parent:
        for left in (unfinished, replaced):
            _delete(parent, left)
        try:
            _copy_directory(parent, source, parent, unfinished)
        except OSError:
            _delete(parent, unfinished)  # the disk may be full
            raise
        with suppress(FileNotFoundError):
            os.rename(target, replaced, src_dir_fd=parent, dst_dir_fd=parent)
        os.rename(unfinished, target, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)
        _delete(parent, replaced)


def erase(directory: Path, names: Collection[str]) -> None:
    """As Runtime.erase has it. OSError."""
    checked = check_names(names)
    with suppress(FileNotFoundError), _opened(directory) as parent:
        for name in checked:
            gone = f".{name}.old"
            _delete(parent, gone)
            with suppress(FileNotFoundError):  # first out of the way: what is half erased must not be taken for whole
                os.rename(name, gone, src_dir_fd=parent, dst_dir_fd=parent)
            _delete(parent, gone)
            _delete(parent, f".{name}.part")


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    handle = os.open(directory, _DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _inside(parent: int, name: str) -> Iterator[int]:
    handle = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield handle
    finally:
        os.close(handle)


def _copy_directory(parent: int, name: str, target_parent: int, target_name: str) -> None:
    with _inside(parent, name) as source:
        found = os.stat(source)
        os.mkdir(target_name, 0o700, dir_fd=target_parent)
        with _inside(target_parent, target_name) as target:
            for entry in sorted(os.listdir(source)):
                _copy_entry(source, target, entry)
            os.fchmod(target, stat.S_IMODE(found.st_mode))
            os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fsync(target)


def _copy_entry(source: int, target: int, name: str) -> None:
    """A file with its bytes, a directory with all in it, a link as the link it is; nothing else holds a session."""
    found = os.lstat(name, dir_fd=source)
    if stat.S_ISDIR(found.st_mode):
        _copy_directory(source, name, target, name)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    elif stat.S_ISREG(found.st_mode):
        _copy_file(source, target, name)


def _copy_file(source: int, target: int, name: str) -> None:
    # without waiting: should it have become a pipe in between, nobody would ever write to it
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
    with open(reading, "rb") as file:
        found = os.fstat(file.fileno())
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=target)
        with open(writing, "wb") as copied:
            shutil.copyfileobj(file, copied, CHUNK)
            copied.flush()
            os.fchmod(copied.fileno(), stat.S_IMODE(found.st_mode))
            os.utime(copied.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
            os.fsync(copied.fileno())


def _delete(parent: int, name: str) -> None:
    assert shutil.rmtree.avoids_symlink_attacks, "this platform can not delete a tree safely"
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            shutil.rmtree(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
