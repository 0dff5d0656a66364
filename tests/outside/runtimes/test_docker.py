"""Slices as containers of a real engine: what they are given, what has effect inside, and whose they stay."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import docker
import pytest
import trio

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes.contract import ImageMissing, InstanceConflict, InstanceSpec, RuntimeUnavailable
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.settings import DockerSettings
from tests.docker_engine import Engine
from tests.docker_image import IMAGE

PYTHON = "/opt/slice/venv/bin/python"
MB = 2**20
CHILD = Path(__file__).parents[2] / "doubles" / "ordinary_user.py"

RuntimeOn = Callable[..., DockerRuntime]
Specified = Callable[..., InstanceSpec]


@pytest.fixture
def specified(tmp_path: Path, free_base_port: int) -> Specified:
    (tmp_path / "socket").mkdir()

    def make(num: int = 1, uuid: UUID | None = None, image: str | None = IMAGE) -> InstanceSpec:
        directory = tmp_path / "slices" / str(num)
        for part in ("media", "session"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        url = f"postgresql://wa_slice_{num}:s3cret@/wa_slice_{num}?host={tmp_path}/socket&port=5432"
        port = free_base_port + num
        return InstanceSpec(
            num, num + 100, uuid or uuid4(), "127.0.0.1", port, directory, image, url, "key-" + "k" * 60, True
        )

    return make


@pytest.fixture
def client(docker_host: str, docker_engine: Engine) -> Iterator[docker.APIClient]:
    with docker_engine.client() as opened:
        yield opened


def run_inside(client: docker.APIClient, name: str, code: str) -> Any:
    """What a piece of Python prints as JSON in the container, as the slice's own user."""
    made = client.exec_create(name, [PYTHON, "-I", "-c", code])
    printed = client.exec_start(made["Id"]).decode()
    assert client.exec_inspect(made["Id"])["ExitCode"] == 0, printed
    return json.loads(printed)


def names(client: docker.APIClient) -> list[str]:
    """Every container and network there is, but for the engine's own."""
    containers = [entry["Names"][0].lstrip("/") for entry in client.containers(all=True)]
    networks = [entry["Name"] for entry in client.networks() if entry["Name"] not in ("bridge", "host", "none")]
    return sorted(containers + networks)


async def test_a_container_is_asked_for_with_every_wall_and_limit(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    spec = specified(3)
    await docker_runtime().ensure(spec)
    found = client.inspect_container("wank-slice-3")
    host, config = found["HostConfig"], found["Config"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["ReadonlyRootfs"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert [option for option in host["SecurityOpt"] if option.startswith("seccomp=") and "unconfined" not in option]
    assert (host["Memory"], host["MemoryReservation"], host["MemorySwap"]) == (512 * MB, 256 * MB, 1024 * MB)
    assert (host["NanoCpus"], host["CpuShares"], host["PidsLimit"]) == (500_000_000, 256, 512)
    assert host["ShmSize"] == 256 * MB
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["Ulimits"] == [{"Name": "nofile", "Hard": 4096, "Soft": 4096}]
    assert host["PortBindings"] == {"3101/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(spec.port)}]}
    assert host["Tmpfs"].keys() == {"/tmp"}
    assert config["User"] == "70003:70003"
    labels = {name: value for name, value in config["Labels"].items() if name.startswith("queunir")}
    assert labels.items() >= {
        ("queunir.slice.num", "3"), ("queunir.slice.id", "103"), ("queunir.slice.uuid", str(spec.uuid)),
    }  # fmt: skip
    network = client.inspect_network("wank-slice-3")
    assert network["IPAM"]["Config"] == [{"Subnet": "10.213.0.48/28", "Gateway": "10.213.0.49"}]
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    assert network["Options"]["com.docker.network.bridge.name"] == "wank-3"
    assert [entry["Name"] for entry in network["Containers"].values()] == ["wank-slice-3"]


async def test_no_secret_is_seen_from_outside_of_the_container(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient, tmp_path: Path
) -> None:
    spec = specified()
    await docker_runtime().ensure(spec)
    described = json.dumps(client.inspect_container("wank-slice-1"))
    assert "s3cret" not in described
    assert spec.key not in described
    home = tmp_path / "data" / "run" / "container-1"
    assert home.stat().st_mode & 0o777 == 0o700
    seen = run_inside(
        client,
        "wank-slice-1",
        """
import json, os
files = {name: os.environ[name] for name in ("DATABASE_URL_FILE", "SLICE_KEY_FILE")}
def may_write(path):
    try:
        open(path, "a").close()
    except OSError:
        return False
    return True
print(json.dumps({
    "content": [open(path).read() for path in files.values()],
    "writable": [may_write(path) for path in files.values()],
    "environment": dict(os.environ),
}))
""",
    )
    assert seen["content"] == [
        "postgresql://wa_slice_1:s3cret@/wa_slice_1?host=%2Frun%2Fpostgresql&port=5432",
        spec.key,
    ]
    assert seen["writable"] == [False, False]
    assert not [value for value in seen["environment"].values() if "s3cret" in value or value == spec.key]
    assert seen["environment"]["SLICE_ID"] == "101"
    assert seen["environment"]["APP_ENV"] == "production"


async def test_an_older_image_gets_its_secrets_as_variables(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    spec = specified()
    await docker_runtime(settings=DockerSettings(secrets="environment")).ensure(spec)
    variables = dict(entry.split("=", 1) for entry in client.inspect_container("wank-slice-1")["Config"]["Env"])
    assert variables["SLICE_KEY"] == spec.key
    assert variables["DATABASE_URL"].startswith("postgresql://wa_slice_1:s3cret@/wa_slice_1?host=")
    assert "SLICE_KEY_FILE" not in variables


INSIDE = """
import ctypes, json, os, resource, subprocess, sys
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
mounts = {line.split()[1]: line.split()[3].split(",") for line in open("/proc/mounts")}
def read(*paths):
    for path in paths:
        if os.path.exists(path):
            return open(path).read().split()
def may_write(directory):
    try:
        open(directory + "/probe", "w").close()
        os.unlink(directory + "/probe")
    except OSError:
        return False
    return True
def refused(call):
    code = "import ctypes; l = ctypes.CDLL(None, use_errno=True); r = " + call
    return subprocess.run([sys.executable, "-I", "-c", code + "; raise SystemExit(r != 0)"]).returncode != 0
print(json.dumps({
    "ids": status["Uid"].split() + status["Gid"].split() + status["Groups"].split(),
    "capabilities": {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {0},
    "no_new_privileges": status["NoNewPrivs"] == "1",
    "seccomp": status["Seccomp"] == "2",
    "root": "ro" in mounts["/"],
    "writable": [path for path in ("/", "/app", "/opt", "/etc", "/usr", "/run/postgresql", "/run/secrets", "/tmp",
                                   "/app/media", "/app/.wwebjs_auth") if may_write(path)],
    "tmp": mounts["/tmp"],
    "tmp_bytes": os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize,
    "shm_bytes": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "memory": read("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    "reserved": read("/sys/fs/cgroup/memory.low", "/sys/fs/cgroup/memory/memory.soft_limit_in_bytes"),
    "swap": read("/sys/fs/cgroup/memory.swap.max", "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"),
    "cpu": read("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
    "pids": read("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
    "unified": os.path.exists("/sys/fs/cgroup/memory.max"),
    "own_sandbox": not refused("l.unshare(0x10000000)"),
    "mount": refused("l.mount(b'none', b'/tmp', b'tmpfs', 0, None)"),
    "keyctl": refused("l.syscall(250, 0, 0, 0, 0, 0)"),
}))
"""


async def test_every_wall_and_limit_has_effect_inside(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    await docker_runtime().ensure(specified(2))
    seen = run_inside(client, "wank-slice-2", INSIDE)
    assert set(seen["ids"]) == {"70002"}
    assert seen["capabilities"]
    assert seen["no_new_privileges"]
    assert seen["seccomp"]
    assert seen["root"]
    assert seen["writable"] == ["/tmp", "/app/media", "/app/.wwebjs_auth"]
    assert {"noexec", "nosuid", "nodev"} <= set(seen["tmp"])
    assert seen["tmp_bytes"] == 64 * MB
    assert seen["shm_bytes"] == 256 * MB
    assert seen["open_files"] == [4096, 4096]
    assert seen["memory"] == [str(512 * MB)]
    assert seen["reserved"] == [str(256 * MB)]
    assert seen["swap"] == [str(512 * MB if seen["unified"] else 1024 * MB)]  # the newer kernel counts swap alone
    assert seen["cpu"][0] == "50000"
    assert seen["pids"] == ["512"]
    assert seen["own_sandbox"], "a browser could not build its sandbox"
    assert seen["mount"]
    assert seen["keyctl"]


async def test_what_a_slice_writes_is_its_own_users_and_can_be_handled_all_the_same(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    spec = specified()
    runtime = docker_runtime()
    (spec.directory / "media" / "earlier").write_text("from an older image")
    (spec.directory / "media" / "way_out").symlink_to(spec.directory.parent)
    await runtime.ensure(spec)
    code = "import os; os.umask(0o077); open('/app/.wwebjs_auth/pairing', 'w').write('x' * 50000); print(1)"
    run_inside(client, "wank-slice-1", code)
    written = spec.directory / "session" / "pairing"
    assert written.stat().st_uid == 70001
    assert (spec.directory / "media" / "earlier").stat().st_uid == 70001
    assert (spec.directory / "media" / "way_out").lstat().st_uid == 70001
    assert spec.directory.parent.stat().st_uid == os.getuid(), "a link was followed"
    assert (spec.directory / "session").stat().st_mode & 0o777 == 0o700
    assert (await runtime.measure([spec.directory]))[spec.directory].session >= 50_000
    await runtime.copy(spec.directory, "session", "session.before")
    assert (spec.directory / "session.before" / "pairing").stat().st_uid == 70001
    await runtime.remove(spec.num, spec.uuid)
    await runtime.erase(spec.directory, ["session", "session.before", "media"])
    assert list(spec.directory.iterdir()) == []
    assert names(client) == []


@contextmanager
def foreign(client: docker.APIClient, num: int, labels: dict[str, str]) -> Iterator[str]:
    made = client.create_container(IMAGE, ["sleep", "60"], name=f"wank-slice-{num}", labels=labels)
    client.start(made["Id"])
    before = client.inspect_container(made["Id"])["State"]
    yield made["Id"]
    assert client.inspect_container(made["Id"])["State"] == before


@pytest.mark.parametrize("labels", [{}, {"queunir.slice.uuid": "no uuid"}, {"queunir.slice.uuid": str(uuid4())}])
async def test_a_container_without_the_slices_own_label_is_never_touched(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient, labels: dict[str, str]
) -> None:
    spec, runtime = specified(), docker_runtime()
    with foreign(client, 1, labels) as theirs:
        for deed in (runtime.ensure, runtime.replace):
            with pytest.raises(InstanceConflict):
                await deed(spec)
        await runtime.stop(1, spec.uuid)
        await runtime.remove(1, spec.uuid)
        await runtime.tidy(set())
        found = await runtime.inspect(1)
        assert found is not None
        assert (found.container, found.running) == (theirs, True)
        assert found.uuid != spec.uuid
        assert [instance.num for instance in await runtime.listed()] == [1]
        assert await runtime.logs(1, spec.uuid) == []
    assert (spec.directory / "media").stat().st_uid == os.getuid(), "its files were touched"


async def test_a_network_that_is_not_the_slices_is_never_used_or_removed(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    client.create_network("wank-slice-1", labels={"queunir.slice.uuid": str(uuid4())})
    client.create_network("somebody", ipam=docker.types.IPAMConfig(pool_configs=[{"Subnet": "10.213.0.32/28"}]))
    runtime = docker_runtime()
    for spec in (specified(1), specified(2)):
        with pytest.raises(Refused) as refused:
            await runtime.ensure(spec)
        assert refused.value.code == "conflict"
        await runtime.remove(spec.num, spec.uuid)
    assert names(client) == ["somebody", "wank-slice-1"]


@pytest.mark.parametrize("point", ["files", "network", "created", "started"])
async def test_cut_short_while_starting_the_next_runtime_ends_with_exactly_one(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient, point: str
) -> None:
    def cut(reached: str) -> None:
        if reached == point:
            raise InterruptedError(point)

    spec = specified()
    for _ in range(2):
        with pytest.raises(InterruptedError):
            await docker_runtime(reached=cut).ensure(spec)
        if point in ("created", "started"):
            break  # the second attempt would find it and pass this point no more
    found = await docker_runtime().ensure(spec)
    assert found.running
    assert names(client) == ["wank-slice-1", "wank-slice-1"]  # a container and a network
    await docker_runtime().remove(1, spec.uuid)
    assert names(client) == []


async def test_cut_short_while_replacing_the_next_start_makes_it_whole(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient, other_image: str
) -> None:
    def cut(reached: str) -> None:
        if reached == "replaced":
            raise InterruptedError

    spec = specified()
    await docker_runtime().ensure(spec)
    newer = replace(spec, image=other_image)
    with pytest.raises(InterruptedError):
        await docker_runtime(reached=cut).replace(newer)
    assert (await docker_runtime().replace(newer)).image == other_image
    assert names(client) == ["wank-slice-1", "wank-slice-1"]


async def test_an_image_that_is_missing_is_told_before_anything_is_stopped(
    docker_runtime: RuntimeOn, specified: Specified
) -> None:
    runtime = docker_runtime(settings=DockerSettings(tools_image=IMAGE))
    spec = specified()
    first = await runtime.ensure(spec)
    with pytest.raises(ImageMissing) as refused:
        await runtime.replace(replace(spec, image="no-such:image"))
    assert "no-such:image" in refused.value.reason
    assert await runtime.inspect(1) == first
    with pytest.raises(ImageMissing):
        await runtime.ensure(specified(2, image="no-such:image"))
    assert await runtime.inspect(2) is None
    assert await runtime.image_id("no-such:image") is None


async def test_a_stopped_container_is_made_anew_where_something_else_is_asked_for(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    runtime, spec = docker_runtime(), specified()
    first = await runtime.ensure(spec)
    moved = replace(spec, port=spec.port + 20)
    assert await runtime.ensure(moved) == first, "it runs"
    await runtime.stop(1, spec.uuid)
    second = await runtime.ensure(moved)
    assert second.container != first.container
    bound = client.inspect_container("wank-slice-1")["HostConfig"]["PortBindings"]["3101/tcp"]
    assert bound == [{"HostIp": "127.0.0.1", "HostPort": str(moved.port)}]


async def test_a_slice_without_its_directories_is_not_started(docker_runtime: RuntimeOn, specified: Specified) -> None:
    spec = specified()
    (spec.directory / "session").rmdir()
    with pytest.raises(Refused) as refused:
        await docker_runtime().ensure(spec)
    assert refused.value.code == "no_directory"
    (spec.directory / "session").symlink_to(spec.directory.parent)
    with pytest.raises(Refused):
        await docker_runtime().ensure(spec)


async def test_a_slice_that_ignores_sigterm_is_killed_in_time(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    made = client.create_container(IMAGE)
    client.commit(
        made["Id"], "wank-slice", "deaf", changes="""CMD ["/bin/sh", "-c", "trap '' TERM; sleep 60 & wait; wait"]"""
    )
    client.remove_container(made["Id"])
    spec, runtime = specified(image="wank-slice:deaf"), docker_runtime()
    await runtime.ensure(spec)
    began = trio.current_time()
    await runtime.stop(1, spec.uuid, within=1)
    assert trio.current_time() - began < 4
    found = await runtime.inspect(1)
    assert found is not None
    assert not found.running


async def test_ten_are_started_at_once_and_nothing_is_left_of_them(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient
) -> None:
    runtime = docker_runtime()
    specs = [specified(num) for num in range(1, 11)]
    async with trio.open_nursery() as nursery:
        for spec in specs:
            nursery.start_soon(runtime.ensure, spec)
    assert [(found.num, found.running) for found in await runtime.listed()] == [(num, True) for num in range(1, 11)]
    async with trio.open_nursery() as nursery:
        for spec in specs:
            nursery.start_soon(runtime.remove, spec.num, spec.uuid)
    assert names(client) == []


async def test_what_was_left_behind_is_tidied_away_and_what_is_kept_is_not(
    docker_runtime: RuntimeOn, specified: Specified, client: docker.APIClient, tmp_path: Path
) -> None:
    runtime, kept, gone = docker_runtime(), specified(1), specified(2)
    for spec in (kept, gone):
        await runtime.ensure(spec)
        await runtime.stop(spec.num, spec.uuid)
    client.remove_container("wank-slice-2")  # by hand: its network and its papers are still there
    client.create_network("unrelated")
    await runtime.tidy({kept.uuid})
    assert names(client) == ["unrelated", "wank-slice-1", "wank-slice-1"]
    assert [path.name for path in (tmp_path / "data" / "run").iterdir()] == ["container-1"]


async def test_a_gateway_that_is_nobody_special_does_all_of_this(
    docker_engine: Engine, docker_host: str, specified: Specified, client: docker.APIClient, tmp_path: Path
) -> None:
    spec = specified()
    place = tmp_path
    while place != place.parent:  # pytest's own directories are root's alone
        if place.stat().st_mode & 0o011 != 0o011 and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o011)
        place = place.parent
    (tmp_path / "data").mkdir()
    for path in (tmp_path / "data", *spec.directory.parent.rglob("*"), spec.directory.parent):
        os.chown(path, 65533, 65533)
    orders = {
        "host": docker_host, "group": docker_engine.socket.stat().st_gid, "data": str(tmp_path / "data"),
        "image": IMAGE, "directory": str(spec.directory), "port": spec.port, "url": spec.database_url,
    }  # fmt: skip
    done = await trio.run_process(
        [sys.executable, str(CHILD), json.dumps(orders)], capture_stdout=True, stdin=subprocess.DEVNULL
    )
    told = json.loads(done.stdout)
    assert told["uid"] == 65533
    assert told["groups"] == [orders["group"]]
    assert told["running"]
    assert told["foreign_owner"] == 70001
    assert told["may_read_foreign"] is False
    assert told["measured"] >= 50_000
    assert told["archived"] == ["session/pairing"]
    assert told["left"] == []
    assert names(client) == []


async def test_after_a_restart_of_docker_everything_is_found_as_it_was(
    docker_runtime: RuntimeOn, docker_engine: Engine, specified: Specified, client: docker.APIClient
) -> None:
    runtime, running, stopped = docker_runtime(), specified(1), specified(2)
    first = await runtime.ensure(running)
    await runtime.ensure(stopped)
    await runtime.stop(2, stopped.uuid)
    was = await runtime.listed()
    unavailable = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, docker_engine.restart)
        with trio.fail_after(30):
            while True:
                try:
                    found = await runtime.listed()
                except RuntimeUnavailable:
                    unavailable += 1
                else:
                    if unavailable and found == was:
                        break
                await trio.sleep(0.02)
    assert await runtime.ensure(running) == first, "the same container on the same port"
    bound = client.inspect_container("wank-slice-1")["NetworkSettings"]["Ports"]["3101/tcp"]
    assert bound == [{"HostIp": "127.0.0.1", "HostPort": str(running.port)}]


async def test_a_daemon_that_is_not_there_is_unavailable_at_once(
    docker_runtime: RuntimeOn, specified: Specified, tmp_path: Path
) -> None:
    runtime = docker_runtime(host=f"unix://{tmp_path}/none.sock")
    for ask in (lambda: runtime.ensure(specified()), runtime.listed, lambda: runtime.image_id(IMAGE)):
        with trio.fail_after(2), pytest.raises(RuntimeUnavailable, match="No such file"):
            await ask()
