"""Parts of a slice's directory are copied byte for byte, whole or not at all, and no link leads out of it."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from queunir_trio.outside.runtimes import parts
from tests.doubles.moving import contents


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "slices" / "3"
    session = directory / "session"
    (session / "Default" / "deep").mkdir(parents=True)
    (session / "Default" / "deep" / "keys.bin").write_bytes(bytes(range(256)) * 9000)
    (session / "Default" / "empty").write_bytes(b"")
    (session / "SingletonLock").symlink_to("host-1234")
    (session / "script").write_text("x")
    (session / "script").chmod(0o750)
    os.utime(session / "script", (1_000_000_000, 1_000_000_000))
    return directory


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_copy_is_the_same_byte_for_byte(directory: Path) -> None:
    parts.copy(directory, "session", "kept")
    assert contents(directory / "kept") == contents(directory / "session")
    copied = (directory / "kept" / "script").stat()
    assert (copied.st_mode & 0o777, copied.st_mtime) == (0o750, 1_000_000_000)
    assert names(directory) == ["kept", "session"]


def test_a_copy_replaces_what_was_there(directory: Path) -> None:
    parts.copy(directory, "session", "kept")
    before = contents(directory / "session")
    (directory / "session" / "Default" / "deep" / "keys.bin").unlink()
    (directory / "session" / "new").write_text("by a bad image")
    parts.copy(directory, "kept", "session")
    assert contents(directory / "session") == before
    assert names(directory) == ["kept", "session"]


def test_links_are_copied_as_links_and_never_followed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (directory / "session" / "out").symlink_to(tmp_path / "secret")
    (directory / "session" / "up").symlink_to(tmp_path, target_is_directory=True)
    parts.copy(directory, "session", "kept")
    assert (directory / "kept" / "out").is_symlink()
    assert (directory / "kept" / "up").is_symlink()
    parts.erase(directory, ["session", "kept"])
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_part_that_is_a_link_itself_is_not_copied(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (directory / "media").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"directory|symbolic"):
        parts.copy(directory, "media", "kept")
    assert names(directory) == ["media", "session"]


def test_what_holds_no_bytes_is_left_out_and_waited_for_by_nobody(directory: Path) -> None:
    os.mkfifo(directory / "session" / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "session" / "sock"))
    parts.copy(directory, "session", "kept")
    assert names(directory / "kept") == ["Default", "SingletonLock", "script"]


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: str, times: int, fault: BaseException) -> Iterator[None]:
    """The call of this number to a function of `os` ends in a fault."""
    real, left = getattr(os, call), [times]

    def fail(*arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise fault
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        yield


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize(("call", "times"), [("mkdir", 2), ("fsync", 1), ("fsync", 3), ("rename", 1), ("rename", 2)])
def test_cut_short_anywhere_there_is_the_old_one_or_none_and_the_next_copy_is_whole(
    directory: Path, monkeypatch: pytest.MonkeyPatch, call: str, times: int
) -> None:
    parts.copy(directory, "session", "kept")
    whole = contents(directory / "session")
    (directory / "session" / "scribble").write_text("by a bad image")
    spoiled = contents(directory / "session")
    with failing(monkeypatch, call, times, Killed()), pytest.raises(Killed):
        parts.copy(directory, "kept", "session")
    left = contents(directory / "session") if (directory / "session").exists() else None
    assert left in (None, spoiled)
    parts.copy(directory, "kept", "session")
    assert contents(directory / "session") == whole
    assert names(directory) == ["kept", "session"]


def test_a_full_disk_leaves_nothing_half(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with failing(monkeypatch, "fsync", 2, full), pytest.raises(OSError, match="No space"):
        parts.copy(directory, "session", "kept")
    assert names(directory) == ["session"]


def test_erasing_twice_and_of_what_never_was_does_no_harm(directory: Path) -> None:
    parts.erase(directory, ["session", "nothing"])
    parts.erase(directory, ["session"])
    parts.erase(directory.parent / "9", ["session"])
    assert names(directory) == []


def test_what_is_half_erased_does_not_bear_its_name(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.copy(directory, "session", "kept")
    with failing(monkeypatch, "unlink", 2, Killed()), pytest.raises(Killed):
        parts.erase(directory, ["kept"])
    assert names(directory) == [".kept.old", "session"]
    parts.erase(directory, ["kept"])
    assert names(directory) == ["session"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", ".slice", "-rf", "a\0b"])
def test_only_plain_names_are_handled(directory: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        parts.copy(directory, "session", name)
    with pytest.raises(ValueError, match="plain name"):
        parts.copy(directory, name, "kept")
    with pytest.raises(ValueError, match="plain name"):
        parts.erase(directory, [name])
