"""What fuzzing and reading found in loaders of files, one test each: the typed error comes, and no memory is taken first."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from recorded import header_of, record

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError, WireError
from sl_common.messages.events import Tick
from sl_common.messages.training import Leave, Smashed
from sl_common.tree import MAGIC, dumps, loads
from sl_common.wire import eventlog
from sl_server.security.tokens import Tokens
from sl_server.simulation.replay import replay_log

BATCH = Smashed(step=0, z=torch.zeros(7, 11, 13), y=torch.zeros(2, dtype=torch.int64))
DEEP = "[" * 100_000


@pytest.mark.parametrize("read", [RunConfig.from_json, RunConfig.from_toml])
def test_a_configuration_that_nests_without_end(read: object) -> None:
    with pytest.raises(ConfigError, match=r"the configuration is not JSON|not TOML"):
        read(DEEP if read == RunConfig.from_json else f"x = {DEEP}")


def test_tokens_that_nest_without_end(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"x = {DEEP}")
    with pytest.raises(ConfigError, match="write a line"):
        Tokens(tmp_path / "tokens")


def sealed(text: str) -> bytes:
    """A snapshot with this text for its tree, whose checksum is right."""
    body = dumps({"x": torch.zeros(1)})[len(MAGIC) + 32 :]
    length = int.from_bytes(body[:8], "little")
    head = json.loads(body[8 : 8 + length])
    head["__metadata__"]["tree"] = text
    new = json.dumps(head).encode()
    body = len(new).to_bytes(8, "little") + new + body[8 + length :]
    return MAGIC + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize("text", [DEEP, '{"t": []}', '{"d": [[{"u": [{"d": []}]}, 1]]}', '{"x": 1}', '{"d": 3}', "{}"])
def test_a_snapshot_that_makes_no_sense(text: str) -> None:
    with pytest.raises(DataError):
        loads(sealed(text))


EVENTS = {
    "a name that is no text": record(b"\xff", b'{"event": "tick", "now": 1}'),
    "no JSON": record(b"", b"{nothing"),
    "nested without end": record(b"", b'{"event": ' + DEEP.encode()),
    "an unknown event": record(b"", b'{"event": "x"}'),
    "no event": record(b"", b"{}"),
    "unknown fields": record(b"", b'{"event": "tick", "now": 1, "then": 1}'),
    "a field of the wrong kind": record(b"", b'{"event": "tick", "now": "soon"}'),
    "digests that are none": record(b"", b'{"event": "advanced", "said": [{"client": "", "kind": "", "fields": 3}]}'),
    "no protobuf": record(b"", b"P\xff"),
    "no event in its protobuf": record(b"", b"P"),
    "too few tensors": record(b"", header_of(BATCH), [b""]),
    "a header that is longer than any": record(b"", b"", count=1 << 30),
}


@pytest.mark.parametrize("what", EVENTS)
def test_an_event_log_that_makes_no_sense(what: str) -> None:
    good = eventlog.dump("c0", Leave(reason="x"))
    with pytest.raises(WireError, match=rf"event log: event 2 at byte {len(good)}: "):
        list(eventlog.load_events(good + EVENTS[what] + eventlog.dump("", Tick(now=1.0))))


def test_an_event_log_that_lies_about_a_tensor_takes_no_memory() -> None:
    data = record(b"", header_of(BATCH), [bytes(16), bytes(4)])  # its header says 4,004 bytes
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="a tensor of 4 bytes, its header says 4004"):
            list(eventlog.load_events(data))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_recorded_run_whose_configuration_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "events.log").write_bytes((3).to_bytes(4, "little") + b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match="not an event log"):
        replay_log(tmp_path / "events.log")
