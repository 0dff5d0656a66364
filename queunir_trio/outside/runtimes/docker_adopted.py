"""Containers of slices that an older gateway made: how one is recognised, and how it is made anew from its own image.

Pure translation, as `docker_spec`. An older container carries no mark, so it is known by all of this together: its
name, that no label of ours is on it, the one port of this machine that it is published on, and that it is shown exactly
this slice's directory and no other slice's. One that differs in any of it is somebody else's.

Made anew it keeps its image, user, command, variables and mounts: an older image may step down from root by itself and
write beside its mounts. It gains our labels, a network of its own, the limits, and a wall against new privileges, and
of the capabilities those alone by which root handles files and steps down. Its secrets come as plain variables.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from queunir_trio.model.slices import SLICE_PORT
from queunir_trio.outside.runtimes.contract import STOPPED_WITHIN, Adopted, InstanceSpec
from queunir_trio.outside.runtimes.docker_spec import (
    LABEL_ADOPTED,
    MEDIA,
    POSTGRES,
    SECCOMP,
    SESSION,
    Config,
    database_socket,
    doors,
    environment,
    labelled,
    limits,
    mount,
)
from queunir_trio.settings import DockerSettings

OURS: Final = "queunir."  # what every label of ours begins with
SOCKETS: Final = ("/run/postgresql", "/var/run/postgresql")  # one place, by both of its names
ANYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104 - how an older gateway may have published it
# of root alone: files of others, stepping down to another user, and ending what runs as that
OF_ROOT: Final = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]
DAEMONS: Final = ("docker.sock", "containerd.sock")  # whoever holds one of these holds the machine, writable or not
PLACES: Final = ("MEDIA_DIR", "SESSION_DIR", "HOME", "HOST")  # where an older image keeps things is its own to say
IN_FILES: Final = ("DATABASE_URL_FILE", "SLICE_KEY_FILE")


def has_label(labels: Mapping[str, str] | None) -> bool:
    """Whether any label of ours is on it."""
    return any(name.startswith(OURS) for name in labels or {})


def is_of(answer: Config, adopted: Adopted, settings: DockerSettings) -> bool:
    """Whether the inspected container, which has the right name, is that of this slice."""
    return (
        not has_label(answer["Config"].get("Labels"))
        and _is_published(answer["HostConfig"].get("PortBindings") or {}, adopted)
        and _is_shown_its_own(answer.get("Mounts") or [], adopted.directory, settings)
    )


def published(answer: Config) -> tuple[str, int]:
    """The host and port that a proven container of a slice is reached by."""
    (binding,) = answer["HostConfig"]["PortBindings"][f"{SLICE_PORT}/tcp"]
    return binding.get("HostIp") or "0.0.0.0", int(binding["HostPort"])  # noqa: S104 - said, never listened on


def _is_published(bindings: Mapping[str, list[dict[str, str]] | None], adopted: Adopted) -> bool:
    found = bindings.get(f"{SLICE_PORT}/tcp") or []
    return [binding.get("HostPort") for binding in found] == [str(adopted.port)] and (
        found[0].get("HostIp", "") in (adopted.host, *ANYWHERE)
    )


def _is_shown_its_own(mounts: list[Config], directory: Path, settings: DockerSettings) -> bool:
    """Its session and media are exactly this slice's; whatever else it is shown is nobody else's."""
    shown = {found.get("Destination"): found for found in mounts}
    for target, part in ((SESSION, "session"), (MEDIA, "media")):
        found = shown.get(target)
        if found is None or found.get("Type") != "bind" or _real(found["Source"]) != _real(directory / part):
            return False
    return all(_is_harmless(found, _real(directory), settings) for found in mounts)


def _is_harmless(found: Config, directory: Path, settings: DockerSettings) -> bool:
    if found.get("Type") != "bind":
        return True  # in memory, or a volume
    source, all_slices = _real(found["Source"]), directory.parent
    if source.is_relative_to(directory):
        return True
    if source.is_relative_to(all_slices) or all_slices.is_relative_to(source) or source.name in DAEMONS:
        return False
    return not found.get("RW", True) or source in {_real(place) for place in (*SOCKETS, settings.database_socket)}


def _real(path: Path | str) -> Path:
    return Path(os.path.realpath(path))


def container_of(spec: InstanceSpec, settings: DockerSettings, old: Config | None) -> Config:
    """The container of an adopted slice as the API wants it, after the inspected one that it is made anew from.

    One that was made so itself gives the same again. Without any, or with one of another kind, only what the image says
    by itself is left to go by.
    """
    if old is not None and has_label(old["Config"].get("Labels")) and LABEL_ADOPTED not in old["Config"]["Labels"]:
        old = None
    before = old["Config"] if old is not None else {}
    config: Config = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in sorted(_environment(spec, settings, before).items())],
        "ExposedPorts": {f"{SLICE_PORT}/tcp": {}},
        "StopSignal": before.get("StopSignal") or "SIGTERM",
        "StopTimeout": int(STOPPED_WITHIN),
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": limits() | _walls(before, old) | {"Mounts": _mounts(spec, settings, old)} | doors(spec),
    }
    # a browser's profile names the host that it was last used on
    for kept in ("User", "Cmd", "Entrypoint", "WorkingDir", "Hostname"):
        if before.get(kept):
            config[kept] = before[kept]
    return labelled(config, spec)


def _environment(spec: InstanceSpec, settings: DockerSettings, before: Config) -> dict[str, str]:
    """What it had stays, as its session may depend on it; the secrets are new, and the shared one is gone."""
    reached = database_socket(spec.database_url, settings.database_socket)
    ours = {name: value for name, value in environment(spec, settings, reached).items() if name not in PLACES}
    had = dict(entry.split("=", 1) for entry in before.get("Env") or [] if "=" in entry)
    shared = urlsplit(had.get("DATABASE_URL", "")).password
    kept = {name: value for name, value in had.items() if not shared or not _tells(value, shared)}
    secrets = {"DATABASE_URL": reached.database_url, "SLICE_KEY": spec.key}
    return {name: value for name, value in (ours | kept | secrets).items() if name not in IN_FILES}


def _tells(value: str, password: str) -> bool:
    return value == password or f":{password}@" in value


def _walls(before: Config, old: Config | None) -> Config:
    is_root = (before.get("User") or "0").partition(":")[0] in ("0", "root")
    host = old["HostConfig"] if old is not None else {}
    return {
        "CapDrop": ["ALL"],
        "CapAdd": OF_ROOT if is_root else [],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={SECCOMP}"],
        "ReadonlyRootfs": False,
        "Tmpfs": host.get("Tmpfs") or {},
        "Privileged": False,
        "Init": True,
        "IpcMode": "private",
    }


def _mounts(spec: InstanceSpec, settings: DockerSettings, old: Config | None) -> list[Config]:
    reached = database_socket(spec.database_url, settings.database_socket)
    found = {
        SESSION: mount(spec.directory / "session", SESSION),
        MEDIA: mount(spec.directory / "media", MEDIA),
        POSTGRES: mount(reached.directory, POSTGRES, read_only=True),
    }
    for kept in (old or {}).get("Mounts") or []:
        again = _again(kept)
        if again is not None and again["Target"] not in (*found, *SOCKETS):
            found[again["Target"]] = again
    return [found[target] for target in sorted(found)]


def _again(kept: Config) -> dict[str, Any] | None:
    """A mount as it is asked for; one in memory is among those of the host's configuration already."""
    if kept.get("Type") == "bind":
        return mount(Path(kept["Source"]), kept["Destination"], read_only=not kept.get("RW", True))
    if kept.get("Type") == "volume":
        return {
            "Type": "volume",
            "Source": kept["Name"],
            "Target": kept["Destination"],
            "ReadOnly": not kept.get("RW", True),
        }
    return None
