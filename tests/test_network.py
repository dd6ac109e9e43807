"""The network adds nothing: real processes and streams, cut or not, end with the simulator's bits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from live import ClientThread, FlakyCarrier, OfBefore, serving
from world import make_config

from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.errors import CutlayerError, Refused
from sl_common.messages.facts import ClientLeft, RoundEnded, Trained
from sl_common.messages.training import Smashed
from sl_common.wire import WIRE_VERSION, Hello, read_answer
from sl_server.simulation.replay import replay_log
from sl_server.simulation.simulation import Simulation

BIN = Path(sys.executable).parent


def simulated(config: RunConfig) -> Simulation:
    simulation = Simulation(config)
    simulation.run()
    return simulation


def federation(config: RunConfig, out: Path, *flags: str) -> dict:
    """`sl-server run` and its clients as processes: the run's summary."""
    path = out.parent / f"{out.name}.json"
    path.write_text(config.to_json())
    command = [BIN / "sl-server", "run", path, "--listen", "127.0.0.1:0", "--json", "--out", out, *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes = [server]
    try:
        address = next(json.loads(line) for line in server.stdout)["address"]
        client = [BIN / "sl-client", "run", "--server", address]
        processes += [subprocess.Popen(client, stdout=subprocess.DEVNULL) for _ in range(config.run.clients)]
        server.stdout.read()
        assert [process.wait(60) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        server.stdout.close()
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("preset", PRESETS)
def test_processes_end_with_the_simulators_bits(preset: str, tmp_path: Path) -> None:
    config = make_config(
        preset, model__name='"cnn"', model__args="{ channels = [4, 8], hidden = 16, batch_norm = true, dropout = 0.2 }"
    )
    summary = federation(config, tmp_path / "run")
    simulation = simulated(config)
    assert summary["finished"]
    assert summary["weights_sha256"] == simulation.coordinator.weights_sha256()


def test_a_recorded_run_of_processes_replays_to_the_same_bits(tmp_path: Path) -> None:
    """On a shared head under `each` nobody can say what the order of arrival will be; the log can say what it was."""
    config = make_config("parallel", protocol__barrier='{ kind = "each" }', run__rounds=3)
    summary = federation(config, tmp_path / "run", "--record")
    coordinator = replay_log(tmp_path / "run" / "events.log").coordinator
    assert coordinator.weights_sha256() == summary["weights_sha256"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("every", [4, 9])
def test_real_streams_cut_at_every_kth_frame(preset: str, every: int) -> None:
    """Activations of several frames: the cuts fall between messages and within them."""
    config = make_config(preset, run__clients=2, model__args="{ hidden = [9000] }", client__wave="{ steps = 2 }")
    with serving(config) as live:
        clients = [ClientThread(live.address, lambda server: FlakyCarrier(server, every)) for _ in range(2)]
        for client in clients:
            client.join(40)
    assert [client.error for client in clients] == [None, None]
    assert all(client.bye.finished for client in clients)
    assert live.sample("sl_reconnects_total") >= 3
    assert live.coordinator.weights_sha256() == simulated(config).coordinator.weights_sha256()
    trained = [(f.client, f.round, f.wave, f.step) for f in live.facts if isinstance(f, Trained)]
    assert len(trained) == len(set(trained))


class Vanished(CutlayerError):
    """The device is off."""


def test_a_client_that_vanishes_is_left_out_after_the_grace_period() -> None:
    config = make_config("parallel", run__grace_s=0.5, run__rounds=3, client__wave="{ steps = 20 }")

    class Vanishing(FlakyCarrier):
        """After its stream broke there is no way back."""

        alive = True

        def __init__(self, server: str) -> None:
            if not Vanishing.alive:
                raise Vanished
            super().__init__(server, 12)

        def close(self) -> None:
            Vanishing.alive = False
            super().close()

    with serving(config) as live:
        clients = [ClientThread(live.address), ClientThread(live.address), ClientThread(live.address, Vanishing)]
        for client in clients:
            client.join(60)
    assert [client.bye.finished for client in clients[:2]] == [True, True]
    assert isinstance(clients[2].error, Vanished)
    left = [f for f in live.facts if isinstance(f, ClientLeft)]
    assert len(left) == 1
    assert "grace_s" in left[0].reason
    assert [f.clients for f in live.facts if isinstance(f, RoundEnded)] == [2, 2, 2]


class Rogue(FlakyCarrier):
    """A client whose stream says something else instead of one of its frames."""

    at = 4
    instead = b""

    def __init__(self, server: str) -> None:
        super().__init__(server, 10**9)
        self._sent = 0

    def send(self, frame: bytes) -> None:
        self._sent += 1
        super().send(self.instead if self._sent == self.at else frame)


GARBAGE = {
    "random bytes": bytes(range(256)) * 4,
    "future frame": b"\x08\xe7\x07\x22\x04\x08\x05\x10\x01",  # seq 999, ready
    "hello again": b"\x1a\x02\x08\x01",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_from_one_client_is_refused_and_the_others_go_on(what: str) -> None:
    config = make_config("parallel", run__rounds=2, client__wave="{ steps = 5 }")
    rogue = type("Instead", (Rogue,), {"instead": GARBAGE[what]})
    with serving(config) as live:
        clients = [ClientThread(live.address), ClientThread(live.address), ClientThread(live.address, rogue)]
        for client in clients:
            client.join(60)
    assert [client.bye.finished for client in clients[:2]] == [True, True]
    assert isinstance(clients[2].error, Refused)
    assert clients[2].error.code == "protocol"
    assert live.sample("sl_rejected_total", reason="protocol") == 1
    assert live.coordinator.ended.finished


def poison(change) -> type:
    """A client that changes its second training batch before it is packed."""

    class Changing(ClientThread):
        def __init__(self, address: str) -> None:
            super().__init__(address)

        def run(self) -> None:
            endpoint = self.runner.connection.session.endpoint
            pack = endpoint.pack

            def changed(message, **options):
                if isinstance(message, Smashed) and message.step == 1 and message.train:
                    message = change(message)
                return pack(message, **options)

            endpoint.pack = changed
            super().run()

    return Changing


BAD_BATCHES = {
    "nan": (lambda m: replace(m, z=m.z * float("nan")), "NaN or Inf"),
    "inf": (lambda m: replace(m, z=m.z + float("inf")), "NaN or Inf"),
    "shape": (lambda m: replace(m, z=m.z[:, :-1]), "this run's cut has"),
    "dtype": (lambda m: replace(m, z=m.z.double()), "this run's cut has"),
    "too many": (lambda m: replace(m, z=m.z.repeat(3, 1), y=m.y.repeat(3)), "labels are"),
    "labels": (lambda m: replace(m, y=m.y + 10), "classes 0 to 9"),
    "no samples": (lambda m: replace(m, z=m.z[:0], y=m.y[:0]), "labels are"),
    "step": (lambda m: replace(m, step=7), "out of order"),
    "round": (lambda m: replace(m, round=5), "round 6"),
    "flags": (lambda m: replace(m, train=False, needs_grad=False), "in a wave that trains"),
}


@pytest.mark.parametrize("what", BAD_BATCHES)
def test_a_bad_batch_is_refused_with_both_values_and_the_others_go_on(what: str) -> None:
    change, text = BAD_BATCHES[what]
    config = make_config("parallel", run__rounds=2, client__wave="{ steps = 4 }")
    with serving(config) as live:
        clients = [ClientThread(live.address), ClientThread(live.address), poison(change)(live.address)]
        for client in clients:
            client.join(60)
    assert [client.bye.finished for client in clients[:2]] == [True, True]
    error = clients[2].error
    assert isinstance(error, Refused)
    assert text in error.reason
    assert live.coordinator.ended.finished


def test_another_wire_version_is_refused_with_both_versions() -> None:
    with serving(make_config("parallel", run__clients=1)) as live:
        carrier = FlakyCarrier(live.address, 10**9)
        carrier.send(Hello(life=bytes(16), version=99, software="9.9").to_frame())
        answer = read_answer(carrier.receive())
        carrier.close()
    assert answer.code == "version"
    assert "99" in answer.reason
    assert str(WIRE_VERSION) in answer.reason


def test_a_server_of_another_wire_version_is_left_with_both_versions() -> None:
    """One that greets whoever comes: its client is the one to find out, and to go for good."""
    with serving(make_config("parallel", run__clients=1)) as live:
        client = ClientThread(live.address, OfBefore, retry_s=5.0)
        client.join(30)
    assert isinstance(client.error, Refused)
    assert client.error.code == "version"
    said = f"the server speaks wire version 1 (cutlayer '0.0.9\\x1b'), this client {WIRE_VERSION} (cutlayer "
    assert client.error.reason.startswith(said)
    assert client.runner.seat is None


def test_a_server_that_forgot_the_session_is_joined_anew() -> None:
    """The grace period is over before the client is back: it takes part again from the next round."""
    config = make_config("splitfed_v1", run__grace_s=0.3, run__rounds=12, client__wave="{ epochs = 2 }")

    class Sleepy(FlakyCarrier):
        """Its first stream breaks early, and the next one opens too late."""

        lives = 0

        def __init__(self, server: str) -> None:
            Sleepy.lives += 1
            if Sleepy.lives == 2:
                time.sleep(1.2)
            super().__init__(server, 9 if Sleepy.lives == 1 else 10**9)

    with serving(config) as live:
        clients = [ClientThread(live.address), ClientThread(live.address), ClientThread(live.address, Sleepy)]
        for client in clients:
            client.join(90)
    assert [client.error for client in clients] == [None] * 3
    assert "forgotten" in clients[2].show.events
    assert len([f for f in live.facts if isinstance(f, ClientLeft)]) == 1
    assert [f.clients for f in live.facts if isinstance(f, RoundEnded)][-1] == 3


@pytest.mark.slow
def test_a_client_that_waits_for_long_is_not_sent_away_for_its_keepalive_pings() -> None:
    """gRPC's servers answer frequent pings without data with GOAWAY too_many_pings, unless they are told not to."""
    with serving(make_config("parallel", run__clients=2)) as live:
        first = ClientThread(live.address)
        time.sleep(60)
        second = ClientThread(live.address)
        for client in (first, second):
            client.join(60)
    assert first.bye.finished
    assert "lost" not in first.show.events
    assert live.sample("sl_reconnects_total") == 0
