"""A gateway's work on a slice as a user who may use Docker's socket and is nobody else: run with its orders as JSON.

Everything is imported first, for the directory of this interpreter may be closed to such a user.
"""

import json
import os
import sys
import tarfile
from contextlib import aclosing
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).parents[2]))

import encodings.ascii
import encodings.idna  # noqa: F401
import http.client  # noqa: F401  used by the SDK later

import trio

from queunir_trio.outside.runtimes.contract import InstanceSpec
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.outside.runtimes.docker_client import Daemon

USER = 65533


async def work(orders: dict[str, Any]) -> dict[str, Any]:
    daemon, directory = Daemon(orders["host"]), Path(orders["directory"])
    runtime = DockerRuntime(daemon, Path(orders["data"]), orders["image"])
    spec = InstanceSpec(
        1, 101, uuid4(), "127.0.0.1", orders["port"], directory, orders["image"], orders["url"], "k" * 64, True
    )
    (directory / "session" / "pairing").write_bytes(b"x" * 50_000)
    found = await runtime.ensure(spec)
    told = {"uid": os.getuid(), "groups": os.getgroups(), "running": found.running}
    told["foreign_owner"] = (directory / "session").stat().st_uid
    told["may_read_foreign"] = os.access(directory / "session", os.R_OK)
    told["measured"] = (await runtime.measure([directory]))[directory].session
    async with aclosing(runtime.archive(directory, "session")) as pieces:
        data = b"".join([piece async for piece in pieces])
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        told["archived"] = [member.name for member in tar if member.isreg()]
    await runtime.remove(1, spec.uuid)
    await runtime.erase(directory)
    told["left"] = os.listdir(directory)
    daemon.close()
    return told


if __name__ == "__main__":
    orders = json.loads(sys.argv[1])
    os.setgroups([orders["group"]])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    print(json.dumps(trio.run(work, orders)))
