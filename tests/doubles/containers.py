"""A place for deeds on slices whose slices are containers on a real Docker engine, and a way to see what is on it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.outside.runtimes.docker_client import Daemon
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store.bridge import Database
from tests.docker_engine import Engine
from tests.docker_image import IMAGE
from tests.doubles.premises import Premises, open_premises


@asynccontextmanager
async def open_docker_premises(
    database: Database, where: DatabaseSettings, data_dir: Path, base_port: int, host: str
) -> AsyncIterator[Premises]:
    """Premises on the engine at `host`, with no slice kept warm; all is gone at the end."""
    daemon = Daemon(host)
    try:
        async with open_premises(database, where, data_dir, base_port, warm_pool_min=0) as made:
            settings = replace(made.resources.settings, runtime="docker", image=IMAGE)
            runtime = DockerRuntime(daemon, data_dir, IMAGE)
            place = replace(made, resources=replace(made.resources, runtime=runtime, settings=settings))
            yield place
            await place.clear()
    finally:
        daemon.close()


def on_engine(engine: Engine, data_dir: Path) -> dict[str, list[str]]:
    """The names of all that there is on an engine and beside it for containers, running or not."""
    with engine.client() as client:
        containers = [container["Names"][0].strip("/") for container in client.containers(all=True)]
        networks = {network["Name"] for network in client.networks()} - {"bridge", "host", "none"}
        volumes = [volume["Name"] for volume in client.volumes()["Volumes"] or []]
    papers = [path.name for path in (data_dir / "run").glob("*")]
    found = {"containers": containers, "networks": networks, "volumes": volumes, "papers": papers}
    return {kind: sorted(names) for kind, names in found.items()}


def of_slices(*nums: int) -> dict[str, list[str]]:
    """What `on_engine` finds where these slices are whole and nothing else is there."""
    names = sorted(f"wank-slice-{num}" for num in nums)
    papers = sorted(f"container-{num}" for num in nums)
    return {"containers": names, "networks": names, "volumes": [], "papers": papers}
