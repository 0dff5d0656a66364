"""A gateway that kills itself: the real leader and reconciler in a process that ends with SIGKILL at a named point.

As a program it is a forge: it imports everything once and then, for each line of JSON on its input, forks a child that
leads until what the scenario is about has come true, or until it is killed. The answer is the child's exit status.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog
import trio

from queunir_trio.live import attempts, reconciler
from queunir_trio.live.jobs import Jobs
from queunir_trio.live.leader import Leader
from queunir_trio.live.reconciler import Reconciler
from queunir_trio.live.supervision import Backoff, keep_running
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import destruction, provisioning, removal, starting, steps, suspension, wipe_orders
from queunir_trio.operations.removal import Ways
from queunir_trio.operations.steps import Resources
from queunir_trio.operations.wiping import Wiping
from queunir_trio.outside.runtimes.contract import Runtime
from queunir_trio.outside.runtimes.process import ProcessRuntime
from queunir_trio.outside.slice_control import open_slice_control
from queunir_trio.settings import DatabaseSettings, SliceSettings
from queunir_trio.store import leadership, slices
from queunir_trio.store.bridge import asyncio_loop, open_database
from tests.doubles.premises import stub_command

ROOT = Path(__file__).parent.parent.parent
LIVED_WITHIN = 30.0  # seconds until what is wanted has come true
LOOKED_EVERY_ON_DOCKER = 0.05  # seconds; a daemon that is asked more often has time for little else
AT_MOST = 5  # slices
SECRET = "a secret for tests" * 3


@dataclass(frozen=True)
class Life:
    """One child's task. `act`: what is done before it leads; `goal`: what must have come true; None does not lead."""

    where: dict[str, Any]
    data_dir: str
    base_port: int
    act: str | None = None
    goal: str | None = None
    killed_at: str | None = None
    stopped_at: str | None = None
    record_to: str | None = None
    docker_host: str | None = None  # None: slices are processes
    stub: tuple[str, ...] = ()
    image: str = "image:1"
    warm: int = 0


# --- what a child does before it leads --------------------------------------------------------------------------------


async def reserve(resources: Resources) -> Slice:
    return await provisioning.reserve(resources)


async def make(resources: Resources) -> Slice:
    row = await reserve(resources)
    await provisioning.provision(resources, row)
    return row


async def make_and_end(resources: Resources) -> None:
    row = await make(resources)
    await resources.runtime.stop(resources.number(row), row.uuid)


async def make_and_doom(resources: Resources) -> None:
    row = await make(resources)
    await destruction.request(resources.db, row.id)


async def make_and_await(resources: Resources) -> None:
    await make(resources)
    await add_user(resources)


async def add_user(resources: Resources) -> int:
    user_id: int = await resources.db.fetchval(
        "insert into gateway.users (email) values ('waits@example.com') returning id"
    )
    return user_id


async def make_for_somebody(resources: Resources) -> Slice:
    row = await make(resources)
    assert await slices.claim(resources.db, await add_user(resources)) is not None
    return row


async def suspend(resources: Resources) -> Slice:
    return await suspension.suspend(resources.db, (await make_for_somebody(resources)).id, "money")


async def suspend_and_resume(resources: Resources) -> None:
    row = await suspend(resources)
    await starting.stop(resources, row)
    await suspension.resume(resources.db, row.id)


async def make_and_leave(resources: Resources) -> None:
    row = await make_for_somebody(resources)
    user_id = await resources.db.fetchval("select user_id from gateway.slices where id = $1", row.id)
    await wipe_orders.order(resources.db, user_id, "https://app.example.com", "operator")


async def want_restart(resources: Resources) -> None:
    await suspension.restart(resources.db, (await make_for_somebody(resources)).id)


ACTS: dict[str, Callable[[Resources], Awaitable[object]]] = {
    act.__name__: act
    for act in (
        reserve, make, make_and_end, make_and_doom, make_and_await, make_and_leave, suspend, suspend_and_resume,
        want_restart,
    )
}  # fmt: skip


# --- when a child has reached what it lives for -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sight:
    """What there is at one moment. `running` holds numbers; `image` and `warm` say what is wanted of the pool."""

    rows: list[Slice]
    running: set[int]
    should_run: set[int]
    image: str
    warm: int
    waiting: int
    jobs: int  # that are not finished

    def stands(self, *expected: Status) -> bool:
        return [row.status for row in self.rows] == list(expected)


def one_stands(now: Sight) -> bool:
    return now.stands(Status.AVAILABLE) and now.running == {1}


def one_is_new(now: Sight) -> bool:
    return now.stands(Status.AVAILABLE) and now.rows[0].image == now.image and len(now.running) == 1


def none_is_left(now: Sight) -> bool:
    return not now.rows


def nobody_is_left(now: Sight) -> bool:
    return not now.rows and not now.jobs


def one_serves(now: Sight) -> bool:
    return now.stands(Status.ASSIGNED) and now.rows[0].restart_wanted_at is None and now.running == {1}


def one_rests(now: Sight) -> bool:
    return now.stands(Status.SUSPENDED) and not now.running


def all_agrees(now: Sight) -> bool:
    """Nothing is left to do for anybody."""
    free = [row for row in now.rows if row.status is Status.AVAILABLE]
    is_full = len(now.rows) >= AT_MOST
    at_rest = all(
        row.status in (Status.AVAILABLE, Status.ASSIGNED, Status.SUSPENDED) and row.restart_wanted_at is None
        for row in now.rows
    )
    pool_is_full = is_full or sum(row.image == now.image for row in free) >= now.warm
    nobody_waits = (is_full and not free) or not now.waiting
    none_is_old = all(row.image == now.image for row in free)
    return at_rest and now.running == now.should_run and pool_is_full and nobody_waits and none_is_old


GOALS = {
    goal.__name__: goal
    for goal in (one_stands, one_is_new, none_is_left, nobody_is_left, one_serves, one_rests, all_agrees)
}


# --- a life -----------------------------------------------------------------------------------------------------------


class Reached:
    """Notes every point, and is the end of everything at one of them, or the beginning of a long sleep."""

    def __init__(self, killed_at: str | None, stopped_at: str | None) -> None:
        self.points: list[str] = []
        self._killed_at = killed_at
        self._stopped_at = stopped_at

    def __call__(self, point: str) -> None:
        self.points.append(point)
        if point == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if point == self._stopped_at:
            self._stopped_at = None
            os.kill(os.getpid(), signal.SIGSTOP)


def live(life: Life) -> None:
    """Everything a child does; it returns when its goal is reached."""
    without_the_pauses_of_life()
    if life.docker_host is not None:
        reconciler.LOOK_EVERY = LOOKED_EVERY_ON_DOCKER
    reached = Reached(life.killed_at, life.stopped_at)
    trio.run(_live, life, reached)
    if life.record_to is not None:
        Path(life.record_to).write_text(json.dumps(reached.points))


async def _live(life: Life, reached: Reached) -> None:
    where = DatabaseSettings(**life.where)
    with trio.fail_after(LIVED_WITHIN):
        async with asyncio_loop(), open_database(where) as db, open_slice_control() as control:
            # an image of one's own choice is written down by this runtime too, though it makes nothing of it
            settings = SliceSettings("docker", life.image, None, life.base_port, life.warm, AT_MOST, SECRET)
            runtime = made_runtime(life, lambda point: reached(f"runtime:{point}"))
            resources = Resources(db, where, runtime, control, settings, Path(life.data_dir), False, 0, reached)
            if life.act is not None:
                epoch = await db.fetchval("select epoch from gateway.leader")
                await ACTS[life.act](replace(resources, epoch=epoch, reached=lambda point: None))
                reached.points.clear()
            if life.goal is not None:
                await _lead(life, resources)


async def _lead(life: Life, resources: Resources) -> None:
    made = Reconciler(resources, billing_enabled=False)

    async def have_destroyed(resources: Resources, slice_id: int) -> None:
        await destruction.request(resources.db, slice_id)
        made.nudge()  # as the table's NOTIFY does, which nobody hears here
        await removal.follow_destruction(resources, slice_id)

    jobs = Jobs(resources.db, {wipe_orders.WIPE: Wiping(resources, Ways(destroy=have_destroyed)).work})
    leader = Leader(resources.where, [("reconciler", made.run), ("jobs", jobs.run)])
    goal = GOALS[life.goal or ""]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_running, "leader", leader.session, Backoff(first=0.1, most=1.0))
        while True:
            if leader.epoch is not None and made.is_idle and goal(await look(life, resources)) and made.is_idle:
                break
            await trio.sleep(0.01 if life.docker_host is None else LOOKED_EVERY_ON_DOCKER)
        nursery.cancel_scope.cancel()


async def look(life: Life, resources: Resources) -> Sight:
    rows = await slices.listed(resources.db)
    return Sight(
        rows,
        {found.num for found in await resources.runtime.listed() if found.running},
        {resources.number(row) for row in rows if row.wanted == Wanted.RUNNING},
        life.image,
        life.warm,
        len(await slices.waiting_users(resources.db, False)),
        await resources.db.fetchval("select count(*) from gateway.jobs where finished_at is null"),
    )


def made_runtime(life: Life, reached: Callable[[str], None]) -> Runtime:
    if life.docker_host is not None:
        # not before one needs it: the SDK takes longer to import than everything else
        from queunir_trio.outside.runtimes.docker import DockerRuntime
        from queunir_trio.outside.runtimes.docker_client import Daemon

        return DockerRuntime(Daemon(life.docker_host), Path(life.data_dir), life.image, reached=reached)
    return ProcessRuntime(Path(life.data_dir), command=stub_command(*life.stub), reached=reached)


def without_the_pauses_of_life() -> None:
    """Looks and tries again soon."""
    reconciler.LOOK_EVERY = 0.02
    reconciler.PASSES_APART = 0.005
    attempts.FIRST_PAUSE = 0.01
    steps.ORDERED_AGAIN_AFTER = 0.01
    starting.FIRST_ASKED_AFTER = 0.03
    removal.LOOKED_EVERY = 0.02
    leadership.WATCHED_EVERY = 0.2


# --- the forge --------------------------------------------------------------------------------------------------------


class Forge:
    """Makes children; each is a process of its own that nothing can catch or clean up after."""

    def __init__(self, log: Path) -> None:
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.operations.lifecycle_child", str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )

    def run(self, life: Life) -> int:
        """Lives one life to its end: 0, or minus the signal that ended it. Blocking."""
        pid = self.begin(life)
        return self.end_of(pid)

    def begin(self, life: Life) -> int:
        """The pid of a child that lives now."""
        return int(self._ask(json.dumps(asdict(life))))

    def end_of(self, pid: int) -> int:
        """Waits for it; as `run`."""
        return int(self._ask(str(pid)))

    def said(self) -> str:
        """The last lines that children wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-400:])

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, line: str) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def forge(log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(open(output, "a")),  # noqa: SIM115
    )
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if isinstance(order, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(order, 0)[1])
        else:
            life = Life(**{**order, "stub": tuple(order["stub"])})
            if life.docker_host is not None:
                import queunir_trio.outside.runtimes.docker  # noqa: F401  once, not in each child
            answer = fork(life, output)
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
