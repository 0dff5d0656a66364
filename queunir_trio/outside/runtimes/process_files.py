"""What is written down about slices that run as processes: `run/slice-N/` with state, secrets and the log."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from queunir_trio.outside.processes import ProcessId
from queunir_trio.outside.runtimes.contract import Instance, InstanceSpec

LOG_AT_MOST: Final = 2**20  # bytes; then it becomes the one older log and a new one begins

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class State:
    """What `state.json` holds; without a process it is an intent."""

    num: int
    slice_id: int
    uuid: str
    port: int
    image: str | None
    pid: int | None = None
    started: int | None = None
    boot: str | None = None

    @property
    def process(self) -> ProcessId | None:
        if self.pid is None or self.started is None or self.boot is None:
            return None
        return ProcessId(self.pid, self.started, self.boot)

    def of(self, process: ProcessId) -> "State":
        """The same, now that it is known who it became."""
        return replace(self, pid=process.pid, started=process.started, boot=process.boot)

    def instance(self, process: ProcessId | None) -> Instance:
        """What this state and the process found for it amount to."""
        return Instance(
            num=self.num,
            uuid=UUID(self.uuid),
            running=process is not None,
            pid=process.pid if process else None,
            started=process.started if process else None,
            image=self.image,
        )


def intent_of(spec: InstanceSpec) -> State:
    """What is written before anything is started."""
    return State(spec.num, spec.slice_id, str(spec.uuid), spec.port, spec.image)


class ProcessFiles:
    """The directory `run` and what lies in it. Blocking: to be called in threads."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def home(self, num: int) -> Path:
        """Where everything about slice N lies; made if it is missing."""
        home = self._home(num)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return home

    def numbers(self) -> list[int]:
        """The slices of which something is written."""
        try:
            names = os.listdir(self.run)
        except FileNotFoundError:
            return []
        return sorted(int(name.removeprefix("slice-")) for name in names if name.removeprefix("slice-").isdigit())

    def read(self, num: int) -> State | None:
        """What was last written about slice N; None where that is nothing, or nothing that can be read."""
        try:
            state = State(**json.loads((self._home(num) / "state.json").read_bytes()))
            UUID(state.uuid)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            log.warning("instance_state_unreadable", num=num)
            return None
        return state

    def write(self, state: State) -> None:
        # Replaced, never half written. Not forced to the disk: what a power cut takes, it takes with the process.
        path = self.home(state.num) / "state.json"
        write_private(path.with_suffix(".new"), json.dumps(asdict(state)))
        os.replace(path.with_suffix(".new"), path)

    def forget(self, num: int, uuid: UUID) -> None:
        """Removes what is written about this slice, or about nobody in particular."""
        state = self.read(num)
        if state is None or state.uuid == str(uuid):
            with suppress(FileNotFoundError):
                shutil.rmtree(self._home(num))

    def last_lines(self, num: int, uuid: UUID, lines: int) -> list[str]:
        """The end of what this slice wrote; of a grown log no more than LOG_AT_MOST bytes are looked at."""
        state = self.read(num)
        if state is None or state.uuid != str(uuid):
            return []
        found: list[str] = []
        for name in ("log.1", "log"):
            with suppress(FileNotFoundError), (self._home(num) / name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_AT_MOST))
                found += file.read().decode(errors="replace").splitlines()
        return found[-lines:]

    def shorten_logs(self) -> None:
        """Copied and emptied in place: a slice appends to the file it was given, whatever that is called by now."""
        for path in self.run.glob("slice-*/log"):
            if path.stat().st_size > LOG_AT_MOST:
                shutil.copyfile(path, path.with_name("log.1"))
                os.truncate(path, 0)

    def _home(self, num: int) -> Path:
        return self.run / f"slice-{num}"


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
