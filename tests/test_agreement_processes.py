"""The installed commands with devices that hold other code or another set: who is refused, who hears of it, and that the others go on."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from processes import Process, started

NET = """
from torch import nn

def network(input, classes):
    n = input[-1] * input[-2]
    return [("low", nn.Sequential(nn.Flatten(), nn.Linear(n, WIDTH), nn.ACT())), ("out", nn.Linear(WIDTH, classes))]
"""
RUN = """
[run]
rounds = 2
clients = 2
grace_s = 300
[model]
name = "proj.net:network"
cut = "low"
[data]
batch_size = 64
[protocol]
preset = "splitfed_v1"
"""


def project(folder: Path, width: int = 32, act: str = "ReLU") -> Path:
    (folder / "proj").mkdir(parents=True)
    (folder / "proj" / "__init__.py").touch()
    (folder / "proj" / "net.py").write_text(NET.replace("WIDTH", str(width)).replace("ACT", act))
    return folder


class Fleet:
    """A server, and clients each with a folder of code."""

    def __init__(self, stack: ExitStack, folder: Path, more: str = "") -> None:
        self._stack, self.out = stack, folder / "out"
        (folder / "run.toml").write_text(RUN.replace('cut = "low"', f'cut = "low"\n{more}'))
        self.ours = project(folder / "ours")
        command = "run", folder / "run.toml", "--listen", "127.0.0.1:0", "--out", self.out, "--json"
        self.server = stack.enter_context(started("sl-server", *command, cwd=self.ours))
        self.address = self.server.event("listening")["address"]

    def client(self, code: Path, name: str) -> Process:
        command = "run", "--server", self.address, "--allow", "proj", "--id", name, "--json"
        return self._stack.enter_context(started("sl-client", *command, cwd=code))

    def summary(self) -> dict:
        assert self.server.end() == 0, self.server.err
        return json.loads((self.out / "summary.json").read_text())


def test_other_code_of_equal_shapes_is_refused_and_a_right_device_takes_its_place(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fleet = Fleet(stack, tmp_path)
        first = fleet.client(fleet.ours, "first")
        wrong = fleet.client(project(tmp_path / "theirs", act="Tanh"), "wrong")
        assert wrong.end() == 3
        assert "it has [low.2: Tanh()], the server's has [low.2: ReLU()]" in wrong.err
        assert "low.2: Tanh()" in fleet.server.event("warning")["text"]
        assert "low.2: Tanh()" in fleet.server.event("left", client="wrong")["reason"]
        second = fleet.client(fleet.ours, "second")
        assert fleet.summary()["evaluation"]["samples"] == 359
        assert (first.end(), second.end()) == (0, 0)


def test_a_client_that_cannot_take_what_the_server_says_says_so_and_nobody_waits_for_it(tmp_path: Path) -> None:
    """Code of other shapes, which the run was told to accept: the weights do not fit there. `grace_s` is longer than this test may take."""
    with ExitStack() as stack:
        fleet = Fleet(stack, tmp_path, 'differs = "accept"')
        first = fleet.client(fleet.ours, "first")
        wrong = fleet.client(project(tmp_path / "theirs", width=48), "wrong")
        assert wrong.end() == 3
        assert "weights of lower: low.1.weight is torch.float32 (32, 64)" in wrong.err
        reason = fleet.server.event("left", client="wrong")["reason"]
        assert reason.startswith("refuses what the server said: weights of lower: low.1.weight")
        assert fleet.summary()["finished"]
        assert first.end() == 0
