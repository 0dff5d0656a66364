"""What Docker is asked for, without any Docker: names, networks, addresses and the rules on system calls."""

import json
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from queunir_trio.errors import Refused
from queunir_trio.outside.runtimes import docker_spec
from queunir_trio.outside.runtimes.contract import InstanceSpec
from queunir_trio.settings import DockerSettings

ROOT = Path(__file__).parents[3]
SETTINGS = DockerSettings()
SPEC = InstanceSpec(
    7, 42, uuid4(), "127.0.0.1", 5013, Path("/data/slices/7"), "wank-slice:latest", "postgresql://a:b@/c", "key", True
)


@pytest.mark.parametrize(
    ("url", "directory", "inside"),
    [
        ("postgresql://u:p@/d?host=%2Frun%2Fpg&port=5433", "/run/pg", "postgresql://u:p@/d?host=%2Frun%2Fpostgresql&port=5433"),
        ("postgresql://u:p%40x@/d?host=/s", "/s", "postgresql://u:p%40x@/d?host=%2Frun%2Fpostgresql&port=5432"),
        ("postgresql://u:p@127.0.0.1:6000/d", "/default", "postgresql://u:p@/d?host=%2Frun%2Fpostgresql&port=6000"),
        ("postgresql://u:p@[::1]/d", "/default", "postgresql://u:p@/d?host=%2Frun%2Fpostgresql&port=5432"),
        ("postgresql:///d", "/default", "postgresql:///d?host=%2Frun%2Fpostgresql&port=5432"),
    ],
)  # fmt: skip
def test_postgresql_is_reached_by_its_socket_whatever_the_address_says(url: str, directory: str, inside: str) -> None:
    found = docker_spec.database_socket(url, Path("/default"))
    assert (str(found.directory), found.database_url) == (directory, inside)


def test_each_slice_has_a_subnet_and_a_user_of_its_own() -> None:
    subnets = [docker_spec.subnet_of(num, SETTINGS) for num in range(1, 300)]
    assert len(set(subnets)) == len(subnets)
    assert all(one.subnet_of(SETTINGS.subnets) and one.prefixlen == 28 for one in subnets)
    assert subnets[0] == IPv4Network("10.213.0.16/28")
    assert len({docker_spec.user_of(num, SETTINGS) for num in range(1, 300)}) == len(subnets)
    assert all(len(docker_spec.bridge_of(num)) <= 15 for num in (1, 9999)), "the kernel takes no longer name"


@pytest.mark.parametrize("num", [0, -1, 4096])
def test_a_number_without_a_subnet_is_refused(num: int) -> None:
    with pytest.raises(Refused) as refused:
        docker_spec.subnet_of(num, SETTINGS)
    assert refused.value.code == "no_subnet"


@pytest.mark.parametrize(
    ("name", "num"),
    [
        ("/wank-slice-12", 12), ("wank-slice-1", 1), ("wank-slice-", None), ("wank-slice-1x", None), ("12", None),
        ("/12", None), ("other-wank-slice-1", None), ("wank-slice-²", None),
    ],
)  # fmt: skip
def test_a_number_is_read_from_our_names_only(name: str, num: int | None) -> None:
    assert docker_spec.number_in(name) == num


@pytest.mark.parametrize("labels", [None, {}, {"queunir.slice.uuid": ""}, {"queunir.slice.uuid": "x"}])
def test_what_carries_no_label_of_ours_is_nobodys(labels: dict[str, str] | None) -> None:
    assert docker_spec.uuid_in(labels) == UUID(int=0)


def digest(spec: InstanceSpec, settings: DockerSettings = SETTINGS) -> str:
    config = docker_spec.container_of(spec, settings, Path("/data/run/container-7/secrets"))
    return str(config["Labels"][docker_spec.LABEL_CONFIG])


def test_the_digest_tells_what_is_asked_for_and_not_from_which_image() -> None:
    assert digest(SPEC) == digest(replace(SPEC, image="another:image"))
    for other in (
        replace(SPEC, port=5015),
        replace(SPEC, directory=Path("/data/slices/8")),
        replace(SPEC, production=False),
        replace(SPEC, database_url="postgresql://a:b@/c?host=/elsewhere"),
    ):
        assert digest(other) != digest(SPEC)
    assert digest(SPEC, replace(SETTINGS, first_uid=80_000)) != digest(SPEC)


def test_no_secret_is_part_of_a_description() -> None:
    spec = replace(SPEC, database_url="postgresql://u:s3cret@/d", key="s3cret-key")
    assert "s3cret" not in json.dumps(docker_spec.container_of(spec, SETTINGS, Path("/secrets")))
    assert "s3cret" not in repr(spec)


def test_the_rules_on_system_calls_allow_a_list_and_nothing_else() -> None:
    rules = json.loads(docker_spec.SECCOMP)
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    plain = {name for group in rules["syscalls"] if "args" not in group for name in group["names"]}
    assert {group["action"] for group in rules["syscalls"]} == {"SCMP_ACT_ALLOW"}
    assert {"read", "execve", "clone", "setns", "unshare"} <= plain
    dangerous = {
        "bpf", "mount", "umount2", "pivot_root", "ptrace_attach", "kexec_load", "init_module", "finit_module", "keyctl",
        "add_key", "perf_event_open", "userfaultfd", "io_uring_setup", "open_by_handle_at", "reboot", "socket",
        "fsopen", "move_mount", "open_tree", "settimeofday", "clock_settime", "iopl", "ioperm",
    }  # fmt: skip
    assert not plain & dangerous


def test_the_image_has_the_versions_that_are_tested() -> None:
    def pins(path: Path) -> set[str]:
        return {line.split()[0] for line in path.read_text().splitlines() if "==" in line}

    image = pins(ROOT / "deploy/slice/requirements.lock")
    assert image
    assert image <= pins(ROOT / "requirements.lock")
