"""What tests ask for that need a real Docker engine: one for each worker, in a network that belongs to the worker.

Where there is no engine such tests are skipped with the reason; in CI they fail.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.outside.runtimes.docker_client import Daemon
from tests.docker_engine import Engine, absent, enter_own_network, temporary_engine
from tests.docker_image import IMAGE, load

OTHER_IMAGE = "wank-slice:newer"

RuntimeOn = Callable[..., DockerRuntime]


def needs_engine(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("needs")
    return "docker_engine" in getattr(item, "fixturenames", ()) or (mark is not None and "docker" in mark.args)


def pytest_itemcollected(item: pytest.Item) -> None:
    if needs_engine(item):
        item.add_marker(pytest.mark.exhaustive)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before the first test and so before any thread or server of this process: what these tests start, they reach."""
    needing = [item for item in items if needs_engine(item)]
    reason = absent()
    if needing and reason is None:
        enter_own_network()
    elif os.environ.get("CI") != "true":
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=f"no Docker engine: {reason}"))


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """A running engine that has the image of a slice."""
    reason = absent()
    assert reason is None, reason
    with temporary_engine() as engine:
        load(engine)
        yield engine


@pytest.fixture(scope="session")
def other_image(docker_engine: Engine) -> str:
    """The name of a newer image of the same slice."""
    with docker_engine.client() as client:
        made = client.create_container(IMAGE)
        client.commit(made["Id"], *OTHER_IMAGE.split(":"), changes="LABEL newer=yes")
        client.remove_container(made["Id"])
    return OTHER_IMAGE


@pytest.fixture
def docker_host(docker_engine: Engine) -> Iterator[str]:
    """The engine's address; whatever is left on it after the test is removed."""
    yield docker_engine.host
    with docker_engine.client() as client:
        for container in client.containers(all=True):
            client.remove_container(container["Id"], v=True, force=True)
        for network in client.networks():
            if network["Name"] not in ("bridge", "host", "none"):
                client.remove_network(network["Id"])


@pytest.fixture
def docker_runtime(docker_host: str, tmp_path: Path) -> Iterator[RuntimeOn]:
    """Makes runtimes on the engine, or on another `host`."""
    daemons: list[Daemon] = []

    def make(host: str = docker_host, patience: float = 1.0, **options: object) -> DockerRuntime:
        daemons.append(Daemon(host, patience=patience))
        return DockerRuntime(daemons[-1], tmp_path / "data", IMAGE, **options)  # type: ignore[arg-type]

    yield make
    for daemon in daemons:
        daemon.close()
