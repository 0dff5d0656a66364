"""Imports only run downwards, each odd dependency has one door, and there is no circle."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "queunir_trio"

# what each room may import; a room that is left out of its own set may still import itself
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "__init__": set(),
    "settings": {"errors"},
    "logs": {"errors"},
    "model": {"errors"},
    "wire": {"model", "errors"},
    "store": {"wire", "model", "errors", "settings"},
    "outside": {"wire", "model", "errors", "settings"},
    "operations": {"store", "outside", "wire", "model", "errors", "settings"},
    "live": {"operations", "store", "outside", "wire", "model", "errors", "settings", "__init__"},
    "front": {"live", "operations", "store", "outside", "wire", "model", "errors", "settings", "__init__"},
    "web": {"live", "operations", "store", "outside", "wire", "model", "errors", "settings", "logs", "__init__"},
    "service": {
        "front", "web", "live", "operations", "store", "outside", "wire", "model", "errors", "settings", "logs",
        "__init__",
    },
    "cli": {"service", "store", "outside", "operations", "model", "errors", "settings", "logs", "__init__"},
    "__main__": {"cli"},
}  # fmt: skip

# an odd dependency and the modules through which alone it may come in
DOORS: dict[str, set[str]] = {
    "hypercorn": {"web.server"},
    "quart_trio": {"web.app", "web.bodies", "web.errors"},
    "httptools": {"wire.http_rules", "wire.http_requests", "wire.http_responses", "wire.http"},
    "asyncio": {"store.bridge"},
    "trio_asyncio": {"store.bridge"},
    "asyncpg": {"store.bridge"},
    "httpx": {"outside.slice_control", "outside.mail", "outside.gateway_client"},
    "trio_websocket": {"outside.slice_socket"},
    "socketio": {"wire.conversation"},
    "engineio": {"wire.conversation"},
    "bcrypt": {"outside.passwords"},
    "docker": {"outside.runtimes.docker_client", "outside.runtimes.docker_connections"},
    "stripe": set(),
    "cyclopts": {
        "cli.commands", "cli.following", "cli.isolate", "cli.leaving", "cli.rollout", "cli.running", "cli.slice_views",
        "cli.slices", "cli.users",
    },
    "rich": {"cli.following", "cli.tables"},
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__") or "__init__", path


def imported(path: Path) -> Iterator[str]:
    """Every module or name that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def room(module: str) -> str:
    return module.split(".")[0]


def own(name: str) -> str | None:
    """The module of ours that an imported name is or lies in."""
    if name == "queunir_trio":
        return "__init__"
    return name.removeprefix("queunir_trio.") if name.startswith("queunir_trio.") else None


ALL = list(modules())


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_imports_only_run_downwards(name: str, path: Path) -> None:
    here = room(name)
    allowed = ROOMS[here] | {here}
    names = {target for target in imported(path) if own(target) not in (None, "__init__", "__version__")}
    wrong = {target for target in names if room(str(own(target))) not in allowed}
    assert not wrong, f"{name} may not import {sorted(wrong)}"
    assert not {target for target in imported(path) if target.split(".")[0] in ("queunir_slice", "tests")}


@pytest.mark.parametrize(("dependency", "doors"), DOORS.items(), ids=DOORS)
def test_each_odd_dependency_has_its_door(dependency: str, doors: set[str]) -> None:
    users = {name for name, path in ALL for target in imported(path) if target.split(".")[0] == dependency}
    assert users <= doors, f"{dependency} is imported by {sorted(users - doors)}"


def test_there_is_no_circle_of_imports() -> None:
    known = {name for name, _ in ALL}
    graph: dict[str, set[str]] = {}
    for name, path in ALL:
        targets = {own(target) for target in imported(path)}
        graph[name] = {target for target in targets if target in known and target not in (None, name, "__init__")}
    graphlib.TopologicalSorter(graph).prepare()


def test_model_and_wire_know_no_trio() -> None:
    users = {name for name, path in ALL for target in imported(path) if target.split(".")[0] == "trio"}
    assert not {name for name in users if room(name) in ("model", "wire")}


def test_only_outside_uses_threads() -> None:
    users = {name for name, path in ALL if "to_thread" in path.read_text(encoding="utf-8")}
    assert {room(name) for name in users} <= {"outside"}


def test_the_slice_never_imports_the_gateway() -> None:
    for path in (ROOT / "queunir_slice").rglob("*.py"):
        assert not [target for target in imported(path) if target.split(".")[0] == "queunir_trio"], path


def test_modules_and_functions_stay_short() -> None:
    long: list[str] = []
    for name, path in ALL:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert not long
