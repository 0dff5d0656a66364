"""Where gateways live that kill themselves: premises with slices as processes, and with slices as containers."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Database
from tests.docker_engine import Engine
from tests.docker_image import IMAGE
from tests.doubles.containers import open_docker_premises
from tests.doubles.premises import Premises, open_premises
from tests.operations.lifecycle_child import SECRET, Forge, Life

ALIEN_IMAGE = "wank-slice:alien"


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    made = Forge(tmp_path_factory.mktemp("lives") / "log")
    yield made
    made.close()


@pytest.fixture
def process_life(database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int) -> Life:
    return Life(asdict(database_settings), str(tmp_path), free_base_port)


@pytest.fixture
async def process_place(
    database: Database, database_settings: DatabaseSettings, process_life: Life
) -> AsyncIterator[Premises]:
    """Where children live; here we only look."""
    data_dir, base_port = Path(process_life.data_dir), process_life.base_port
    async with open_premises(database, database_settings, data_dir, base_port, warm_pool_min=0) as made:
        settings = replace(made.resources.settings, secret=SECRET)
        yield replace(made, resources=replace(made.resources, settings=settings))


@pytest.fixture
def docker_life(database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int, docker_host: str) -> Life:
    where = asdict(database_settings)
    return Life(where, str(tmp_path / "data"), free_base_port, docker_host=docker_host, image=IMAGE)


@pytest.fixture
async def docker_place(
    database: Database, database_settings: DatabaseSettings, docker_life: Life
) -> AsyncIterator[Premises]:
    """As `process_place`, with containers."""
    host, data_dir = docker_life.docker_host or "", Path(docker_life.data_dir)
    async with open_docker_premises(database, database_settings, data_dir, docker_life.base_port, host) as made:
        settings = replace(made.resources.settings, secret=SECRET)
        yield replace(made, resources=replace(made.resources, settings=settings))


@pytest.fixture(scope="session")
def alien_image(docker_engine: Engine) -> str:
    """The name of an image whose slices are well and call themselves by another's id: they can not be made."""
    with docker_engine.client() as client:
        command = client.inspect_image(IMAGE)["Config"]["Cmd"]
        made = client.create_container(IMAGE, command=["/usr/bin/env", "SLICE_ID=another", *command])
        client.commit(made["Id"], *ALIEN_IMAGE.split(":"))
        client.remove_container(made["Id"])
    return ALIEN_IMAGE
