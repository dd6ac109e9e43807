"""The floors of pyproject.toml are those that `make test-floors` installs, and the generated code asks for no newer protobuf."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

import pytest
from floors import BORROWED, HOME, LEFT_OUT, ROOT, TESTS, normalised, pins

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
]


@pytest.mark.parametrize("requirement", sorted(set(REQUIREMENTS)))
def test_every_dependency_has_its_floor_in_both_files(requirement: str) -> None:
    """As `name>=floor`, with a limit above only where the line says why."""
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?(?:; .*)?", requirement)
    assert found, f"{requirement}: has no floor"
    name, floor = normalised(found[1]), found[2]
    pinned = pins()[name]
    assert pinned == floor or pinned.startswith(f"{floor}."), (
        f"{name}: {floor} in pyproject.toml, {pinned} in constraints-floors.txt"
    )


def test_nothing_is_pinned_by_another_name() -> None:
    assert all(name == normalised(name) and pinned for name, pinned in pins().items())
    assert {*BORROWED[:1], *LEFT_OUT} <= pins().keys()


def test_the_chosen_tests_are_there() -> None:
    for name in TESTS:
        file, _, test = name.partition(".py::")
        code = (ROOT / "tests" / f"test_{file}.py").read_text()
        assert not test or f"def {test}(" in code, name


def test_the_generated_code_asks_for_no_version() -> None:
    """Code of protoc 26 and newer begins with a check that refuses an older protobuf than itself, so that of an older one is committed."""
    code = (ROOT / "sl_common/proto/split_pb2.py").read_text()
    assert "ValidateProtobufRuntimeVersion" not in code
    assert "# Protobuf Python Version: 4.25.1\n" in code


@pytest.mark.skipif(not pytest.__file__.startswith(str(HOME)), reason="for `make test-floors`")
def test_the_floors_are_what_is_installed() -> None:
    taken = {name: floor for name, floor in pins().items() if name not in (*BORROWED, *LEFT_OUT)}
    assert {name: version(name) for name in taken} == taken
