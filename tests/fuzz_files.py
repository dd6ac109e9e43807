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

from sl_client.past import find_past
from sl_common.config import RunConfig
from sl_common.errors import ConfigError, DataError
from sl_common.tree import MAGIC, dumps, loads
from sl_server.certs import Folder
from sl_server.checkpoint import Checkpoints
from sl_server.eventlog import replay
from sl_server.handshakes import read_line
from sl_server.revoked import Revoked
from sl_server.simulate import Simulation
from sl_server.tls import CertificateFiles
from sl_server.tokens import Tokens

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
    where = Folder(folder() / "certs")
    list(where.fill(["c0", "c1"], [], 10, add=False))
    where.revoke(["c1"])
    return {path.name: path.read_bytes() for path in (folder() / "certs").iterdir()}


def config_file(rng: random.Random) -> str:
    """What is taken is a value that survives being written down."""
    overrides = [
        f"{rng.choice(('run', 'server.limits', 'x', ''))}.{rng.choice(('seed', 'name', ''))}={rng.choice(('1', 'x', ''))}"
    ]
    try:
        config = RunConfig.from_toml(rewritten(rng.choice(TEXTS), rng), overrides if rng.random() < 0.2 else ())
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


def checkpoint(rng: random.Random) -> str:
    """As bytes."""
    try:
        loads(_damaged_tree(rng))
    except DataError:
        return "data error"
    return "read"


def resumed(rng: random.Random) -> str:
    """As files of a run directory, of which the older one may be whole."""
    where = folder() / "resumed"
    where.mkdir(exist_ok=True)
    (where / "checkpoint-00000001.tree").write_bytes(tree() if rng.random() < 0.5 else _damaged_tree(rng))
    (where / "checkpoint-00000002.tree").write_bytes(_damaged_tree(rng))
    try:
        Checkpoints(where).newest(lambda _text: None)
    except ConfigError:
        return "config error"
    return "read"


def snapshot(rng: random.Random) -> str:
    """A client's, from --state."""
    told: list[str] = []
    if not (folder() / "state").exists():
        find_past(folder() / "state", "run", "c0", told.append)
    (where,) = (folder() / "state").iterdir()
    (where / f"snapshot-{rng.choice(('00000003', '00000000', 'x', ''))}.tree").write_bytes(_damaged_tree(rng))
    find_past(folder() / "state", "run", "c0", told.append)
    return "left out" if told else "read"


def _file(name: str, good: Callable[[], bytes], load: Callable[[Path], object]) -> Target:
    """A file of its own for each input, since what was read is watched."""

    def once(rng: random.Random) -> str:
        path = folder() / name
        path.write_bytes(mutated(good(), rng))
        try:
            load(path)
        except ConfigError:
            return "config error"
        return "taken"

    return once


def _tokens() -> bytes:
    return "".join(f'"c{n}" = "{"0123456789abcdef" * 2}{n}"\n' for n in range(3)).encode()


def authorization(rng: random.Random) -> str:
    """What a client shows as its token, and what gRPC logs of a handshake."""
    path = folder() / "good-tokens"
    if not path.exists():
        path.write_bytes(_tokens())
        _TOKENS.append(Tokens(path))
    text = mutated(b"Bearer " + b"0123456789abcdef" * 2 + b"1", rng)
    line = b"I1 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: error:1:SSL routines:OPENSSL_internal:X"
    read_line(mutated(line, rng))
    return "owned" if _TOKENS[0].owner(text.decode("utf-8", "surrogateescape")) else "nobody's"


_TOKENS: list[Tokens] = []


def _paper(name: str) -> Callable[[], bytes]:
    return lambda: papers()[name]


def _certificate(path: Path) -> object:
    return CertificateFiles(cert=path, key=folder() / "certs" / "server.key", client_ca=path).read()


def event_file(rng: random.Random) -> str:
    """A recorded run's file from its beginning on; what follows the configuration is the event log's target."""
    path = folder() / "events.log"
    text = make_config("splitfed_v1").to_json().encode()
    path.write_bytes(mutated(len(text).to_bytes(4, "little") + text, rng))
    try:
        replay(path)
    except ConfigError:
        return "config error"
    return "read"


TARGETS: dict[str, Target] = {
    "config file": config_file,
    "checkpoint": checkpoint,
    "run directory": resumed,
    "client's snapshot": snapshot,
    "tokens": _file("tokens", _tokens, Tokens),
    "token shown": authorization,
    "certificate": _file("cert.pem", _paper("server.pem"), _certificate),
    "private key": _file(
        "key.pem",
        _paper("server.key"),
        lambda path: CertificateFiles(cert=folder() / "certs" / "server.pem", key=path).read(),
    ),
    "revoked list": _file(
        "revoked.pem", _paper("revoked.pem"), lambda path: Revoked(path, folder() / "certs" / "ca.pem")
    ),
}
