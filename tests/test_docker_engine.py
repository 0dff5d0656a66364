"""The engine that tests run on ends with them, however they end."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

HARNESS = """
import json, sys, time
from tests import docker_engine
from tests.docker_image import IMAGE, load
docker_engine.enter_own_network()
with docker_engine.temporary_engine() as engine:
    load(engine)
    with engine.client() as client:
        made = client.create_container(IMAGE, ["sleep", "600"])
        client.start(made["Id"])
    print(json.dumps({"engine": engine.pid(), "directory": str(engine.directory)}), flush=True)
    time.sleep(600)
"""


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(inner for child in children for inner in descendants(child))]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.needs("docker")
def test_nothing_of_it_outlives_a_test_run_that_is_killed() -> None:
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", HARNESS], cwd=root, stdout=subprocess.PIPE) as harness:
        try:
            assert harness.stdout is not None
            told = json.loads(harness.stdout.readline())
            deadline, names = time.monotonic() + 10, set[str]()
            while not names >= {"dockerd", "containerd", "sleep"}:
                assert time.monotonic() < deadline, names
                started = descendants(harness.pid)
                names = {name_of(pid) for pid in started}
        finally:
            harness.kill()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert told["directory"] not in Path("/proc/mounts").read_text()
    shutil.rmtree(told["directory"])  # which the next run would do, but not at once
