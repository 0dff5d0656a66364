"""Which home slices get by the settings, and what is said where they can have none at the moment."""

from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from queunir_trio.errors import Misconfigured
from queunir_trio.outside.runtimes.choice import open_runtime
from queunir_trio.outside.runtimes.contract import RuntimeUnavailable
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.outside.runtimes.process import ProcessRuntime
from queunir_trio.settings import Settings, read_settings
from tests.docker_image import IMAGE


def settings(data_dir: Path, **environment: str) -> Settings:
    needed = {"ADMIN_KEY": "k" * 32, "SLICE_DB_PASSWORD": "s" * 32, "DATA_DIR": str(data_dir)}
    return read_settings({**needed, **environment})


async def test_processes_need_nothing(tmp_path: Path) -> None:
    async with open_runtime(settings(tmp_path, SLICE_RUNTIME="process"), must_work=True) as runtime:
        assert isinstance(runtime, ProcessRuntime)


async def test_a_service_goes_on_without_docker_and_says_so_in_one_line(tmp_path: Path) -> None:
    chosen = settings(tmp_path, SLICE_RUNTIME="docker", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    with structlog.testing.capture_logs() as said:
        async with open_runtime(chosen) as runtime:
            assert isinstance(runtime, DockerRuntime)
            with pytest.raises(RuntimeUnavailable):
                await runtime.listed()
    (line,) = said
    assert line["event"] == "slices_can_not_start"
    assert "DOCKER_HOST" in line["reason"]
    assert "\n" not in line["reason"]


async def test_a_demonstration_does_not_begin_without_docker(tmp_path: Path) -> None:
    chosen = settings(tmp_path, SLICE_RUNTIME="docker", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    with pytest.raises(Misconfigured) as refused:
        async with open_runtime(chosen, must_work=True):
            raise AssertionError("it began")
    (line,) = refused.value.faults
    assert "none.sock" in line


async def test_a_missing_image_is_told_by_its_name(tmp_path: Path, docker_host: str) -> None:
    chosen = settings(tmp_path, SLICE_RUNTIME="docker", DOCKER_HOST=docker_host, SLICE_IMAGE="no-such:image")
    with pytest.raises(Misconfigured) as refused:
        async with open_runtime(chosen, must_work=True):
            raise AssertionError("it began")
    assert "no-such:image" in refused.value.faults[0]
    there = replace(chosen, slices=replace(chosen.slices, image=IMAGE))
    with structlog.testing.capture_logs() as said:
        async with open_runtime(there, must_work=True) as runtime:
            assert await runtime.listed() == []
    assert said == []
