"""Which folder may import which: one table of layers over the whole import graph, no circle, no arrow upward, and who knows gRPC."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sl_common", "sl_server", "sl_client")
# From the ground up: a folder imports only what stands above it in this table. `sl_common` itself is its files that lie in no folder,
# and a file with a row of its own stands there.
LAYERS = (
    "sl_common",
    "sl_common.proto",
    "sl_common.codec",
    "sl_common.training",
    "sl_common.messages",
    "sl_common.models",
    "sl_common.protocol",
    "sl_common.config",
    "sl_common.network",
    "sl_common.wire",
    "sl_common.client",
    "sl_common.host",
    "sl_client",
    "sl_client.data",
    "sl_client.device",
    "sl_client.transport",
    "sl_client.console",
    "sl_client.training",
    "sl_client.inference",
    "sl_client.cli",
    "sl_server",
    "sl_server.core",
    "sl_server.telemetry",
    "sl_server.security",
    "sl_server.storage",
    "sl_server.console",
    "sl_server.transport",
    "sl_server.process",
    "sl_server.training",
    "sl_server.inference",
    "sl_server.simulation",
    "sl_server.preflight",
    "sl_server.report",
    "sl_server.api",
    "sl_server.cli",
)
PURE = ("sl_common.", "sl_server.core.")
WAITS = {"grpc", "asyncio", "threading", "time", "socket", "queue", "os", "pathlib", "signal"}
WAITS |= {"concurrent", "datetime", "multiprocessing", "random", "secrets", "select", "subprocess", "tempfile", "uuid"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def folder_of(module: str) -> str:
    """The row of LAYERS that a module belongs to."""
    parts = module.split(".")
    row = ".".join(parts[:2])
    return row if row in LAYERS or ROOT.joinpath(*parts[:2]).is_dir() else parts[0]


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file, also within functions and for types alone; `from a import b` may mean a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would escape these rules"
            for alias in node.names:
                yield (dotted := f"{node.module}.{alias.name}")
                if dotted not in PATHS:
                    yield str(node.module)


GRAPH = {name: {m for m in imports_of(tree) if m in PATHS and m != name} for name, tree in TREES.items()}


def outside(tree: ast.AST) -> set[str]:
    """The first part of every imported name."""
    return {module.partition(".")[0] for module in imports_of(tree)}


def upward(graph: dict[str, set[str]]) -> list[str]:
    rows = {folder: row for row, folder in enumerate(LAYERS)}
    folders = {name: folder_of(name) for name in {*graph, *(m for found in graph.values() for m in found)}}
    return [
        f"{name} -> {other}"
        for name, found in graph.items()
        for other in sorted(found)
        if folders[name] != folders[other] and rows[folders[other]] >= rows[folders[name]]
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, if there is any: what is left when all that lead nowhere are taken away."""
    left = dict(graph)
    while ends := [name for name, found in left.items() if not found & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


def test_the_table_names_every_folder() -> None:
    assert {folder_of(name) for name in PATHS} == set(LAYERS)


def test_no_arrow_points_upward() -> None:
    assert upward(GRAPH) == []


def test_no_circle() -> None:
    assert circle(GRAPH) == []


def test_an_arrow_upward_and_a_circle_are_seen() -> None:
    assert upward({"sl_server.core.wave": {"sl_server.training.engine"}})
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]


def test_the_sides_meet_in_one_folder() -> None:
    """The client knows no server; of the server the simulation alone knows the client."""
    crossing = {(folder_of(n), m.partition(".")[0]) for n, found in GRAPH.items() for m in found}
    assert {f for f, package in crossing if package == "sl_client" and not f.startswith("sl_client")} == {
        "sl_server.simulation"
    }
    assert {f for f, package in crossing if package == "sl_server" and not f.startswith("sl_server")} == set()


def test_a_clients_two_errands_know_nothing_of_each_other() -> None:
    """Training and inference meet in the connection, which stands above both."""
    found = {(folder_of(name), folder_of(other)) for name, others in GRAPH.items() for other in others}
    assert not found & {
        ("sl_client.inference", "sl_client.training"),
        ("sl_client.training", "sl_client.inference"),
    }


def opens_files(tree: ast.AST) -> bool:
    return any(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "open" for n in ast.walk(tree))


PURE_MODULES = [n for n in PATHS if (n + ".").startswith(PURE) and not (n + ".").startswith("sl_common.host.")]


@pytest.mark.parametrize("name", PURE_MODULES)
def test_what_is_pure_waits_for_nothing(name: str) -> None:
    assert not outside(TREES[name]) & WAITS
    assert not opens_files(TREES[name])
    assert not [m for m in GRAPH[name] if m.startswith("sl_common.host")]


@pytest.mark.parametrize("code", ["import os.path", "def f():\n    from time import sleep", "import grpc.aio as g"])
def test_the_rule_on_purity_sees_imports(code: str) -> None:
    assert outside(ast.parse(code)) & WAITS


def test_the_rule_on_purity_sees_files() -> None:
    assert opens_files(ast.parse("with open('x') as f: pass"))


@pytest.mark.parametrize(
    ("package", "folders"),
    [
        ("grpc", {"sl_client.transport", "sl_server.transport", "sl_server.security"}),
        (
            "prometheus_client",
            {"sl_server.telemetry", "sl_server.inference", "sl_server.security", "sl_server.process"},
        ),
        ("google", {"sl_common.proto", "sl_common.wire"}),
        ("typer", {"sl_client.cli", "sl_server.cli", "sl_common.host"}),
        ("matplotlib", {"sl_server.report"}),
        ("cryptography", {"sl_server.security"}),
        ("PIL", {"sl_client.inference"}),
        ("difflib", {"sl_common"}),  # one "did you mean": sl_common.suggestions
    ],
)
def test_who_knows_a_library(package: str, folders: set[str]) -> None:
    assert {folder_of(name) for name, tree in TREES.items() if package in outside(tree)} == folders


def test_a_simulation_loads_neither_grpc_nor_prometheus() -> None:
    code = (
        "import sys, sl_server.simulation.choice as c, sl_server.simulation.simulation, sl_server.simulation.replay\n"
    )
    code += "sys.exit(' '.join(m for m in sys.modules if m.partition('.')[0] in ('grpc', 'prometheus_client')) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


EXPORTING = [
    name for name, path in PATHS.items() if path.name == "__init__.py" and "sl_common.lazy_exports" in GRAPH[name]
]


@pytest.mark.parametrize("package", EXPORTING)
def test_what_other_folders_use_of_a_package_is_what_it_exports(package: str) -> None:
    listed = set(import_module(package).__all__)
    used = {
        alias.name
        for name, tree in TREES.items()
        if not (name + ".").startswith(package + ".")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(package + ".")
        for alias in node.names
    }
    assert used - listed == set()
    assert listed - used <= ({"main"} if package.endswith(".cli") else set())  # an entry point is used from outside
    for name in listed:
        assert getattr(import_module(package), name) is not None
