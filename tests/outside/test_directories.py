"""A slice's directories: whole or absent, private, and never a way out of their base."""

import os
import stat
from pathlib import Path
from uuid import uuid4

import pytest

from queunir_trio.outside import directories
from queunir_trio.outside.directories import DirectoryConflict


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "data" / "slices"


async def test_directories_are_made_private_and_made_again_without_harm(base: Path) -> None:
    uuid = uuid4()
    await directories.ensure(base, base / "1", uuid)
    (base / "1" / "media" / "photo").write_text("kept")
    await directories.ensure(base, base / "1", uuid)
    assert (base / "1" / "media" / "photo").read_text() == "kept"
    for part in (".", "media", "session"):
        assert stat.S_IMODE((base / "1" / part).stat().st_mode) == 0o700
    assert await directories.exists(base, base / "1", uuid)


async def test_somebody_elses_directory_is_neither_used_nor_removed(base: Path) -> None:
    theirs, ours = uuid4(), uuid4()
    await directories.ensure(base, base / "1", theirs)
    with pytest.raises(DirectoryConflict):
        await directories.ensure(base, base / "1", ours)
    await directories.remove(base, base / "1", ours)
    assert await directories.exists(base, base / "1", theirs)
    assert not await directories.exists(base, base / "1", ours)


async def test_a_directory_without_a_label_belongs_to_somebody_else(base: Path) -> None:
    (base / "1" / "media").mkdir(parents=True)
    with pytest.raises(DirectoryConflict):
        await directories.ensure(base, base / "1", uuid4())


async def test_removal_leaves_nothing_and_may_be_repeated(base: Path) -> None:
    uuid = uuid4()
    await directories.remove(base, base / "1", uuid)  # not even the base is there
    assert not await directories.exists(base, base / "1", uuid)
    await directories.ensure(base, base / "1", uuid)
    (base / "1" / "media" / "deep" / "deeper").mkdir(parents=True)
    await directories.remove(base, base / "1", uuid)
    await directories.remove(base, base / "1", uuid)
    assert os.listdir(base) == []


async def test_links_in_a_slices_directory_are_removed_and_never_followed(base: Path, tmp_path: Path) -> None:
    uuid = uuid4()
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("gold")
    await directories.ensure(base, base / "1", uuid)
    (base / "1" / "media" / "way-out").symlink_to(treasure)
    (base / "1" / "session" / "root").symlink_to("/")
    await directories.remove(base, base / "1", uuid)
    assert (treasure / "gold").read_text() == "gold"
    assert os.listdir(base) == []


async def test_a_link_in_the_place_of_the_directory_is_a_conflict_and_its_target_stays(
    base: Path, tmp_path: Path
) -> None:
    uuid = uuid4()
    elsewhere = tmp_path / "elsewhere"
    await directories.ensure(elsewhere, elsewhere / "1", uuid)  # it even carries the right label
    await directories.ensure(base, base / "2", uuid4())
    (base / "1").symlink_to(elsewhere / "1")
    with pytest.raises(DirectoryConflict):
        await directories.ensure(base, base / "1", uuid)
    await directories.remove(base, base / "1", uuid)
    assert (elsewhere / "1" / "media").is_dir()


@pytest.mark.parametrize("left", ["nothing in it", "no label", "all of it"])
async def test_a_half_made_directory_is_finished(base: Path, left: str) -> None:
    uuid = uuid4()
    apart = base / f".1.{uuid}"
    apart.mkdir(parents=True)
    if left != "nothing in it":
        (apart / "media").mkdir()
    if left == "all of it":
        (apart / "session").mkdir()
        (apart / directories.LABEL).write_text(str(uuid))
    await directories.ensure(base, base / "1", uuid)
    assert sorted(os.listdir(base)) == ["1"]
    assert sorted(os.listdir(base / "1")) == [directories.LABEL, "media", "session"]


async def test_a_half_removed_directory_is_known_and_finished(base: Path) -> None:
    uuid = uuid4()
    await directories.ensure(base, base / "1", uuid)
    (base / "1").rename(base / f".1.{uuid}")
    (base / f".1.{uuid}" / directories.LABEL).unlink()
    assert await directories.exists(base, base / "1", uuid)
    await directories.remove(base, base / "1", uuid)
    assert os.listdir(base) == []


@pytest.mark.parametrize("path", ["..", "../escape", "1/2", ".1"])
async def test_only_a_plain_child_of_the_base_is_taken(base: Path, path: str) -> None:
    for deed in (directories.ensure, directories.remove, directories.exists):
        with pytest.raises(ValueError, match="not a plain child"):
            await deed(base, base / path, uuid4())


async def test_a_label_that_can_not_be_read_is_nobodys(base: Path) -> None:
    (base / "1").mkdir(parents=True)
    (base / "1" / directories.LABEL).write_bytes(b"\xff\xfe")
    with pytest.raises(DirectoryConflict):
        await directories.ensure(base, base / "1", uuid4())


async def test_a_directory_without_a_mark_is_marked_once_and_nothing_in_it_changes(base: Path) -> None:
    uuid, directory = uuid4(), base / "3"
    for part in ("media", "session"):
        (directory / part).mkdir(parents=True)
    (directory / "session" / "kept").write_bytes(b"kept")
    (directory / ".slice.new").write_text("half written")
    for _ in range(2):
        await directories.mark(base, directory, uuid)
        assert sorted(os.listdir(directory)) == [".slice", "media", "session"]
    assert not await directories.is_foreign(base, directory, uuid)
    with pytest.raises(DirectoryConflict):
        await directories.mark(base, directory, uuid4())
    assert (directory / ".slice").read_text() == str(uuid)
    assert (directory / "session" / "kept").read_bytes() == b"kept"


async def test_what_is_no_slices_directory_is_not_marked(base: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for part in ("media", "session"):
        (elsewhere / part).mkdir(parents=True)
    (base / "4").mkdir(parents=True)
    (base / "5").symlink_to(elsewhere)
    for name in ("4", "5", "6"):
        with pytest.raises(OSError):
            await directories.mark(base, base / name, uuid4())
    assert sorted(os.listdir(elsewhere)) == ["media", "session"]
    assert os.listdir(base / "4") == []
