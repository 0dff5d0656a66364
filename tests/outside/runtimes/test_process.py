"""Slices as processes: detached, adopted, reaped, and proven gone."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import trio

from queunir_trio.outside import processes
from queunir_trio.outside.runtimes import process_files
from queunir_trio.outside.runtimes.contract import Instance, InstanceSpec, RuntimeUnavailable
from queunir_trio.outside.runtimes.process import ProcessRuntime

STUB = Path(__file__).parents[2] / "doubles" / "stub_slice.py"

Make = Callable[..., ProcessRuntime]


@pytest.fixture
def spec(tmp_path: Path) -> InstanceSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return InstanceSpec(
        4, 17, uuid4(), "127.0.0.1", port, tmp_path / "slices" / "4", None, "postgresql://s3cret", "key-s3cret", True
    )


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[ProcessRuntime] = []

    def make_one(*arguments: str, reached: Callable[[str], None] = lambda point: None) -> ProcessRuntime:
        made.append(ProcessRuntime(tmp_path, command=(sys.executable, "-I", str(STUB), *arguments), reached=reached))
        return made[-1]

    yield make_one
    for runtime in made:
        await runtime.stop_all(within=0.2)


async def until(met: Callable[[], object], within: float = 10) -> None:
    """Waits for something that another process does."""
    with trio.fail_after(within):
        while not met():  # noqa: ASYNC110 - another process tells no Event
            await trio.sleep(0.01)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment_of(spec: InstanceSpec) -> dict[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{spec.port}/environment", headers={"x-slice-key": spec.key})
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: dict[str, str] = json.load(answer)
    return found


def private(path: str) -> str:
    """What a file holds that only its owner may read."""
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    return Path(path).read_text()


def failing_child(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(1)"], env=environment)


def open_files(pid: int) -> dict[str, str]:
    return {entry.name: os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def state(tmp_path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((tmp_path / "run" / "slice-4" / "state.json").read_text())
    return found


async def test_a_slice_sees_a_small_environment_without_any_secret(
    make: Make, spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADMIN_KEY", "the gateway's own")
    await make().ensure(spec)
    await until(lambda: listens(spec.port))
    seen = await trio.to_thread.run_sync(environment_of, spec)
    assert "ADMIN_KEY" not in seen
    assert not [value for value in seen.values() if "s3cret" in value]
    assert (seen["SLICE_ID"], seen["PORT"], seen["HOST"]) == ("17", str(spec.port), "127.0.0.1")
    assert seen["APP_ENV"] == "production"
    assert private(seen["DATABASE_URL_FILE"]) == "postgresql://s3cret"
    assert private(seen["SLICE_KEY_FILE"]) == "key-s3cret"
    assert seen["SESSION_DIR"] == str(spec.directory / "session")
    assert seen["MEDIA_DIR"] == str(spec.directory / "media")


async def test_a_slice_is_detached_from_who_started_it(make: Make, spec: InstanceSpec) -> None:
    found = await make().ensure(spec)
    assert found.pid is not None
    assert os.getsid(found.pid) == found.pid
    await until(lambda: listens(spec.port))
    targets = open_files(found.pid)
    assert targets["0"] == "/dev/null"
    assert targets["1"] == targets["2"]
    assert targets["1"].endswith("run/slice-4/log")
    assert not [target for target in targets.values() if target.startswith("pipe:")]


async def test_a_second_runtime_adopts_the_process_by_pid_and_start_time(make: Make, spec: InstanceSpec) -> None:
    first = await make().ensure(spec)
    second = make("--dies")  # were it to start anything, that would end at once
    assert await second.inspect(4) == first
    assert await second.ensure(spec) == first


async def test_a_pid_that_was_given_to_another_process_is_not_taken_for_the_slice(
    make: Make, spec: InstanceSpec, tmp_path: Path
) -> None:
    runtime = make()
    await runtime.ensure(spec)
    await runtime.stop(4, spec.uuid)
    path = tmp_path / "run" / "slice-4" / "state.json"
    path.write_text(json.dumps({**state(tmp_path), "pid": os.getpid()}))
    found = await runtime.inspect(4)
    assert found is not None
    assert not found.running
    await runtime.stop(4, spec.uuid)  # and it is not this test that is stopped
    again = await runtime.ensure(spec)
    assert again.running
    assert again.pid != os.getpid()


@pytest.mark.parametrize("point", ["intent", "secrets", "spawned"])
async def test_cut_short_while_starting_the_next_runtime_finds_or_makes_exactly_one(
    make: Make, spec: InstanceSpec, point: str
) -> None:
    def cut(reached: str) -> None:
        if reached == point:
            raise InterruptedError(point)

    for _ in range(2):
        with pytest.raises(InterruptedError):
            await make(reached=cut).ensure(spec)
        if point == "spawned":
            break  # the second attempt would find it and start nothing
    marked = processes.carrying("SLICE_UUID", str(spec.uuid))
    assert len(marked) == (1 if point == "spawned" else 0)
    successor = make()
    seen = await successor.inspect(4)
    assert seen is not None
    assert seen.running == (point == "spawned")
    found = await successor.ensure(spec)
    assert [process.pid for process in processes.carrying("SLICE_UUID", str(spec.uuid))] == [found.pid]
    if marked:
        assert found.pid == marked[0].pid


async def test_a_process_whose_papers_are_lost_is_found_by_its_mark(
    make: Make, spec: InstanceSpec, tmp_path: Path
) -> None:
    runtime = make()
    first = await runtime.ensure(spec)
    (tmp_path / "run" / "slice-4" / "state.json").write_text("{half a fi")
    assert await runtime.inspect(4) is None
    assert await make("--dies").ensure(spec) == first
    (tmp_path / "run" / "slice-4" / "state.json").unlink()
    await runtime.remove(4, spec.uuid)
    assert processes.carrying("SLICE_UUID", str(spec.uuid)) == []


async def test_a_dead_slice_is_seen_and_reaped_and_started_again(make: Make, spec: InstanceSpec) -> None:
    runtime = make()
    first = await runtime.ensure(spec)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)

    def gone() -> bool:
        return processes.identify(first.pid or 0) is None

    await until(gone)
    seen = await runtime.inspect(4)
    assert seen == Instance(4, spec.uuid, False)
    with pytest.raises(ProcessLookupError):  # not even a zombie is left
        os.kill(first.pid, 0)
    again = await runtime.ensure(spec)
    assert again.running
    assert again.pid != first.pid


async def test_a_slice_that_ignores_sigterm_is_killed(make: Make, spec: InstanceSpec) -> None:
    runtime = make("--deaf")
    await runtime.ensure(spec)
    await until(lambda: listens(spec.port))
    began = trio.current_time()
    await runtime.stop(4, spec.uuid, within=0.3)
    assert 0.3 <= trio.current_time() - began < 3
    assert not listens(spec.port)


async def test_what_a_slice_started_ends_with_it(make: Make, spec: InstanceSpec, tmp_path: Path) -> None:
    runtime = make("--child")
    await runtime.ensure(spec)
    await until(lambda: listens(spec.port))
    assert len(processes.carrying("SLICE_UUID", str(spec.uuid))) == 2
    await runtime.stop(4, spec.uuid)
    await until(lambda: not processes.carrying("SLICE_UUID", str(spec.uuid)))


async def test_a_child_left_behind_by_a_killed_slice_does_not_outlive_the_next_start(
    make: Make, spec: InstanceSpec
) -> None:
    runtime = make("--child")
    first = await runtime.ensure(spec)
    await until(lambda: len(processes.carrying("SLICE_UUID", str(spec.uuid))) == 2)
    orphan = processes.carrying("SLICE_UUID", str(spec.uuid))[1]
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: processes.identify(first.pid or 0) is None)
    assert processes.is_alive(orphan)
    again = await make().ensure(spec)
    assert again.pid not in (first.pid, orphan.pid)
    await until(lambda: not processes.is_alive(orphan))


async def test_a_stop_that_is_cancelled_can_be_asked_for_again(make: Make, spec: InstanceSpec) -> None:
    runtime = make("--deaf")
    await runtime.ensure(spec)
    await until(lambda: listens(spec.port))
    with trio.move_on_after(0.1) as cut:
        await runtime.stop(4, spec.uuid, within=30)
    assert cut.cancelled_caught
    await runtime.stop(4, spec.uuid, within=0)
    assert not listens(spec.port)


async def test_a_slice_that_ends_at_once_is_seen_dead_and_its_last_words_are_kept(
    make: Make, spec: InstanceSpec, tmp_path: Path
) -> None:
    runtime, words = make("--dies"), tmp_path / "run" / "slice-4" / "log"
    await runtime.ensure(spec)
    await until(lambda: "as it was told to" in words.read_text())
    await until(lambda: processes.carrying("SLICE_UUID", str(spec.uuid)) == [])
    assert await runtime.inspect(4) == Instance(4, spec.uuid, False)


async def test_a_command_that_does_not_exist_is_an_error_and_leaves_an_intent_only(
    spec: InstanceSpec, tmp_path: Path
) -> None:
    runtime = ProcessRuntime(tmp_path, command=("/no/such/program",))
    with pytest.raises(FileNotFoundError):
        await runtime.ensure(spec)
    assert state(tmp_path)["pid"] is None
    await runtime.remove(4, spec.uuid)
    assert await runtime.listed() == []


async def test_a_long_log_is_kept_short(
    make: Make, spec: InstanceSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_files, "LOG_AT_MOST", 1000)
    runtime = make("--chatty", "5000")
    await runtime.ensure(spec)
    written = tmp_path / "run" / "slice-4" / "log"
    await until(lambda: written.stat().st_size > 5000)
    await runtime.tidy({spec.uuid})
    assert written.stat().st_size == 0
    assert written.with_name("log.1").stat().st_size > 5000


async def test_a_process_that_survives_everything_is_reported(
    make: Make, spec: InstanceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make()
    await runtime.ensure(spec)

    async def in_vain(process: processes.ProcessId, within: float) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(processes, "end", in_vain)
        with pytest.raises(RuntimeUnavailable, match="does not end"):
            await runtime.stop(4, spec.uuid)


async def test_secrets_do_not_appear_in_what_is_printed(make: Make, spec: InstanceSpec, tmp_path: Path) -> None:
    runtime = make()
    await runtime.ensure(spec)
    assert "s3cret" not in repr(spec)
    assert "s3cret" not in json.dumps(state(tmp_path))
    assert str(tmp_path) in repr(runtime)


async def test_looking_for_slices_reaps_nobody_elses_children(spec: InstanceSpec) -> None:
    """A zombie belongs to who started it, who may still want to know how it ended."""
    other = failing_child({"SLICE_UUID": str(spec.uuid)})
    await until(lambda: processes.identify(other.pid) is None)
    assert processes.carrying("SLICE_UUID", str(spec.uuid)) == []
    assert other.wait() == 1


async def test_what_is_gone_is_ended_and_killed_without_harm() -> None:
    ours = processes.identify(os.getpid())
    assert ours is not None
    gone = replace(ours, started=ours.started - 1)  # who had this pid before
    assert await processes.end(gone, within=1)
    processes.kill(gone)
    nobody = replace(ours, pid=2**22 + 1)
    assert await processes.end(nobody, within=1)
    assert not processes.is_alive(replace(ours, boot="an earlier one"))


def test_a_mark_of_another_is_not_ours() -> None:
    assert processes.carrying("SLICE_UUID", str(UUID(int=0))) == []
