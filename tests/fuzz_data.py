"""Files of a person's on the client, and run directories that are read back: data sets, samples, weights, metrics of a run that is over."""

from __future__ import annotations

import gzip
import io
import json
import math
import pickle
import random
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from fuzz_files import folder
from fuzz_wire import Target
from mutations import mutated, swollen_text
from PIL import Image
from safetensors.torch import save
from world import make_config

from sl_client.data.cifar import CIFAR10, read
from sl_client.data.idx import read_idx, read_rows
from sl_client.inference.files import read_samples
from sl_common.errors import ConfigError, DataError
from sl_server.report.past import read_past_run
from sl_server.storage.trained import read_weights

INPUT = (1, 4, 4)


@lru_cache
def _images() -> bytes:
    return struct.pack(">IIII", 0x0803, 5, 4, 4) + bytes(range(80))


@lru_cache
def _batch() -> bytes:
    """Of CIFAR in its Python version."""
    images = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072)
    return pickle.dumps({b"data": images, b"labels": [1, 2], b"filenames": [b"x.png", b"y.png"]}, protocol=2)


def _saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _picture(form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "L").save(out, form)
    return out.getvalue()


def _zipped(data: bytes, rng: random.Random) -> bytes:
    """Right and wrong within, or wrong without; now and then with far more in it than it says, which must not be read. As much as it says
    is read, however small the file."""
    inside = mutated(data, rng) if rng.random() < 0.7 else data
    says = math.prod(struct.unpack(">III", inside[4:16])) if len(inside) >= 16 else 0
    more = bytes(rng.choice((1 << 20, 30 << 20) if says < 1 << 20 else (1 << 20,))) if rng.random() < 0.01 else b""
    inside = gzip.compress(inside + more, 1)
    return inside if rng.random() < 0.7 else mutated(inside, rng)


def _idx(rng: random.Random) -> bytes:
    data = _images()
    if rng.random() < 0.3:  # promises
        sides = (rng.choice((0, 1, 5, 2**20, 2**32 - 1)) for _ in range(3))
        data = struct.pack(">IIII", 0x0803, *sides) + data[16:]
    return _zipped(data, rng) if rng.random() < 0.5 else mutated(data, rng)


def _data(rng: random.Random) -> tuple[bytes, tuple[str, bool]]:
    """A data set's file: IDX, or CIFAR in either version."""
    kind = rng.choice(("idx", "binary", "python", "python"))
    where = folder() / "cifar"
    for name in (*CIFAR10.binary[0], *CIFAR10.python[0]):
        (where / name).unlink(missing_ok=True)
    where.mkdir(exist_ok=True)
    match kind:
        case "idx":
            data = _idx(rng)
            (folder() / ("x.gz" if data[:2] == b"\x1f\x8b" else "x.idx")).write_bytes(data)
            return data, ("x.gz" if data[:2] == b"\x1f\x8b" else "x.idx", rng.random() < 0.5)
        case "binary":
            data = bytes(3073 * 2) if rng.random() < 0.3 else mutated(bytes(3073 * 2), rng)
            names = CIFAR10.binary[0]
        case _:
            data = mutated(_batch(), rng)
            names = CIFAR10.python[0]
    for name in names:
        (where / name).write_bytes(data)
    return data, ("", False)


def _read_data(_: bytes, rest: tuple[str, bool]) -> str:
    name, some = rest
    try:
        if name:
            _ = read_rows(folder() / name, 3, np.arange(3)) if some else read_idx(folder() / name, 3)
        else:
            read(CIFAR10, folder() / "cifar")
    except DataError:
        return "data error"
    return "read"


def _sample(rng: random.Random) -> tuple[bytes, Path]:
    """A file for `sl-client predict`."""
    match rng.randrange(4):
        case 0:
            data = _saved(np.zeros((3, 4, 4), rng.choice((np.uint8, np.float32, np.float64))))
            if rng.random() < 0.2:
                data = data.replace(b"(3, 4, 4)", rng.choice((b"(0, 4, 4)", b"(9999999999999, 4, 4)", b"(-3, 4, 4)")))
            data = data if rng.random() < 0.3 else mutated(data, rng)
        case 1:
            data = _idx(rng)
        case form:  # shorter: Pillow looks for up to 0.4 µs at each byte of junk
            data = mutated(_picture("PNG" if form == 2 else "JPEG"), rng)[: 1 << 16]
    path = folder() / "sample"
    path.write_bytes(data)
    return data, path


def _read_sample(_: bytes, path: Path) -> str:
    try:
        read_samples(path, INPUT, of_bytes=True)
    except DataError:
        return "data error"
    return "read"


def _weights(rng: random.Random) -> tuple[bytes, Path]:
    """What `serve`, `export` and `--lower` read."""
    data = save({"0.weight": torch.zeros(4, 4), "0.bias": torch.zeros(4)})
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.6:
        head = mutated(data[8 : 8 + length], rng)
        data = len(head).to_bytes(8, "little") + head + data[8 + length :]
    else:
        data = mutated(data, rng)
    path = folder() / "lower.safetensors"
    path.write_bytes(data)
    return data, path


def _read_weights(_: bytes, path: Path) -> str:
    try:
        read_weights(path)
    except ConfigError:
        return "config error"
    return "read"


_LINES = (
    {"event": "wave_begun", "seconds": 0.1, "clients": ["c0"], "evaluate": False},
    {
        "event": "round",
        "seconds": 1.0,
        "round": 0,
        "loss": 2.3,
        "samples": 9,
        "clients": 1,
        "bytes": {"up": {"smashed": 9}, "down": {}},
    },
    {
        "event": "evaluation",
        "seconds": 1.5,
        "round": 0,
        "shared": True,
        "accuracy": 0.5,
        "min": 0.5,
        "max": 0.5,
        "loss": 1.0,
        "samples": 3,
    },
    {"event": "run_ended", "seconds": 2.0, "reason": "all rounds are over"},
)
_SUMMARY = {"seconds": 2.0, "bytes": {}, "payload_bytes": {}, "weights_sha256": "", "reason": "", "finished": True}


def _past(rng: random.Random) -> tuple[bytes, Path]:
    """A run directory, as `sl-server report` reads it."""
    where = folder() / "past"
    where.mkdir(exist_ok=True)
    if not (where / "config.json").exists():
        (where / "config.json").write_text(make_config("splitfed_v1").to_json())
    lines = "".join(json.dumps(line) + "\n" for line in _LINES).encode()
    summary = json.dumps(_SUMMARY).encode()
    if rng.random() < 0.1:
        at = rng.randrange(len(lines))
        lines = lines[:at] + swollen_text(rng).encode(errors="replace") + lines[at:]
    elif rng.random() < 0.7:
        lines = mutated(lines, rng)
    else:
        summary = mutated(summary, rng)
    (where / "metrics.jsonl").write_bytes(lines)
    (where / "summary.json").write_bytes(summary)
    return lines, where


def _read_past(_: bytes, where: Path) -> str:
    try:
        read_past_run(where)
    except ConfigError:
        return "config error"
    return "read"


TARGETS: dict[str, Target] = {
    "past run": Target(_past, _read_past),
    "weights": Target(_weights, _read_weights),
    "data files": Target(_data, _read_data),
    "samples": Target(_sample, _read_sample),
}
