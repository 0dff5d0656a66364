"""A PostgreSQL server of our own, for the demo and the tests: programs from a wheel or the system, our own launcher.

It listens on a Unix socket only and asks everyone for a password. As root it runs under an unprivileged account,
for PostgreSQL refuses root. Where that account can not walk down to the directory (`/root` is closed to it), the
server is handed the open directory itself and names it `/proc/self/fd/N`: such a name leads straight to the
directory, past the closed ones above it, and the rights of none of them are touched.
"""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import psutil
import structlog
import trio

from queunir_trio.errors import Lost, Misconfigured, Refused
from queunir_trio.outside.postgres_programs import Account, can_reach, find_programs, programs_for, service_account
from queunir_trio.settings import DatabaseSettings

ADMIN: Final = "queunir_admin"
GATEWAY_ROLE: Final = "wank_gateway"
PORT: Final = 5432  # only part of the socket's name
SOCKET_PATH_AT_MOST: Final = 107  # bytes, less the terminating zero of struct sockaddr_un
INITDB_WITHIN: Final = 120.0  # seconds
READY_WITHIN: Final = 60.0  # seconds; a recovery after a crash may take a while
STOPPED_WITHIN: Final = 10.0  # seconds for a fast shutdown, before it is made an immediate one
KILLED_WITHIN: Final = 3.0  # seconds for an immediate shutdown, before the kill
ENDED_WITHIN: Final = STOPPED_WITHIN + KILLED_WITHIN + 2.0  # seconds, the kill included
LOG_AT_MOST: Final = 10 * 2**20  # bytes; an older log is put aside at a start

log = structlog.get_logger()


class DatabaseServer:
    """One server and its directory; `start` and `stop` may be repeated while the directory is held."""

    def __init__(
        self,
        home: Path,
        programs: Path,
        account: Account | None,
        *,
        max_connections: int,
        durable: bool,
        options: Mapping[str, str],
    ) -> None:
        self.port = PORT
        self.admin_user = ADMIN
        self.admin_password = _kept_password(home / "admin-password")
        self._home = home
        self._programs = programs
        self._account = account
        self._max_connections = max_connections
        self._durable = durable
        self._options = options
        self._process: trio.Process | None = None
        self._opened: int | None = None
        self._temporary_socket: str | None = None
        if account is not None and not can_reach(account, home):
            self._opened = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        self.host = self._socket_directory()

    def __repr__(self) -> str:
        return f"<DatabaseServer {self._home} {'running' if self.running else 'stopped'}>"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def settings(self, name: str, user: str, password: str) -> DatabaseSettings:
        """How the gateway reaches its database on this server, with the server's own admin."""
        return DatabaseSettings(
            host=self.host,
            port=self.port,
            name=name,
            user=user,
            password=password,
            admin_user=self.admin_user,
            admin_password=self.admin_password,
        )

    async def start(self) -> None:
        """Returns when the server takes connections. Lost: it does not come up; the message holds its last words."""
        await self._end_orphan()
        self._write_access_rules()
        with self._open_log() as output:
            self._process = await trio.lowlevel.open_process(
                self._command(), stdout=output, stderr=output, start_new_session=True, **self._as_account()
            )
        with trio.move_on_after(READY_WITHIN):
            while True:
                await trio.sleep(0.01)
                if not self.running:
                    break
                if self._pid_file()[7:8] == ["ready"]:
                    return
        words = self._last_words()
        await self.stop()
        raise Lost(f"PostgreSQL did not start in {self._home}: {words}")

    async def stop(self) -> None:
        """Ends the server: fast, then at once, then by force, each within its limit, also while being cancelled."""
        process, self._process = self._process, None
        if process is None:
            return
        for sign, limit in ((signal.SIGINT, STOPPED_WITHIN), (signal.SIGQUIT, KILLED_WITHIN), (signal.SIGKILL, 1.0)):
            with suppress(ProcessLookupError):
                process.send_signal(sign)
            with trio.move_on_after(limit, shield=True):
                await process.wait()
                return
            log.warning("postgres_slow_to_stop", signal=sign.name)

    async def initialise(self) -> None:
        """Makes the data directory where there is none. Misconfigured: the data there is of another version."""
        data = self._home / "data"
        if (data / "PG_VERSION").exists():
            await self._check_version(data)
            return
        unfinished = self._home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._make_folder(unfinished, 0o700)
        password = self._home / "initdb-password"
        self._write(password, self.admin_password)
        command = [f"{self._programs}/initdb", "-D", self._seen("data.new"), "-U", ADMIN, "-A", "scram-sha-256"]
        command += [f"--pwfile={self._seen(password.name)}", "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"]
        try:
            with trio.fail_after(INITDB_WITHIN):
                done = await trio.run_process(
                    command if self._durable else [*command, "--no-sync"],
                    capture_stdout=True,
                    stderr=subprocess.STDOUT,
                    check=False,
                    **self._as_account(),
                )
        finally:
            password.unlink(missing_ok=True)
        if done.returncode != 0:
            raise Lost(f"initdb failed in {self._home}: {done.stdout.decode(errors='replace').strip()[-500:]}")
        unfinished.rename(data)

    def close(self) -> None:
        """Gives back what was held open; the server has been stopped before."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None
        if self._temporary_socket is not None:
            shutil.rmtree(self._temporary_socket, ignore_errors=True)
            self._temporary_socket = None

    def _command(self) -> list[str]:
        # the server follows its own, always short, name of the directory to the socket; clients use the real one
        socket = self._temporary_socket or self._seen("socket")
        options = {
            "listen_addresses": "",
            "unix_socket_directories": socket,
            "port": str(PORT),
            "hba_file": self._seen("pg_hba.conf"),
            "max_connections": str(self._max_connections),
            "authentication_timeout": "10s",  # who has connected and does not log in holds a connection
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "lc_messages": "C",
            "cluster_name": "queunir",
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
            options |= {"wal_level": "minimal", "max_wal_senders": "0", "min_wal_size": "32MB", "max_wal_size": "128MB"}
        options |= self._options
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [f"{self._programs}/postgres", "-D", self._seen("data"), *settings]

    def _seen(self, name: str) -> str:
        """The path of something in our directory as the server must call it."""
        base = str(self._home) if self._opened is None else f"/proc/self/fd/{self._opened}"
        return f"{base}/{name}"

    def _as_account(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "env": {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            "cwd": "/",
            "stdin": subprocess.DEVNULL,
            "pass_fds": () if self._opened is None else (self._opened,),
        }
        if self._account is not None:
            options |= {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}
        return options

    def _socket_directory(self) -> str:
        folder = self._home / "socket"
        self._make_folder(folder, 0o755)
        if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_AT_MOST:
            return str(folder)
        self._temporary_socket = tempfile.mkdtemp(prefix="queunir-")
        self._make_folder(Path(self._temporary_socket), 0o755)
        return self._temporary_socket

    def _make_folder(self, folder: Path, mode: int) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        if self._account is not None:
            os.chown(folder, self._account.uid, self._account.gid)

    def _write(self, path: Path, text: str) -> None:
        """A file only its owner can read: the server's account."""
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)

    def _write_access_rules(self) -> None:
        # a slice's role finds the first line and no other, so it reaches the database that bears its name and no other
        rules = ["local sameuser all", f"local all {ADMIN}", f"local all {GATEWAY_ROLE}"]
        self._write(self._home / "pg_hba.conf", "".join(f"{rule} scram-sha-256\n" for rule in rules))

    def _open_log(self) -> Any:
        path = self._home / "log"
        if path.exists() and path.stat().st_size > LOG_AT_MOST:
            path.rename(path.with_name("log.old"))
        return path.open("ab")

    def _last_words(self) -> str:
        lines = (self._home / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-5:])

    def _pid_file(self) -> list[str]:
        try:
            return [line.strip() for line in (self._home / "data" / "postmaster.pid").read_text().splitlines()]
        except (FileNotFoundError, UnicodeDecodeError):
            return []

    async def _end_orphan(self) -> None:
        """Ends a server that a killed parent left behind, and clears the locks of one that no longer is.

        We hold the directory's lock, so nobody who lives answers for it. A pid alone proves nothing: it may have
        been given to another process since; the postmaster is the one that stands in the data directory.
        """
        data = self._home / "data"
        first = self._pid_file()[:1]
        if first and first[0].isdigit() and (orphan := _process_in(int(first[0]), data)) is not None:
            log.warning("postgres_left_behind", pid=orphan.pid)
            for sign, limit in ((signal.SIGINT, STOPPED_WITHIN), (signal.SIGQUIT, KILLED_WITHIN), (signal.SIGKILL, 1)):
                with suppress(psutil.NoSuchProcess):
                    orphan.send_signal(sign)
                with trio.move_on_after(limit):
                    # it is nobody's child any more, so there is nothing to wait on but itself
                    await trio.sleep(0.01)
                    while _process_in(orphan.pid, data) is not None:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    break
        if first:
            # the children of a postmaster that was killed notice only by and by, and hold its shared memory until then
            with trio.move_on_after(STOPPED_WITHIN):
                while await trio.to_thread.run_sync(_anybody_in, data):  # noqa: ASYNC110 - processes tell nobody
                    await trio.sleep(0.02)
        (data / "postmaster.pid").unlink(missing_ok=True)
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (Path(self.host) / name).unlink(missing_ok=True)

    async def _check_version(self, data: Path) -> None:
        made_by = (data / "PG_VERSION").read_text().strip()
        told = await trio.run_process([f"{self._programs}/postgres", "--version"], capture_stdout=True)
        ours = told.stdout.decode().split()[2].split(".")[0]
        if ours != made_by:
            raise Misconfigured(
                [
                    f"The data in {data} was made by PostgreSQL {made_by} and the programs are those of {ours}: "
                    f"point QUEUNIR_PG_BIN at PostgreSQL {made_by}, or put the directory aside."
                ]
            )


@asynccontextmanager
async def embedded_postgres(
    directory: Path,
    *,
    binaries: Path | None = None,
    max_connections: int = 200,
    durable: bool = True,
    options: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[DatabaseServer]:
    """A running server with all it owns below `directory`, made where it is missing, stopped at the end.

    `durable=False` forgoes every wait for the disk: for tests. `options` are settings that win over ours.
    Refused `in_use`: another process holds the directory.
    Misconfigured: no programs, or data of another version. Lost: it does not start.
    """
    with _held(directory) as home:
        account = service_account(home / "data")
        programs = await trio.to_thread.run_sync(programs_for, account, find_programs(binaries))
        server = DatabaseServer(
            home, programs, account, max_connections=max_connections, durable=durable, options=options
        )
        try:
            await server.initialise()
            await server.start()
            yield server
        finally:
            with trio.move_on_after(ENDED_WITHIN, shield=True):
                await server.stop()
            server.close()


@contextmanager
def _held(directory: Path) -> Iterator[Path]:
    """The directory, made if need be, for us alone; the lock ends with the process, however that ends."""
    home = directory.absolute()
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)  # the server's account passes through to its own folders; the rest is closed to it
    with open(home / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("in_use", f"Another process runs the database in {home}: end it first.") from None
        yield home


def _kept_password(path: Path) -> str:
    if path.exists() and (kept := path.read_text(encoding="utf-8").strip()):
        return kept
    password = secrets.token_hex(32)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(password)
    return password


def _anybody_in(directory: Path) -> bool:
    """Whether any process stands in this directory, as every process of a server does in its data."""
    return any(_process_in(pid, directory) is not None for pid in psutil.pids())


def _process_in(pid: int, directory: Path) -> psutil.Process | None:
    """The process of this number if it stands in this directory, as a postmaster does in its data."""
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and os.path.samefile(process.cwd(), directory):
            return process
    except (psutil.Error, OSError):
        pass
    return None
