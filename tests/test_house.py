"""How the product's code reads, as far as a machine can tell: sizes, openers of docstrings, lengths of lines, one meaning for a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = ("sl_common", "sl_server", "sl_client")
MAX_FILE, MAX_CLASS, MAX_FUNCTION, MAX_LINE = 250, 200, 40, 120
OPENERS = {"what", "who", "whom", "whose", "which", "whether", "those", "it", "so", "of"}
# Names of one meaning that each of several modules has: the commands of the two sides, and the same questions to each data set.
TWINS = {"app", "main", "run", "check", "simulate", "serve", "export", "digest", "CLASSES", "read", "read_test", "find"}


def sources(*folders: str) -> dict[str, str]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "proto" not in path.parts)
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


CODE = sources(*PRODUCT)
Def = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(text: str) -> Iterator[ast.ClassDef | Def]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | Def):
            yield node


def is_command(node: Def) -> bool:
    """Typer reads a command's options from its signature, which is a table."""
    return "typer.Option(" in (signature := ast.unparse(node.args)) or "typer.Argument(" in signature


def lines_of(node: ast.ClassDef | Def) -> int:
    first = node.body[0].lineno if isinstance(node, Def) and is_command(node) else node.lineno
    return (node.end_lineno or first) - first + 1


def too_long(text: str) -> list[str]:
    found = [
        f"{node.name}: {lines_of(node)} lines"
        for node in definitions(text)
        if lines_of(node) > (MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION)
    ]
    length = len(text.splitlines())
    return found + ([f"{length} lines"] if length > MAX_FILE else [])


@pytest.mark.parametrize("path", CODE)
def test_files_classes_and_functions_are_small(path: str) -> None:
    assert too_long(CODE[path]) == []


def test_what_is_too_long_is_seen() -> None:
    body, option = "    x = 1\n", "    a=1,\n"
    assert too_long(f"def f():\n{body * 40}") == ["f: 41 lines"]
    assert too_long(f"class C:\n{body * 200}") == ["C: 201 lines"]
    assert too_long("x = 1\n" * 251) == ["251 lines"]
    assert too_long(f"def f(\n{option * 60}    b: Annotated[int, typer.Option()] = 1\n):\n{body * 40}") == []


def docstrings(text: str) -> Iterator[str]:
    tree = ast.parse(text)
    for node in (tree, *definitions(text)):
        said = ast.get_docstring(node)
        if said:
            yield said


def opens_badly(said: str) -> bool:
    """With a word that leans on the name above it, which a reader of a rendered page does not see."""
    return said.split(maxsplit=1)[0].strip("`,.:;'\"").lower() in OPENERS


@pytest.mark.parametrize("path", CODE)
def test_docstrings_stand_alone(path: str) -> None:
    assert [said.splitlines()[0] for said in docstrings(CODE[path]) if opens_badly(said)] == []


def test_most_docstrings_of_tests_and_benchmarks_stand_alone() -> None:
    """They are read less than the product's: one in ten may still lean on the name above it."""
    found = [
        said
        for text in sources("tests", "benchmarks", "examples", "docker", "docs").values()
        for said in docstrings(text)
    ]
    bad = [said.splitlines()[0] for said in found if opens_badly(said)]
    assert len(bad) <= len(found) / 10, "\n".join(bad)


@pytest.mark.parametrize("said", ["What is sent.", "Whether it is.", "It waits.", "Of all, one."])
def test_a_bad_opener_is_seen(said: str) -> None:
    assert opens_badly(said)


@pytest.mark.parametrize("path", CODE)
def test_lines_are_short(path: str) -> None:
    assert [number for number, line in enumerate(CODE[path].splitlines(), 1) if len(line) > MAX_LINE] == []


def public_names(text: str) -> Iterator[str]:
    """Classes, functions and constants of a module; type variables aside."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | Def):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign) and not ast.unparse(node).partition("= ")[2].startswith(
            "TypeVar("
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_a_public_name_means_one_thing() -> None:
    where = defaultdict(set)
    for path, text in CODE.items():
        for name in public_names(text):
            if not name.startswith("_") and name not in TWINS:
                where[name].add(path)
    assert {name: sorted(paths) for name, paths in where.items() if len(paths) > 1} == {}
