"""What every home of slices promises, asked of each of them: processes, and the double that the other tests use."""

import socket
import sys
from collections.abc import AsyncIterator, Callable
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
from tests.doubles.runtime import MemoryRuntime

STUB = Path(__file__).parents[2] / "doubles" / "stub_slice.py"

Specified = Callable[..., InstanceSpec]


@pytest.fixture
def specified(tmp_path: Path) -> Specified:
    def make(num: int = 1, uuid: UUID | None = None, port: int | None = None) -> InstanceSpec:
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        directory = tmp_path / "slices" / str(num)
        return InstanceSpec(
            num, num + 100, uuid or uuid4(), "127.0.0.1", port, directory, "an-image", "a url", "a key", False
        )

    return make


@pytest.fixture(params=["process", "memory"])
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    if request.param == "memory":
        yield MemoryRuntime()
        return
    made = ProcessRuntime(tmp_path, command=(sys.executable, "-I", str(STUB)))
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
    assert (first.num, first.uuid, first.image) == (spec.num, spec.uuid, "an-image")
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
    assert again.pid != first.pid


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


async def test_what_a_runtime_does_not_confirm_is_found_on_the_next_attempt(specified: Specified) -> None:
    runtime = MemoryRuntime()
    runtime.forgets_to_answer = 1
    spec = specified()
    with pytest.raises(RuntimeUnavailable):
        await runtime.ensure(spec)
    assert (await runtime.ensure(spec)).running
    assert runtime.started == [1]


async def test_a_dead_runtime_is_unavailable_whatever_it_is_asked(specified: Specified) -> None:
    runtime = MemoryRuntime()
    runtime.dead = True
    spec = specified()
    for ask in (
        lambda: runtime.ensure(spec),
        lambda: runtime.stop(1, spec.uuid),
        lambda: runtime.remove(1, spec.uuid),
        lambda: runtime.inspect(1),
        runtime.listed,
        lambda: runtime.tidy(set()),
    ):
        with pytest.raises(RuntimeUnavailable):
            await ask()
