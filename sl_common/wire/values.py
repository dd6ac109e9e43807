"""Formats of header fields whose value differs from the message's: one place writes, reads and checks each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sl_common.errors import WireError
from sl_common.holdings import MAX_MEANS, MAX_PROBE, MAX_SCALES, Build, DataSet, Inputs
from sl_common.messages.training import Directive
from sl_common.proto import split_pb2 as pb
from sl_common.wire.bounds import MAX_SENTENCE, MAX_WORD

_ON_THE_WIRE = (
    "send",
    "update",
    "align",
    "warm",
)  # fields of a directive that are sent; `record` concerns the server alone


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldFormat:
    """Format of one field: `write` converts a message's value to the header's, `read` converts back and checks."""

    write: Callable[[Any], Any]
    read: Callable[[str, Any], Any]  # arguments: the field's name for errors, and the header's value; raises WireError
    optional: bool = False  # the value may be None, which leaves the field out


def _as_it_is(value: Any) -> Any:
    return value


def _read_word(name: str, text: str) -> str:
    if len(text) > MAX_WORD:
        raise WireError(f"{name} has {len(text)} characters, at most {MAX_WORD} are allowed")
    return text


def _read_sha256(name: str, sha256: bytes) -> bytes:
    if len(sha256) not in (0, 32):
        raise WireError(f"{name} has {len(sha256)} bytes, must have 32 or none")
    return sha256


def _write_digests(digests: Mapping[str, bytes]) -> list[pb.Digest]:
    return [pb.Digest(part=part, sha256=sha256) for part, sha256 in digests.items()]


def _write_directive(directive: Directive) -> pb.Directive:
    return pb.Directive(**{name: getattr(directive, name) for name in _ON_THE_WIRE})


def _read_directive(_: str, header: pb.Directive) -> Directive:
    return Directive(**{name: getattr(header, name) for name in _ON_THE_WIRE})


def _numbers(name: str, found: Sequence[float], most: int) -> tuple[float, ...]:
    """Convert a list of numbers. Raises WireError if it is too long, before it is converted."""
    if len(found) > most:
        raise WireError(f"{name} has {len(found)} numbers, at most {most} are allowed")
    return tuple(found)


def _write_inputs(inputs: Inputs) -> pb.Inputs:
    return pb.Inputs(**asdict(inputs))


def _read_inputs(_: str, header: pb.Inputs) -> Inputs:
    mean, std = (_numbers(f"inputs.{name}", getattr(header, name), MAX_SCALES) for name in ("mean", "std"))
    found = Inputs(dtype=header.dtype, low=header.low, high=header.high, mean=mean, std=std, digest=header.digest)
    found.check()
    return found


def _write_data_set(data: DataSet) -> pb.DataSet:
    return pb.DataSet(**(asdict(data) | {"inputs": _write_inputs(data.inputs)}))


def _read_data_set(name: str, header: pb.DataSet) -> DataSet:
    found = DataSet(
        train=header.train,
        test=header.test,
        train_sha256=header.train_sha256,
        test_sha256=header.test_sha256,
        means=_numbers("data.means", header.means, MAX_MEANS),
        inputs=_read_inputs(name, header.inputs),
    )
    found.check()
    return found


def _write_build(build: Build) -> pb.Build:
    return pb.Build(**asdict(build))


def _read_build(_: str, header: pb.Build) -> Build:
    found = Build(
        part=header.part[:MAX_WORD],
        layout_sha256=header.layout_sha256,
        layout=header.layout,
        modules_sha256=header.modules_sha256,
        modules=header.modules,
        probe=_numbers("build.probe", header.probe, MAX_PROBE),
    )
    found.check()
    return found


LIST = FieldFormat(write=_as_it_is, read=lambda _, values: tuple(values))
WORD = FieldFormat(write=_as_it_is, read=_read_word)
SENTENCE = FieldFormat(write=_as_it_is, read=lambda _, text: text[:MAX_SENTENCE])
SHA256 = FieldFormat(write=_as_it_is, read=_read_sha256)
DIGESTS = FieldFormat(write=_write_digests, read=lambda _, entries: {one.part: one.sha256 for one in entries})
DIRECTIVE = FieldFormat(write=_write_directive, read=_read_directive)
INPUTS = FieldFormat(write=_write_inputs, read=_read_inputs, optional=True)
DATA_SET = FieldFormat(write=_write_data_set, read=_read_data_set, optional=True)
BUILD = FieldFormat(write=_write_build, read=_read_build, optional=True)
BUILDS = FieldFormat(
    write=lambda builds: [_write_build(build) for build in builds],
    read=lambda name, headers: tuple(_read_build(name, header) for header in headers),
)
