"""A gateway that leads until a rollout is over, and ends with SIGKILL at a named point before that.

As a program it imports everything once and then, for each line of JSON on its input, forks a child that leads. The
answer is the child's exit status.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from queunir_trio.live import attempts, jobs, reconciler
from queunir_trio.live.jobs import Jobs
from queunir_trio.live.leader import Leader
from queunir_trio.live.reconciler import Reconciler
from queunir_trio.live.rollouts import Rollouts
from queunir_trio.live.supervision import Backoff, keep_running
from queunir_trio.operations import starting, steps
from queunir_trio.operations.rollout import Limits
from queunir_trio.operations.steps import Resources
from queunir_trio.outside.runtimes.process import ProcessRuntime
from queunir_trio.outside.slice_control import open_slice_control
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store import leadership, rollouts
from queunir_trio.store.bridge import asyncio_loop, open_database
from tests.doubles.premises import STUB, stub_command

ROOT = Path(__file__).parent.parent.parent
LIVED_WITHIN = 30.0  # seconds
SCRIBBLES = (
    "import os, pathlib, runpy, sys\n"
    "pathlib.Path(os.environ['SESSION_DIR'], 'scribble').write_text('by the new image')\n"
    f"sys.argv = ['stub', *sys.argv[1:]]\nrunpy.run_path({str(STUB)!r}, run_name='__main__')"
)
IMAGES = {
    "good": stub_command("--child"),
    "sick": (sys.executable, "-I", "-c", SCRIBBLES, "--sick"),
}


@dataclass(frozen=True)
class Life:
    """One child's task."""

    where: dict[str, Any]
    data_dir: str
    base_port: int
    secret: str
    rollout: int
    killed_at: str | None = None
    record_to: str | None = None


def runtime_of(data_dir: Path, reached: Any = lambda point: None) -> ProcessRuntime:
    return ProcessRuntime(data_dir, command=stub_command(), images=IMAGES, reached=reached)


def live(life: Life) -> None:
    """Everything a child does; it returns when the rollout is over."""
    reconciler.LOOK_EVERY = 0.02
    reconciler.PASSES_APART = 0.005
    attempts.FIRST_PAUSE = 0.01
    jobs.LOOKED_EVERY = 0.05
    steps.ORDERED_AGAIN_AFTER = 0.01
    starting.FIRST_ASKED_AFTER = 0.03
    starting.HEALTHY_WITHIN = 1.0
    leadership.WATCHED_EVERY = 0.2
    points: list[str] = []

    def reached(point: str) -> None:
        points.append(point)
        if point == life.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    trio.run(_live, life, reached)
    if life.record_to is not None:
        Path(life.record_to).write_text(json.dumps(points))


async def _live(life: Life, reached: Any) -> None:
    where, data_dir = DatabaseSettings(**life.where), Path(life.data_dir)
    with trio.fail_after(LIVED_WITHIN):
        async with asyncio_loop(), open_database(where) as db, open_slice_control() as control:
            settings = SliceSettings("process", "unused", None, life.base_port, 0, 5, life.secret)
            runtime = runtime_of(data_dir, lambda point: reached(f"runtime:{point}"))
            resources = Resources(db, where, runtime, control, settings, data_dir, False, 0, reached)
            made = Reconciler(resources, billing_enabled=False)
            work = Rollouts(resources, made.released, Limits(1.0, 0.02)).work
            duties = [("reconciler", made.run), ("jobs", Jobs(db, {rollouts.KIND: work}).run)]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_running, "leader", Leader(where, duties).session, Backoff(first=0.1, most=1.0))
                while not await _is_over(db, life.rollout) or not made.is_idle:
                    await trio.sleep(0.02)
                nursery.cancel_scope.cancel()


async def _is_over(db: Any, rollout_id: int) -> bool:
    return bool(
        await db.fetchval(
            """
            select r.finished_at is not null and j.finished_at is not null
            from gateway.rollouts r join gateway.jobs j on j.id = r.job_id where r.id = $1
            """,
            rollout_id,
        )
    )


class Forge:
    """Makes children, one after another."""

    def __init__(self, log: Path) -> None:
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.operations.rollout_child", str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )

    def run(self, life: Life) -> int:
        """Lives one life to its end: 0, or minus the signal that ended it. Blocking."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(life)).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def said(self) -> str:
        """The last lines that children wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-200:])

    def close(self) -> None:
        self._process.communicate()


def forge(log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(open(output, "a")),  # noqa: SIM115
    )
    for line in sys.stdin.buffer:
        answer = os.waitstatus_to_exitcode(os.waitpid(fork(Life(**json.loads(line)), output), 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def fork(life: Life, output: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        live(life)
        status = 0
    except BaseException:  # noqa: BLE001  whatever it was, this process must not go on as a second forge
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    forge(Path(sys.argv[1]))
