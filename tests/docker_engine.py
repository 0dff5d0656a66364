"""A real Docker engine for tests: on a socket and a data directory of its own, in namespaces that end with it.

The engine is the first process of a PID namespace: whatever becomes of the tests, the kernel ends it together with
its containers, its shims and its mounts. It shares the network namespace of who starts it, and that is one of the
tests' own: no interface and no rule of the machine is ever touched.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker

PARTS = ("dockerd", "containerd", "iptables", "debootstrap", "ip", "unshare", "nsenter")
READY_WITHIN = 30.0  # seconds
LEFT_BEHIND_AFTER = 30  # seconds; who has only just begun may not hold its lock yet
MEMORY_NEEDED = 3 * 2**30  # bytes
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_NAME = "queunir-tests-"  # and the pid of who started the engine

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1

# The shell stays the first process of the namespace and reaps what loses its parent; a daemon that was told to end, and
# did so well, is started again. All of the engine's run-time
# files are in memory that goes with the mount namespace.
FIRST_PROCESS = """
mount -t tmpfs -o mode=0755 tmpfs /run
while dockerd "$@"; do :; done
"""

_libc = ctypes.CDLL(None, use_errno=True)
_networks: list[int] = []  # the network namespace this process came from, once it has left it


def absent() -> str | None:
    """Why no engine can be started here; None where one can."""
    if os.geteuid() != 0:
        return "a Docker engine of its own needs root"
    missing = [part for part in PARTS if shutil.which(part, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install docker.io debootstrap iptables iproute2)"
    return None


def enter_own_network() -> None:
    """Moves this process into a network of its own in which there is nothing but the loopback interface.

    To be called before any thread or server is started: only what is started later is in that network too.
    """
    if _networks:
        return
    outside = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    _networks.append(outside)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def outward(command: Sequence[str]) -> list[str]:
    """The command as it must be run to reach the machine's own network, from wherever this process is by now."""
    if not _networks:
        return list(command)
    return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{_networks[0]}", *command]


class Engine:
    """A running dockerd; `host` is what DOCKER_HOST must be to reach it."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.host = f"unix://{directory}/docker.sock"
        self.socket = directory / "docker.sock"
        self._process = process

    @contextlib.contextmanager
    def client(self, timeout: float = 60) -> Iterator[docker.APIClient]:
        """The SDK's client of this engine."""
        with contextlib.closing(docker.APIClient(base_url=self.host, timeout=timeout)) as client:
            yield client

    def pid(self) -> int:
        """The pid of dockerd itself, as we see it."""
        shell = _children(self._process.pid)[0]
        return next(pid for pid in _children(shell) if _name(pid) == "dockerd")

    def restart(self) -> None:
        """As an update of Docker does it: the daemon ends, and its containers with it, and comes back."""
        before = self.pid()
        os.kill(before, signal.SIGTERM)
        deadline = time.monotonic() + READY_WITHIN
        while Path(f"/proc/{before}").exists():
            assert time.monotonic() < deadline, "dockerd does not end"
            time.sleep(0.02)
        _await_ready(self, self._process)

    def end(self) -> None:
        """Kills the engine and all it started, which is quicker than asking and just as certain."""
        for pid in _children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def engine(directory: Path, *, offline: bool = True) -> Iterator[Engine]:
    """Starts an engine whose data is kept in `directory`. With `offline` false it only builds, on the machine's
    own network, and may set up no network for a container."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / "data" / "containers", ignore_errors=True)  # none is started again
    (directory / "docker.sock").unlink(missing_ok=True)
    options = [
        f"--data-root={directory}/data",
        "--exec-root=/run/docker",
        "--pidfile=/run/docker.pid",
        f"--host=unix://{directory}/docker.sock",
        f"--cgroup-parent=/{CGROUP_NAME}{os.getpid()}",
        "--ip6tables=false",
        "--log-level=warn",
    ]
    if not offline:
        options += ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "bash", "-c", FIRST_PROCESS]
    command = [*apart, "dockerd", *options]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command if offline else outward(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LANG": "C.UTF-8"},
            preexec_fn=_end_with_parent,
        )
    started = Engine(directory, process)
    try:
        _await_ready(started, process)
        yield started
    finally:
        started.end()
        _remove_cgroups(os.getpid())


@contextlib.contextmanager
def temporary_engine() -> Iterator[Engine]:
    """An engine that leaves nothing behind; what a killed run left is cleared away first."""
    base = _quick_place()
    for left in base.glob("queunir-docker-*"):
        _remove_if_left_behind(left)
    _remove_cgroups_of_the_dead()
    directory = Path(tempfile.mkdtemp(prefix="queunir-docker-", dir=base))
    directory.chmod(0o755)  # members of the socket's group must get to it
    try:
        with (directory / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with engine(directory) as started:
                yield started
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _quick_place() -> Path:
    """In memory where there is room: thousands of small files take a slow disk a quarter of a minute to forget."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_NEEDED:
        return memory
    return Path(tempfile.gettempdir())


def _await_ready(started: Engine, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(str(started.socket))
            probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            if b" 200 " in probe.recv(100):
                return
        time.sleep(0.05)
    raise RuntimeError(f"dockerd did not start: {(started.directory / 'log').read_text()[-2000:]}")


def _end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _remove_if_left_behind(directory: Path) -> None:
    """A run that goes on holds its lock, or has only just begun."""
    with contextlib.suppress(OSError), open(directory / "lock", "rb") as lock:
        if time.time() - os.fstat(lock.fileno()).st_mtime < LEFT_BEHIND_AFTER:
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)


def _remove_cgroups_of_the_dead() -> None:
    for path in (*CGROUPS.glob(f"{CGROUP_NAME}*"), *CGROUPS.glob(f"*/{CGROUP_NAME}*")):
        pid = path.name.removeprefix(CGROUP_NAME)
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _remove_cgroups(int(pid))


def _remove_cgroups(pid: int) -> None:
    """The kernel keeps a group's directory after its last process; nothing is in them once the engine has ended."""
    for hierarchy in (CGROUPS, *CGROUPS.glob("*/")):
        top = hierarchy / f"{CGROUP_NAME}{pid}"
        for path in sorted((top, *top.rglob("*/")), key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
