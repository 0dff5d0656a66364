"""A customer's data in one ZIP file: everything of their workspace's database as JSON and CSV, and their media.

Written piece by piece, whatever there is: neither a table nor a file is ever held in memory. The database is read as it
was at one moment, and needs no running slice.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import User
from queunir_trio.model.jobs import Job, JobState
from queunir_trio.model.slices import MEDIA_QUOTA_BYTES, Slice
from queunir_trio.operations import adopting
from queunir_trio.operations.export_format import csv_head, csv_rows, json_rows, readme
from queunir_trio.operations.orders import Teller
from queunir_trio.operations.reading import slice_reader
from queunir_trio.operations.steps import Resources
from queunir_trio.outside import directories, export_files
from queunir_trio.outside.archives import ZipWriter, writing_zip
from queunir_trio.outside.export_files import ExportFile
from queunir_trio.store import accounts, jobs, outbox, slice_tables, slices
from queunir_trio.store.bridge import Database, DatabaseMissing, NotPermitted, Queries
from queunir_trio.store.slice_tables import Snapshot, Table

EXPORT: Final = "export"  # the kind of job
LETTER: Final = "export_ready"  # the kind of letter
PAGE: Final = "/export"  # where the letter leads
KEPT: Final = timedelta(days=7)
ROWS_AT_ONCE: Final = 200
TOLD_EVERY: Final = 1.0  # seconds between two words on how far it is
TABLES_PERCENT: Final = (5, 50)  # from and to, while tables are written
MEDIA_PERCENT: Final = (50, 97)

log = structlog.get_logger()

Tell = Callable[[str, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Export:
    """The newest export that a user asked for; `file` is there from its end until it expires."""

    job: Job
    file: ExportFile | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Written:
    """What is in an export."""

    size: int  # bytes of the file
    rows: dict[str, int]  # by table
    media_files: int


async def ask(db: Queries, user_id: int) -> Job:
    """The job that exports the user's data: the one under way, or a new one."""
    return await jobs.put(db, EXPORT, f"{EXPORT}:{user_id}", user_id=user_id)


async def newest(db: Queries, data_dir: Path, user_id: int) -> Export | None:
    """What became of the newest export that the user asked for; None where there was none."""
    job = await jobs.newest(db, EXPORT, user_id=user_id)
    return await _found(db, data_dir, user_id, job) if job is not None else None


async def finished(db: Queries, data_dir: Path, user_id: int, job_id: int) -> ExportFile:
    """The file of one of the user's own exports. Refused: `no_export`, `export_expired`."""
    job = await jobs.find(db, job_id)
    if job is None or job.kind != EXPORT or job.user_id != user_id or job.state is not JobState.DONE:
        raise Refused("no_export", "There is no such export.")
    found = await _found(db, data_dir, user_id, job)
    if found.file is None:
        raise export_files.expired()
    return found.file


async def _found(db: Queries, data_dir: Path, user_id: int, job: Job) -> Export:
    if job.state is not JobState.DONE or job.finished_at is None:
        return Export(job, None, None)
    expires_at = job.finished_at + KEPT
    good = expires_at > await slices.now(db)
    file = await export_files.find(data_dir, user_id, job.id) if good else None
    return Export(job, file, expires_at)


class Exporting:
    """Carries out jobs of kind `export`."""

    def __init__(self, resources: Resources, app_url: str) -> None:
        self._resources = resources
        self._app_url = app_url

    async def work(self, job: Job, teller: Teller) -> dict[str, Any]:
        """What a job's work is. Refused: it can not be made; Lost, OSError: to be tried again."""
        resources = replace(self._resources, epoch=teller.epoch)
        assert job.user_id is not None
        user = await _exportable(resources.db, job.user_id)
        path = export_files.path_of(resources.data_dir, user.id, job.id)
        await export_files.prepare(path)
        written = await write_export(resources, user, path, teller.at)
        await _announce(resources.db, user, job, self._app_url, path)
        await export_files.remove_others(resources.data_dir, user.id, but_job=job.id)
        log.info("exported", user_id=user.id, size=written.size, media_files=written.media_files)
        return {"size_bytes": written.size, "rows": written.rows, "media_files": written.media_files}


async def write_export(resources: Resources, user: User, path: Path, tell: Tell) -> Written:
    """Writes everything of the user into a new ZIP file at `path`, whose directory is there.

    Refused: `no_space`, `not_readable`. Lost, OSError: try again. Cut short, it leaves no file.
    """
    slice_ = await slices.find_of_user(resources.db, user.id)
    await tell("tables", 0)
    async with writing_zip(path) as archive:
        rows: dict[str, int] = {}
        media = 0
        writing = _Writing(resources, archive, path.parent, tell)
        if slice_ is not None and slice_.managed:
            await _check_space(resources, slice_, path.parent)
            rows = await writing.add_tables(slice_)
            media = await writing.add_media(slice_)
        await archive.begin("account.json")
        await archive.write(json.dumps(_account(user), indent=2).encode())
        await archive.begin("README.txt")
        made_at = await slices.now(resources.db)
        await archive.write(readme(user.language, made_at, rows, media, has_workspace=bool(rows)).encode())
    await tell("done", 99)
    return Written((await trio.Path(path).stat()).st_size, rows, media)


class _Writing:
    """One export that is being written."""

    def __init__(self, resources: Resources, archive: ZipWriter, directory: Path, tell: Tell) -> None:
        self._resources = resources
        self._archive = archive
        self._directory = directory
        self._tell = tell
        self._told_at = trio.current_time()

    async def add_tables(self, slice_: Slice) -> dict[str, int]:
        """Every table, as JSON and as CSV; how many rows each has."""
        names = self._resources.names(slice_)
        database = names.database
        try:
            reader = await slice_reader(self._resources, names, slice_.uuid)
            async with slice_tables.reading(reader, database) as snapshot:
                tables = {table: await snapshot.count(table) for table in await snapshot.tables()}
                total, done = 2 * sum(tables.values()) or 1, 0
                for table in tables:
                    for as_csv in (False, True):
                        done = await self._add_table(snapshot, table, as_csv, done, total)
        except DatabaseMissing:
            raise Refused("not_readable", "The workspace is not ready yet. Try again in a moment.") from None
        except NotPermitted as closed:
            log.error("export_not_permitted", database=database, reason=str(closed))
            raise Refused("not_readable", "The workspace can not be read. Our operators have to look at it.") from None
        return {table.name: rows for table, rows in tables.items()}

    async def _add_table(self, snapshot: Snapshot, table: Table, as_csv: bool, done: int, total: int) -> int:
        archive = self._archive
        await archive.begin(f"data/{table.name}.{'csv' if as_csv else 'json'}")
        await archive.write(csv_head(table.columns) if as_csv else b"[")
        await snapshot.open(table)
        is_first = True
        while rows := await snapshot.next(ROWS_AT_ONCE):
            if as_csv:
                await archive.add(csv_rows, table.columns, rows)
            else:
                await archive.add(json_rows, rows, is_first)
            is_first = False
            done += len(rows)
            await self._say("tables", TABLES_PERCENT, done / total)
        if not as_csv:
            await archive.write(b"\n]\n")
        return done

    async def add_media(self, slice_: Slice) -> int:
        """Every file of the media directory; how many."""
        resources, directory = self._resources, self._resources.names(slice_).directory
        await adopting.mark_if_proven(resources, slice_)
        if not await directories.exists(directory.parent, directory, slice_.uuid):
            return 0
        size = (await resources.runtime.measure([directory]))[directory].media or 1
        taken = 0

        async def progress(data: int) -> None:
            nonlocal taken
            taken += data
            if taken > size + MEDIA_QUOTA_BYTES:  # a file with holes is small on the disk and without end in a ZIP
                raise _no_space()
            await self._say("media", MEDIA_PERCENT, min(1.0, taken / size))

        await self._tell("media", MEDIA_PERCENT[0])
        return await self._archive.add_tar(resources.runtime.archive(directory, "media"), "media", progress)

    async def _say(self, step: str, percent: tuple[int, int], part: float) -> None:
        """How far it is, now and then; whoever must not go on is told so here."""
        if trio.current_time() - self._told_at >= TOLD_EVERY:
            self._told_at = trio.current_time()
            if await export_files.free_bytes(self._directory) < export_files.FREE_AT_LEAST // 2:
                raise _no_space()  # it was enough at the beginning
            await self._tell(step, int(percent[0] + (percent[1] - percent[0]) * part))


async def _exportable(db: Queries, user_id: int) -> User:
    user = await accounts.find(db, user_id)
    if user is None or user.deleting_at is not None:
        raise Refused("no_such_user", "The account is being deleted.")
    return user


async def _check_space(resources: Resources, slice_: Slice, directory: Path) -> None:
    """Refused `no_space` where the disk might not hold it and keep some room for everybody else."""
    names = resources.names(slice_)
    try:
        reader = await slice_reader(resources, names, slice_.uuid)
        async with slice_tables.reading(reader, names.database) as snapshot:
            needed = await snapshot.size()
    except DatabaseMissing:
        return  # told of in a moment
    needed += (await resources.runtime.measure([names.directory]))[names.directory].media
    free = await export_files.free_bytes(directory)
    if free < needed + export_files.FREE_AT_LEAST:
        log.error("export_without_space", slice_id=slice_.id, needed=needed, free=free)
        raise _no_space()


def _no_space() -> Refused:
    return Refused("no_space", "There is not enough room for the export at the moment. Try again tomorrow.")


async def _announce(db: Database, user: User, job: Job, app_url: str, path: Path) -> None:
    """The letter, unless the user is being removed by now: then the file is nobody's to have."""
    async with db.transaction() as connection:
        if not await connection.fetchval(
            "select true from gateway.users where id = $1 and deleting_at is null for no key update", user.id
        ):
            await trio.Path(path).unlink(missing_ok=True)
            raise Refused("no_such_user", "The account is being deleted.")
        payload = {"email": user.email, "language": user.language, "link": f"{app_url}{PAGE}"}
        await outbox.put(connection, LETTER, f"{LETTER}:{user.id}:{job.id}", payload)


def _account(user: User) -> dict[str, Any]:
    """What the gateway itself keeps of the customer."""
    moments = {
        "subscription_ends_at": user.subscription_ends_at,
        "created_at": user.created_at,
        "last_login_at": user.last_login_at,
    }
    return {
        "email": user.email,
        "language": user.language,
        "subscription_status": user.subscription_status,
        **{name: moment.isoformat() if moment is not None else None for name, moment in moments.items()},
    }


async def prune(db: Queries, data_dir: Path) -> int:
    """Removes the exports that had their time, what no job tells of any more, and what nobody owns; how many."""
    there, owners = await export_files.listed(data_dir), await export_files.owners(data_dir)
    # before the table is looked at: what comes after that is good
    gone = await export_files.keep_only(there, await jobs.ids_since(db, EXPORT, KEPT)) if there else 0
    for user_id in owners:
        if await accounts.find(db, user_id) is None:
            await export_files.remove_all(data_dir, user_id)
    return gone
