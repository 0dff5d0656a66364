"""What there is of slices in every layer, and what of it disagrees with the table: looked at, never touched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations.steps import Resources
from queunir_trio.outside import directories
from queunir_trio.outside.runtimes.contract import Instance, RuntimeUnavailable
from queunir_trio.store import slice_databases, slices

LISTED_WITHIN: Final = 5.0  # seconds for the runtime
LIVING: Final = frozenset({Status.AVAILABLE, Status.ASSIGNED, Status.SUSPENDED})


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One thing that is there and should not be, or the other way round: of which kind, its name, and whose it is."""

    kind: str
    name: str
    slice_id: int | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """The rows, what the runtime lists (None: it does not answer) and where these and the other layers disagree."""

    rows: list[Slice]
    instances: list[Instance] | None
    disagreements: list[Disagreement]


async def take(resources: Resources) -> Inventory:
    """Looks everywhere. DatabaseUnavailable; OSError: the directories can not be read."""
    rows = await slices.listed(resources.db)
    resources.recognise(rows)
    instances = await _instances(resources)
    numbers = {resources.number(row): row for row in rows if row.managed}
    base = resources.data_dir / "slices"
    found = [
        *_among_instances(numbers, instances or [], known=instances is not None),
        *_among_databases(numbers, await slice_databases.listed(resources.db)),
        *_among_directories(numbers, await directories.listed(base)),
    ]
    if instances is not None:
        found += await _outdated(resources, numbers, instances)
    return Inventory(rows, instances, found)


async def _instances(resources: Resources) -> list[Instance] | None:
    try:
        with trio.fail_after(LISTED_WITHIN):
            return await resources.runtime.listed()
    except (RuntimeUnavailable, trio.TooSlowError):
        return None


def _among_instances(
    numbers: dict[int, Slice], instances: Sequence[Instance], *, known: bool
) -> Iterator[Disagreement]:
    running = set()
    for instance in instances:
        row = numbers.get(instance.num)
        name = f"wank-slice-{instance.num}"
        if row is None or row.uuid != instance.uuid:
            yield Disagreement("instance_without_row", name)
        elif instance.running:
            running.add(row.id)
            if row.image is not None and instance.image is not None and instance.image != row.image:
                yield Disagreement("wrong_image", name, row.id)
    for num, row in numbers.items() if known else ():
        if row.status in LIVING and row.wanted is Wanted.RUNNING and row.id not in running:
            yield Disagreement("row_without_instance", f"wank-slice-{num}", row.id)


def _among_databases(numbers: dict[int, Slice], found: Sequence[tuple[str, str, int]]) -> Iterator[Disagreement]:
    there = {num for kind, _, num in found if kind == "database"}
    for kind, name, num in found:
        if num not in numbers:
            yield Disagreement(f"{kind}_without_row", name)
    for num, row in numbers.items():
        if row.status in LIVING and num not in there:
            yield Disagreement("row_without_database", f"wa_slice_{num}", row.id)


def _among_directories(numbers: dict[int, Slice], found: Sequence[str]) -> Iterator[Disagreement]:
    for name in found:
        digits = name.lstrip(".").partition(".")[0]
        if not (digits.isascii() and digits.isdigit()) or int(digits) not in numbers:
            yield Disagreement("directory_without_row", f"slices/{name}")
    for num, row in numbers.items():
        if row.status in LIVING and str(num) not in found:
            yield Disagreement("row_without_directory", f"slices/{num}", row.id)


async def _outdated(
    resources: Resources, numbers: dict[int, Slice], instances: Sequence[Instance]
) -> list[Disagreement]:
    """Instances made from what their image's name stood for once: a rollout brings them up to date."""
    current: dict[str, str | None] = {}
    found: list[Disagreement] = []
    for instance in instances:
        if instance.image is None or instance.image_id is None or instance.unmarked:
            continue
        if instance.image not in current:
            try:
                current[instance.image] = await resources.runtime.image_id(instance.image)
            except RuntimeUnavailable:
                return found
        row, newest = numbers.get(instance.num), current[instance.image]
        if row is not None and row.uuid == instance.uuid and newest not in (None, instance.image_id):
            found.append(Disagreement("outdated_image", f"wank-slice-{instance.num}", row.id))
    return found
