"""What every home of slices promises, asked of each: containers, processes, and the double that other tests use."""

import io
import socket
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio

from queunir_trio.outside.runtimes.contract import (
    InstanceConflict,
    InstanceSpec,
    PortTaken,
    Runtime,
    RuntimeUnavailable,
)
from queunir_trio.outside.runtimes.process import ProcessRuntime
from tests.docker_image import IMAGE
from tests.doubles.docker_api import docker_api
from tests.doubles.runtime import MemoryRuntime

STUB = Path(__file__).parents[2] / "doubles" / "stub_slice.py"

Specified = Callable[..., InstanceSpec]


KINDS = [
    "process",
    "memory",
    pytest.param("docker", marks=pytest.mark.needs("docker")),
    pytest.param("slow docker", marks=pytest.mark.needs("docker")),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def specified(kind: str, tmp_path: Path) -> Specified:
    (tmp_path / "socket").mkdir()

    def make(num: int = 1, uuid: UUID | None = None, port: int | None = None) -> InstanceSpec:
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        directory = tmp_path / "slices" / str(num)
        for part in ("media", "session"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        url = f"postgresql://wa_slice_{num}:secret@/wa_slice_{num}?host={tmp_path}/socket&port=5432"
        image = IMAGE if "docker" in kind else "an-image"
        return InstanceSpec(num, num + 100, uuid or uuid4(), "127.0.0.1", port, directory, image, url, "k" * 64, False)

    return make


@pytest.fixture
async def runtime(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    if kind == "memory":
        yield MemoryRuntime()
        return
    if kind == "docker":
        yield request.getfixturevalue("docker_runtime")()
        return
    if kind == "slow docker":
        async with docker_api(tmp_path, request.getfixturevalue("docker_engine").socket) as double:
            double.lay("", 0.02)
            yield request.getfixturevalue("docker_runtime")(host=double.host)
        return
    command = (sys.executable, "-I", str(STUB))
    made = ProcessRuntime(tmp_path, command=command, images=dict.fromkeys(["an-image", "another-image"], command))
    yield made
    await made.stop_all()


def occupy(runtime: Runtime, port: int) -> socket.socket:
    """Lets somebody else listen there."""
    if isinstance(runtime, MemoryRuntime):
        runtime.taken_ports.add(port)
    sock = socket.socket()
    sock.bind(("127.0.0.1", port))
    sock.listen(1)
    return sock


async def test_an_instance_is_started_once_however_often_it_is_ensured(runtime: Runtime, specified: Specified) -> None:
    spec = specified()
    first = await runtime.ensure(spec)
    again = await runtime.ensure(spec)
    assert first == again
    assert first.running
    assert (first.num, first.uuid, first.image) == (spec.num, spec.uuid, spec.image)
    assert await runtime.inspect(spec.num) == first
    assert await runtime.listed() == [first]


async def test_ensured_by_many_at_once_there_is_still_one(runtime: Runtime, specified: Specified) -> None:
    spec = specified()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(runtime.ensure, spec)
    assert len(await runtime.listed()) == 1


async def test_nothing_is_found_where_nothing_was_started(runtime: Runtime) -> None:
    assert await runtime.inspect(7) is None
    assert await runtime.listed() == []


async def test_a_stopped_instance_runs_no_more_and_can_be_started_again(runtime: Runtime, specified: Specified) -> None:
    spec = specified()
    first = await runtime.ensure(spec)
    await runtime.stop(spec.num, spec.uuid)
    await runtime.stop(spec.num, spec.uuid)
    found = await runtime.inspect(spec.num)
    assert found is None or not found.running
    again = await runtime.ensure(spec)
    assert again.running
    assert again.pid is None or again.pid != first.pid


async def test_a_removed_instance_leaves_nothing_and_may_be_removed_again(
    runtime: Runtime, specified: Specified
) -> None:
    spec = specified()
    await runtime.remove(spec.num, spec.uuid)
    await runtime.ensure(spec)
    await runtime.remove(spec.num, spec.uuid)
    await runtime.remove(spec.num, spec.uuid)
    assert await runtime.inspect(spec.num) is None
    assert await runtime.listed() == []


async def test_an_instance_of_another_uuid_is_neither_adopted_nor_touched(
    runtime: Runtime, specified: Specified
) -> None:
    theirs = await runtime.ensure(specified(num=1))
    ours = specified(num=1)
    with pytest.raises(InstanceConflict) as refused:
        await runtime.ensure(ours)
    assert refused.value.code == "conflict"
    await runtime.stop(1, ours.uuid)
    await runtime.remove(1, ours.uuid)
    assert await runtime.inspect(1) == theirs


async def test_a_taken_port_is_refused_and_nothing_is_started(runtime: Runtime, specified: Specified) -> None:
    spec = specified()
    with occupy(runtime, spec.port), pytest.raises(PortTaken) as refused:
        await runtime.ensure(spec)
    assert refused.value.code == "port_taken"
    assert not [found for found in await runtime.listed() if found.running]


async def test_tidying_clears_away_only_what_runs_no_more_and_nobody_wants(
    runtime: Runtime, specified: Specified
) -> None:
    running, wanted, stale = specified(1), specified(2), specified(3)
    for spec in (running, wanted, stale):
        await runtime.ensure(spec)
    for spec in (wanted, stale):
        await runtime.stop(spec.num, spec.uuid)
    await runtime.tidy({wanted.uuid})
    assert [found.num for found in await runtime.listed()] == [1, 2]


async def test_all_can_be_stopped_at_once(runtime: Runtime, specified: Specified) -> None:
    for num in (1, 2, 3):
        await runtime.ensure(specified(num))
    await runtime.stop_all()
    assert not [found for found in await runtime.listed() if found.running]


async def test_another_image_is_taken_only_when_replaced(
    runtime: Runtime, specified: Specified, request: pytest.FixtureRequest, kind: str
) -> None:
    other = request.getfixturevalue("other_image") if "docker" in kind else "another-image"
    spec = specified()
    first = await runtime.ensure(spec)
    newer = replace(spec, image=other)
    assert await runtime.ensure(newer) == first
    second = await runtime.replace(newer)
    assert second.running
    assert (second.image, second.uuid) == (other, spec.uuid)
    assert (second.pid, second.container) != (first.pid, first.container)
    assert await runtime.replace(newer) == second, "there is nothing to replace any more"
    assert await runtime.listed() == [second]
    assert await runtime.image_id(other) != await runtime.image_id(str(spec.image))


async def test_replacing_starts_what_is_not_there_and_spares_what_is_not_ours(
    runtime: Runtime, specified: Specified
) -> None:
    theirs = await runtime.replace(specified(num=1))
    assert theirs.running
    with pytest.raises(InstanceConflict):
        await runtime.replace(specified(num=1))
    assert await runtime.inspect(1) == theirs


async def test_the_last_lines_of_an_instance_can_be_read_but_only_under_its_uuid(
    runtime: Runtime, specified: Specified, kind: str
) -> None:
    spec = specified()
    assert await runtime.logs(spec.num, spec.uuid) == []
    await runtime.ensure(spec)
    if isinstance(runtime, MemoryRuntime):
        runtime.written[spec.num] = ["before", "last"]
    lines: list[str] = []
    with trio.fail_after(10):
        while not lines:
            lines = await runtime.logs(spec.num, spec.uuid, 5)
            await trio.sleep(0.02)
    assert 0 < len(lines) <= 5
    assert await runtime.logs(spec.num, spec.uuid, 1) == (await runtime.logs(spec.num, spec.uuid))[-1:]
    assert await runtime.logs(spec.num, uuid4()) == []


async def test_a_part_of_a_directory_is_copied_whole_and_erased(
    runtime: Runtime, specified: Specified, tmp_path: Path
) -> None:
    spec = specified()
    outside = tmp_path / "outside"
    outside.write_text("not to be touched")
    session = spec.directory / "session"
    (session / "deep").mkdir()
    (session / "deep" / "keys").write_text("pairing")
    (session / "link").symlink_to(outside)
    await runtime.copy(spec.directory, "session", "session.before")
    copied = spec.directory / "session.before"
    assert (copied / "deep" / "keys").read_text() == "pairing"
    assert (copied / "link").is_symlink()
    (session / "deep" / "keys").write_text("newer")
    await runtime.copy(spec.directory, "session", "session.before")
    assert (copied / "deep" / "keys").read_text() == "newer"
    with pytest.raises(OSError, match=r"."):
        await runtime.copy(spec.directory, "missing", "session.before")
    assert (copied / "deep" / "keys").read_text() == "newer"
    await runtime.erase(spec.directory, ["session.before", "session"])
    await runtime.erase(spec.directory, ["session.before", "session"])
    assert sorted(path.name for path in spec.directory.iterdir()) == ["media"]
    assert outside.read_text() == "not to be touched"


async def test_a_part_is_read_as_an_archive(runtime: Runtime, specified: Specified) -> None:
    media = specified().directory / "media"
    (media / "deep").mkdir()
    (media / "deep" / "film").write_bytes(b"x" * 700_000)
    (media / "link").symlink_to("/etc/passwd")

    async def read(directory: Path, part: str) -> dict[str, bytes]:
        async with aclosing(runtime.archive(directory, part)) as pieces:
            data = b"".join([piece async for piece in pieces])
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            files = {member.name: tar.extractfile(member) for member in tar if member.isreg()}
        return {name: file.read() for name, file in files.items() if file is not None}

    assert await read(media.parent, "media") == {"media/deep/film": b"x" * 700_000}
    assert await read(media.parent, "session") == {}
    assert await read(media.parent, "missing") == {}
    assert await read(media.parent / "missing", "media") == {}
    async with aclosing(runtime.archive(media.parent, "media")) as pieces:
        await anext(pieces)  # and no more of it


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "-rf", ".hidden"])
async def test_a_name_that_leads_elsewhere_is_refused(runtime: Runtime, specified: Specified, name: str) -> None:
    spec = specified()
    with pytest.raises(ValueError, match="plain name"):
        await runtime.erase(spec.directory, [name])
    with pytest.raises(ValueError, match="plain name"):
        await runtime.copy(spec.directory, "session", name)


async def test_what_directories_take_up_is_measured_together(
    runtime: Runtime, specified: Specified, tmp_path: Path
) -> None:
    one, two = specified(1).directory, specified(2).directory
    (one / "media" / "film").write_bytes(b"x" * 300_000)
    (two / "session" / "keys").write_bytes(b"x" * 100_000)
    missing = tmp_path / "slices" / "3"
    found = await runtime.measure([one, two, missing])
    assert 300_000 <= found[one].media < 350_000
    assert found[one].session < 20_000
    assert 100_000 <= found[two].session < 150_000
    assert (found[missing].media, found[missing].session) == (0, 0)
    assert await runtime.measure([]) == {}


@pytest.mark.parametrize("kind", ["memory"])
async def test_what_a_runtime_does_not_confirm_is_found_on_the_next_attempt(specified: Specified) -> None:
    runtime = MemoryRuntime()
    runtime.forgets_to_answer = 1
    spec = specified()
    with pytest.raises(RuntimeUnavailable):
        await runtime.ensure(spec)
    assert (await runtime.ensure(spec)).running
    assert runtime.started == [1]


@pytest.mark.parametrize("kind", ["memory"])
async def test_a_dead_runtime_is_unavailable_whatever_it_is_asked(specified: Specified) -> None:
    runtime = MemoryRuntime()
    runtime.dead = True
    spec = specified()
    for ask in (
        lambda: runtime.ensure(spec),
        lambda: runtime.stop(1, spec.uuid),
        lambda: runtime.remove(1, spec.uuid),
        lambda: runtime.inspect(1),
        lambda: runtime.replace(spec),
        lambda: runtime.logs(1, spec.uuid),
        lambda: runtime.image_id("an-image"),
        lambda: runtime.measure([]),
        lambda: runtime.copy(spec.directory, "session", "copy"),
        lambda: runtime.erase(spec.directory),
        runtime.listed,
        lambda: runtime.tidy(set()),
    ):
        with pytest.raises(RuntimeUnavailable):
            await ask()
