"""Files that belong to slices' own users, touched through containers that live for one act.

The gateway is nobody special on its machine and may neither read nor remove what a slice wrote. Such a container may,
within the one directory that it is given: it has no network, a root it can not write to, and of the capabilities
those for files alone.
"""

import hashlib
import os
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import structlog
import trio

from queunir_trio.outside.runtimes.contract import ImageMissing, RuntimeUnavailable, Usage
from queunir_trio.outside.runtimes.docker_client import ANSWERED_WITHIN, Daemon, DaemonRefusal, create_container
from queunir_trio.outside.runtimes.docker_spec import SECCOMP
from queunir_trio.outside.runtimes.names import check_names

WITHIN: Final = 300.0  # seconds an act may take: two gigabytes on a slow disk
MEASURED_WITHIN: Final = 60.0  # seconds
CLEARED_WITHIN: Final = 5.0  # seconds, when the wait for an act was cancelled
MEASURED_AT_ONCE: Final = 50  # directories
LABEL_TOOL: Final = "queunir.tool"
INSIDE: Final = "/slice"
LEFT_AFTER: Final = 3600.0  # seconds
PIECE: Final = 2**18  # bytes of an archive at a time
EMPTY_TAR: Final = bytes(1024)
SAID_AT_MOST: Final = 300  # characters of what a failed act wrote

# Plain shell for whatever image it is; the arguments are names that were checked, never parts of the script.
HAND_OVER: Final = 'cd /slice && chown -R -h "$1:$1" media session && chmod 700 media session'
# First out of the way, then gone: what is half erased must not be taken for whole.
ERASE: Final = """
cd /slice || exit 1
for name in "$@"; do
    rm -rf -- ".$name.old" ".$name.part" || exit 1
    if [ -e "$name" ] || [ -L "$name" ]; then mv -- "$name" ".$name.old" && rm -rf -- ".$name.old" || exit 1; fi
done
"""
COPY: Final = """
cd /slice && rm -rf -- ".$2.part" ".$2.old" && cp -a -- "$1" ".$2.part" && { sync -f . 2>/dev/null || sync; } || exit 1
if [ -e "$2" ] || [ -L "$2" ]; then mv -- "$2" ".$2.old" || exit 1; fi
mv -- ".$2.part" "$2" && rm -rf -- ".$2.old"
"""
# A mark that is there already is never replaced; the directory itself becomes the gateway's, what lies in it does not.
MARK: Final = """
cd /slice && [ -d media ] && [ -d session ] || exit 1
if [ -e .slice ] || [ -L .slice ]; then
    [ ! -L .slice ] && [ "$(cat .slice)" = "$1" ] || { echo "another slice's mark is there" >&2; exit 1; }
else
    rm -f -- .slice.new && printf %s "$1" > .slice.new && chmod 600 .slice.new && mv -- .slice.new .slice || exit 1
fi
chown "$2" .slice . && chmod 700 .
"""
MEASURE: Final = (
    'for part in "$@"; do if [ -d "$part" ]; then du -sk "$part" | while read -r kb rest; do echo "$kb"; done; '
    "else echo 0; fi; done"
)

log = structlog.get_logger()


class Tools:
    """Acts on slices' directories, with what the shell of `image` can do."""

    def __init__(self, daemon: Daemon, image: str) -> None:
        self._daemon = daemon
        self._image = image

    async def hand_over(self, directory: Path, uid: int) -> None:
        """Makes media and session belong to the user `uid` and to nobody else. OSError: it can not be."""
        await self._act(directory, HAND_OVER, [str(uid)], ["CHOWN", "DAC_OVERRIDE", "FOWNER"])

    async def mark(self, directory: Path, uuid: UUID) -> None:
        """As Runtime.mark has it; the directory itself is the gateway's own afterwards."""
        owner = f"{os.geteuid()}:{os.getegid()}"
        await self._act(directory, MARK, [str(uuid), owner], ["CHOWN", "DAC_OVERRIDE", "FOWNER"])

    async def erase(self, directory: Path, names: Collection[str]) -> None:
        """As Runtime.erase has it."""
        if names:
            await self._act(directory, ERASE, check_names(names), ["DAC_OVERRIDE", "FOWNER"])

    async def copy(self, directory: Path, source: str, target: str) -> None:
        """As Runtime.copy has it."""
        await self._act(directory, COPY, check_names([source, target]), ["CHOWN", "DAC_OVERRIDE", "FOWNER"])

    async def measure(self, directories: Sequence[Path]) -> dict[Path, Usage]:
        """As Runtime.measure has it; many directories cost one container."""
        found: dict[Path, Usage] = {}
        for start in range(0, len(directories), MEASURED_AT_ONCE):
            some = directories[start : start + MEASURED_AT_ONCE]
            there = [path for path in some if await trio.Path(path).is_dir()]
            found |= dict.fromkeys(some, Usage(0, 0)) | (await self._measure(there) if there else {})
        return found

    async def archive(self, directory: Path, part: str) -> AsyncGenerator[bytes, None]:
        """As Runtime.archive has it; read from a container that is never started."""
        (part,) = check_names([part])
        name = f"wank-tool-{_name_of(directory)}-archive"
        config = _config(self._image, "true", [], [], [_mount(directory, INSIDE, read_only=True)])
        if not await trio.Path(directory).is_dir():
            yield EMPTY_TAR
            return
        try:
            await self._create(name, config)
            reading = self._daemon.reading(lambda client: client.get_archive(name, f"{INSIDE}/{part}", PIECE)[0], 60.0)
            try:
                async with reading as read:
                    while piece := await read():
                        yield piece  # noqa: ASYNC119 - whoever does not come to its end closes it
            except DaemonRefusal as refusal:
                if refusal.status != 404:
                    raise
                yield EMPTY_TAR
        finally:
            with trio.move_on_after(CLEARED_WITHIN, shield=True):
                await self._clear(name)

    async def _measure(self, directories: Sequence[Path]) -> dict[Path, Usage]:
        mounts = [_mount(path, f"{INSIDE}/{place}", read_only=True) for place, path in enumerate(directories)]
        parts = [f"{mount['Target']}/{part}" for mount in mounts for part in ("media", "session")]
        said = await self._run("measure", MEASURE, parts, ["DAC_READ_SEARCH"], mounts, MEASURED_WITHIN)
        try:
            sizes = [int(line) * 1024 for line in said.split()]
            pairs = zip(sizes[::2], sizes[1::2], strict=True)
            return {path: Usage(*pair) for path, pair in zip(directories, pairs, strict=True)}
        except ValueError:
            raise RuntimeUnavailable(f"the sizes of slices could not be read: {said[:SAID_AT_MOST]}") from None

    async def _act(self, directory: Path, script: str, arguments: Sequence[str], capabilities: list[str]) -> None:
        # The name is the directory's: after a crash the next act ends the one that may still be going on there.
        await self._run(_name_of(directory), script, arguments, capabilities, [_mount(directory, INSIDE)], WITHIN)

    async def _run(
        self,
        name: str,
        script: str,
        arguments: Sequence[str],
        capabilities: list[str],
        mounts: list[dict[str, Any]],
        within: float,
    ) -> str:
        """What the script wrote. OSError: it failed."""
        name = f"wank-tool-{name}"
        try:
            await self._create(name, _config(self._image, script, arguments, capabilities, mounts))
            await self._daemon.ask(lambda client: client.start(name), WITHIN)
            ended = await self._daemon.ask(lambda client: client.wait(name), within)
            said = await self._daemon.ask(lambda client: client.logs(name, tail=2 * MEASURED_AT_ONCE))
        finally:
            with trio.move_on_after(CLEARED_WITHIN, shield=True):
                await self._clear(name)
        text = said.decode(errors="replace").strip()
        if ended.get("StatusCode") != 0:
            raise OSError(f"files of a slice could not be handled: {text[:SAID_AT_MOST]}")
        return text

    async def _create(self, name: str, config: dict[str, Any]) -> None:
        await self._remove(name)
        try:
            await self._daemon.ask(partial(create_container, config=config, name=name))
        except DaemonRefusal as refusal:
            raise ImageMissing(self._image) if refusal.status == 404 else refusal from None

    async def _clear(self, name: str) -> None:
        """What can not be removed now is when the next act needs its name, or by `tidy`."""
        try:
            await self._remove(name)
        except RuntimeUnavailable as unavailable:
            log.warning("tool_container_left", name=name, reason=str(unavailable))

    async def _remove(self, name: str) -> None:
        try:
            await self._daemon.ask(lambda client: client.remove_container(name, v=True, force=True), ANSWERED_WITHIN)
        except DaemonRefusal as refusal:
            if refusal.status != 404:
                raise

    async def tidy(self) -> None:
        """Removes what cut-off acts left, if nothing can be going on there any more."""
        filters = {"label": LABEL_TOOL, "status": ["created", "exited", "dead"]}
        for left in await self._daemon.ask(lambda client: client.containers(all=True, filters=filters)):
            if left["Created"] < time.time() - LEFT_AFTER:
                await self._remove(left["Id"])


def _name_of(directory: Path) -> str:
    return hashlib.sha256(str(directory).encode()).hexdigest()[:16]


def _config(
    image: str, script: str, arguments: Sequence[str], capabilities: list[str], mounts: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh", "-c", script, "sh", *arguments],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {LABEL_TOOL: "1"},
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "CapAdd": capabilities,
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={SECCOMP}"],
            "ReadonlyRootfs": True,
            "Memory": 256 * 2**20,
            "PidsLimit": 64,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
            "RestartPolicy": {"Name": "no"},
            "Mounts": mounts,
        },
    }


def _mount(source: Path, target: str, *, read_only: bool = False) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }
