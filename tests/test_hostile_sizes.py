"""Files and texts that would cost more than they may: each is refused with the typed error, after work in proportion to its size."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import ssl
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import record
from test_cifar import write
from world import make_config

from sl_client.data.cifar import CIFAR10, read
from sl_client.data.idx import read_idx, read_rows
from sl_client.inference.files import read_samples
from sl_client.transport.tls import _load_pair
from sl_common.bounded import _DOTTED, MAX_DEPTH, MAX_ENTRIES, MAX_JSON, MAX_TOML, MAX_VALUES
from sl_common.codec import Coding, Link, Mask, Packed, TopK, mask
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError, WireError
from sl_common.host.files import MAX_KEY_FILE
from sl_common.proto import split_pb2 as pb
from sl_common.tensors import aligned_buffer
from sl_common.tree import dumps, loads
from sl_common.wire import Endpoint, eventlog
from sl_server.report.past import read_past_run
from sl_server.security import tokens
from sl_server.security.handshakes import read_line
from sl_server.security.tls import CertificateFiles
from sl_server.security.tokens import Tokens


def calls(what: Callable[[], object]) -> int:
    """How many functions are called meanwhile: work that does not depend on the machine."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        what()
    finally:
        sys.setprofile(None)
    return count


# --- a configuration, as a server hands it to a client


def handed_out(**keys: Any) -> str:
    tree = json.loads(make_config("splitfed_v1").to_json())
    tree["model"]["args"] = keys
    return json.dumps(tree)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


def test_a_configuration_is_small() -> None:
    with pytest.raises(ConfigError, match=f"characters, at most {MAX_JSON} are allowed"):
        RunConfig.from_json(" " * (MAX_JSON + 1))
    with pytest.raises(ConfigError, match=f"characters, at most {MAX_TOML} are allowed"):
        RunConfig.from_toml("#" * (MAX_TOML + 1))
    with pytest.raises(ConfigError, match=rf"args\.x: {MAX_ENTRIES + 1} entries, at most {MAX_ENTRIES} are allowed"):
        RunConfig.from_json(handed_out(x=[0] * (MAX_ENTRIES + 1)))
    with pytest.raises(ConfigError, match=f"more than {MAX_VALUES} values"):
        RunConfig.from_json(handed_out(**{f"x{n}": [0] * MAX_ENTRIES for n in range(MAX_VALUES // MAX_ENTRIES)}))


@pytest.mark.parametrize("depth", [MAX_DEPTH, 900, 50_000])
def test_a_configuration_is_not_nested_without_end(depth: int) -> None:
    """900 deep was taken, and ended in a RecursionError wherever it was written down."""
    text = handed_out(x=0).replace('"x": 0', f'"x": {"[" * depth}{"]" * depth}')
    with pytest.raises(ConfigError, match=f"nested more than {MAX_DEPTH} deep"):
        RunConfig.from_json(text)
    assert RunConfig.from_json(handed_out(x=nested(MAX_DEPTH - 4))).model.args["x"]


@pytest.mark.parametrize("digits", [20, 4000, 100_000])
def test_a_whole_number_has_64_bits(digits: int) -> None:
    """4,000 digits were taken, and ended in an OverflowError wherever they met torch."""
    text = handed_out(x=0).replace('"x": 0', f'"x": {"9" * digits}')
    with pytest.raises(ConfigError, match=r"a whole number of|not JSON"):
        RunConfig.from_json(text)
    with pytest.raises(ConfigError, match=r"a whole number of|not TOML"):
        RunConfig.from_toml(f"[run]\nseed = {'9' * min(digits, 60_000)}")
    with pytest.raises(ConfigError):
        RunConfig.from_toml("", [f"run.seed={'9' * digits}"])


def test_a_number_or_a_list_on_the_command_line_that_goes_on_is_a_word() -> None:
    for value in ("9" * 5000, "[" * 5000):
        with pytest.raises(ConfigError, match="seed"):
            RunConfig.from_toml("", [f"run.seed={value}"])


def test_unknown_keys_are_explained_up_to_twenty() -> None:
    """Each is compared with all keys that there are: 10,000 of them took a minute."""
    tree = json.loads(make_config("splitfed_v1").to_json())
    tree["run"] |= {f"rounds{n}": n for n in range(1000)}
    found: list[str] = []

    def validate() -> None:
        with pytest.raises(ConfigError) as error:
            RunConfig.from_json(json.dumps(tree))
        found.append(str(error.value))

    validate()  # the schema is made once
    assert calls(validate) < 60_000
    lines = found[0].splitlines()
    assert len(lines) == 21
    assert lines[0].startswith("run.rounds0: unknown key, did you mean 'rounds'?")
    assert lines[-1] == "… and 980 more"


# --- codecs: the shape is the peer's


@pytest.mark.parametrize("b", [1, 2, 8])
@pytest.mark.parametrize("shape", [(1 << 14, 1), (1 << 13, 2), (300, 600), (3, 70_000)])
def test_a_mask_of_many_rows_is_decoded_many_at_a_time(
    b: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Mask(r=0.4, b=b, scope="sample")
    x = torch.from_numpy(np.random.default_rng(3).standard_normal(shape, np.float32))
    packed = codec.encode(x, Coding())
    decoded: list[torch.Tensor] = []
    assert calls(lambda: decoded.append(codec.decode(packed, Coding()))) < 2000 + (
        12 * shape[0] if shape[1] >= 512 else 0
    )
    monkeypatch.setattr(mask, "_WIDE", 1)  # one row after another
    assert torch.equal(decoded[0], codec.decode(packed, Coding()))


def test_positions_take_memory_in_proportion_to_what_they_stand_for() -> None:
    """64 bytes of scratch a position: a megabyte of tensor took 27."""
    codec = TopK(r=0.0)
    x = torch.ones(1 << 18, 1)
    packed = codec.encode(x, Coding())
    body = aligned_buffer(packed.layout.nbytes)
    body[:] = packed.data
    tracemalloc.start()
    try:
        decoded = codec.decode(Packed(layout=packed.layout, data=body), Coding())
        assert tracemalloc.get_traced_memory()[1] < 16 * x.nbytes
    finally:
        tracemalloc.stop()
    assert torch.equal(decoded, x)


# --- trees, logs, tokens, reports


def test_a_tensor_is_in_a_tree_once() -> None:
    data = dumps({"a": torch.zeros(4), "b": torch.zeros(5)})
    twice = data[40:].replace(b'\\"t\\": \\"1\\"', b'\\"t\\": \\"0\\"')
    assert twice != data[40:]
    with pytest.raises(DataError, match="makes no sense: KeyError"):
        loads(data[:8] + hashlib.sha256(twice).digest() + twice)


def test_what_is_wrong_with_a_megabyte_is_said_in_a_line() -> None:
    """Python's own words for bytes that are no text repeat all of them, four characters each."""
    noise = b'{"' + b"\xff" * (1 << 20) + b'"}'
    body = len(noise).to_bytes(8, "little") + noise
    with pytest.raises(DataError, match="makes no sense: UnicodeDecodeError") as damaged:
        loads(dumps(0)[:8] + hashlib.sha256(body).digest() + body)
    with pytest.raises(WireError, match="makes no sense: UnicodeDecodeError") as garbage:
        list(eventlog.load_events(record(noise, b"{}")))
    assert max(len(str(damaged.value)), len(str(garbage.value))) < 500


def test_of_a_line_in_grpcs_log_the_beginning_is_looked_at() -> None:
    line = b"ssl_transport_security.cc] Handshake failed with error SSL_ERROR_SSL"
    assert read_line(line) is not None
    assert read_line(line.replace(b"cc]", b"cc" + b" " * 5000 + b"]")) is None


class Compared(bytes):
    """Bytes that count how often they are compared."""

    times = 0
    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return bytes(self) == other


def test_many_tokens_are_not_compared_with_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokens"
    path.write_text("".join(f'c{n} = "0123456789abcdef{n}"\n' for n in range(300)))
    path.chmod(0o600)
    digest = tokens._digest
    monkeypatch.setattr(tokens, "_digest", lambda token: Compared(digest(token)))
    Compared.times = 0
    Tokens(path)
    assert Compared.times < 300


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("metrics.jsonl", '{"event": ' + "[" * 50_000 + "\n", "metrics.jsonl, line 1: not an event"),
        ("summary.json", "[" * 50_000, r"summary\.json"),
        (
            "summary.json",
            '{"seconds": "x", "bytes": {}, "payload_bytes": {}',
            "seconds: Input should be a valid number",
        ),
        ("summary.json", '{"seconds": 1, "bytes": [], "payload_bytes": {}', "bytes: Input should be"),
    ],
)
def test_a_report_of_a_damaged_run_directory(name: str, text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(make_config("splitfed_v1").to_json())
    more = ', "weights_sha256": "", "reason": "", "finished": true}' if text.startswith('{"seconds') else ""
    (tmp_path / name).write_text(text + more)
    with pytest.raises(ConfigError, match=match):
        read_past_run(tmp_path)


def test_a_line_of_metrics_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    """A megabyte of vertical tabs became a million lines."""
    (tmp_path / "config.json").write_text(make_config("splitfed_v1").to_json())
    (tmp_path / "metrics.jsonl").write_text('{"event": "run_ended", "reason": "a\u2028b\u2029c"}\n')
    (line,) = read_past_run(tmp_path).lines
    assert line.reason == "a\u2028b\u2029c"  # type: ignore[union-attr]


# --- a person's files


def test_an_array_that_promises_terabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((3, 4, 4), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(3, 4, 4)", b"(9999999999, 4, 4)").replace(b" " * 7 + b"\n", b"\n"))
    with pytest.raises(DataError, match="no NumPy array that can be read"):
        read_samples(path, (1, 4, 4), of_bytes=True)
    path.write_bytes(b"\x93NUMPY\x01\x00\x14\x00{'descr': '''''' , (\n")
    with pytest.raises(DataError, match="no NumPy array that can be read"):
        read_samples(path, (1, 4, 4), of_bytes=True)


def _images(*shape: int, body: bytes) -> bytes:
    return struct.pack(f">I{len(shape)}I", 0x0800 | len(shape), *shape) + body


def test_an_idx_file_of_rows_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(_images(2**32 - 1, 0, 4, body=b""))
    for rows in (None, np.arange(3)):
        with pytest.raises(DataError, match="promises 4294967295 rows of nothing"):
            read_rows(tmp_path / "x", 3, rows)


def test_fewer_images_than_are_picked(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(_images(2, 2, 2, body=bytes(range(8))))
    found, count = read_rows(tmp_path / "x", 3, np.arange(1, 9))
    assert (found.tolist(), count) == ([[[4, 5], [6, 7]]], 2)


def test_what_a_zipped_file_has_too_much_is_counted_up_to_a_few_megabytes(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(_images(2, 2, 2, body=bytes(100 << 20)), 1))
    with pytest.raises(DataError, match=r"at least \d{7} bytes too many"):
        read_idx(tmp_path / "x.gz", 3)


def _doubled(times: int) -> bytes:
    """A dict whose key is a tuple of a tuple twice, of a tuple twice, …: its hash takes 2^times steps."""
    steps = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) + b"0" for n in range(times))
    return b"\x80\x02)q\x000" + steps + b"}h" + bytes([times]) + b"K\x01s."


PICKLES = {
    "a place in a table of 64 GiB": (b"\x80\x02}r\xf0\xff\xff\xff.", "keeps something in place 4294967280"),
    "tuples of tuples": (_doubled(40), "takes tuples 17 times"),
    "an encoding that doubles": (
        pickle.dumps({b"data": 0}, 0)[:-1] + b"0c_codecs\nencode\nV00\nVhex\n\x86R.",
        "encodes as 'hex'",
    ),
    "a list of the same list": (
        pickle.dumps({b"data": [[1]] * 2, b"labels": [1, 2]}, 2),
        "a list of anything but numbers",
    ),
    "a list that stands for an array": (pickle.dumps({b"data": "x", b"labels": [1, 2]}, 2), "is no batch of cifar10"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_costs_what_its_size_says(case: str, tmp_path: Path) -> None:
    data, match = PICKLES[case]
    write(CIFAR10, tmp_path, binary=False)
    (tmp_path / "data_batch_1").write_bytes(data)
    with pytest.raises(DataError, match=match):
        read(CIFAR10, tmp_path)


def test_a_digest_of_an_offer_has_its_length() -> None:
    end = Endpoint("client", link=Link(), limit_bytes=0, limit_tensors=0, call="infer")
    with pytest.raises(WireError, match=r"offer\.lower_sha256 has 100000 bytes, must have 32 or none"):
        end.feed(pb.ServerFrame(seq=1, offer=pb.Offer(lower_sha256=bytes(100_000))).SerializeToString())


# --- what a parser of somebody else's takes long for


@pytest.mark.parametrize(
    "text",
    [
        "a." * 20_000 + "b = 1",
        "[" + "a." * 20_000 + "b]",
        '"x"' + '."y"' * 10_000 + " = 1",
        "a . 'b' .\t" * 5_000 + "c = 1",
        "x = { " + "a." * 20_000 + "b = 1 }",
    ],
)
def test_a_dotted_key_has_a_bounded_number_of_parts(text: str) -> None:
    """The standard library takes time with the square of their number: 0.1 s for 8,000."""
    with pytest.raises(ConfigError, match="not TOML: a key of more than 64 parts"):
        RunConfig.from_toml(text)
    with pytest.raises(ConfigError):
        RunConfig.from_toml("", [text])


@pytest.mark.parametrize(
    "text",
    ["a" * 60_000, '"' * 60_000, "a " * 30_000, "a\t" * 30_000, "'a'" * 20_000, "a.b.c " * 10_000, "a" + " " * 60_000],
)
def test_looking_for_such_a_key_takes_time_in_proportion_to_the_text(text: str) -> None:
    """A search that went back at each place would take seconds: it takes no longer than the budget of any input."""
    took = []
    for _ in range(3):
        began = time.process_time()
        assert not [m for m in _DOTTED.finditer(text) if len(m[0]) > 64]
        took.append(time.process_time() - began)
    assert min(took) < 0.05, took


def test_a_private_key_is_short(tmp_path: Path) -> None:
    """Those who read it take 0.3 s to refuse 256 KiB of nonsense."""
    key = tmp_path / "key.pem"
    key.write_bytes(b"-----BEGIN PRIVATE KEY-----\n" + b"A" * MAX_KEY_FILE)
    said = f"--key .*more than {MAX_KEY_FILE} bytes"
    with pytest.raises(ConfigError, match=said):
        CertificateFiles(cert=key, key=key).read()
    with pytest.raises(ConfigError, match=said):
        _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), key, key)


def test_a_picture_that_needs_more_memory_than_there_is_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "x.png"
    image.new("L", (8, 8)).save(path)

    def exhausted(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", exhausted)
    with pytest.raises(DataError, match="no picture that can be read: it needs more memory than there is"):
        read_samples(path, (1, 8, 8), of_bytes=True)
