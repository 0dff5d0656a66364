"""One life of a gateway after another on the same premises, each killed somewhere, and what must have come of it."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import trio

from queunir_trio.model.slices import Slice, Status
from queunir_trio.operations import destruction, provisioning, starting, wipe_steps
from queunir_trio.outside import processes
from queunir_trio.outside.slice_control import SliceUnreachable
from queunir_trio.store import slices
from tests.doubles.premises import Premises
from tests.operations.lifecycle_child import Forge, Life

KILLED = -9
ANSWERED_WITHIN = 20.0  # seconds
OF_A_STEP = 4  # next, started, acted, done
OF_THE_PROCESS_RUNTIME = 3  # intent, secrets, spawned
OF_A_ROW = 2  # next, done
NOTHING = {"rows": [], "steps": 0, "databases": set(), "directories": [], "instances": []}

MAKING = OF_A_ROW + OF_A_STEP * len(provisioning.STEPS) + OF_THE_PROCESS_RUNTIME
UNMAKING = OF_A_STEP * len((destruction.OWNERSHIP, *destruction.LAYERS)) + OF_A_ROW
STARTING = OF_A_STEP * len(starting.START) + OF_THE_PROCESS_RUNTIME
UNTIL_HEALTH = [step.name for step in provisioning.STEPS].index("health")


@dataclass(frozen=True)
class Scenario:
    """A deed: what is done before it, what it is to come to, how many points it has.

    `between`: where a row may stand while it is not done; None where there may be none.
    """

    name: str
    points: int
    act: str | None
    goal: str
    between: frozenset[Status | None]
    warm: int = 0
    stub: tuple[str, ...] = ()
    image_before: str | None = None  # another than the one in the end
    number: int = 1  # of the slice that is whole in the end
    told: frozenset[str] = frozenset()  # the kinds of events that belong to it
    only: str = ""  # what the points end with at which to be killed

    def __str__(self) -> str:
        return self.name


def may_stand(*statuses: Status | None) -> frozenset[Status | None]:
    return frozenset(statuses)


SCENARIOS = [
    Scenario("provision", MAKING, None, "one_stands", may_stand(None, Status.PROVISIONING, Status.AVAILABLE), warm=1),
    Scenario(
        "undo",
        OF_A_STEP * UNTIL_HEALTH + OF_THE_PROCESS_RUNTIME
        + 2 + 1  # the step that fails begins, and is given up
        + OF_A_STEP * len(destruction.LAYERS) + OF_A_ROW,
        "reserve",
        "none_is_left",
        may_stand(Status.PROVISIONING, Status.FAILED, None),
        stub=("--named", "another"),
        told=frozenset({"provisioning_failed"}),
    ),
    Scenario("destroy", UNMAKING, "make_and_doom", "none_is_left", may_stand(Status.DESTROYING, None)),
    Scenario(
        "wipe",
        OF_A_STEP * len(wipe_steps.STEPS) + 1  # and the erasure is written into its own log
        + UNMAKING,
        "make_and_leave",
        "nobody_is_left",
        may_stand(Status.ASSIGNED, Status.DESTROYING, None),
    ),
    Scenario("start", STARTING, "make_and_end", "one_stands", may_stand(Status.AVAILABLE)),
    Scenario("suspend", OF_A_STEP * len(starting.STOP), "suspend", "one_rests", may_stand(Status.SUSPENDED)),
    Scenario("resume", STARTING, "suspend_and_resume", "one_serves", may_stand(Status.ASSIGNED)),
    Scenario(
        "restart",
        OF_A_STEP * len(starting.RESTART) + OF_THE_PROCESS_RUNTIME,
        "want_restart",
        "one_serves",
        may_stand(Status.ASSIGNED),
    ),
    Scenario("assign", 3, "make_and_await", "one_serves", may_stand(Status.AVAILABLE, Status.ASSIGNED)),
    Scenario(
        "refresh",
        MAKING + UNMAKING,
        "make",
        "one_is_new",
        may_stand(Status.AVAILABLE, Status.PROVISIONING, Status.DESTROYING),
        warm=1,
        image_before="image:0",
        number=2,
        only=":acted",
    ),
]  # fmt: skip


class Lives:
    """One life after another on the same premises."""

    def __init__(self, forge: Forge, place: Premises, life: Life, scenario: Scenario) -> None:
        self._forge = forge
        self._place = place
        self._scenario = scenario
        self._life = replace(life, stub=scenario.stub, warm=scenario.warm)
        self._running: set[int] = set()

    async def record(self) -> list[str]:
        """The points of this deed, each once, in the order in which they are first reached."""
        record = self._place.data_dir / "points"
        await self.prepare()
        assert await self.go_on(record_to=str(record)) == 0, self._forge.said()
        return list(dict.fromkeys(json.loads(record.read_text())))

    def steps_alone(self, points: list[str]) -> int:
        """How many of them are not the runtime's own."""
        return sum(not point.startswith("runtime:") for point in points)

    def fatal(self, points: list[str]) -> list[str]:
        """Where to be killed: a `next` right after a `done` is the same moment."""
        apart = [
            point
            for before, point in zip(["", *points], points, strict=False)
            if not (before.endswith(":done") and point.endswith(":next"))
        ]
        return [point for point in apart if point.endswith(self._scenario.only)]

    async def prepare(self) -> None:
        await self._place.clear()
        if self._scenario.act is not None:
            before = replace(
                self._life, act=self._scenario.act, image=self._scenario.image_before or self._life.image, goal=None
            )
            assert await self._live(before) == 0, self._forge.said()

    async def go_on(self, killed_at: str | None = None, record_to: str | None = None) -> int:
        return await self._live(replace(self._life, goal=self._scenario.goal, killed_at=killed_at, record_to=record_to))

    async def kill_at(self, point: str, *, twice: bool = True) -> None:
        """Dies there, and again there if it comes so far; then lives on, and all is well."""
        await self.prepare()
        assert await self.go_on(killed_at=point) == KILLED, f"{point} was not reached\n{self._forge.said()}"
        await self._look_between(point)
        if twice:  # the second time the deed may be beyond this point already
            assert await self.go_on(killed_at=point) in (KILLED, 0), f"{point}, again\n{self._forge.said()}"
            await self._look_between(point)
        assert await self.go_on() == 0, f"after {point}\n{self._forge.said()}"
        await self._look_at_the_end(point)

    async def _live(self, life: Life) -> int:
        return await trio.to_thread.run_sync(partial(self._forge.run, life))

    async def _look_between(self, point: str) -> None:
        standing = {row.status for row in await slices.listed(self._place.db)} or {None}
        assert standing <= self._scenario.between, point

    async def _look_at_the_end(self, point: str) -> None:
        everything = await self._place.everything()
        assert set(await self._place.events()) == self._scenario.told, f"{point}: not gone on with, but made anew"
        listed = await self._place.resources.runtime.listed()
        self._running = {found.num for found in listed if found.running}
        if self._scenario.goal == "nobody_is_left":
            await self._look_at_the_receipt(point)
        if self._scenario.goal in ("none_is_left", "nobody_is_left"):
            assert everything == NOTHING, point
            assert self._processes(1) == 0, point
            return
        num, row = self._scenario.number, await self._place.only_row()
        name = f"wa_slice_{num}"
        whole = {"databases": {name, f"{name}_owner"}, "directories": [str(num)], "instances": [num]}
        assert {key: everything[key] for key in whole} == whole, point
        found = await self._place.resources.runtime.inspect(num)
        assert found is not None, point
        assert found.uuid == row.uuid, point
        runs = row.status is not Status.SUSPENDED
        assert (found.running, self._processes(num)) == (runs, int(runs)), point
        if runs:
            await self._answer_of(row)
        if row.status is not Status.AVAILABLE:
            assert row.user_id is not None
            routed = await slices.find_of_user(self._place.db, row.user_id)
            assert routed is not None, point
            assert routed.id == row.id, point

    async def _look_at_the_receipt(self, point: str) -> None:
        """Of the one user there was, who is gone: it was written once, whatever happened, and names what is gone."""
        assert await self._place.db.fetchval("select count(*) from gateway.users") == 0, point
        written = await self._place.db.fetch("select document from gateway.receipts")
        assert len(written) == 1, point
        assert written[0]["document"] is not None, point
        assert written[0]["document"]["rows"]["users"] == 1, point

    async def _answer_of(self, row: Slice) -> None:
        """Of one that runs; whoever went on after the kill found it running and may not have waited for it."""
        resources = self._place.resources
        with trio.fail_after(ANSWERED_WITHIN):
            while True:
                with suppress(SliceUnreachable):
                    await resources.control.state(resources.address(row))
                    return
                await trio.sleep(0.05)

    def _processes(self, num: int) -> int:
        """How many live for this slice; of containers the runtime itself tells."""
        if self._life.docker_host is not None:
            return int(num in self._running)
        media = self._place.data_dir / "slices" / str(num) / "media"
        return len(processes.carrying("MEDIA_DIR", str(media)))
