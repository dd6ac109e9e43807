"""`--allow PACKAGE`: of a user's own code only functions that are written in the package, and can be called as we call them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sl_client.data import Data, load_data
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.imports import load_function
from sl_common.network.network import Network

DATA = """
import functools, os, shutil
from shutil import rmtree
from os import system as run
import torch
from torch import nn
from sl_client.data import Data

def good(root):
    pair = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    return Data(train=pair, test=pair, classes=2)

@functools.lru_cache
def cached(root):
    return good(root)

@functools.wraps(rmtree)
def wrapped(path):
    return rmtree(path)

remove = functools.partial(rmtree, ignore_errors=True)
alias = rmtree
shell = functools.lru_cache(rmtree)

class Callable:
    def __call__(self, root):
        rmtree(root)

instance = Callable()

def with_nothing():
    return good(None)

def with_two(root, more):
    return good(root)

def network(input, classes):
    return [("fc", nn.Sequential(nn.Flatten(), nn.Linear(64, 8))), ("out", nn.Linear(8, classes))]

def anything(**everything):
    return network(**everything)
"""


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`allowedpkg` with the modules above, which its `__init__` offers too, and a neighbour whose name begins alike."""
    here = tmp_path / "code"
    (here / "allowedpkg").mkdir(parents=True)
    (here / "allowedpkg/data.py").write_text(DATA)
    (here / "allowedpkg/__init__.py").write_text("from allowedpkg.data import good, network\n")
    (here / "allowedpkg/__main__.py").write_text("raise AssertionError('a script was run')\n")
    (here / "allowedpkg/broken.py").write_text("raise RuntimeError('no such device')\n")
    (here / "allowedpkg/script.py").write_text("import sys; sys.exit(3)\n")
    (here / "allowedpkgevil.py").write_text(DATA)
    monkeypatch.syspath_prepend(str(here))
    return


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """What a hostile server would like to see removed; it is there at the end."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "precious").write_text("x")
    yield data
    assert (data / "precious").exists()


BAD = {
    "rmtree": "defined in 'shutil'",
    "alias": "defined in 'shutil'",
    "run": "builtin_function_or_method, and this device calls only functions",
    "wrapped": "defined in 'shutil'",
    "shell": "defined in 'shutil'",
    "remove": "a partial, and this device",
    "Callable": "a type, and this device",
    "instance": "a Callable, and this device",
    "with_nothing": "expected 1 positional argument",
    "with_two": "expected 1 positional argument",
    "shutil": "is a module, not a function",
    "shutil.rmtree": "write it as package.module:function",
    "Data": "a type, and this device",
    "": "write it as package.module:function",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_written_in_the_package_is_not_called(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=BAD[name]):
        load_data(f"allowedpkg.data:{name}", folder, ("allowedpkg",))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("allowedpkgevil:good", "imports code only from allowed packages"),
        ("allowedpkg.data.shutil:rmtree", "cannot import"),
        ("allowedpkg.__main__:good", "write it as"),
        ("allowedpkg.broken:good", "cannot import 'allowedpkg.broken' here: no such device"),
        ("allowedpkg.script:good", "cannot import 'allowedpkg.script' here: it calls sys.exit"),
        ("allowedpkg:good:x", "write it as"),
        (".allowedpkg:good", "imports code only from allowed packages"),
        ("allowedpkg..data:good", "write it as"),
    ],
)
def test_no_other_name_leads_out_of_the_package(name: str, why: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        load_data(name, folder, ("allowedpkg",))


@pytest.mark.parametrize("name", ["allowedpkg.data:good", "allowedpkg:good", "allowedpkg.data:cached"])
def test_what_is_written_in_the_package_is_called(name: str, folder: Path) -> None:
    assert isinstance(load_data(name, folder, ("allowedpkg",)), Data)


def test_what_a_package_takes_from_another_may_be_allowed_with_it(folder: Path) -> None:
    assert (
        load_function("allowedpkg.data:rmtree", ("allowedpkg", "shutil"), "data.name", positional=1).__name__
        == "rmtree"
    )
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["rmtree", "good", "anything", "wrapped", "remove"])
def test_a_model_function_has_the_parameters_that_it_is_called_with(name: str) -> None:
    config = RunConfig.from_toml("", [f"model.name=allowedpkg.data:{name}"])
    with pytest.raises(ConfigError, match=r"model\.name"):
        Network.build(config, ("allowedpkg",))


def test_a_model_of_the_package_is_built() -> None:
    config = RunConfig.from_toml("", ["model.name=allowedpkg:network"])
    assert Network.build(config, ("allowedpkg",)).cut == 1
