"""Too few file descriptors (`ulimit -n`): raised and said at start, refused where that is impossible, and outlived in the middle of a run."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from live import ClientThread
from processes import BIN, PATIENCE_S, started
from world import make_config

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.host.descriptors import REPEAT_WARNING_S, Room, Shortage, limit, make_room
from sl_server.process import descriptors
from sl_server.security.watched_files import Watched, read_file
from sl_server.simulation.simulation import Simulation
from sl_server.storage.checkpoint import Checkpoints

LIMITED = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:3]))); os.execv(sys.argv[3], sys.argv[3:])"


def limited(soft: int, hard: int, command: str, *words: object, **options: object):
    """An installed command under these limits."""
    return started("python", "-c", LIMITED, soft, hard, BIN / command, *words, **options)


def hard() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextmanager
def spent() -> Iterator[None]:
    """No descriptor is free in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
    try:
        while True:
            try:
                held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:  # of which there is one kind here
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for one in held:
            os.close(one)


def serving(folder: Path, config: RunConfig, soft: int, most: int, *words: object):
    (folder / "run.json").write_text(config.to_json())
    run = "run", folder / "run.json", "--listen", "127.0.0.1:0", "--out", folder / "out", "--json"
    return limited(soft, most, "sl-server", *run, *words)


def simulated_sha(config: RunConfig) -> str:
    simulation = Simulation(config)
    simulation.run()
    return simulation.coordinator.weights_sha256()


def test_a_soft_limit_that_is_too_low_is_raised_and_said_and_all_clients_train(tmp_path: Path) -> None:
    config = make_config("parallel", run__clients=12, run__rounds=1)
    with serving(tmp_path, config, 24, hard()) as server:
        said = server.event("descriptors")
        room = descriptors.descriptors_for_run(config)
        assert (said["least"], said["wanted"], said["limit"]) == (room.least, room.wanted, room.wanted)
        assert f"12 client(s): {room.least} open files" in said["text"]
        assert f"from 24 to {room.wanted}" in said["text"]
        clients = [ClientThread(server.event("listening")["address"]) for _ in range(12)]
        for client in clients:
            client.join(PATIENCE_S)
        assert server.end() == 0, server.err
    assert [client.error for client in clients] == [None] * 12
    assert "File descriptor limit" not in server.err


def test_a_hard_limit_that_is_too_low_is_refused_by_name(tmp_path: Path) -> None:
    config = make_config("parallel", run__clients=12, run__rounds=1)
    with serving(tmp_path, config, 30, 30) as server:
        assert server.end() == 2
    for told in ("12 client(s): 44 open files", "(ulimit -Hn) is 30", "LimitNOFILE=", "--ulimit nofile="):
        assert told in server.err
    assert not (tmp_path / "out").exists(), "the place is free again"


def test_descriptors_that_run_out_are_said_once_and_cost_nothing(tmp_path: Path) -> None:
    """Strangers take all of them: a client that is there goes on, what cannot be written is written later, then others come in."""
    config = make_config("splitfed_v1", run__clients=2, run__rounds=3, server__limits__hello_s=3.0)
    room = descriptors.descriptors_for_run(config)
    with ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, config, room.least + 4, room.least + 4))
        assert f"this process may have {room.least + 4} (ulimit -Hn)" in server.event("descriptors")["text"]
        address = server.event("listening")["address"]
        host, _, port = address.rpartition(":")
        first = ClientThread(address)
        server.event("joined")
        strangers = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(room.least)]
        told = server.event("warning")
        assert f"this process may have {room.least + 4} (ulimit -n)" in told["text"]
        time.sleep(2.5)  # gRPC would have said it twice more
        second = ClientThread(address)
        for stranger in strangers:
            stranger.close()
        for client in (first, second):
            client.join(PATIENCE_S)
        assert server.end() == 0, server.err
    assert [first.error, second.error] == [None, None]
    said = [event for event in server.events if "ulimit -n)" in event.get("text", "")]
    assert said == [told]
    assert "File descriptor limit" not in server.err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["weights_sha256"] == simulated_sha(config)


def test_a_server_that_answers_says_it_too(tmp_path: Path) -> None:
    from asked import trained_in

    config = make_config("parallel", run__rounds=1)
    trained_in(tmp_path / "run", config)
    words = "serve", tmp_path / "run", "--listen", "127.0.0.1:0", "--json"
    with limited(60, 200, "sl-server", *words) as server:
        assert "this process may have 200 (ulimit -Hn)" in server.event("descriptors")["text"]
        server.event("listening")
    with limited(32, 32, "sl-server", *words) as server:
        assert server.end() == 2
    assert "(ulimit -Hn) is 32" in server.err


def test_a_client_with_a_low_limit_takes_part(tmp_path: Path) -> None:
    config = make_config("parallel", run__clients=1, run__rounds=1)
    with serving(tmp_path, config, 1024, hard()) as server:
        address = server.event("listening")["address"]
        with limited(16, 64, "sl-client", "run", "--server", address, "--state", tmp_path / "state") as client:
            assert client.end() == 0, client.err
        assert server.end() == 0
    with limited(16, 16, "sl-client", "run", "--server", address) as client:
        assert client.end() == 2
    assert "this client: 24 open files" in client.err


def test_a_file_that_could_not_be_opened_is_read_as_soon_as_it_can(tmp_path: Path) -> None:
    """A renewed certificate, a revoked client: neither is passed over since nothing was free when it changed."""
    path, told = tmp_path / "file", list[str]()
    path.write_text("old")
    watched = Watched([path], lambda: read_file("--tokens", path))
    watched.attach(told.append)
    path.write_text("newer")
    with spent():
        assert (watched.renew(), watched.current) == (False, b"old")
    assert (watched.renew(), watched.current, told) == (True, b"newer", [])


def test_a_checkpoint_that_cannot_be_opened_leaves_those_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": 1})
    with spent(), pytest.raises(OSError, match="Too many open files"):
        checkpoints.save(2, {"a": 2})
    assert checkpoints.newest(pytest.fail) == {"a": 1}


def test_shortage_is_told_once_and_again_after_long() -> None:
    told, now = list[str](), 0.0
    clock: Callable[[], float] = lambda: now  # noqa: E731
    shortage = Shortage(told.append, clock)
    assert (shortage.look(), told) == (True, [])
    with spent():
        assert not shortage.look()
        shortage.met()
        text = f"this process may have {limit()} (ulimit -n)"
    assert (len(told), text in told[0]) == (1, True)
    now = REPEAT_WARNING_S
    shortage.met()
    assert len(told) == 2


def test_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for, and never less than before."""
    now = [(100, 1000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: now.__setitem__(0, limits))
    assert make_room(Room(least=10, wanted=100, what="two")) is None
    assert "from 100 to 200" in str(make_room(Room(least=10, wanted=200, what="two")))
    assert "two: 300 open files" in str(make_room(Room(least=300, wanted=2000, what="two")))
    assert now == [(1000, 1000)]
    with pytest.raises(ConfigError, match=r"hard limit .* is 1000"):
        make_room(Room(least=1001, wanted=2000, what="two"))
    assert descriptors.descriptors_for_run(RunConfig.from_toml("run.clients = 1000")).least == 1032
