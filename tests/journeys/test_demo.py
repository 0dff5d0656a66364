"""The demonstration as a newcomer starts and ends it, and what the command says when something is wrong."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio

from queunir_trio.settings import DatabaseSettings
from tests.journeys.browser import Browser

READY_WITHIN = 60.0  # seconds
ENDED_WITHIN = 30.0
COMMAND = [sys.executable, "-m", "queunir_trio"]


class Demo:
    """A demonstration on one directory, started as often as one likes."""

    def __init__(self, data: Path, base_port: int) -> None:
        self.data = data
        self.port = base_port + 98
        self.environment = {**os.environ, "SLICE_BASE_PORT": str(base_port)}
        self.process: subprocess.Popen[str] | None = None

    def begin(self) -> subprocess.Popen[str]:
        arguments = ["demo", "--data", str(self.data), "--port", str(self.port)]
        return subprocess.Popen(
            [*COMMAND, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    async def start(self) -> dict[str, Any]:
        """Starts it; what it writes down about itself when it is ready."""
        self.process = self.begin()
        told = self.data / "demo.json"
        with trio.fail_after(READY_WITHIN):
            while not told.exists():
                assert self.process.poll() is None, self.process.communicate()[0]
                await trio.sleep(0.05)
        assert stat.S_IMODE(told.stat().st_mode) == 0o600
        return dict(json.loads(told.read_text()))

    async def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        with trio.fail_after(ENDED_WITHIN):
            code = await trio.to_thread.run_sync(self.process.wait)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def left(self) -> list[str]:
        """The processes that still work on this directory."""
        return [" ".join(process.cmdline()) for process in self.processes()]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), *process.environ().values()]
            except psutil.Error:
                continue
            if process.pid != os.getpid() and any(str(self.data) in word for word in words):
                found.append(process)
        return found


@pytest.fixture
def demo(tmp_path: Path, free_base_port: int) -> Iterator[Demo]:
    made = Demo(tmp_path / "demo", free_base_port)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
    for process in made.processes():  # what a demonstration that was killed leaves is ours to end
        process.kill()
    if made.process is not None and made.process.stdout is not None:
        made.process.stdout.close()


async def test_it_ends_without_a_trace_and_goes_on_with_the_same_data(demo: Demo) -> None:
    told = await demo.start()
    assert set(told) == {"url", "admin", "admin_key", "database_url", "mail_dir", "pid"}
    browser = Browser(told["url"])
    async with browser.client:
        registered = await browser.register("ana@example.com")
        assert registered["slice"]["status"] == "assigned"
        forgot = await browser.client.post("/auth/forgot-password", json={"email": "ana@example.com"})
        assert forgot.status_code == 202
        with trio.fail_after(20):
            while not os.listdir(told["mail_dir"]):
                await trio.sleep(0.05)
    assert await demo.end(signal.SIGINT) == 0
    assert demo.left() == []
    assert not (demo.data / "demo.json").exists()

    again = await demo.start()
    assert again["admin"] == told["admin"]
    browser = Browser(again["url"])
    async with browser.client:
        assert (await browser.login("ana@example.com")).status_code == 200
        me = await browser.me()
        assert me["slice"]["id"] == registered["slice"]["id"]
        with trio.fail_after(20):
            while (await browser.client.get("/api/health")).status_code != 200:
                await trio.sleep(0.05)
        admin = Browser(again["url"])
        async with admin.client:
            logged_in = await admin.login(again["admin"]["email"], again["admin"]["password"])
            assert logged_in.json()["user"]["is_admin"] is True
    assert await demo.end(signal.SIGTERM) == 0
    assert demo.left() == []


async def test_a_second_one_on_the_same_data_is_refused_with_a_sentence(demo: Demo) -> None:
    await demo.start()
    second = demo.begin()
    with trio.fail_after(ENDED_WITHIN):
        output, _ = await trio.to_thread.run_sync(second.communicate)
    assert second.returncode == 1
    assert "Another demo runs on" in output
    assert "Traceback" not in output
    assert await demo.end(signal.SIGTERM) == 0


async def test_one_that_was_killed_is_followed_by_one_that_works(demo: Demo) -> None:
    await demo.start()
    await demo.end(signal.SIGKILL)
    (demo.data / "demo.json").unlink()
    told = await demo.start()
    async with httpx.AsyncClient(base_url=told["url"], trust_env=False) as client:
        assert (await client.get("/health")).json()["status"] == "ok"
    assert await demo.end(signal.SIGTERM) == 0
    assert demo.left() == []


async def test_a_port_that_is_taken_is_a_sentence(demo: Demo) -> None:
    with socket.create_server(("127.0.0.1", demo.port)):
        process = demo.begin()
        with trio.fail_after(READY_WITHIN):
            output, _ = await trio.to_thread.run_sync(process.communicate)
    assert process.returncode == 2
    assert f"Port {demo.port} on 127.0.0.1 can not be had" in output
    assert demo.left() == []


@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_a_port_that_is_none_is_a_fault_of_the_option_that_named_it(port: str) -> None:
    done = run("demo", "--port", port)
    assert done.returncode == 2
    assert "--port" in done.stdout + done.stderr
    assert "PORT" not in done.stdout + done.stderr


def test_a_password_that_is_wrong_ends_the_service_at_once(database_settings: DatabaseSettings) -> None:
    where = replace(database_settings, password="wrong")
    began = time.monotonic()
    done = run(
        "serve",
        ADMIN_KEY="k" * 32,
        SLICE_DB_PASSWORD="x",
        SLICE_RUNTIME="process",
        DB_HOST=where.host,
        DB_PORT=str(where.port),
        DB_NAME=where.name,
        DB_USER=where.user,
        DB_PASSWORD=where.password,
        DB_ADMIN_USER=where.admin_user,
        DB_ADMIN_PASSWORD=where.admin_password,
    )
    assert done.returncode == 2
    assert time.monotonic() - began < 30
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("queunir-trio: ")]
    assert "check DB_USER and DB_PASSWORD." in line


async def test_a_service_that_waits_for_its_database_can_be_stopped() -> None:
    environment = {"PATH": os.environ["PATH"], "ADMIN_KEY": "k" * 32, "SLICE_DB_PASSWORD": "x", "DB_HOST": "/nowhere"}
    environment["SLICE_RUNTIME"] = "process"
    process = begin_serve(environment)
    with trio.fail_after(READY_WITHIN):
        assert process.stderr is not None
        while "database_awaited" not in (line := await trio.to_thread.run_sync(process.stderr.readline)):
            pass
        assert "DB_HOST" in line
        process.send_signal(signal.SIGTERM)
        await trio.to_thread.run_sync(process.communicate)
    assert process.returncode == 0


def begin_serve(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, "serve"], env=environment, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run([*COMMAND, *arguments], env=known, capture_output=True, text=True, timeout=60)


def test_serve_without_settings_says_one_line_for_each_and_exits_with_2() -> None:
    done = run("serve")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert [line.split()[1] for line in lines] == ["ADMIN_KEY", "SLICE_DB_PASSWORD"]


def test_what_is_not_there_yet_is_refused_and_not_ignored() -> None:
    assert run("demo", "--billing").returncode == 1


def test_a_demo_in_containers_without_docker_says_one_line(tmp_path: Path) -> None:
    refused = run("demo", "--data", str(tmp_path), "--slices", "docker", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "DOCKER_HOST" in refused.stderr


def test_a_database_that_can_not_be_reached_is_a_sentence() -> None:
    environment = {"ADMIN_KEY": "k" * 32, "SLICE_DB_PASSWORD": "x", "DB_HOST": "/nowhere"}
    done = run("migrate", "--check", **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("queunir-trio: ")
    assert "check DB_HOST and DB_PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("demo", "--help"), ("migrate", "--help")])
def test_every_command_explains_itself(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_the_demo_says_what_its_options_need() -> None:
    said = " ".join(run("demo", "--help").stdout.replace("│", " ").split())
    assert "process needs nothing more." in said
    assert "docker needs a Docker daemon" in said
    assert "--billing" in said
