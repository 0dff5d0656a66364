"""What a home of slices must be able to do, whatever it is made of.

Every method may be called again after a crash at any moment: `ensure` goes on with what it finds, `stop` and `remove`
are content with what is already gone. An instance is known by its number and proven by its uuid: one that carries
another uuid is never touched and never taken over.
"""

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from queunir_trio.errors import Lost, Refused

STOPPED_WITHIN: Final = 10.0  # seconds from SIGTERM to SIGKILL
LOG_LINES_AT_MOST: Final = 5000
PARTS: Final = ("media", "session")  # what a slice's directory holds, and the slice may write to


class RuntimeUnavailable(Lost):
    """The runtime did not answer, or what was ordered can not be proven to have happened; asking again may help."""


class InstanceConflict(Refused):
    """An instance of this number runs already and carries another slice's uuid."""

    def __init__(self, num: int) -> None:
        super().__init__("conflict", f"An instance with number {num} belongs to another slice. Look at it by hand.")


class ImageMissing(Refused):
    """What the slice should be made from is not on this machine."""

    def __init__(self, image: str | None) -> None:
        sentence = f"The image {image or '(none)'} is not on this machine: build or load it, or correct SLICE_IMAGE."
        super().__init__("image_missing", sentence)


class PortTaken(Refused):
    """Something else listens where the slice should."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__("port_taken", f"Another program holds port {port} on {host}.")


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """All that is needed to start a slice; the secrets are handed over in files, never in the environment."""

    num: int
    slice_id: int
    uuid: UUID
    host: str
    port: int
    directory: Path  # holds media/ and session/
    image: str | None
    database_url: str = field(repr=False)
    key: str = field(repr=False)
    production: bool
    adopted: bool = False  # made from an image of before this gateway: it keeps its user, and reads plain variables


@dataclass(frozen=True, slots=True)
class Adopted:
    """A slice that an older gateway made: what there is of it carries no mark, and is known by all of this at once."""

    num: int
    uuid: UUID
    host: str
    port: int
    directory: Path


@dataclass(frozen=True, slots=True)
class Instance:
    """A process or container as it was found. `pid` and `started` (kernel clock ticks) only where it is a process."""

    num: int
    uuid: UUID
    running: bool
    pid: int | None = None
    started: int | None = None
    image: str | None = None  # the name by which it was asked for
    image_id: str | None = None  # what that name stood for then; only where there are images
    container: str | None = None  # the id of the container, where it is one
    unmarked: bool = False  # carries no uuid; `uuid` is that of the adopted slice which it was proven to be


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes on the disk of a slice's directory."""

    media: int
    session: int


class Runtime(Protocol):
    """A home of slices. RuntimeUnavailable: it did not answer in time."""

    async def ensure(self, spec: InstanceSpec) -> Instance:
        """The running instance of `spec`: found, whatever image it was made from, or started.

        InstanceConflict, PortTaken, ImageMissing: it can not be.
        """
        ...

    async def replace(self, spec: InstanceSpec) -> Instance:
        """The running instance of `spec`, made from what its image's name stands for now; the older one is stopped
        and removed. Cut short in between, either this or `ensure` goes on. Refusals as those of `ensure`.
        """
        ...

    def recognise(self, adopted: Collection[Adopted]) -> None:
        """Tells of adopted slices: an unmarked instance that is proven to be one of them counts as its own from now on.

        Those told of before stay known. What is proven by a mark needs none of this.
        """
        ...

    async def renew(self, spec: InstanceSpec) -> Instance:
        """An instance of an adopted slice made anew from the very image it has, with a mark and with what `spec` says.

        The older one is stopped and kept until `settle`. May be called again after a crash at any moment; one that is
        as asked already is merely started. Refusals as those of `ensure`.
        """
        ...

    async def settle(self, num: int, uuid: UUID, *, back: bool = False) -> None:
        """Ends a renewal: the kept instance goes, or (`back`) the new one, and the kept one is started again."""
        ...

    async def mark(self, directory: Path, uuid: UUID) -> None:
        """Puts the uuid into a slice's directory that carries none, whoever owns it. OSError: it can not be."""
        ...

    async def stop(self, num: int, uuid: UUID, within: float = STOPPED_WITHIN) -> None:
        """Ends the instance and returns when it is proven gone; after `within` seconds it is no longer asked."""
        ...

    async def remove(self, num: int, uuid: UUID) -> None:
        """Leaves nothing of the instance; stops it first where it still runs."""
        ...

    async def inspect(self, num: int) -> Instance | None:
        """What there is under this number, running or not, whosever it is."""
        ...

    async def listed(self) -> list[Instance]:
        """Every instance there is, running or not; cheap enough to be asked every second."""
        ...

    async def logs(self, num: int, uuid: UUID, lines: int = 200) -> list[str]:
        """The last lines that the instance wrote, oldest first; none where there is no such instance."""
        ...

    async def image_id(self, image: str) -> str | None:
        """What an image's name stands for now; None where there is no such image."""
        ...

    async def measure(self, directories: Sequence[Path]) -> dict[Path, Usage]:
        """What slices' directories take up, whoever owns what lies in them; a missing one takes nothing."""
        ...

    async def copy(self, directory: Path, source: str, target: str) -> None:
        """Copies one part of a slice's directory to a name beside it, owners and all: whole or not at all.

        What was there under that name is replaced. OSError: it can not be.
        """
        ...

    async def erase(self, directory: Path, names: Collection[str] = PARTS) -> None:
        """Removes parts of a slice's directory with all they hold, whoever owns it, and follows no link. OSError."""
        ...

    def archive(self, directory: Path, part: str) -> AsyncGenerator[bytes, None]:
        """One part of a slice's directory as a tar stream, in pieces of bounded size, read as they are asked for.

        Names begin with the part's own (`media/a.jpg`). Links are not followed; a missing part is an empty archive.
        To be closed (`aclosing`) by whoever may not come to its end. OSError: it can not be read.
        """
        ...

    async def tidy(self, keep: Collection[UUID]) -> None:
        """Clears away what instances outside `keep` left behind if they run no more, and shortens grown logs."""
        ...

    async def stop_all(self, within: float = STOPPED_WITHIN) -> None:
        """Ends every instance, all at once: the last act of a demonstration, never of a service."""
        ...
