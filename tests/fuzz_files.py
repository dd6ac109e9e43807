"""Files that somebody wrote, or damaged: configurations, checkpoints, snapshots, tokens, certificates, lists of revoked ones."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from fuzz_wire import Target
from mutations import mutated, rewritten
from test_config import EVERYTHING, OTHERS
from world import make_config

from sl_client.training.snapshots_on_disk import find_snapshots
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError
from sl_common.tree import MAGIC, dumps, loads
from sl_server.security.certificates import CertificateFolder
from sl_server.security.handshakes import read_line
from sl_server.security.revocation import RevocationList
from sl_server.security.tls import CertificateFiles
from sl_server.security.tokens import Tokens
from sl_server.simulation.simulation import Simulation
from sl_server.storage.checkpoint import Checkpoints
from sl_server.storage.inputs import read_inputs

EXAMPLES = [path.read_text() for path in sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))]
TEXTS = [EVERYTHING, *OTHERS, *EXAMPLES]
START = len(MAGIC) + 32


@lru_cache
def folder() -> Path:
    """Gone with the process."""
    kept = tempfile.TemporaryDirectory(prefix="sl-fuzz-")
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


@lru_cache
def tree() -> bytes:
    """A whole run's state, as in a checkpoint."""
    simulation = Simulation(make_config("splitfed_v1", run__clients=2))
    simulation.run()
    return dumps(simulation.sessions.snapshot())


@lru_cache
def papers() -> dict[str, bytes]:
    """What `sl-server certs` writes, and a list with somebody on it."""
    where = CertificateFolder(folder() / "certs")
    list(where.fill(["c0", "c1"], [], 10, add=False))
    where.revoke(["c1"])
    return {path.name: path.read_bytes() for path in (folder() / "certs").iterdir()}


def _text(rng: random.Random) -> tuple[bytes, list[str]]:
    """A file, and what is said on the command line."""
    overrides = [
        f"{rng.choice(('run', 'server.limits', 'x', ''))}.{rng.choice(('seed', 'name', ''))}={rng.choice(('1', 'x', ''))}"
    ]
    return rewritten(rng.choice(TEXTS), rng).encode(errors="replace"), overrides if rng.random() < 0.2 else []


def _config_file(data: bytes, overrides: list[str]) -> str:
    """What is taken is a value that survives being written down."""
    try:
        config = RunConfig.from_toml(data.decode(), overrides)
    except ConfigError:
        return "config error"
    assert RunConfig.from_json(config.to_json()) == config
    return "taken"


def _resealed(data: bytes, rng: random.Random) -> bytes:
    """With one in two, by somebody who knows how its checksum is made."""
    if rng.random() < 0.5 or len(data) < START:
        return data
    return MAGIC + hashlib.sha256(data[START:]).digest() + data[START:]


def _damaged_tree(rng: random.Random) -> bytes:
    data = tree()
    if rng.random() < 0.3:
        return _resealed(mutated(data, rng), rng)
    length = int.from_bytes(data[START : START + 8], "little")  # the header, where the structure is
    head = mutated(data[START + 8 : START + 8 + length], rng)
    return _resealed(data[:START] + len(head).to_bytes(8, "little") + head + data[START + 8 + length :], rng)


def _checkpoint(data: bytes, _: None) -> str:
    """As bytes."""
    try:
        loads(data)
    except DataError:
        return "data error"
    return "read"


def _run_directory(rng: random.Random) -> tuple[bytes, Path]:
    """Files, of which the older one may be whole."""
    where = folder() / "resumed"
    where.mkdir(exist_ok=True)
    (where / "checkpoint-00000001.tree").write_bytes(tree() if rng.random() < 0.5 else _damaged_tree(rng))
    newest = _damaged_tree(rng)
    (where / "checkpoint-00000002.tree").write_bytes(newest)
    return newest, where


def _resumed(_: bytes, where: Path) -> str:
    try:
        Checkpoints(where).newest(lambda _text: None)
    except ConfigError:
        return "config error"
    return "read"


def _kept(rng: random.Random) -> tuple[bytes, None]:
    """A client's snapshots, for --state."""
    if not (folder() / "state").exists():
        find_snapshots(folder() / "state", "run", "c0", lambda _text: None)
    (where,) = (folder() / "state").iterdir()
    data = _damaged_tree(rng)
    for path in where.iterdir():
        path.unlink()
    (where / f"snapshot-{rng.choice(('00000003', '00000000', 'x', ''))}.tree").write_bytes(data)
    return data, None


def _snapshot(_data: bytes, _: None) -> str:
    told: list[str] = []
    find_snapshots(folder() / "state", "run", "c0", told.append)
    return "left out" if told else "read"


def _file(name: str, good: Callable[[], bytes], load: Callable[[Path], object]) -> Target:
    """A file of its own for each input, since what was read is watched."""

    def make(rng: random.Random) -> tuple[bytes, Path]:
        path = folder() / name
        data = mutated(good(), rng)
        path.write_bytes(data)
        return data, path

    def read(_data: bytes, path: Path) -> str:
        try:
            load(path)
        except ConfigError:
            return "config error"
        return "taken"

    return Target(make, read)


def _tokens() -> bytes:
    return "".join(f'"c{n}" = "{"0123456789abcdef" * 2}{n}"\n' for n in range(3)).encode()


def _shown(rng: random.Random) -> tuple[bytes, bytes]:
    """What a client shows as its token, and what gRPC logs of a handshake."""
    line = b"I1 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: error:1:SSL routines:OPENSSL_internal:X"
    again = rng.choice((b"] Handshake failed with error ", b":", b"OPENSSL_internal:", b"OPENSSL_internal:X: "))
    if rng.random() < 0.02:
        line += again * rng.choice((10, 1000, 5000))
    return mutated(b"Bearer " + b"0123456789abcdef" * 2 + b"1", rng), mutated(line, rng)


def _authorization(text: bytes, line: bytes) -> str:
    path = folder() / "good-tokens"
    if not path.exists():
        path.write_bytes(_tokens())
        _TOKENS.append(Tokens(path))
    read_line(line)
    return "owned" if _TOKENS[0].owner(text.decode("utf-8", "surrogateescape")) else "nobody's"


_TOKENS: list[Tokens] = []


def _inputs() -> bytes:
    return b'{"dtype": "float32", "low": -0.5, "high": 2.5, "mean": [0.25, 0.5], "std": [1.0, 2.0]}'


def _paper(name: str) -> Callable[[], bytes]:
    return lambda: papers()[name]


def _certificate(path: Path) -> object:
    return CertificateFiles(cert=path, key=folder() / "certs" / "server.key", client_ca=path).read()


TARGETS: dict[str, Target] = {
    "config file": Target(_text, _config_file),
    "checkpoint": Target(lambda rng: (_damaged_tree(rng), None), _checkpoint),
    "run directory": Target(_run_directory, _resumed),
    "client's snapshot": Target(_kept, _snapshot),
    "tokens": _file("tokens", _tokens, Tokens),
    "token shown": Target(_shown, _authorization),
    "certificate": _file("cert.pem", _paper("server.pem"), _certificate),
    "private key": _file(
        "key.pem",
        _paper("server.key"),
        lambda path: CertificateFiles(cert=folder() / "certs" / "server.pem", key=path).read(),
    ),
    "inputs": _file("inputs.json", _inputs, lambda path: read_inputs(path.parent)),
    "revoked list": _file(
        "revoked.pem", _paper("revoked.pem"), lambda path: RevocationList(path, folder() / "certs" / "ca.pem")
    ),
}
