"""Containers that an older gateway made: seen as what they are, left alone, and made anew only when asked to."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import httpx
import pytest
import trio

from queunir_trio.live.reconciler import Reconciler
from queunir_trio.model.slices import Slice, Status, Wanted
from queunir_trio.operations import adopting, destruction, isolating, starting, suspension
from queunir_trio.operations.isolating import Move, Moved
from queunir_trio.operations.starting import spec_of
from queunir_trio.outside import directories
from queunir_trio.outside.embedded_postgres import DatabaseServer
from queunir_trio.outside.runtimes.contract import Instance, InstanceConflict
from queunir_trio.outside.runtimes.docker import DockerRuntime
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import isolation, slices, suspensions
from queunir_trio.store.bridge import Database, NotPermitted, open_connection
from queunir_trio.store.migrations import migrate_slice
from tests.docker_engine import Engine
from tests.docker_image import IMAGE
from tests.doubles.moving import contents
from tests.doubles.premises import Killed, Premises, Reached, open_premises
from tests.doubles.reconciling import reconciling

PASSWORD = "the-one-password-of-all"
NAME, KEPT = "wank-slice-1", "wank-slice-1-before"
RUN = "exec /opt/slice/venv/bin/python -I -u -m queunir_slice"
OLD_KEY = "o" * 64
LABEL = "queunir.slice.uuid"
AS_SHARED_ONLY = 'case "$DATABASE_URL" in *wa_slice:*) ' + RUN + " ;; *) {other} ;; esac"

RuntimeOn = Callable[..., DockerRuntime]


@dataclass
class Old:
    """What an older gateway left behind: a slice's row, database, directory, and what makes its container."""

    place: Premises
    client: docker.APIClient
    row: Slice
    where: DatabaseSettings

    @property
    def directory(self) -> Path:
        return self.place.data_dir / "slices" / "1"

    @property
    def shared(self) -> DatabaseSettings:
        return replace(self.where, name="wa_slice_1", user=isolation.OLD_ROLE, password=PASSWORD)

    def start(self, *, port: int = 0, directory: Path | None = None, command: str = RUN, user: str = "") -> str:
        """As `docker run` does it; the id of the container."""
        directory = directory or self.directory
        url = f"postgresql://{isolation.OLD_ROLE}:{PASSWORD}@/wa_slice_1?host=/run/postgresql&port={self.where.port}"
        host = self.client.create_host_config(
            binds=[
                f"{directory}/session:/app/.wwebjs_auth",
                f"{directory}/media:/app/media",
                f"{self.where.host}:/run/postgresql:ro",
            ],
            port_bindings={3101: ("127.0.0.1", port or self.row.port)},
            restart_policy={"Name": "unless-stopped"},
        )
        environment = {
            "DATABASE_URL": url, "SLICE_KEY": OLD_KEY, "SLICE_ID": "as-it-was", "PGPASSWORD": PASSWORD,
            "MEDIA_DIR": "/app/media", "SESSION_DIR": "/app/.wwebjs_auth", "MEDIA_QUOTA_BYTES": "1000000",
        }  # fmt: skip
        made = self.client.create_container(
            IMAGE, ["/bin/sh", "-c", command], name=NAME, user=user, environment=environment, host_config=host,
            ports=[3101],
        )  # fmt: skip
        self.client.start(made["Id"])
        return str(made["Id"])

    def described(self, name: str = NAME) -> dict[str, Any]:
        found: dict[str, Any] = self.client.inspect_container(name)
        return found

    def names(self) -> list[str]:
        return sorted(entry["Names"][0].lstrip("/") for entry in self.client.containers(all=True))

    async def healthy(self) -> None:
        await starting.wait_until_healthy(self.place.resources, await self.now())

    async def now(self) -> Slice:
        found = await slices.find(self.place.db, self.row.id)
        assert found is not None
        return found

    async def instance(self) -> Instance:
        self.place.resources.recognise([await self.now()])
        (found,) = await self.place.resources.runtime.listed()
        assert found == await self.place.resources.runtime.inspect(1), "both ways of asking say the same"
        return found


@pytest.fixture
def client(docker_host: str, docker_engine: Engine) -> Iterator[docker.APIClient]:
    with docker_engine.client() as opened:
        yield opened


@pytest.fixture
async def old(
    database: Database,
    database_settings: DatabaseSettings,
    postgres: DatabaseServer,
    tmp_path: Path,
    free_base_port: int,
    docker_runtime: RuntimeOn,
    client: docker.APIClient,
) -> AsyncIterator[Old]:
    where, role = database_settings, isolation.OLD_ROLE
    async with open_premises(database, where, tmp_path, free_base_port, warm_pool_min=0) as place:
        settings = replace(place.resources.settings, runtime="docker", image=IMAGE)
        place = replace(place, resources=replace(place.resources, runtime=docker_runtime(), settings=settings))
        row = await slices.add(database, num=1, base_port=free_base_port, status=Status.ASSIGNED)
        user = await place.add_user()
        await database.execute("update gateway.slices set user_id = $1", user)
        await database.execute("update gateway.users set slice_id = $1", row.id)
        for part in ("media", "session"):
            (tmp_path / "slices" / "1" / part).mkdir(parents=True)
            os.chown(tmp_path / "slices" / "1" / part, 65534, 65534)
        async with _let_in(where, postgres), open_connection(where, as_admin=True) as admin:
            await admin.execute(f"create role {role} login password '{PASSWORD}'")
            await admin.execute(f"create database wa_slice_1 owner {role} template template0")
            await admin.execute(f"comment on database wa_slice_1 is '{row.uuid}'")
            found = Old(place, client, row, where)
            try:
                async with open_connection(found.shared) as connection:
                    await migrate_slice(connection)
                yield found
            finally:
                for entry in client.containers(all=True):
                    client.remove_container(entry["Id"], force=True)
                await admin.execute("drop database if exists wa_slice_1 with (force)")
                await admin.execute("drop role if exists wa_slice_1")
                await admin.execute(f"drop role if exists wa_slice_1_owner; drop role {role}")


@asynccontextmanager
async def _let_in(where: DatabaseSettings, server: DatabaseServer) -> AsyncIterator[None]:
    rules = trio.Path(server.host).parent / "pg_hba.conf"
    before = await rules.read_text()
    try:
        await _set_rules(where, rules, f"{before}local all {isolation.OLD_ROLE} scram-sha-256\n")
        yield
    finally:
        with trio.CancelScope(shield=True):
            await _set_rules(where, rules, before)


async def _set_rules(where: DatabaseSettings, rules: trio.Path, text: str) -> None:
    await rules.write_text(text)
    async with open_connection(where, as_admin=True) as admin:
        await admin.execute("select pg_reload_conf()")


async def paired(old: Old, key: str) -> str | None:
    """Connects a phone if none is; its number."""
    address = old.place.resources.address(old.row)
    async with httpx.AsyncClient(headers={"x-slice-key": key}, trust_env=False, timeout=20) as http:
        base = f"http://{address.host}:{address.port}/api"
        with trio.fail_after(30):
            while (state := (await http.get(f"{base}/status/state")).json())["state"] != "ready":
                await http.post(f"{base}/simulator/scan")
                await trio.sleep(0.1)
    number: str | None = state["phoneNumber"]
    return number


async def isolated(old: Old, made: Reconciler, back_within: float = 60) -> Moved:
    async def restart(slice_id: int) -> None:
        await suspension.restart(old.place.db, slice_id)
        made.nudge()

    resources = old.place.resources
    move = Move(old.place.db, old.where, resources.settings, old.place.data_dir, restart=restart)
    return await isolating.isolate(replace(move, back_within=back_within), await old.now())


async def at_rest(old: Old, made: Reconciler) -> None:
    """Nothing is under way, and one more pass finds nothing to do."""
    for _ in range(2):
        made.nudge()
        await trio.sleep(0.3)
        with trio.fail_after(30):
            while not made.is_idle:  # noqa: ASYNC110 - a deed tells nobody that it ended
                await trio.sleep(0.05)


async def deeds(old: Old) -> list[str]:
    return [row[0] for row in await old.place.db.fetch("select distinct deed from gateway.slice_steps order by 1")]


async def test_an_older_container_is_seen_as_running_and_is_not_touched(old: Old) -> None:
    container = old.start()
    await old.healthy()
    before = old.described()
    async with reconciling(old.place) as made:
        await at_rest(old, made)
        assert await deeds(old) == []
    found = await old.instance()
    assert (found.uuid, found.running, found.unmarked, found.container) == (old.row.uuid, True, True, container)
    assert old.described()["State"] == before["State"], "not even started anew"
    assert old.names() == [NAME]
    assert not (old.directory / ".slice").exists()


async def test_it_is_suspended_and_resumed_as_it_is(old: Old) -> None:
    container = old.start()
    await old.healthy()
    async with reconciling(old.place) as made:
        await suspension.suspend(old.place.db, old.row.id, "money")
        await at_rest(old, made)
        found = await old.instance()
        assert (found.running, found.container) == (False, container)
        await suspension.resume(old.place.db, old.row.id)
        await at_rest(old, made)
        found = await old.instance()
        assert (found.running, found.container) == (True, container)
        await suspension.restart(old.place.db, old.row.id)
        await at_rest(old, made)
    found = await old.instance()
    assert (found.running, found.container) == (True, container)
    assert (await old.now()).restart_wanted_at is None
    assert old.names() == [NAME]


@pytest.mark.parametrize("user", ["", "0:0"])
async def test_isolating_with_a_restart_gives_it_a_role_and_a_container_of_its_own(old: Old, user: str) -> None:
    container = old.start(user=user)
    await old.healthy()
    number = await paired(old, OLD_KEY)
    before = contents(old.directory / "session")
    owners = {path.name: path.stat().st_uid for path in (old.directory / "session").iterdir()}
    assert before
    image_id = old.described()["Image"]
    async with reconciling(old.place) as made:
        moved = await isolated(old, made)
        assert (moved.state, moved.left) == ("isolated", [])
        await at_rest(old, made)
    found = await old.instance()
    assert (found.uuid, found.running, found.unmarked, found.image_id) == (old.row.uuid, True, False, image_id)
    assert found.container != container
    assert old.names() == [NAME], "what was before is gone"
    row = await old.now()
    assert (row.image, row.adopted_image, row.renewal_wanted, row.restart_wanted_at) == (None, image_id, False, None)
    assert contents(old.directory / "session") == before
    assert {path.name: path.stat().st_uid for path in (old.directory / "session").iterdir()} == owners
    assert (old.directory / ".slice").read_text() == str(old.row.uuid)
    assert await paired(old, old.place.resources.address(row).key) == number
    with pytest.raises(NotPermitted):
        async with open_connection(old.shared):
            raise AssertionError("the shared role is shut out")
    described = old.described()
    assert PASSWORD not in str(described), "the password of all slices is in none of its variables"
    assert "SLICE_ID=as-it-was" in described["Config"]["Env"]
    host = described["HostConfig"]
    assert (described["Config"]["User"], host["CapDrop"], host["ReadonlyRootfs"]) == (
        user or "65534:65534",
        ["ALL"],
        False,
    )
    assert bool(host["CapAdd"]) == (user == "0:0")
    assert host["NetworkMode"] == NAME
    assert described["Config"]["Labels"][LABEL] == str(old.row.uuid)
    # from now on it is started and stopped like any other, and once more made anew where it was changed
    container = str(found.container)
    for wanted in (Wanted.STOPPED, Wanted.RUNNING):
        await slices.set_wanted(old.place.db, old.row.id, wanted)
        async with reconciling(old.place) as made:
            await at_rest(old, made)
        found = await old.instance()
        assert (found.running, found.container) == (wanted is Wanted.RUNNING, container)


async def test_one_that_rests_is_made_anew_when_it_is_resumed(old: Old) -> None:
    container = old.start()
    await old.healthy()
    async with reconciling(old.place) as made:
        await suspension.suspend(old.place.db, old.row.id, "money")
        await at_rest(old, made)
        assert (await isolated(old, made)).state == "isolated"
        assert (await old.instance()).container == container, "nothing is done about it before"
        await suspension.resume(old.place.db, old.row.id)
        await at_rest(old, made)
    await old.healthy()
    found = await old.instance()
    assert (found.running, found.unmarked) == (True, False)
    assert not (await old.now()).renewal_wanted
    assert old.names() == [NAME]


@pytest.mark.parametrize("difference", ["port", "mounts", "label", "more"])
async def test_a_strangers_container_of_that_name_is_never_touched(old: Old, difference: str) -> None:
    elsewhere = old.place.data_dir / "slices" / "2"
    if difference == "port":
        container = old.start(port=old.row.port + 1)
    elif difference == "mounts":
        container = old.start(directory=elsewhere)
    else:
        binds = [f"{old.directory}/session:/app/.wwebjs_auth", f"{old.directory}/media:/app/media"]
        if difference == "more":
            binds.append(f"{old.directory.parent}:/everything")
        host = old.client.create_host_config(binds=binds, port_bindings={3101: ("127.0.0.1", old.row.port)})
        labels = {LABEL: str(uuid4())} if difference == "label" else {}
        command = ["/bin/sh", "-c", "exec sleep 600"]
        container = old.client.create_container(
            IMAGE, command, name=NAME, labels=labels, host_config=host, ports=[3101]
        )["Id"]
        old.client.start(container)
    before = old.described()
    assert (await old.instance()).uuid != old.row.uuid
    resources = old.place.resources
    async with reconciling(old.place) as made:
        await at_rest(old, made)
        assert "conflict" in await old.place.events()
        moved = await isolated(old, made, back_within=1)
        assert moved.state == "prepared"
        await at_rest(old, made)
    for order in (resources.runtime.ensure, resources.runtime.renew):
        with pytest.raises(InstanceConflict):
            await order(spec_of(resources, await old.now()))
    await resources.runtime.stop(1, old.row.uuid)
    await resources.runtime.remove(1, old.row.uuid)
    assert (old.described()["State"], old.described()["Id"]) == (before["State"], container)
    assert not (old.directory / ".slice").exists()
    assert (await old.now()).adopted_image is None


async def renewing(old: Old, docker_runtime: RuntimeOn, killed_at: str | None) -> list[str]:
    """A gateway that makes the slice anew and is killed on the way; the points it came to."""
    reached = Reached(killed_at=killed_at)
    told = replace(old.place.resources, runtime=docker_runtime(reached=reached), reached=reached)
    try:
        await adopting.renew(told, await old.now(), "restart")
    except Killed:
        assert reached.points[-1] == killed_at
    else:
        assert killed_at is None, f"{killed_at} was not reached"
    return reached.points


async def test_killed_anywhere_it_goes_on_and_nothing_is_left_over(old: Old, docker_runtime: RuntimeOn) -> None:
    old.start()
    await old.healthy()
    await old.place.db.execute("update gateway.slices set renewal_wanted = true")
    await suspension.restart(old.place.db, old.row.id)
    before = contents(old.directory / "session")
    move = Move(old.place.db, old.where, old.place.resources.settings, old.place.data_dir)
    assert (await isolating.isolate(move, await old.now())).state == "prepared"
    for point in (
        "restart:pinned:acted", "restart:marked:acted", "files", "network", "stopped", "aside", "created", "started",
        "restart:health:acted", "settled", "restart:settled:done", "restart:recorded:acted",
    ):  # fmt: skip
        await renewing(old, docker_runtime, point)
        assert [name for name in old.names() if name not in (NAME, KEPT)] == [], point
        assert old.names(), "one of the two is always there"
    await renewing(old, docker_runtime, None)
    assert old.names() == [NAME]
    found = await old.instance()
    assert (found.running, found.unmarked) == (True, False)
    assert contents(old.directory / "session") == before


@pytest.mark.parametrize("other", ["exec sleep 600", "exit 1"])
async def test_where_the_new_one_never_is_well_the_old_one_is_back(
    old: Old, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    container = old.start(command=AS_SHARED_ONLY.format(other=other))
    await old.healthy()
    before = contents(old.directory / "session")
    monkeypatch.setattr(starting, "HEALTHY_WITHIN", 3.0)
    async with reconciling(old.place) as made:
        moved = await isolated(old, made, back_within=8)
        assert moved.state == "prepared", "the shared role is still let in"
        await at_rest(old, made)
        assert made.is_idle
    monkeypatch.undo()
    await old.healthy()
    found = await old.instance()
    assert (found.running, found.unmarked, found.container) == (True, True, container)
    assert old.names() == [NAME]
    row = await old.now()
    assert (row.renewal_wanted, row.restart_wanted_at) == (False, None)
    assert (await old.place.events()).count("renewal_failed") == 1
    assert contents(old.directory / "session") == before


@pytest.mark.parametrize("point", ["taken away", "returned"])
async def test_killed_on_the_way_back_the_old_one_is_found_again(
    old: Old, docker_runtime: RuntimeOn, point: str
) -> None:
    container = old.start(command=AS_SHARED_ONLY.format(other="exec sleep 600"))
    await old.healthy()
    resources, row = old.place.resources, await old.now()
    resources.recognise([row])
    await suspensions.pin_image(old.place.db, row.id, old.described()["Image"])
    row = await old.now()
    await resources.runtime.renew(spec_of(resources, row))
    assert old.names() == [NAME, KEPT]
    dying = replace(resources, runtime=docker_runtime(reached=Reached(killed_at=point)))
    dying.recognise([row])
    with pytest.raises(Killed):
        await dying.runtime.settle(1, row.uuid, back=True)
    async with reconciling(old.place) as made:
        await at_rest(old, made)
    await old.healthy()
    assert (await old.instance()).container == container
    assert old.names() == [NAME]


async def test_an_older_slice_is_destroyed_by_the_same_proof(old: Old) -> None:
    old.start()
    await old.healthy()
    await destruction.request(old.place.db, old.row.id)
    marked = await old.now()
    await destruction.destroy(old.place.resources, marked)
    assert old.names() == []
    assert not old.directory.exists()
    assert await slices.find(old.place.db, old.row.id) is None


async def test_a_directory_of_another_user_is_marked_and_becomes_the_gateways_own(
    old: Old, docker_runtime: RuntimeOn
) -> None:
    os.chown(old.directory, 12345, 12345)
    (old.directory / "session" / "kept").write_bytes(b"kept")
    os.chown(old.directory / "session" / "kept", 65534, 65534)
    for _ in range(2):
        await docker_runtime().mark(old.directory, old.row.uuid)
        assert not await directories.is_foreign(old.directory.parent, old.directory, old.row.uuid)
    found = old.directory.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o700)
    assert (old.directory / "session" / "kept").stat().st_uid == 65534
    with pytest.raises(OSError, match="another slice's mark"):
        await docker_runtime().mark(old.directory, uuid4())
    assert (old.directory / ".slice").read_text() == str(old.row.uuid)
