"""Whatever code and pages tell people to run, set or install is there: commands, options, variables, make targets, extras, keys."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from sl_client.cli.application import app as client_app
from sl_common.config.overrides import _kinds, _members
from sl_common.config.run_config import RunConfig
from sl_common.host.extras import _packages, how_to_install
from sl_common.proto import split_pb2
from sl_server.cli.application import app as server_app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("deploy/**/*.md"))]
OTHERS = [
    ROOT / ".env",
    ROOT / "docker-compose.yml",
    *sorted(ROOT.glob("deploy/**/*.[yes][nae]*")),
    *sorted(ROOT.glob("docker/*.sh")),
]
CODE = [path for package in ("sl_common", "sl_server", "sl_client") for path in sorted((ROOT / package).rglob("*.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
COMMANDS = {"sl-server": typer.main.get_command(server_app), "sl-client": typer.main.get_command(client_app)}
SUBCOMMANDS = {name: set(command.commands) for name, command in COMMANDS.items()}  # type: ignore[attr-defined]
OPTIONS = {
    (name, sub): {
        option for parameter in command.commands[sub].params for option in (*parameter.opts, *parameter.secondary_opts)
    }  # type: ignore[attr-defined]
    | {"--help"}
    for name, command in COMMANDS.items()
    for sub in SUBCOMMANDS[name]
}
VARIABLES = {
    parameter.envvar
    for name, command in COMMANDS.items()
    for sub in SUBCOMMANDS[name]
    for parameter in command.commands[sub].params  # type: ignore[attr-defined]
    if getattr(parameter, "envvar", None)
}
OF_OTHERS = {  # options of other programs that pages name
    "--build-arg", "--config.file", "--from-file", "--logdir", "--nofile", "--now", "--profile", "--python", "--rm", "--scale", "--ulimit", "--volumes", "--web.console.templates",
}  # fmt: skip
NOT_KEYS = {  # dotted words of pages that are no fields of a configuration (a file and --set take protocol.preset), and no files
    "protocol.preset", "sl.v1", "grpc.health.v1", "grpc.aio", "package.module", "mypkg.data", "sl_client.data.Data", "seeds.seed_of", "coding.draw",
    "nn.Embedding", "x.long", "cutlayer.server", "cutlayer.client", "safetensors.torch.load_file", "torch.distributed.rpc", "events.out.tfevents",
}  # fmt: skip
SUFFIXES = [
    "md",
    "py",
    "toml",
    "json",
    "jsonl",
    "csv",
    "log",
    "txt",
    "yml",
    "yaml",
    "pem",
    "key",
    "safetensors",
    "tree",
    "holder",
    "html",
    "env",
    "proto",
    "service",
    "npz",
    "npy",
    "ini",
    "sh",
    "tar",
    "gz",
    "png",
]


def texts(path: Path) -> Iterator[str]:
    """A page as it is; of code, its texts, with what is filled in as a word."""
    if path.suffix != ".py":
        yield path.read_text().replace("\\\n", " ")
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "X" for p in node.values)


def named(pattern: str, paths: list[Path]) -> list[tuple[str, re.Match[str]]]:
    return [
        (str(path.relative_to(ROOT)), match)
        for path in paths
        for text in texts(path)
        for match in re.finditer(pattern, text)
    ]


EVERYWHERE = [*PAGES, *OTHERS, *CODE]


def test_every_command_that_is_named_exists() -> None:
    found = named(r"\b(sl-server|sl-client) +([a-z]+)\b", EVERYWHERE)
    prose = {"has", "needs", "did", "and", "alone", "is", "as", "are", "wrote", "makes", "the", "takes"}
    assert len(found) > 40
    assert [(where, m[0]) for where, m in found if m[2] not in SUBCOMMANDS[m[1]] | prose] == []


def test_every_option_behind_a_command_is_one_of_its_own() -> None:
    found = named(r"(sl-server|sl-client) +([a-z]+)([^`|#)\n]*)", EVERYWHERE)
    wrong = []
    seen = 0
    for where, match in found:
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", match[3]):
            seen += 1
            if option not in OPTIONS.get((match[1], match[2]), {option}):
                wrong.append((where, match[0]))
    assert seen > 30
    assert wrong == []


def test_every_option_that_a_page_or_a_message_names_exists() -> None:
    known = set().union(*OPTIONS.values()) | {"--version"} | OF_OTHERS
    found = named(r"(?<![\w.-])--[a-z][a-z.-]*[a-z]", [*PAGES, *CODE])
    assert len(found) > 150
    assert sorted({(where, m[0]) for where, m in found if m[0] not in known}) == []


def test_every_variable_that_is_named_exists() -> None:
    found = named(r"\bSL_[A-Z_]+\b", EVERYWHERE)
    assert sorted({(where, m[0]) for where, m in found if m[0] not in VARIABLES}) == []


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = named(r"(?:`|^ *)make ([a-z-]+)", PAGES)
    assert len(found) > 10
    assert [(where, m[0]) for where, m in found if m[1] not in targets] == []


def test_what_pip_is_told_to_install_can_be_had() -> None:
    """No package index has this project: a folder is named, or a file of this tree."""
    found = named(r"pip install[^`\n]*", [*PAGES, *CODE, ROOT / "constraints-device.txt"])
    assert len(found) > 5
    for where, match in found:
        assert "cutlayer" not in match[0].replace("/opt/cutlayer", ""), (where, match[0])
        for extras in re.findall(r"\[([a-z,]+)\]", match[0]):
            assert set(extras.split(",")) <= EXTRAS, (where, match[0])
        for constraints in re.findall(r"-c (\S+)", match[0]):
            assert (ROOT / constraints.strip("`)'")).exists(), (where, match[0])
    assert named(r"cutlayer\[", EVERYWHERE) == []


def keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{path}{name}"
        for member in _members(field):
            yield from keys(member, f"{path}{name}.")


FIELDS = {name: set(message.fields_by_name) for name, message in split_pb2.DESCRIPTOR.message_types_by_name.items()}
KEYS = set(keys(RunConfig)) | {key.removeprefix("protocol.") for key in keys(RunConfig) if key.startswith("protocol.")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_key_that_a_page_names_exists(page: Path) -> None:
    wrong = []
    for match in re.finditer(r"`(?:--set )?([A-Za-z_]+(?:\.[A-Za-z_0-9]+)+)(?=[`\s=:(.*…])", page.read_text()):
        word = match[1]
        if word.rpartition(".")[2] in SUFFIXES or word in NOT_KEYS or word.startswith("model.args."):
            continue
        message, _, field = word.partition(".")
        if word not in KEYS and field not in FIELDS.get(message, ()):
            wrong.append(word)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_shows_a_placeholder_where_output_belongs(page: Path) -> None:
    for block in re.findall(r"^ *```[^\n]*\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
        assert not re.fullmatch(r"\s*[A-Z_ …]*\s*", block), block


def test_the_keys_of_options_that_pages_set_exist() -> None:
    found = named(r"--set[ =]([a-z_.]+)=", EVERYWHERE)
    assert len(found) > 5
    assert [(where, m[0]) for where, m in found if m[1] not in KEYS | {"a.b"} and m[1] != "protocol.preset"] == []


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_the_hint_for_an_extra_can_be_run(extra: str) -> None:
    *command, what = shlex.split(how_to_install(extra))
    folder, _, rest = what.partition("[")
    assert rest == f"{extra}]"
    assert extra in tomllib.loads((Path(folder) / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (
        subprocess.run([*command[:3], "--version"], capture_output=True, check=False).returncode == 0
        or command[0] == "pip"
    )
    assert sys.executable in command


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_without_a_checkout_the_packages_are_named(extra: str) -> None:
    """As in an image, or where a wheel was installed from a file that is gone."""
    wanted = {re.split(r"[<>=;]", one)[0].strip() for one in PROJECT["optional-dependencies"][extra]}
    assert {re.split(r"[<>=;]", one)[0].strip() for one in _packages(extra)} == wanted


def test_kinds_are_read_as_the_configuration_has_them() -> None:
    """What the tests above walk is what pydantic takes: a kind of a nested table is among the keys."""
    members: list[Any] = _members(RunConfig.model_fields["codec"])
    assert {"codec.up.bits", "codec.down.of.bits", "learner.aux.form", "server.alignment.optimizer.lr"} <= KEYS
    assert members
    assert not any(_kinds(member) for member in members)
    assert distribution("cutlayer").metadata["Name"] == "cutlayer"


def test_in_an_image_that_is_read_only_the_hint_is_a_line_for_another_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert re.match(
        r"sudo \S*python|in an image made FROM this one: USER root, then RUN \S*python", how_to_install("certs")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_this_tree_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    folders = "docker|deploy|docs|examples|benchmarks|tests|protos|sl_server|sl_client|sl_common"
    inside = {m[1] for m in re.finditer(rf"(?<![\w./-])((?:{folders})/[\w./-]*[\w/])", text)}
    links = {m[1] for m in re.finditer(r"\]\((?!http|#)([^)#]+)", text)}
    made_up = {"sl_common/codec/yours.py", "examples/PRESET.toml"}  # as a reader will name them
    assert sorted(name for name in inside - made_up if not (ROOT / name).exists()) == []
    assert sorted(name for name in links if not (page.parent / name).exists()) == []
