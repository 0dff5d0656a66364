"""The app's door: its server kept running, and the one upstream by which the front reaches it."""

from pathlib import Path
from typing import Any

import trio

from queunir_trio.live.supervision import Backoff, keep_running
from queunir_trio.outside.upstream import app_upstream
from queunir_trio.web.server import serve_app


class AppDoor:
    """Runs the app's server again whenever it dies. Its socket has another path each time; the upstream follows."""

    def __init__(self, app: Any, directory: Path) -> None:
        self._app = app
        self._directory = directory
        self._path: Path | None = None
        self._ready = trio.Event()
        self._stop = trio.Event()
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        self.upstream = app_upstream(lambda: self._path)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until it is closed or cancelled; started when the app answers for the first time."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                backoff = Backoff(first=0.05, most=2.0, healthy_after=10.0)
                nursery.start_soon(keep_running, "app", self._session, backoff)
                await self._ready.wait()
                task_status.started()

    async def close(self) -> None:
        """Ends the server; its only client, who has no request under way any more, closes first."""
        self.upstream.close_idle(float("inf"))
        self._stop.set()
        await self._ended.wait()
        self._scope.cancel()

    async def _session(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._path = await nursery.start(serve_app, self._app, self._directory, self._stop)
                self._ready.set()
        finally:
            self._path = None
        if self._stop.is_set():
            self._ended.set()
            await trio.sleep_forever()
