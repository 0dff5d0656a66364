"""Slices that are moved from image to image in memory, with sessions on the disk and a WhatsApp that lives in them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from queunir_trio.live.jobs import Reporter
from queunir_trio.live.rollouts import Rollouts
from queunir_trio.model.jobs import Job
from queunir_trio.model.rollout import Part, Phase, Rollout
from queunir_trio.model.routing import SliceAddress
from queunir_trio.model.slices import Slice
from queunir_trio.operations import provisioning
from queunir_trio.operations.rollout import Limits
from queunir_trio.outside.runtimes.contract import Instance, InstanceSpec
from queunir_trio.outside.slice_control import Health, SliceState, SliceUnreachable
from queunir_trio.store import jobs, rollouts, slices
from tests.doubles.premises import Premises
from tests.doubles.runtime import MemoryRuntime

LIMITS = Limits(state_within=0.3, state_asked_every=0.01)
IMAGES = ("old", "good", "sick", "crashing", "forgetful", "stranger")


class MovingRuntime(MemoryRuntime):
    """Knows images: `crashing` ends at once, `forgetful` loses the pairing when it starts, others are as they say."""

    def __init__(self) -> None:
        super().__init__()
        self.most_away = 0

    async def image_id(self, image: str) -> str | None:
        await self._asked()
        return image if image in IMAGES else None

    async def ensure(self, spec: InstanceSpec) -> Instance:
        self.most_away = max(self.most_away, sum(not found.running for found in self.instances.values()))
        begins = not (spec.num in self.instances and self.instances[spec.num].running)
        found = await super().ensure(spec)
        if begins and spec.image == "crashing":
            self.die(spec.num)
        if begins and spec.image in ("forgetful", "crashing", "stranger"):
            (spec.directory / "session" / "scribble").write_text("by the new image")
        if begins and spec.image == "forgetful":
            (spec.directory / "session" / "pairing").unlink(missing_ok=True)
        if begins and spec.image == "stranger":
            (spec.directory / "session" / "pairing").write_text("34999")
        return self.instances[spec.num] if begins else found


class MovingControl:
    """Answers for every slice by its image and what lies in its session."""

    def __init__(self, runtime: MovingRuntime, data_dir: Path) -> None:
        self._runtime = runtime
        self._data_dir = data_dir
        self.states: dict[int, str] = {}  # by number, over what its session says
        self.silent: set[int] = set()

    async def health(self, address: SliceAddress) -> Health:
        await trio.lowlevel.checkpoint()
        found = self._runtime.instances.get(address.num)
        if found is None or not found.running or found.image == "sick" or address.num in self.silent:
            raise SliceUnreachable(f"{address!r} is silent")
        return Health(str(address.slice_id), 1.0)

    async def state(self, address: SliceAddress) -> SliceState:
        await self.health(address)
        if address.num in self.states:
            return SliceState(self.states[address.num], None, None)
        pairing = self._data_dir / "slices" / str(address.num) / "session" / "pairing"
        if pairing.exists():
            return SliceState("ready", pairing.read_text(), None)
        return SliceState("qr", None, {"qr": "text", "n": 1})


class Moving:
    """Premises with slices on the image `old`, and rollouts on them."""

    def __init__(self, place: Premises) -> None:
        self.runtime = MovingRuntime()
        self.control = MovingControl(self.runtime, place.data_dir)
        self.place = replace(
            place,
            resources=replace(place.resources, runtime=self.runtime, control=self.control),  # type: ignore[arg-type]
        )
        self.db = place.db
        self.released: list[int] = []

    async def lead(self) -> int:
        epoch: int = await self.db.fetchval("update gateway.leader set epoch = epoch + 1 returning epoch")
        self.place = replace(self.place, resources=replace(self.place.resources, epoch=epoch))
        return epoch

    async def add_warm(self, image: str = "old") -> Slice:
        """A slice that is ready and nobody's."""
        row = await provisioning.reserve(self.place.resources)
        await slices.set_image(self.db, row.id, image)
        await provisioning.provision(self.place.resources, replace(row, image=image))
        return await self.row(row.id)

    async def add_paired(self, image: str = "old") -> Slice:
        """A customer's slice with a phone."""
        row = await self.add_warm(image)
        user_id = await self.place.add_user(f"{row.id}@example.com")
        claimed = await slices.claim(self.db, user_id)
        assert claimed is not None
        assert claimed.id == row.id
        session = self.session(row)
        (session / "pairing").write_text(f"3460000000{row.id % 10}")
        (session / "Default").mkdir()
        (session / "Default" / "keys.bin").write_bytes(bytes(range(256)) * row.id)
        (session / "SingletonLock").symlink_to("somewhere-12")
        await slices.record_states(self.db, [(row.id, "ready", True, "34600")])
        return await self.row(row.id)

    def session(self, row: Slice) -> Path:
        return self.place.data_dir / "slices" / str(self.place.resources.number(row)) / "session"

    async def row(self, slice_id: int) -> Slice:
        found = await slices.find(self.db, slice_id)
        assert found is not None
        return found

    def image(self, row: Slice) -> str | None:
        found = self.runtime.instances[self.place.resources.number(row)]
        return found.image if found.running else None

    async def begin(self, image: str, **options: Any) -> Rollout:
        given = {"batch": 5, "canary": 1, "only": None, "who": "key"} | options
        return await rollouts.begin(self.db, image, image, **given)

    async def carry_on(self, rollout: Rollout) -> dict[str, Any]:
        """One attempt of the rollout's job, by a leader of its own."""
        epoch = await self.lead()
        job = await self.job(rollout)

        async def released(slice_id: int) -> None:
            self.released.append(slice_id)
            await trio.lowlevel.checkpoint()

        work = Rollouts(self.place.resources, released, LIMITS)
        return await work.work(job, Reporter(self.db, job.id, epoch))

    async def job(self, rollout: Rollout) -> Job:
        assert rollout.job_id is not None
        job = await jobs.find(self.db, rollout.job_id)
        assert job is not None
        return job

    async def now(self, rollout: Rollout) -> Rollout:
        found = await rollouts.find(self.db, rollout.id)
        assert found is not None
        return found

    async def parts(self, rollout: Rollout) -> dict[int, Part]:
        return {part.slice_id: part for part in await rollouts.parts(self.db, rollout.id)}

    async def phases(self, rollout: Rollout) -> dict[int, Phase]:
        return {slice_id: part.phase for slice_id, part in (await self.parts(rollout)).items()}


def contents(directory: Path) -> dict[str, object]:
    """All that lies in a directory, byte for byte, with links as they are."""
    return {
        str(path.relative_to(directory)): path.readlink()
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else None)
        for path in sorted(directory.rglob("*"))
    }
