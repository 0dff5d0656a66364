"""A Docker daemon that is slow, dead, or a liar: nothing is ever made twice, taken over or lost from sight."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes.contract import Instance, InstanceSpec, RuntimeUnavailable
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.outside.runtimes.docker_client import CALLS_AT_ONCE, Daemon
from tests.docker_engine import Engine
from tests.docker_image import IMAGE
from tests.doubles.docker_api import DockerApi, docker_api

RuntimeOn = Callable[..., DockerRuntime]

CREATE = r"^POST /containers/create\?name=wank-slice"
START = r"^POST /containers/[0-9a-f]{64}/start"
LOOK = r"^GET /containers/wank-slice-1/json"
STOP = r"^POST /containers/[0-9a-f]+/stop"
REMOVE = r"^DELETE /containers/[0-9a-f]{64}"
LIST = r"^GET /containers/json"
NETWORK = r"^POST /networks/create"
LOOK_AT_NETWORK = r"^GET /networks/wank-slice-1"
REMOVE_NETWORK = r"^DELETE /networks/"

KINDS = ("hang", "close", "drop", 404, 409, 500)


@pytest.fixture
async def double(docker_host: str, docker_engine: Engine, tmp_path: Path) -> AsyncIterator[DockerApi]:
    async with docker_api(tmp_path, docker_engine.socket) as opened:
        yield opened


@pytest.fixture
def spec(tmp_path: Path, free_base_port: int) -> InstanceSpec:
    directory = tmp_path / "slices" / "1"
    for part in ("media", "session"):
        (directory / part).mkdir(parents=True)
    (tmp_path / "socket").mkdir()
    url = f"postgresql://wa_slice_1:s3cret@/wa_slice_1?host={tmp_path}/socket"
    return InstanceSpec(
        1, 101, uuid4(), "127.0.0.1", free_base_port, directory, IMAGE, url, "k" * 64, True
    )  # fmt: skip


@pytest.fixture
def impatient(docker_runtime: RuntimeOn, double: DockerApi) -> DockerRuntime:
    """A runtime whose limits are a twentieth of the usual: for what hangs nobody wants to wait."""
    return docker_runtime(host=double.host, patience=0.05)


def slices_there(engine: Engine) -> dict[str, tuple[str, bool]]:
    """Name, id and whether it runs, of every slice's container."""
    with engine.client() as client:
        return {
            entry["Names"][0].lstrip("/"): (entry["Id"], entry["State"] == "running")
            for entry in client.containers(all=True, filters={"name": "wank-slice"})
        }


def networks_there(engine: Engine) -> list[str]:
    with engine.client() as client:
        return [entry["Name"] for entry in client.networks() if entry["Name"].startswith("wank")]


async def outcome(deed: Callable[[], object]) -> str:
    """What came of a deed; anything but these three fails the test."""
    try:
        with trio.fail_after(10):
            await deed()  # type: ignore[misc]
    except RuntimeUnavailable:
        return "unavailable"
    except Refused as refused:
        return refused.code
    return "done"


@pytest.mark.parametrize("request_", [CREATE, START, LOOK, NETWORK, LOOK_AT_NETWORK])
@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_goes_wrong_while_starting_there_is_one_container_in_the_end(
    impatient: DockerRuntime,
    double: DockerApi,
    spec: InstanceSpec,
    docker_engine: Engine,
    request_: str,
    kind: str | int,
) -> None:
    double.lay(request_, kind, times=1)
    came_of_it = await outcome(lambda: impatient.ensure(spec))
    assert came_of_it in ("done", "unavailable", "conflict")
    assert len(slices_there(docker_engine)) <= 1
    double.mend()
    with trio.fail_after(20):
        while True:  # an order that was carried out late may still stand in the way once
            try:
                found = await impatient.ensure(spec)
            except RuntimeUnavailable:
                continue
            break
    assert found.running
    assert slices_there(docker_engine) == {"wank-slice-1": (found.container, True)}
    assert networks_there(docker_engine) == ["wank-slice-1"]
    assert len([request for request in double.passed if request.startswith("POST /containers/create?name=wank-s")]) <= 2


@pytest.mark.parametrize("kind", ["hang", "close", "trickle", 404, 409, 500])
async def test_a_daemon_that_is_all_wrong_makes_nothing_and_is_told_so(
    impatient: DockerRuntime, double: DockerApi, spec: InstanceSpec, docker_engine: Engine, kind: str | int
) -> None:
    double.lay("(?<!/version)$", kind)
    for deed in (
        lambda: impatient.ensure(spec),
        lambda: impatient.replace(spec),
        lambda: impatient.stop(1, spec.uuid),
        lambda: impatient.remove(1, spec.uuid),
        impatient.listed,
        lambda: impatient.tidy(set()),
    ):
        assert await outcome(deed) in ("unavailable", "image_missing")
    assert slices_there(docker_engine) == {}
    assert networks_there(docker_engine) == []


@pytest.mark.parametrize("request_", [LOOK, STOP, REMOVE, REMOVE_NETWORK, LIST])
@pytest.mark.parametrize("kind", ["hang", "close", "drop", 404, 409, 500])
async def test_nothing_is_said_to_be_removed_that_is_still_there(
    impatient: DockerRuntime,
    double: DockerApi,
    spec: InstanceSpec,
    docker_engine: Engine,
    request_: str,
    kind: str | int,
) -> None:
    with docker_engine.client() as client:  # never started: to stop and remove it is to be quick
        await DockerRuntimeBefore(impatient).create(spec)
        theirs = client.create_container(IMAGE, ["sleep", "60"], name="wank-slice-2")["Id"]
    double.lay(request_, kind, times=1)
    if await outcome(lambda: impatient.remove(1, spec.uuid)) == "done":
        assert slices_there(docker_engine).keys() == {"wank-slice-2"}
        assert networks_there(docker_engine) == []
    double.mend()
    with trio.fail_after(20):
        while await outcome(lambda: impatient.remove(1, spec.uuid)) != "done":
            pass
    assert slices_there(docker_engine) == {"wank-slice-2": (theirs, False)}
    assert networks_there(docker_engine) == []


class DockerRuntimeBefore:
    """Brings a slice to the point where its container is there and does not run yet."""

    def __init__(self, runtime: DockerRuntime) -> None:
        self._runtime = runtime

    async def create(self, spec: InstanceSpec) -> None:
        def cut(point: str) -> None:
            if point == "created":
                raise InterruptedError

        self._runtime._reached = cut
        with pytest.raises(InterruptedError):
            await self._runtime.ensure(spec)
        self._runtime._reached = lambda point: None


async def test_a_daemon_that_is_slow_is_waited_for(
    docker_runtime: RuntimeOn, double: DockerApi, spec: InstanceSpec, docker_engine: Engine
) -> None:
    double.lay("(create|start|json)", 0.3)
    found = await docker_runtime(host=double.host).ensure(spec)
    assert slices_there(docker_engine) == {"wank-slice-1": (found.container, True)}


async def test_a_create_that_was_carried_out_late_is_found_and_not_repeated(
    impatient: DockerRuntime, docker_runtime: RuntimeOn, double: DockerApi, spec: InstanceSpec, docker_engine: Engine
) -> None:
    double.lay(CREATE, "drop")
    assert await outcome(lambda: impatient.ensure(spec)) == "unavailable"
    made = slices_there(docker_engine)
    assert made.keys() == {"wank-slice-1"}
    double.mend()
    found = await docker_runtime(host=double.host).ensure(spec)
    assert found.container == made["wank-slice-1"][0]
    assert len([request for request in double.seen if request.startswith("POST /containers/create?name=wank-s")]) == 1


async def test_a_daemon_that_hangs_holds_up_nobody_and_no_thread_for_long(double: DockerApi) -> None:
    double.lay("/containers/json", "hang")
    daemon = Daemon(double.host, patience=0.05)
    runtime = DockerRuntime(daemon, Path("/nowhere"), IMAGE)
    lag, outcomes = 0.0, []

    async def ask() -> None:
        outcomes.append(await outcome(runtime.listed))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3 * CALLS_AT_ONCE):
            nursery.start_soon(ask)
        while len(outcomes) < 3 * CALLS_AT_ONCE:
            asleep = trio.current_time()
            await trio.sleep(0.01)
            lag = max(lag, trio.current_time() - asleep - 0.01)
    assert set(outcomes) == {"unavailable"}
    assert trio.current_time() - began < 2
    assert lag < 0.3, "the loop was held up"
    with trio.fail_after(2):
        while daemon.calls:
            await trio.sleep(0.01)
    double.mend()
    assert await runtime.listed() == []
    daemon.close()


async def test_who_is_cancelled_leaves_no_thread_behind(double: DockerApi) -> None:
    double.lay("/containers/json", "trickle")
    daemon = Daemon(double.host)
    runtime = DockerRuntime(daemon, Path("/nowhere"), IMAGE)
    began = time.monotonic()
    with trio.move_on_after(0.3) as scope:
        await runtime.listed()
    assert scope.cancelled_caught
    assert time.monotonic() - began < 1
    with trio.fail_after(2):
        while daemon.calls:
            await trio.sleep(0.01)
    daemon.close()


async def test_an_answer_that_makes_no_sense_is_no_answer(double: DockerApi, docker_runtime: RuntimeOn) -> None:
    runtime = docker_runtime(host=double.host)
    double.lay("/containers/json", 200)  # an object where a list should be
    assert await outcome(runtime.listed) == "unavailable"
    double.lay(LOOK, 200)
    assert await outcome(lambda: runtime.inspect(1)) == "unavailable"


async def test_a_daemon_that_was_away_is_found_again(
    docker_runtime: RuntimeOn, docker_host: str, docker_engine: Engine, tmp_path: Path
) -> None:
    async with docker_api(tmp_path, docker_engine.socket) as first:
        runtime = docker_runtime(host=first.host)
        assert await runtime.listed() == []
    assert await outcome(runtime.listed) == "unavailable"
    async with docker_api(tmp_path, docker_engine.socket):
        found: list[Instance] = await runtime.listed()
    assert found == []
