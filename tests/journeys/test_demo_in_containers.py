"""The demonstration with its slices in containers of a real engine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import trio

from tests.docker_engine import Engine
from tests.docker_image import IMAGE


def begin(data: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "queunir_trio", "demo", "--slices", "docker", "--port", "0", "--data", str(data)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


async def test_a_demo_in_containers_serves_and_leaves_nothing_running(
    docker_host: str, docker_engine: Engine, tmp_path: Path, free_base_port: int
) -> None:
    environment = {**os.environ, "SLICE_BASE_PORT": str(free_base_port), "DOCKER_HOST": docker_host}
    with begin(tmp_path / "demo", {**environment, "SLICE_IMAGE": IMAGE}) as process:
        try:
            told = tmp_path / "demo" / "demo.json"
            with trio.fail_after(60):
                while not told.exists():
                    assert process.poll() is None, process.communicate()[0]
                    await trio.sleep(0.05)
            url = json.loads(told.read_text())["url"]
            async with httpx.AsyncClient(base_url=url) as client:
                account = {"email": "ana@example.com", "password": "correct horse"}
                answer = await client.post("/auth/register", json=account)
                assert answer.status_code == 201, answer.text
                assert answer.json()["slice"]["num"] == 1
                assert (await client.get("/api/contacts")).status_code == 200
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(40):
                assert await trio.to_thread.run_sync(process.wait) == 0
        finally:
            process.kill()
    with docker_engine.client() as engine:
        found = engine.containers(all=True)
    assert {name for entry in found for name in entry["Names"]} >= {"/wank-slice-1"}
    assert {entry["State"] for entry in found} == {"exited"}
