"""Links on which one ordinary frame takes longer than a probe is waited for: the run goes on, with the same bits."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from asked import answering, trained_in
from federation import sha_of
from live import ClientThread, serving
from processes import Process, started
from test_faults import simulated_sha
from thin import Thin, thin
from world import make_config

from sl_client.inference.predictor import Predictor
from sl_client.transport.access import PLAINTEXT
from sl_client.transport.doctor import examine
from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import ClientBack, ClientLeft

FAST = 10e6  # bytes a second
WIDE = {
    "model__args": "{ hidden = [1024] }",
    "run__clients": 1,
    "run__rounds": 1,
    "eval__every": 0,
}  # weights of 266 kB


def test_weights_come_down_a_link_on_which_they_take_longer_than_a_probe_is_waited_for() -> None:
    """The server waits for 6 s, where 13 would be needed; the client hears of the break behind what lay in buffers on the way."""
    config = make_config(
        "splitfed_v1",
        **WIDE,
        client__wave="{ steps = 1 }",
        server__limits__dead_s=6,
        run__grace_s=1,
        data__batch_size=2,
    )
    with serving(config) as live, thin(live.address, FAST, 20_000) as link:
        client = ClientThread(link.address, name="c0")
        client.join(90)
        assert client.error is None
        assert client.bye is not None
        assert client.bye.finished
        assert live.coordinator.weights_sha256() == simulated_sha(config)
    assert client.show.events.count("lost") == 1, "and once only: the frames have shrunk"
    assert ClientBack(client="c0") in live.facts
    assert not any(isinstance(fact, ClientLeft) for fact in live.facts)


def test_a_lower_segment_comes_down_such_a_link_too(tmp_path: Path) -> None:
    """The time of --retry begins anew, once, when the link was seen to be slow."""
    config = make_config("splitfed_v1", **WIDE, server__limits__dead_s=6)
    trained_in(tmp_path / "run", config)
    warnings: list[str] = []
    with answering(tmp_path / "run") as live, thin(live.address, FAST, 20_000) as link:
        with Predictor(link.address, retry_s=3, warn=warnings.append, allowed=None) as predictor:
            predictor.open()
            (answer,) = predictor.ask([torch.zeros(2, 1, 8, 8)])
        assert answer.scores.shape == (2, 10)
        assert link.connections == 2


def test_a_frame_that_takes_longer_than_a_message_may_stand_still_costs_a_stream_and_not_the_client() -> None:
    """The message's first frame takes 4 s, and its second would take as long: server.limits.stall_s is 2 s here."""
    config = make_config(
        "splitfed_v1",
        **WIDE | {"model__args": "{ hidden = [2048] }"},
        client__wave="{ steps = 1 }",
        server__limits__stall_s=2,
        data__batch_size=280,
    )
    with serving(config) as live, thin(live.address, 260_000, FAST) as link:
        client = ClientThread(link.address, name="c0")
        client.join(90)
        assert client.error is None
        assert live.coordinator.weights_sha256() == simulated_sha(config)
    assert client.show.events.count("lost") == 1
    assert not any(isinstance(fact, ClientLeft) for fact in live.facts)


def test_the_doctor_measures_a_link_that_is_slow(capsys: pytest.CaptureFixture[str]) -> None:
    """16 pings of 1 MiB would take 90 minutes there."""
    with serving(make_config("splitfed_v1")) as live, thin(live.address, 3000, 6000) as link:
        examine(link.address, PLAINTEXT, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert 0.01 < found["up_mbit_per_s"] < 0.035
    assert 0.02 < found["down_mbit_per_s"] < 0.07


SLOWEST = {16: "{ hidden = [80] }", 32: "{ hidden = [176] }"}  # batches of 82 and 180 kB, weights of 21 and 46


class Run:
    """One server, one client, and a thin link between them."""

    def __init__(self, stack: ExitStack, kbit: int, folder: Path) -> None:
        settings = {"data__batch_size": 256, "client__wave": "{ steps = 1 }", "model__args": SLOWEST[kbit]}
        self.config: RunConfig = make_config("splitfed_v1", **(WIDE | settings))
        folder.mkdir()
        path, self.out = folder / "config.json", folder / "run"
        path.write_text(self.config.to_json())
        to = "--listen", "127.0.0.1:0", "--out", self.out, "--json"
        self.server: Process = stack.enter_context(started("sl-server", "run", path, *to))
        address = self.server.event("listening")["address"]
        self.link: Thin = stack.enter_context(thin(address, kbit * 125, kbit * 125))
        at = "--server", self.link.address, "--id", "c0", "--json"
        self.client: Process = stack.enter_context(started("sl-client", "run", *at))

    def is_over(self) -> bool:
        return not any(process.is_alive() for process in (self.server, self.client))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_over_16_and_one_over_32_kbit_a_second(tmp_path: Path) -> None:
    """At once, to save time; each has a link of its own. A batch takes 41 and 45 s each way."""
    with ExitStack() as stack:
        runs = [Run(stack, kbit, tmp_path / str(kbit)) for kbit in SLOWEST]
        began = time.monotonic()
        while not all(run.is_over() for run in runs) and time.monotonic() < began + 500:
            time.sleep(0.5)
        for run in runs:
            assert (run.client.end(), run.server.end()) == (0, 0), run.client.out + run.server.out
            summary = json.loads((run.out / "summary.json").read_text())
            assert summary["finished"]
            assert summary["weights_sha256"] == sha_of(run.config)
            assert run.link.connections <= 3, "each way lost a stream at most before its frames were small"
            assert not [event for event in run.server.events if event["event"] == "client_left"]
        for kbit, run in zip(SLOWEST, runs, strict=True):
            up, down = run.link.passed
            print(f"{kbit} kbit/s: {run.link.connections - 1} streams lost, {up:,} bytes up, {down:,} down")
        print(f"{time.monotonic() - began:.0f} s")
