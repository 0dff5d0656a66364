"""What a slice can reach from inside its container: its own database and the public internet, and nothing else.

All of it happens in networks that the test makes: the machine's part is played by the network of this process, and
its neighbours, private and public, by another one behind it.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from queunir_trio.operations import destruction, provisioning
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import Database
from tests.docker_engine import Engine
from tests.docker_image import IMAGE
from tests.doubles.premises import open_premises

FIREWALL = Path(__file__).parents[3] / "deploy" / "firewall" / "slices"
PUBLIC = "203.0.113.5"
NEIGHBOURS = ("10.99.0.5", "172.20.0.5", "192.168.77.5", "100.64.0.5", "169.254.169.254")

RuntimeOn = Callable[..., DockerRuntime]

NEIGHBOUR = """
import socket, sys
sys.stdin.readline()
listening = socket.create_server(("0.0.0.0", 8080), backlog=50)
print("ready", flush=True)
while True:
    listening.accept()[0].close()
"""

# tries every address at once; says which of them answered
PROBE = """
import json, socket, sys, threading
reached = []
def attempt(host, port):
    try:
        socket.create_connection((host, port), timeout=1.5).close()
    except OSError:
        return
    reached.append(f"{host}:{port}")
threads = [threading.Thread(target=attempt, args=target) for target in json.loads(sys.argv[1])]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(sorted(reached)))
"""

DATABASES = """
import asyncio, asyncpg, json, os, sys
own = open(os.environ["DATABASE_URL_FILE"]).read()
async def reached(url):
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except (OSError, asyncpg.PostgresError) as error:
        return type(error).__name__
    try:
        return await connection.fetchval("select current_database()")
    finally:
        await connection.close()
async def main():
    found = {name: await reached(own.replace("/wa_slice_1?", f"/{name}?")) for name in json.loads(sys.argv[1])}
    print(json.dumps(found))
asyncio.run(main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def firewall(order: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "RESOLVERS": ""}
    return subprocess.run([FIREWALL, order], env=environment, capture_output=True, text=True)


def rules() -> str:
    program = shutil.which("iptables", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    return subprocess.run([program, "-S"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def neighbours() -> Iterator[None]:
    """Machines beside this one: all their addresses in one network behind a pair of interfaces."""
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-I", "-S", "-c", NEIGHBOUR],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _await_other_network(process.pid)
        ip("link", "add", "outside", "type", "veth", "peer", "name", "inner", "netns", str(process.pid))
        ip("link", "set", "outside", "up")
        there = ["nsenter", "-t", str(process.pid), "-n", "ip"]
        for address in (*NEIGHBOURS, PUBLIC):
            near = address.rpartition(".")[0] + ".1"
            ip("addr", "add", f"{near}/24", "dev", "outside")
            subprocess.run([*there, "addr", "add", f"{address}/24", "dev", "inner"], check=True)
        subprocess.run([*there, "link", "set", "inner", "up"], check=True)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        firewall("remove")


def _await_other_network(pid: int) -> None:
    mine = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pid}/ns/net") == mine:
        os.sched_yield()


@contextlib.contextmanager
def listening(*addresses: tuple[str, int]) -> Iterator[None]:
    """The machine's own services: PostgreSQL's port, the gateway's."""
    with contextlib.ExitStack() as stack:
        for address in addresses:
            stack.enter_context(socket.create_server(address, backlog=50))
        yield


@dataclass
class Place:
    """Two slices in containers, made as the gateway makes them."""

    resources: Resources
    engine: Engine
    base_port: int

    def run(self, code: str, argument: Any) -> Any:
        """What a piece of Python prints in the first slice's container."""
        with self.engine.client() as client:
            command = ["/opt/slice/venv/bin/python", "-I", "-c", code, json.dumps(argument)]
            made = client.exec_create("wank-slice-1", command)
            printed = client.exec_start(made["Id"]).decode()
            assert client.exec_inspect(made["Id"])["ExitCode"] == 0, printed
            return json.loads(printed)


@pytest.fixture
async def place(
    docker_runtime: RuntimeOn,
    docker_engine: Engine,
    database: Database,
    database_settings: DatabaseSettings,
    free_base_port: int,
    tmp_path: Path,
) -> AsyncIterator[Place]:
    runtime = docker_runtime()
    async with open_premises(database, database_settings, tmp_path / "data", free_base_port) as premises:
        settings = replace(premises.resources.settings, runtime="docker", image=IMAGE)
        resources = replace(premises.resources, runtime=runtime, settings=settings)
        yield Place(resources, docker_engine, free_base_port)


async def test_a_slice_is_made_in_a_container_and_destroyed_without_a_trace(place: Place, tmp_path: Path) -> None:
    made = await provisioning.reserve(place.resources)
    await provisioning.provision(place.resources, made)
    (row,) = await slices.listed(place.resources.db)
    assert row.status == "available"
    assert row.image == IMAGE
    await place.resources.control.state(place.resources.address(row))
    assert (tmp_path / "data" / "slices" / "1" / "session").stat().st_uid == 70001
    await destruction.request(place.resources.db, row.id)
    (row,) = await slices.listed(place.resources.db)
    await destruction.destroy(place.resources, row)
    assert await slices.listed(place.resources.db) == []
    assert await place.resources.runtime.listed() == []
    assert list((tmp_path / "data" / "slices").iterdir()) == []
    assert list((tmp_path / "data" / "run").iterdir()) == []
    with place.engine.client() as client:
        assert client.containers(all=True) == []
        assert [entry["Name"] for entry in client.networks() if entry["Name"].startswith("wank")] == []


async def test_from_inside_nothing_answers_but_the_own_database_and_the_public_internet(
    place: Place, neighbours: None
) -> None:
    for _ in range(2):
        await provisioning.provision(place.resources, await provisioning.reserve(place.resources))
    with place.engine.client() as client:
        other = client.inspect_container("wank-slice-2")["NetworkSettings"]["Networks"]["wank-slice-2"]["IPAddress"]
    machine = ("127.0.0.1", "10.213.0.17", "10.213.0.33", "172.17.0.1", "10.99.0.1")  # loopback, bridges, interfaces
    services = (5432, 3000, 2375)
    targets = [(address, port) for address in machine for port in services]
    targets += [(address, 8080) for address in (*NEIGHBOURS, PUBLIC)]
    targets += [(other, 3101), ("10.213.0.17", place.base_port + 2), ("127.0.0.1", place.base_port + 2)]
    with listening(*(("0.0.0.0", port) for port in services)):
        before = await trio.to_thread.run_sync(place.run, PROBE, targets)
        assert {"10.213.0.17:5432", "10.213.0.17:3000", "10.99.0.5:8080", f"{PUBLIC}:8080"} <= set(before), before
        for _ in range(2):
            applied = firewall("apply")
            assert applied.returncode == 0, applied.stderr
        assert rules().count("-j QUEUNIR-HOST") == 2, "applied twice it is there once"
        assert firewall("check").returncode == 0
        after = await trio.to_thread.run_sync(place.run, PROBE, targets)
        assert after == [f"{PUBLIC}:8080"]
    for row in await slices.listed(place.resources.db):  # the gateway still reaches both
        await place.resources.control.state(place.resources.address(row))
    seen = await trio.to_thread.run_sync(place.run, DATABASES, ["wa_slice_1", "wa_slice_2", "postgres", "wank_saas"])
    assert seen.pop("wa_slice_1") == "wa_slice_1"
    assert set(seen.values()) <= {"InvalidAuthorizationSpecificationError", "InvalidCatalogNameError"}, seen
    look = "import json, pathlib; print(json.dumps([str(p) for p in pathlib.Path('/').glob('**/docker*.sock')]))"
    assert await trio.to_thread.run_sync(place.run, look, None) == []
    assert firewall("remove").returncode == 0
    assert firewall("check").returncode == 1
    assert "QUEUNIR" not in rules()
