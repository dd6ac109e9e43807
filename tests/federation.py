"""A whole run of the installed commands, whose processes can be killed at any moment and started again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from processes import Process, started
from relay import Relay, relaying
from tally import Faults
from world import make_config

from sl_common.config.run_config import RunConfig
from sl_server.simulation.simulation import Simulation


def slow_config(preset: str, **more: object) -> RunConfig:
    """Rounds of some tenths of a second, so that there is something to interrupt."""
    settings: dict[str, object] = {
        "run__rounds": 6,
        "run__clients": 2,
        "client__wave": "{ steps = 30 }",
        "model__args": "{ hidden = [64], batch_norm = true, dropout = 0.2 }",
        "eval__every": 3,
        "server__alignment": "{ epochs = 2 }",
    }
    return make_config(preset, **(settings | more))


def sha_of(config: RunConfig) -> str:
    simulation = Simulation(config)
    simulation.run()
    return simulation.coordinator.weights_sha256()


class Federation:
    """A server that can be killed and resumed at its port, and clients that can be killed and started again."""

    def __init__(
        self,
        stack: ExitStack,
        config: RunConfig,
        folder: Path,
        secured: tuple[object, ...] = (),
        papers: Callable[[int], Sequence[object]] = lambda _number: (),
        faults: Faults | None = None,
    ) -> None:
        """`secured`: the server's further options; `papers`: those of each client; `faults`: where kills are counted."""
        self.stack, self.folder, self.out, self.rounds = stack, folder, folder / "run", config.run.rounds
        self._faults = faults or Faults()
        self._config, self._secured, self._papers = config, secured, papers
        path = folder / "config.json"
        path.write_text(config.to_json())
        to = "--listen", "127.0.0.1:0", "--out", self.out, "--json", *secured
        self.server = self._started("sl-server", "run", path, *to)
        self.address = self.server.event("listening")["address"]
        self.clients: list[Process] = []

    def join(self, *addresses: str) -> None:
        """All clients start that have not; each at its address, if they are not to go to the server's own."""
        self._addresses = addresses or (self.address,) * self._config.run.clients
        self.clients += [self.client(n) for n in range(len(self.clients), len(self._addresses))]

    def _started(self, *command: object) -> Process:
        return self.stack.enter_context(started(*command))

    def client(self, number: int) -> Process:
        name, state = f"c{number}", self.folder / "state"
        at = ("--server", self._addresses[number], "--id", name, "--state", state)
        return self._started("sl-client", "run", *at, "--json", *self._papers(number))

    def resume(self) -> None:
        command = ("sl-server", "run", "--resume", self.out, "--listen", self.address, "--json", *self._secured)
        self.server = self._started(*command)

    def kill_server(self) -> None:
        self.server.signal(signal.SIGKILL)
        assert self.server.end() == -signal.SIGKILL
        self._faults.tell("real processes", "server kill")

    def kill_client(self, number: int) -> None:
        """And start it again."""
        self.clients[number].signal(signal.SIGKILL)
        assert self.clients[number].end() == -signal.SIGKILL
        self._faults.tell("real processes", "client kill")
        self.clients[number] = self.client(number)

    def wait_for(self, number: int, event: str = "round") -> None:
        """Until so many rounds are over, by what is on disk; or so many other events have been."""
        until = time.monotonic() + 150
        while sum(line["event"] == event for line in self.lines()) < number:
            assert time.monotonic() < until
            time.sleep(0.02)

    def lines(self) -> list[dict]:
        path = self.out / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def summary(self) -> dict:
        assert self.server.end() == 0, self.server.err
        assert [client.end() for client in self.clients] == [0] * len(self.clients)
        return json.loads((self.out / "summary.json").read_text())

    def trained(self) -> list[str]:
        """Every batch that counts: client, round, wave, step."""
        return [line.rpartition(" ")[0] for line in (self.out / "digests.log").read_text().splitlines()]


@contextmanager
def federation(config: RunConfig, folder: Path, faults: Faults) -> Iterator[Federation]:
    """With all its clients."""
    with ExitStack() as stack:
        run = Federation(stack, config, folder, faults=faults)
        run.join()
        yield run


@contextmanager
def federation_over(config: RunConfig, folder: Path, faults: Faults) -> Iterator[tuple[Federation, list[Relay]]]:
    """With all its clients, each over a link of its own that can be disturbed; the first wave has begun."""
    with ExitStack() as stack:
        run = Federation(stack, config, folder, faults=faults)
        told = partial(faults.tell, "real processes")
        relays = stack.enter_context(relaying(run.address, config.run.clients, told))
        run.join(*(relay.address for relay in relays))
        run.wait_for(1, "wave_begun")
        yield run, relays
