"""By what a container of an older gateway is known, and what it is made anew with, without any Docker."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from queunir_trio.outside.runtimes.contract import Adopted, InstanceSpec
from queunir_trio.outside.runtimes.docker_adopted import container_of, is_of
from queunir_trio.outside.runtimes.docker_spec import LABEL_CONFIG, LABEL_UUID
from queunir_trio.settings import DockerSettings

SETTINGS = DockerSettings()
SPEC = InstanceSpec(
    7, 42, uuid4(), "127.0.0.1", 5013, Path("/data/slices/7"), "sha256:old", "postgresql://own:new@/d?host=/pg", "key",
    True, adopted=True,
)  # fmt: skip
ADOPTED = Adopted(SPEC.num, SPEC.uuid, SPEC.host, SPEC.port, SPEC.directory)
OLD: dict[str, Any] = {
    "Config": {
        "Labels": {"com.example.who": "an operator"},
        "User": "node",
        "Cmd": ["node", "server.js"],
        "Hostname": "0123456789ab",
        "Env": [
            "DATABASE_URL=postgresql://wa_slice:shared@db/d", "PGPASSWORD=shared", "OTHER_URL=x://wa_slice:shared@db/e",
            "SLICE_ID=7", "NOT_SECRET=shared-memory", "SLICE_KEY_FILE=/gone",
        ],
    },
    "HostConfig": {
        "PortBindings": {"3101/tcp": [{"HostIp": "127.0.0.1", "HostPort": "5013"}]},
        "Tmpfs": {"/cache": ""},
    },
    "Mounts": [
        {"Type": "bind", "Source": "/data/slices/7/session", "Destination": "/app/.wwebjs_auth", "RW": True},
        {"Type": "bind", "Source": "/data/slices/7/media", "Destination": "/app/media", "RW": True},
    ],
}  # fmt: skip


def bind(source: str, target: str = "/somewhere", *, writable: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Destination": target, "RW": writable}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    answer = copy.deepcopy(OLD)
    change(answer)
    return answer


def with_mount(mount: dict[str, Any]) -> dict[str, Any]:
    return changed(lambda answer: answer["Mounts"].append(mount))


def bound(*ports: str, host: str = "127.0.0.1") -> dict[str, Any]:
    bindings = {"3101/tcp": [{"HostIp": host, "HostPort": port} for port in ports]}
    return changed(lambda answer: answer["HostConfig"].update(PortBindings=bindings))


@pytest.mark.parametrize(
    "answer",
    [
        OLD,
        bound("5013", host=""),
        bound("5013", host="0.0.0.0"),
        with_mount(bind("/etc/localtime")),
        with_mount(bind("/run/postgresql", "/run/postgresql", writable=True)),
        with_mount(bind("/data/slices/7/logs", writable=True)),
        with_mount({"Type": "volume", "Name": "v", "Source": "/var/lib/docker/v", "Destination": "/v", "RW": True}),
    ],
)
def test_what_an_older_gateway_may_have_made_is_known(answer: dict[str, Any]) -> None:
    assert is_of(answer, ADOPTED, SETTINGS)


@pytest.mark.parametrize(
    "answer",
    [
        bound(),
        bound("5015"),
        bound("5013", "5015"),
        bound("5013", host="10.0.0.1"),
        changed(lambda answer: answer["HostConfig"].update(PortBindings=None)),
        changed(lambda answer: answer["Config"]["Labels"].update({LABEL_UUID: str(SPEC.uuid)})),
        changed(lambda answer: answer["Config"]["Labels"].update({"queunir.tool": "1"})),
        changed(lambda answer: answer.update(Mounts=[])),
        changed(lambda answer: answer["Mounts"].pop()),
        changed(lambda answer: answer["Mounts"][0].update(Source="/data/slices/8/session")),
        changed(lambda answer: answer["Mounts"][0].update(Source="/data/slices/7/session/inner")),
        changed(lambda answer: answer["Mounts"][0].update(Source="/data/slices/77/session")),
        changed(lambda answer: answer["Mounts"][1].update(Type="volume", Name="v")),
        with_mount(bind("/data/slices/8/session")),
        with_mount(bind("/data/slices")),
        with_mount(bind("/data")),
        with_mount(bind("/")),
        with_mount(bind("/etc", writable=True)),
        with_mount(bind("/var/run/docker.sock")),
    ],
)
def test_what_differs_in_anything_is_somebody_elses(answer: dict[str, Any]) -> None:
    assert not is_of(answer, ADOPTED, SETTINGS)


def test_a_data_directory_behind_a_link_is_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "disk" / "slices" / "7" / "session").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    adopted = Adopted(SPEC.num, SPEC.uuid, SPEC.host, SPEC.port, tmp_path / "data" / "slices" / "7")
    shown = [bind(f"{tmp_path}/disk/slices/7/{part}", target, writable=True) for part, target in (
        ("session", "/app/.wwebjs_auth"), ("media", "/app/media"))]  # fmt: skip
    assert is_of(changed(lambda answer: answer.update(Mounts=shown)), adopted, SETTINGS)


def as_inspected(config: dict[str, Any]) -> dict[str, Any]:
    """What the daemon says of a container that was made from this."""
    mounts = [
        {"Type": "bind", "Source": made["Source"], "Destination": made["Target"], "RW": not made["ReadOnly"]}
        for made in config["HostConfig"]["Mounts"]
    ]
    return {"Config": config, "HostConfig": config["HostConfig"], "Mounts": mounts}


def test_made_anew_it_keeps_what_its_session_may_depend_on_and_no_shared_secret() -> None:
    old = with_mount(bind("/etc/localtime", "/etc/localtime"))
    config = container_of(SPEC, SETTINGS, old)
    assert (config["User"], config["Cmd"], config["Hostname"]) == ("node", ["node", "server.js"], "0123456789ab")
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert variables["DATABASE_URL"] == "postgresql://own:new@/d?host=%2Frun%2Fpostgresql&port=5432"
    assert (variables["SLICE_ID"], variables["SLICE_KEY"], variables["NOT_SECRET"]) == ("7", "key", "shared-memory")
    assert variables.keys().isdisjoint({"PGPASSWORD", "OTHER_URL", "SLICE_KEY_FILE", "DATABASE_URL_FILE"})
    mounts = {made["Target"]: made["Source"] for made in config["HostConfig"]["Mounts"]}
    assert mounts == {
        "/app/.wwebjs_auth": "/data/slices/7/session", "/app/media": "/data/slices/7/media",
        "/etc/localtime": "/etc/localtime", "/run/postgresql": "/pg",
    }  # fmt: skip
    assert config["HostConfig"]["CapAdd"] == [], "it is not root"
    assert config["HostConfig"]["Tmpfs"] == {"/cache": ""}


def test_made_anew_from_itself_it_is_the_same() -> None:
    first = container_of(SPEC, SETTINGS, OLD)
    again = container_of(SPEC, SETTINGS, as_inspected(first))
    assert again == first
    other = container_of(SPEC, SETTINGS, None)
    assert other["Labels"][LABEL_CONFIG] != first["Labels"][LABEL_CONFIG]
    assert "User" not in other, "the image says who it is"
