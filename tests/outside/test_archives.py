"""Archives as they pass by: whole, in pieces, and never leading anywhere else."""

import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from queunir_trio.outside import archives
from queunir_trio.outside.archives import PIECE, safe_name, tar_of, writing_zip


async def collected(pieces: AsyncGenerator[bytes, None]) -> bytes:
    async with aclosing(pieces) as source:
        return b"".join([piece async for piece in source])


async def in_pieces(data: bytes, size: int = 1000) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def unheard(size: int) -> None:
    pass


def tar_with(*members: tuple[str, bytes | None]) -> bytes:
    """A tar of these files; None makes a link."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    media = tmp_path / "slice" / "media"
    (media / "deep" / "deeper").mkdir(parents=True)
    (media / "a.jpg").write_bytes(os.urandom(3 * PIECE + 77))
    (media / "deep" / "deeper" / "ñandú 🐦.txt").write_text("hola")
    (media / ("long" * 40)).write_bytes(b"a name that is too long for the oldest form")
    (media / "empty").touch()
    (tmp_path / "secret").write_text("not a customer's")
    (media / "link").symlink_to(tmp_path / "secret")
    (media / "way-out").symlink_to("/etc")
    os.mkfifo(media / "pipe")
    return tmp_path / "slice"


async def test_a_directory_becomes_a_tar_stream_without_what_links_lead_to(home: Path) -> None:
    packed = await collected(tar_of(home, "media"))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = {member.name for member in tar}
        assert names == {"media/a.jpg", "media/deep/deeper/ñandú 🐦.txt", f"media/{'long' * 40}", "media/empty"}
        content = tar.extractfile("media/a.jpg")
        assert content is not None
        assert content.read() == (home / "media" / "a.jpg").read_bytes()
    assert b"not a customer's" not in packed


async def test_a_part_that_is_missing_is_an_empty_archive(tmp_path: Path) -> None:
    packed = await collected(tar_of(tmp_path, "media"))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames() == []


async def test_a_part_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "media").symlink_to("/etc")
    with pytest.raises(OSError):
        await collected(tar_of(tmp_path, "media"))


async def test_pieces_are_read_as_they_are_asked_for(home: Path) -> None:
    pieces = tar_of(home, "media")
    first = await anext(pieces)
    assert len(first) <= 2 * PIECE + 10_000
    await pieces.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_a_file_that_shrinks_or_grows_meanwhile_breaks_nothing(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "a").write_bytes(b"a" * (4 * PIECE))
    (media / "b").write_bytes(b"b" * (4 * PIECE))
    (media / "c").write_bytes(b"c" * 100)
    pieces = tar_of(tmp_path, "media")
    gathered = [await anext(pieces)]
    os.truncate(media / "a", PIECE)
    with (media / "b").open("ab") as file:
        file.write(b"more")
    gathered += [piece async for piece in pieces]
    with tarfile.open(fileobj=io.BytesIO(b"".join(gathered))) as tar:
        assert [member.name for member in tar] == ["media/a", "media/b", "media/c"]
        content = tar.extractfile("media/c")
        assert content is not None
        assert content.read() == b"c" * 100


async def test_a_zip_holds_what_was_written_and_is_its_owners_alone(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "export.zip"
    heard: list[int] = []

    async def hear(size: int) -> None:
        heard.append(size)

    async with writing_zip(path) as archive:
        await archive.begin("data/one.json")
        await archive.write(b"[1,")
        await archive.write(b"2]")
        assert await archive.add_tar(tar_of(home, "media"), "media", hear) == 4
        await archive.begin("README.txt")
        await archive.write("¡hola!".encode())
        assert not path.exists(), "until it is whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sum(heard) >= (home / "media" / "a.jpg").stat().st_size
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        assert packed.read("data/one.json") == b"[1,2]"
        assert packed.read("media/a.jpg") == (home / "media" / "a.jpg").read_bytes()
        assert packed.read("media/deep/deeper/ñandú 🐦.txt") == b"hola"
        assert packed.read("README.txt").decode() == "¡hola!"


async def test_what_fails_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    async def write_half() -> None:
        async with writing_zip(tmp_path / "export.zip") as archive:
            await archive.begin("half")
            await archive.write(b"x" * 1000)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write_half()
    assert names_in(tmp_path) == []


async def test_what_is_cancelled_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    async def never() -> AsyncGenerator[bytes, None]:
        yield tar_with(("media/a", b"a" * 100))[:600]
        await trio.sleep_forever()

    with trio.move_on_after(0.2) as scope:
        async with writing_zip(tmp_path / "export.zip") as archive:
            await archive.add_tar(never(), "media", unheard)
    assert scope.cancelled_caught
    assert names_in(tmp_path) == []


async def test_hostile_names_stay_within_the_folder(tmp_path: Path) -> None:
    names = [
        "media/../../etc/passwd",
        "/absolute",
        "media/..",
        "..\\..\\boot.ini",
        "media/a\x00b",
        "media/c:d",
        "./media/x",
    ]
    hostile = tar_with(*[(name, b"x") for name in names], ("media/link", None), ("media/etc/passwd", b"twice"))
    path = tmp_path / "export.zip"
    async with writing_zip(path) as archive:
        await archive.add_tar(in_pieces(hostile), "media", unheard)
    with zipfile.ZipFile(path) as packed:
        found = packed.namelist()
        packed.extractall(tmp_path / "out")
    for name in found:
        assert name.startswith("media/"), name
        assert ".." not in name.split("/"), name
        assert not set(name) & set('\\:\x00"<>|'), name
    assert {"media/etc/passwd", "media/etc/passwd (2)", "media/x", "media/absolute"} <= set(found)
    assert "media/link" not in found
    assert names_in(tmp_path) == ["export.zip", "out"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b.txt", "a/b.txt"),
        ("../../a", "a"),
        ("//a//b/./c", "a/b/c"),
        ("..", None),
        ("", None),
        ("a\nb", "a_b"),
        (f"a../{'b' * 997}", "b" * 997),
    ],
)
def test_a_name_is_made_safe(name: str, safe: str | None) -> None:
    assert safe_name(name) == safe


def test_a_name_of_any_length_is_cut() -> None:
    found = safe_name("ñ" * 5000)
    assert found is not None
    assert 900 < len(found.encode()) <= archives.NAME_AT_MOST


async def test_a_member_that_bears_a_strangers_name_stays_within_the_folder(tmp_path: Path) -> None:
    async with writing_zip(tmp_path / "export.zip") as archive:
        for name in ("data/../../evil.json", "/absolute", "data//x.csv", ".."):
            await archive.begin(name)
            await archive.write(b"x")
    with zipfile.ZipFile(tmp_path / "export.zip") as packed:
        assert packed.namelist() == ["data/evil.json", "absolute", "data/x.csv", "unnamed"]


async def test_names_that_become_one_cost_no_more_than_others(tmp_path: Path) -> None:
    async with writing_zip(tmp_path / "export.zip") as archive:
        looked = 0

        class Counted(dict[str, zipfile.ZipInfo]):
            def __contains__(self, name: object) -> bool:
                nonlocal looked
                looked += 1
                return super().__contains__(name)

        archive._zip.NameToInfo = Counted()
        for _ in range(500):
            await archive.begin("media/a?b.txt")
    with zipfile.ZipFile(tmp_path / "export.zip") as packed:
        assert len(set(packed.namelist())) == 500
        assert "media/a_b (500).txt" in packed.namelist()
    assert looked < 2000


@pytest.mark.parametrize("broken", [b"", b"no tar at all" * 100])
async def test_what_is_no_tar_is_refused(tmp_path: Path, broken: bytes) -> None:
    with pytest.raises(ValueError, match="broken"):
        async with writing_zip(tmp_path / "export.zip") as archive:
            await archive.add_tar(in_pieces(broken), "media", unheard)
    assert names_in(tmp_path) == []


async def test_a_tar_that_ends_in_the_middle_is_refused(tmp_path: Path) -> None:
    whole = tar_with(("media/a", b"a" * 100_000))
    with pytest.raises(ValueError, match="broken"):
        async with writing_zip(tmp_path / "export.zip") as archive:
            await archive.add_tar(in_pieces(whole[:50_000]), "media", unheard)


async def test_memory_stays_flat_however_much_passes(tmp_path: Path) -> None:
    media = tmp_path / "slice" / "media"
    media.mkdir(parents=True)
    for number in range(4):
        with (media / f"{number}.bin").open("wb") as file:
            file.truncate(50 * 2**20)
    tracemalloc.start()
    try:
        async with writing_zip(tmp_path / "export.zip") as archive:
            await archive.add_tar(tar_of(tmp_path / "slice", "media"), "media", unheard)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20, f"{peak / 2**20:.1f} MB"
    assert (tmp_path / "export.zip").stat().st_size > 200 * 2**20
