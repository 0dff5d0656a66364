"""Hypercorn on a Unix socket, with the front as its only client.

The front sends whole requests and reads answers promptly; what Hypercorn makes of anything else is not to be relied
on. A fault in one connection may end the server: its caller runs it again.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import hypercorn.trio
import structlog
import trio
from hypercorn.config import Config

from queunir_trio.errors import Misconfigured

PATH_AT_MOST: Final = 107  # bytes of a Unix socket's path
SOCKET_NAME: Final = "app.sock"
GRACE: Final = 2.0  # seconds for answers under way once it is to stop
STARTED_WITHIN: Final = 10.0  # seconds

log = structlog.get_logger()


async def serve_app(
    app: Any, directory: Path, stop: trio.Event, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serves an ASGI application below `directory` until `stop` is set; reports the socket's path once it listens.

    The socket lies in a directory of its own, which nobody else may enter and which is gone afterwards. Where the path
    would be too long for a socket it is made in the system's directory for temporary files instead.
    """
    with _private_directory(directory) as private:
        socket = private / SOCKET_NAME
        async with trio.open_nursery() as nursery:
            serve = partial(
                hypercorn.trio.serve,
                cast(Any, app),
                _config(socket),
                shutdown_trigger=stop.wait,
                mode="asgi",
            )
            with trio.fail_after(STARTED_WITHIN + 5):
                await nursery.start(serve)
            task_status.started(socket)


def _config(socket: Path) -> Config:
    config = Config()
    config.bind = [f"unix:{socket}"]
    config.graceful_timeout = GRACE
    config.startup_timeout = STARTED_WITHIN
    config.shutdown_timeout = STARTED_WITHIN
    # connections are the front's to close: an hour, and as many requests as it likes
    config.keep_alive_timeout = 3600
    config.keep_alive_max_requests = 10**9
    config.backlog = 2048
    config.h11_max_incomplete_size = 65536
    config.accesslog = None
    config.errorlog = _server_log()
    config.include_server_header = False
    return config


def _server_log() -> logging.Logger:
    logger = logging.getLogger("queunir_trio.web.hypercorn")
    logger.setLevel(logging.WARNING)
    return logger


@contextmanager
def _private_directory(directory: Path) -> Iterator[Path]:
    """A new directory that only we may enter, short enough for a socket's path, removed at the end."""
    with _made(directory) as private:
        if len(os.fsencode(private / SOCKET_NAME)) > PATH_AT_MOST:
            raise Misconfigured([f"{private} is too long for a socket: set TMPDIR to a shorter directory."])
        yield private


@contextmanager
def _made(directory: Path) -> Iterator[Path]:
    prefix = f"app-{os.getpid()}-"
    longest = directory / f"{prefix}12345678" / SOCKET_NAME
    if len(os.fsencode(longest)) > PATH_AT_MOST:
        directory = Path(tempfile.gettempdir())
    else:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(directory)
    private = Path(tempfile.mkdtemp(prefix=prefix, dir=directory))
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Removes what processes that were killed left behind."""
    for left in directory.glob("app-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            log.info("stale_socket_removed", path=str(left))
            shutil.rmtree(left, ignore_errors=True)
