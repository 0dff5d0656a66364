"""How a slice is said to Docker: the names, labels, network and container of an InstanceSpec, as the API's JSON.

Pure translation. Everything a slice may not do is taken from it here: it has no capability and can gain none, a user
of its own, a root it can not write to, limits on all that can run out, and a network with nobody else in it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import UUID

from queunir_trio.errors import Refused
from queunir_trio.model.slices import MEDIA_QUOTA_BYTES, SLICE_PORT
from queunir_trio.outside.runtimes.contract import STOPPED_WITHIN, InstanceSpec
from queunir_trio.settings import SUBNET_SIZE, DockerSettings

MB: Final = 2**20
MEMORY: Final = 512 * MB
MEMORY_RESERVED: Final = 256 * MB
MEMORY_AND_SWAP: Final = 1024 * MB  # an idle slice is meant to be paged out
CPUS: Final = 0.5
CPU_SHARES: Final = 256  # of 1024 to a whole CPU: a quarter is reserved
SHARED_MEMORY: Final = 256 * MB  # a browser's pages live there
TEMPORARY: Final = 64 * MB
PIDS: Final = 512  # threads count too, and a browser has hundreds
OPEN_FILES: Final = 4096
LOG_FILE: Final = "10m"
LOG_FILES: Final = "3"
SUBNET_BITS: Final = 28  # of which a slice needs two addresses

SESSION: Final = "/app/.wwebjs_auth"
MEDIA: Final = "/app/media"
SECRETS: Final = "/run/secrets"
POSTGRES: Final = "/run/postgresql"  # where the server's socket lies inside

LABEL_NUM: Final = "queunir.slice.num"
LABEL_ID: Final = "queunir.slice.id"
LABEL_UUID: Final = "queunir.slice.uuid"
LABEL_IMAGE: Final = "queunir.slice.image"
LABEL_ADOPTED: Final = "queunir.slice.adopted"  # made from an image of before this gateway, in the way that bears
LABEL_CONFIG: Final = "queunir.slice.config"  # a digest of all but the image: what was asked for when it was made
_NAME: Final = re.compile("/?wank-slice-([0-9]+)")
NAME_PATTERN: Final = "^/?wank-slice-[0-9]+$"
DATABASE_URL: Final = "database_url"  # the names of the secrets' files
SLICE_KEY: Final = "key"

# Docker's own rules on system calls, and those by which a browser builds its own sandbox.
SECCOMP: Final = json.dumps(json.loads(files(__package__).joinpath("seccomp.json").read_text(encoding="utf-8")))

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Socket:
    """How a slice reaches PostgreSQL: a directory of this machine, and the address as it is inside."""

    directory: Path
    database_url: str


def name_of(num: int) -> str:
    """What slice N's container and network are called."""
    return f"wank-slice-{num}"


def bridge_of(num: int) -> str:
    """The interface of slice N's network, by which the firewall knows slices."""
    return f"wank-{num}"


def number_in(name: str) -> int | None:
    """The N of a container's or network's name, with or without Docker's slash."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found is not None else None


def labels_of(num: int, uuid: UUID) -> dict[str, str]:
    """What proves whose a container or network is."""
    return {LABEL_NUM: str(num), LABEL_UUID: str(uuid)}


def uuid_in(labels: Mapping[str, str] | None) -> UUID:
    """Whose it is; the nil uuid, which no slice has, for what carries no label of ours."""
    try:
        return UUID((labels or {})[LABEL_UUID])
    except (KeyError, ValueError):
        return UUID(int=0)


def user_of(num: int, settings: DockerSettings) -> int:
    """The user and group that slice N runs as and that own its files; no other slice has them."""
    return settings.first_uid + num


def subnet_of(num: int, settings: DockerSettings) -> IPv4Network:
    """Slice N's own network. Refused `no_subnet`: the settings leave none for this number."""
    if not 0 < num < settings.subnets.num_addresses // SUBNET_SIZE:
        raise Refused("no_subnet", f"SLICE_SUBNETS has no subnet for slice number {num}: give it a larger network.")
    return IPv4Network((int(settings.subnets.network_address) + num * SUBNET_SIZE, SUBNET_BITS))


def network_of(spec: InstanceSpec, settings: DockerSettings) -> Config:
    """The arguments for making the network of a slice."""
    subnet = subnet_of(spec.num, settings)
    return {
        "name": name_of(spec.num),
        "driver": "bridge",
        "check_duplicate": True,
        "labels": labels_of(spec.num, spec.uuid),
        "ipam": {"Driver": "default", "Config": [{"Subnet": str(subnet), "Gateway": str(subnet[1])}]},
        "options": {
            "com.docker.network.bridge.name": bridge_of(spec.num),
            "com.docker.network.bridge.enable_icc": "false",
        },
    }


def container_of(spec: InstanceSpec, settings: DockerSettings, secrets: Path) -> Config:
    """The container of a slice as the API wants it. `secrets` is the directory with its files."""
    reached = database_socket(spec.database_url, settings.database_socket)
    config: Config = {
        "Image": spec.image,
        "Hostname": f"slice-{spec.slice_id}",
        "User": f"{user_of(spec.num, settings)}:{user_of(spec.num, settings)}",
        "Env": [f"{name}={value}" for name, value in sorted(environment(spec, settings, reached).items())],
        "ExposedPorts": {f"{SLICE_PORT}/tcp": {}},
        "StopSignal": "SIGTERM",
        "StopTimeout": int(STOPPED_WITHIN),
        "Healthcheck": {"Test": ["NONE"]},  # the gateway asks every slice itself; a hundred more processes need not
        "HostConfig": limits() | _walls() | _surroundings(spec, settings, secrets, reached),
    }
    return labelled(config, spec)


def labelled(config: Config, spec: InstanceSpec) -> Config:
    """The container with its labels, those of what it was asked for among them."""
    digest = hashlib.sha256(json.dumps({**config, "Image": None}, sort_keys=True).encode()).hexdigest()[:32]
    labels = {
        **labels_of(spec.num, spec.uuid),
        LABEL_ID: str(spec.slice_id),
        LABEL_IMAGE: spec.image or "",
        LABEL_CONFIG: digest,
    }
    return {**config, "Labels": labels | ({LABEL_ADOPTED: "yes"} if spec.adopted else {})}


def environment(spec: InstanceSpec, settings: DockerSettings, reached: Socket) -> dict[str, str]:
    """All a slice gets to see: nothing of the gateway's own, and no secret unless an older image knows no files."""
    stage = "production" if spec.production else "development"
    found = {
        "SLICE_ID": str(spec.slice_id),
        "HOST": "0.0.0.0",  # noqa: S104 - of its own network, in which there is nobody else
        "PORT": str(SLICE_PORT),
        "APP_ENV": stage,
        "NODE_ENV": stage,
        "MEDIA_QUOTA_BYTES": str(MEDIA_QUOTA_BYTES),
        "MEDIA_DIR": MEDIA,
        "SESSION_DIR": SESSION,
        "HOME": "/tmp",  # noqa: S108 - a file system of its own
    }
    if settings.secrets == "environment":
        return found | {"DATABASE_URL": reached.database_url, "SLICE_KEY": spec.key}
    return found | {"DATABASE_URL_FILE": f"{SECRETS}/{DATABASE_URL}", "SLICE_KEY_FILE": f"{SECRETS}/{SLICE_KEY}"}


def secrets_of(spec: InstanceSpec, settings: DockerSettings) -> dict[str, str]:
    """The files that a slice reads its secrets from, by name."""
    if settings.secrets == "environment":
        return {}
    reached = database_socket(spec.database_url, settings.database_socket)
    return {DATABASE_URL: reached.database_url, SLICE_KEY: spec.key}


def database_socket(url: str, default: Path) -> Socket:
    """Where PostgreSQL's socket is on this machine, by the address or else by `default`, and the address inside.

    A slice has no way into the machine's network, so an address of a host is taken for that of the socket.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    named = query.get("host", [""])[0]
    port = query.get("port", [str(parts.port or 5432)])[0]
    who = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    inside = urlencode({"host": POSTGRES, "port": port})
    directory = Path(named) if named.startswith("/") else default
    # not urlunsplit: it drops the slashes in front of an empty host
    return Socket(directory, f"{parts.scheme}://{who}{parts.path}?{inside}")


def limits() -> Config:
    """How much of the machine a slice may use."""
    return {
        "Memory": MEMORY,
        "MemoryReservation": MEMORY_RESERVED,
        "MemorySwap": MEMORY_AND_SWAP,
        "NanoCpus": int(CPUS * 1e9),
        "CpuShares": CPU_SHARES,
        "PidsLimit": PIDS,
        "ShmSize": SHARED_MEMORY,
        "Ulimits": [{"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_FILE, "max-file": LOG_FILES}},
    }


def _walls() -> Config:
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={SECCOMP}"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={TEMPORARY},mode=1777"},  # noqa: S108
        "Privileged": False,
        "Init": True,  # as first process a slice would not hear SIGTERM before it listens for it
        "IpcMode": "private",
    }


def _surroundings(spec: InstanceSpec, settings: DockerSettings, secrets: Path, reached: Socket) -> Config:
    mounts = [
        mount(spec.directory / "session", SESSION),
        mount(spec.directory / "media", MEDIA),
        mount(reached.directory, POSTGRES, read_only=True),
    ]
    if secrets_of(spec, settings):
        mounts.append(mount(secrets, SECRETS, read_only=True))
    return {
        "Mounts": mounts,
        **doors(spec),
    }


def doors(spec: InstanceSpec) -> Config:
    """A slice's own network, its port on the loopback, and that it comes back by itself."""
    return {
        "NetworkMode": name_of(spec.num),
        "PortBindings": {f"{SLICE_PORT}/tcp": [{"HostIp": spec.host, "HostPort": str(spec.port)}]},
        "RestartPolicy": {"Name": "unless-stopped"},
    }


def mount(source: Path, target: str, *, read_only: bool = False) -> Config:
    """Nothing that is mounted later on either side shows on the other."""
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }
