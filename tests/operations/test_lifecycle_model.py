"""Whatever happens in whatever order, some things are never so, and in the end what is agrees with what is wanted.

A machine draws what happens: people sign up and leave, slices are suspended, resumed, restarted and destroyed, their
processes die, the image changes, the clock jumps, and the gateway lives for a while and is killed at some point, all
with real processes and a real PostgreSQL. MODEL_EXAMPLES asks for more examples than are drawn by default.
"""

import os
import queue
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import outcome
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from queunir_trio.errors import Refused
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import destruction, provisioning, starting, suspension
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slices
from queunir_trio.store.bridge import asyncio_loop, open_connection, open_database
from tests.doubles.premises import Premises, open_premises
from tests.operations.lifecycle_child import SECRET, Forge, Life

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "6"))
STEPS = 16  # of an example
WHICH = st.integers(0, 9)
WARM = 1
T = TypeVar("T")
Order = tuple[Callable[[], Awaitable[Any]], "queue.SimpleQueue[Any]"]

WISHES = ("suspend", "resume", "restart", "destroy")
# of slices that stand elsewhere too it may be wished, and is refused; but then nothing happens
BEST_WISHED_OF = {"suspend": {Status.ASSIGNED}, "resume": {Status.SUSPENDED}, "restart": {Status.ASSIGNED}}
POINTS = [
    *(f"provision:row:{moment}" for moment in ("next", "done")),
    *(f"provision:{step.name}:{moment}" for step in provisioning.STEPS for moment in ("started", "acted")),
    *(f"destroy:{step.name}:{moment}" for step in destruction.LAYERS for moment in ("started", "acted")),
    *(f"{deed}:{step.name}:acted" for deed, steps in
      (("start", starting.START), ("stop", starting.STOP), ("restart", starting.RESTART)) for step in steps),
    *(f"assign:claim:{moment}" for moment in ("next", "acted", "done")),
    "runtime:intent", "runtime:spawned",
]  # fmt: skip


class World:
    """Premises in a thread with a Trio of its own, for a machine that is not asynchronous."""

    def __init__(self, where: DatabaseSettings, data_dir: Path, base_port: int, log: Path) -> None:
        self.life = Life(asdict(where), str(data_dir), base_port, warm=WARM)
        self.forge = Forge(log)
        self._where = where
        self._ready = threading.Event()
        self._orders, self._received = trio.open_memory_channel[Order](1)
        self._thread = threading.Thread(target=trio.run, args=(self._open,), name="premises")
        self._thread.start()
        self._ready.wait(30)

    async def _open(self) -> None:
        life = self.life
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with (
                asyncio_loop(),
                open_database(self._where) as db,
                open_premises(db, self._where, Path(life.data_dir), life.base_port) as made,
            ):
                chosen = replace(made.resources.settings, secret=SECRET)
                self.place = replace(made, resources=replace(made.resources, settings=chosen))
                self._ready.set()
                async for act, answers in self._received:
                    answers.put(await outcome.acapture(act))
        finally:
            self._ready.set()

    def do(self, act: Callable[..., Awaitable[T]], *arguments: object) -> T:
        answers: queue.SimpleQueue[outcome.Outcome[T]] = queue.SimpleQueue()
        order = (lambda: act(*arguments), answers)
        trio.from_thread.run_sync(self._orders.send_nowait, order, trio_token=self._token)
        return answers.get(timeout=30).unwrap()

    def close(self) -> None:
        self.forge.close()
        trio.from_thread.run_sync(self._orders.close, trio_token=self._token)
        self._thread.join(30)

    async def begin_anew(self) -> None:
        await self.place.clear()
        await self.shift_clock("0")

    async def shift_clock(self, by: str) -> None:
        async with open_connection(self._where, as_admin=True) as admin:
            await admin.execute(f"update gateway.clock_shift set shift = interval '{by}'")


class Lifecycle(RuleBasedStateMachine):
    """What happens, and what must hold after each thing that happens."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.place: Premises = world.place
        self.image = "image:1"
        self.people = 0
        self.uuids: dict[int, UUID] = {}
        self.gone: set[int] = set()
        self.once_assigned: set[int] = set()
        self.left: set[int] = set()  # users who left for good
        self.shifts = 0
        self.stages: set[Status] = set()  # where slices stood when last looked at
        world.do(world.begin_anew)

    @initialize()
    def a_customer_is_served(self) -> None:
        """Otherwise half of all that happens would happen to nobody."""
        self.sign_up()
        self.the_gateway_lives()

    # ── what happens ──────────────────────────────────────────────────────────────────────────────────────────────

    @rule()
    def sign_up(self) -> None:
        self.people += 1
        self.world.do(self._sign_up, f"user{self.people}@example.com")

    async def _sign_up(self, email: str) -> None:
        async with self.place.db.transaction() as connection:
            user_id = await connection.fetchval("insert into gateway.users (email) values ($1) returning id", email)
            await slices.claim(connection, user_id)

    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        self.world.do(self._leave, which)

    async def _leave(self, which: int) -> None:
        users = await self.place.db.fetch(
            "select id, slice_id from gateway.users where deleting_at is null order by id"
        )
        if users:
            user = users[which % len(users)]
            await self.place.db.execute("update gateway.users set deleting_at = now() where id = $1", user["id"])
            self.left.add(user["id"])
            if user["slice_id"] is not None:
                await destruction.request(self.place.db, user["slice_id"])

    @precondition(lambda self: Status.ASSIGNED in self.stages)
    @rule(which=WHICH)
    def suspend(self, which: int) -> None:
        self.world.do(self._wish, which, "suspend")

    @precondition(lambda self: Status.SUSPENDED in self.stages)
    @rule(which=WHICH)
    def resume(self, which: int) -> None:
        self.world.do(self._wish, which, "resume")

    @precondition(lambda self: self.stages)
    @rule(which=WHICH, wish=st.sampled_from(["restart", "destroy", "unwant"]))
    def wish(self, which: int, wish: str) -> None:
        self.world.do(self._wish, which, wish)

    async def _wish(self, which: int, wish: str) -> None:
        db = self.place.db
        rows = [row for row in await slices.listed(db) if row.status in BEST_WISHED_OF.get(wish, Status)]
        if not rows:
            return
        slice_id = rows[which % len(rows)].id
        wishes: dict[str, Callable[[], Awaitable[Any]]] = {
            "suspend": lambda: suspension.suspend(db, slice_id, "money"),
            "resume": lambda: suspension.resume(db, slice_id),
            "restart": lambda: suspension.restart(db, slice_id),
            "destroy": lambda: destruction.request(db, slice_id),
            "unwant": lambda: slices.set_wanted(db, slice_id, Wanted.ABSENT),
        }
        with suppress(Refused):
            await wishes[wish]()

    @rule(which=WHICH)
    def a_process_dies(self, which: int) -> None:
        found = [found for found in self.world.do(self.place.resources.runtime.listed) if found.pid is not None]
        if found:
            with suppress(ProcessLookupError):
                os.kill(found[which % len(found)].pid or 0, signal.SIGKILL)

    @rule()
    def the_image_changes(self) -> None:
        self.image = f"image:{int(self.image.removeprefix('image:')) + 1}"

    @precondition(lambda self: self.shifts < 3)
    @rule(by=st.sampled_from(["40 days", "1 hour", "-1 hour", "0"]))
    def the_clock_jumps(self, by: str) -> None:
        self.shifts += 1
        self.world.do(self.world.shift_clock, by)

    @rule(point=st.sampled_from(POINTS))
    def the_gateway_is_killed(self, point: str) -> None:
        status = self.world.forge.run(replace(self._life, killed_at=point))
        assert status in (0, -9), self.world.forge.said()

    @rule()
    def the_gateway_lives(self) -> None:
        assert self.world.forge.run(self._life) == 0, self.world.forge.said()
        self._all_agrees()

    @rule(which=WHICH, wish=st.sampled_from(["suspend", "resume", "restart", "destroy", "leave", "sign up"]))
    def something_is_wished_while_the_gateway_lives(self, which: int, wish: str) -> None:
        pid = self.world.forge.begin(self._life)
        match wish:
            case "leave":
                self.leave(which)
            case "sign up":
                self.sign_up()
            case _:
                self.world.do(self._wish, which, wish)
        assert self.world.forge.end_of(pid) == 0, self.world.forge.said()

    @property
    def _life(self) -> Life:
        return replace(self.world.life, goal="all_agrees", image=self.image)

    def teardown(self) -> None:
        self.the_gateway_lives()
        self.what_must_never_be()

    # ── what must hold ────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def what_must_never_be(self) -> None:
        self.world.do(self._look)

    async def _look(self) -> None:
        rows = await slices.listed(self.place.db)
        there, self.stages = {row.id for row in rows}, {row.status for row in rows}
        for row in rows:
            assert self.uuids.setdefault(row.id, row.uuid) == row.uuid
            assert row.id not in self.gone, "an id was given out again"
            self._look_at(row)
        self.gone |= self.uuids.keys() - there
        assert len(set(self.uuids.values())) == len(self.uuids), "a uuid was given out again"
        await self._look_at_users(rows)
        await self._look_at_resources(rows)

    def _look_at(self, row: Slice) -> None:
        if row.status in (Status.ASSIGNED, Status.SUSPENDED):
            self.once_assigned.add(row.id)
        assert not (row.status is Status.AVAILABLE and row.id in self.once_assigned), "it had a customer before"
        assert row.user_id is None or row.user_id not in self.left, "who left is served"

    async def _look_at_users(self, rows: list[Slice]) -> None:
        users = await self.place.db.fetch("select id, slice_id from gateway.users")
        routed = {user["slice_id"]: user["id"] for user in users if user["slice_id"] is not None}
        owned = {row.id: row.user_id for row in rows if row.user_id is not None}
        assert routed == owned, "the two sides of who has what disagree"
        assert len(set(owned.values())) == len(owned), "somebody has two"

    async def _look_at_resources(self, rows: list[Slice]) -> None:
        """Nothing is there without a row, and nothing is ready that is not whole."""
        numbers = {self.place.resources.number(row): row for row in rows}
        names = {name for num in numbers for name in (f"wa_slice_{num}", f"wa_slice_{num}_owner")}
        databases, directories = await self.place.databases_and_roles(), set(self.place.directories())
        instances = {found.num: found for found in await self.place.resources.runtime.listed()}
        assert databases <= names
        assert {int(name.removeprefix(".").partition(".")[0]) for name in directories} <= numbers.keys()
        assert instances.keys() <= numbers.keys()
        for num, row in numbers.items():
            if row.status in (Status.AVAILABLE, Status.ASSIGNED, Status.SUSPENDED) and row.wanted != Wanted.ABSENT:
                assert {f"wa_slice_{num}", f"wa_slice_{num}_owner"} <= databases
                assert str(num) in directories
                assert instances[num].uuid == row.uuid

    def _all_agrees(self) -> None:
        rows = self.world.do(slices.listed, self.place.db)
        running = {found.num for found in self.world.do(self.place.resources.runtime.listed) if found.running}
        assert running == {self.place.resources.number(row) for row in rows if row.wanted == Wanted.RUNNING}


@pytest.fixture
def world(database_settings: DatabaseSettings, tmp_path: Path, free_base_port: int) -> Iterator[World]:
    made = World(database_settings, tmp_path / "data", free_base_port, tmp_path / "log")
    yield made
    made.close()


@pytest.mark.timeout(600 if EXAMPLES > 6 else 120)
def test_slices_live_as_they_should_whatever_happens(world: World) -> None:
    run_state_machine_as_test(
        lambda: Lifecycle(world),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=EXAMPLES <= 6,
            database=None,
            # making a failure shorter takes as long as a hundred examples: for those who look into it
            phases=[Phase.generate] if EXAMPLES <= 6 else [Phase.generate, Phase.shrink],
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
