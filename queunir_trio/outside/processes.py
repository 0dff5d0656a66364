"""What the kernel says about processes: which one is meant, whether it lives, and how it is ended for certain.

A pid alone is no proof, for it is reused; together with its start time and the machine's boot it names one process
for ever. Nothing here needs the process to be a child of ours, so one that outlived its parent is handled alike.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import trio

PROC: Final = Path("/proc")
KILLED_WITHIN: Final = 5.0  # seconds a process may take to disappear after SIGKILL


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, now and after its pid has been given to another."""

    pid: int
    started: int  # kernel clock ticks since boot
    boot: str  # the kernel's id of that boot


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    session: int
    started: int

    @property
    def lives(self) -> bool:
        return self.state not in "ZX"  # a zombie is only an entry that nobody has read


@cache
def _boot() -> str:
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> _Stat | None:
    try:
        raw = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything, spaces and parentheses too: what follows the last one is plain.
    fields = raw.rpartition(b")")[2].split()
    return _Stat(fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def identify(pid: int) -> ProcessId | None:
    """Who has this pid now; None where nobody lives under it."""
    stat = _stat(pid)
    return ProcessId(pid, stat.started, _boot()) if stat is not None and stat.lives else None


def is_alive(process: ProcessId) -> bool:
    """Whether that very process still runs. A dead one that is our child is reaped on the way."""
    stat = _stat(process.pid)
    if stat is None or stat.started != process.started or process.boot != _boot():
        return False
    if not stat.lives and stat.parent == os.getpid():
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return stat.lives


def carrying(variable: str, value: str) -> list[ProcessId]:
    """The living processes that were started with this environment variable, leaders of their session first."""
    wanted = f"{variable}={value}".encode()
    found: list[tuple[bool, ProcessId]] = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone meanwhile, or another user's
        if wanted in variables and (process := identify(int(entry.name))) is not None:
            found.append((not leads_session(process), process))
    return [process for _, process in sorted(found, key=lambda pair: (pair[0], pair[1].pid))]


def leads_session(process: ProcessId) -> bool:
    """Whether it is the first process of its session, as whatever we start is."""
    stat = _stat(process.pid)
    return stat is not None and stat.session == process.pid


def kill(process: ProcessId) -> None:
    """SIGKILL to that very process, if it still runs."""
    with _handle(process) as handle:
        if handle is not None:
            _send(handle, signal.SIGKILL)


async def end(process: ProcessId, within: float) -> bool:
    """Ends a leader and its whole group: SIGTERM, `within` seconds, then SIGKILL. False: it is still there.

    Cancelled while waiting, it has sent its signal and leaves the rest to the next caller.
    """
    with _handle(process) as handle:
        if handle is not None:
            _send(handle, signal.SIGTERM)
            with trio.move_on_after(within):
                await trio.lowlevel.wait_readable(handle)
            # Before the leader is reaped its number can not be given away, so this group is still the one meant.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.move_on_after(KILLED_WITHIN):
                await trio.lowlevel.wait_readable(handle)
    return not is_alive(process)


@contextmanager
def _handle(process: ProcessId) -> Iterator[int | None]:
    """A kernel handle that can not come to mean another process; None where it is gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The handle is for whoever has the pid now: only if that is still the one meant may it be used.
        yield handle if is_alive(process) else None
    finally:
        os.close(handle)


def _send(handle: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)
