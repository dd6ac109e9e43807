"""Shared by all tests: one torch thread, as every participant of a run has by default, and the count of faults."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests import `world`
torch.set_num_threads(1)
for _name in ("grpc_proxy", "https_proxy", "http_proxy", "HTTP_PROXY"):  # all that tests talk to is on this machine
    os.environ.pop(_name, None)
# Of processes too: bits are compared between them and the simulator, which is on the CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        # as in a shell's background, or under nohup: what tests start would ignore it too
        signal.signal(_number, _usual)

from tally import Faults, table  # noqa: E402

FAULTS = pytest.StashKey[dict[str, Faults]]()


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> Faults:
    """Where a test counts what it does to a run."""
    return request.config.stash.setdefault(FAULTS, {}).setdefault(request.node.nodeid, Faults())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, if anything was injected."""
    names = {which: {r.nodeid for r in terminalreporter.stats.get(which, [])} for which in ("passed", "error")}
    lines = table(config.stash.get(FAULTS, {}), names["passed"] - names["error"])
    if lines:
        terminalreporter.section("faults injected and survived")
        for line in lines:
            terminalreporter.write_line(line)
