"""Programs that a benchmark starts: waited for, measured, and always stopped again by their own id."""

import json
import random
import resource
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from os import environ, killpg
from pathlib import Path
from typing import Any, Final

import psutil
import trio

HOST: Final = "127.0.0.1"
PORTS: Final = range(20_000, 32_000)  # below what the kernel gives to outgoing connections
READY_WITHIN: Final = 60.0  # seconds
STOPPED_WITHIN: Final = 8.0  # seconds
LOG_SHOWN: Final = 2_000  # characters


class DidNotStart(Exception):
    """A program ended, or did not listen in time; holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process tree; `proportional` counts a page that several share only in part."""

    resident: int
    proportional: int


@dataclass(frozen=True, slots=True)
class Program:
    """A running program that we started."""

    name: str
    process: trio.Process
    log: Path

    def cpu_seconds(self) -> float:
        """CPU time of the whole process tree until now, user and system, ended children included."""
        return sum(sum(one.cpu_times()[:4]) for one in self._tree())

    def memory(self) -> Memory:
        sizes = [one.memory_full_info() for one in self._tree()]
        return Memory(sum(size.rss for size in sizes), sum(size.pss for size in sizes))

    def resident(self) -> int:
        return sum(one.memory_info().rss for one in self._tree())

    def descriptors(self) -> int:
        return sum(one.num_fds() for one in self._tree())

    def log_end(self) -> str:
        return self.log.read_text(errors="replace")[-LOG_SHOWN:] if self.log.exists() else ""

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]


def allow_many_descriptors() -> None:
    """Raises the soft limit of open files to the hard one, for this process and all it starts."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_ports(count: int) -> list[int]:
    """So many ports of the loopback interface that nothing listens on now."""
    held: list[socket.socket] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(held) == count:
            break
        with suppress(OSError):
            held.append(socket.create_server((HOST, port)))
    ports = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return ports


@asynccontextmanager
async def running(
    name: str,
    command: Sequence[object],
    directory: Path,
    *,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
) -> AsyncIterator[Program]:
    """The program, once it listens on `port`; at the end it is stopped, whatever happened. DidNotStart.

    Its output goes to `directory`/`name`.log unless `stdout` says otherwise. It has a session of its own, so that a
    Ctrl-C at the terminal reaches only us and we stop it in order.
    """
    log = directory / f"{name}.log"
    with log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            [str(part) for part in command],  # paths among them
            stdin=stdin,
            stdout=output if stdout is None else stdout,
            stderr=output,
            env={**environ, **(environment or {})},
            start_new_session=True,
        )
    program = Program(name, process, log)
    try:
        if port is not None:
            await _wait_until_listening(program, port)
        yield program
    finally:
        with trio.CancelScope(shield=True):
            await stop(program)


async def stop(program: Program) -> int:
    """SIGTERM, a limited wait, then SIGKILL for what is left of its session; the exit code."""
    process = program.process
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(STOPPED_WITHIN):
            await process.wait()
    with suppress(ProcessLookupError):
        killpg(process.pid, signal.SIGKILL)
    return await process.wait()


async def _wait_until_listening(program: Program, port: int) -> None:
    with trio.move_on_after(READY_WITHIN):
        while program.process.poll() is None:
            if await _listens(port):
                return
            await trio.sleep(0.05)
    raise DidNotStart(f"{program.name} does not listen on port {port}:\n{program.log_end()}")


async def _listens(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream(HOST, port)
    except OSError:
        return False
    await stream.aclose()
    return True


async def first_line_of_json(program: Program) -> dict[str, Any]:
    """The JSON object that the program prints as its first line. DidNotStart."""
    assert program.process.stdout is not None
    text = b""
    with trio.move_on_after(READY_WITHIN):
        while b"\n" not in text:
            piece = await program.process.stdout.receive_some()
            if not piece:
                break
            text += piece
    if b"\n" not in text:
        raise DidNotStart(f"{program.name} said nothing:\n{program.log_end()}")
    said: dict[str, Any] = json.loads(text.partition(b"\n")[0])
    return said
