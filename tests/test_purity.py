"""House rules that a machine can check: no algorithm's name outside the presets, and a wire format that is written down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from unions import members

from sl_common.config.presets import PRESETS
from sl_common.proto import split_pb2
from sl_common.protocol import Protocol

ROOT = Path(__file__).parent.parent
PROTO = "sl/v1/split.proto"
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for package in ("sl_common", "sl_server", "sl_client")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# --- names of algorithms

HOOKS = [member for field in Protocol.model_fields.values() for member in members(field.annotation)]
KINDS = {
    hook.model_fields["kind"].default for hook in HOOKS if "kind" in hook.model_fields
}  # of which some are presets
OTHERS = {"sglr", "splitfed", "locsplitfed", "locfedsl", "locfedmix", "loss_async", "cse_fsl", "fsl_sage"}


def plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


ALGORITHMS = {plain(name) for name in (PRESETS.keys() - KINDS) | OTHERS}


def words_of(tree: ast.AST) -> Iterator[str]:
    """Every identifier and every string but docstrings."""
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        if id(node) not in docs:
            yield from (value for _, value in ast.iter_fields(node) if isinstance(value, str))


def algorithms_in(tree: ast.AST) -> set[str]:
    return {word for word in words_of(tree) for name in ALGORITHMS if name in plain(word)}


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "sl_common/config/presets.py"])
def test_only_the_presets_name_algorithms(name: str) -> None:
    assert not algorithms_in(SOURCES[name])


@pytest.mark.parametrize(
    "code",
    ["if preset == 'fedavg': pass", "class SplitFedV2: pass", "def cse_fsl_step(): pass", "x.sglr", "f(loss_async=1)"],
)
def test_the_rule_on_names_sees_them(code: str) -> None:
    assert algorithms_in(ast.parse(code))


# --- the wire format


def protoc(out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *options, PROTO]
    subprocess.run(command, check=True, cwd=out)


def test_the_committed_code_is_what_protoc_makes_of_the_proto(tmp_path: Path) -> None:
    protoc(tmp_path, "--python_out=.")
    made = ast.parse((tmp_path / "sl/v1/split_pb2.py").read_text())
    calls = [n for n in ast.walk(made) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    descriptors = [ast.literal_eval(call.args[0]) for call in calls if call.func.attr == "AddSerializedFile"]
    assert descriptors == [split_pb2.DESCRIPTOR.serialized_pb]


def test_every_field_has_a_comment(tmp_path: Path) -> None:
    """A comment line directly above: protoc attaches it to the message, field, enum value, service or rpc below."""
    protoc(tmp_path, "--descriptor_set_out=set.pb", "--include_source_info")
    file = FileDescriptorSet.FromString((tmp_path / "set.pb").read_bytes()).file[0]
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    things = {(6, s): service.name for s, service in enumerate(file.service)}
    things |= {(6, s, 2, r): rpc.name for s, service in enumerate(file.service) for r, rpc in enumerate(service.method)}
    for kind, child, holders, items in ((4, 2, file.message_type, "field"), (5, 2, file.enum_type, "value")):
        for h, holder in enumerate(holders):
            assert not getattr(holder, "nested_type", ())
            things |= {(kind, h): holder.name}
            things |= {(kind, h, child, i): f"{holder.name}.{x.name}" for i, x in enumerate(getattr(holder, items))}
    assert len(things) > 100
    assert [name for path, name in things.items() if not comments[path].strip()] == []
