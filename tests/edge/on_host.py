"""The server's side of tests/edge/run: examines the device, then serves it one run for each codec, and compares with the same run at home.

python tests/edge/on_host.py ROOT        ROOT: the device's root folder, in which everything is installed
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from processes import ran, started
from unions import members

from sl_common.codec import Codec

PATIENCE_S = 600.0  # importing torch takes a minute where each instruction is translated
STEPS = 8
TIMINGS = 100  # bytes that a batch has more on a network, where it brings what the step before it took
CLOSE = 0.05  # of the loss: rounding differs from one processor and one torch to another, and training carries it on

# Where a codec serves, it is used: activations, cut gradients, weights.
RUNS: dict[str, dict[str, str]] = {
    "identity": {},
    "float16": {"up": '{kind="float16"}', "down": '{kind="float16"}', "state": '{kind="float16"}'},
    "bfloat16": {"up": '{kind="bfloat16"}', "down": '{kind="bfloat16"}', "state": '{kind="bfloat16"}'},
    "float8": {"up": '{kind="float8"}', "down": '{kind="float8"}', "state": '{kind="float8"}'},
    "uniform": {"up": '{kind="uniform"}', "down": '{kind="uniform",rounding="stochastic"}'},
    "mask": {"up": '{kind="mask",r=0.9}', "down": '{kind="mask",r=0.5}'},
    "topk": {"up": '{kind="topk",r=0.5}', "down": '{kind="topk",r=0.5}'},
    "randtopk": {"up": '{kind="randtopk",r=0.5}'},
    "masked": {"up": '{kind="topk",r=0.5}', "down": '{kind="masked"}'},
    "deflate": {"up": '{kind="deflate",of={kind="float8"}}', "down": '{kind="deflate"}'},
    "feedback": {"down": '{kind="feedback"}', "state": '{kind="feedback",of={kind="float16"}}'},
}
TOML = f"""
[run]
name = "edge"
rounds = 2
clients = 1
grace_s = 300
[model]
name = "cnn"
cut = "conv1"
[data]
name = "digits"
batch_size = 32
[protocol]
preset = "splitfed_v1"
[client]
wave = {{ steps = {STEPS} }}
[eval]
samples = 64
"""


def command(root: Path, *words: str) -> list[str]:
    """On the device, with nothing of this machine's environment."""
    return [
        "chroot",
        str(root),
        "env",
        "-i",
        "PATH=/opt/cutlayer/bin:/usr/bin:/bin",
        "HOME=/root",
        "LANG=C.UTF-8",
        *words,
    ]


class Device:
    """`on_device.py`, running there."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def join(self, address: str) -> None:
        """Have it take part in a run."""
        assert self._process.stdin is not None
        print(address, file=self._process.stdin, flush=True)

    def event(self, name: str) -> dict[str, Any]:
        """The next one of this name; others are passed over. It ends with the process at the latest."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                event: dict[str, Any] = json.loads(line)
                if event["event"] == name:
                    return event
        raise AssertionError(f"the device said no {name!r} and ended with {self._process.wait()}")


@contextlib.contextmanager
def device(root: Path) -> Iterator[Device]:
    """Ended when the block is left."""
    words = command(root, "timeout", "3600", "python", "/opt/wheel/on_device.py")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Device(process)
        except BaseException:
            process.terminate()
            raise


def examine(root: Path, toml: Path) -> None:
    """`sl-client doctor` over the loopback interface."""
    with started(
        "sl-server", "run", toml, "--listen", "127.0.0.1:0", "--out", toml.parent / "doctor", "--json"
    ) as server:
        address = server.event("listening")["address"]
        began = time.monotonic()
        words = command(root, "sl-client", "doctor", "--server", address, "--json")
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["machine"] == "aarch64"
        print(f"sl-client doctor ({time.monotonic() - began:.0f} s): {found}", flush=True)


def losses(out: Path) -> tuple[float, float, dict[str, Any]]:
    """Of training and evaluation, and what was sent."""
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"], summary["reason"]
    return summary["train_loss"], summary["evaluation"]["loss"], summary["bytes"]


def train(there: Device, name: str, toml: Path) -> None:
    """One run with the device, one of the same in one process here."""
    sets = [word for way, codec in RUNS[name].items() for word in ("--set", f"codec.{way}={codec}")]
    outs = {where: toml.parent / f"{name}-{where}" for where in ("there", "here")}
    began = time.monotonic()
    with started(
        "sl-server", "run", toml, *sets, "--listen", "127.0.0.1:0", "--out", outs["there"], "--json"
    ) as server:
        there.join(server.event("listening")["address"])
        there.event("ended")
        assert server.end() == 0, server.err
    took = time.monotonic() - began
    there.event("left")
    done = ran("sl-server", "simulate", toml, *sets, "--out", outs["here"])
    assert done.code == 0, done.err
    (trained, evaluated, sent), (here, here_evaluated, here_sent) = losses(outs["there"]), losses(outs["here"])
    if name != "deflate":  # whose bytes depend on the values' last bits
        assert 0 <= sent["up"]["smashed"] - here_sent["up"]["smashed"] <= TIMINGS * STEPS * 2, (name, sent, here_sent)
    print(
        f"{name:>9}: training loss {trained:.4f}, at home {here:.4f}; evaluation {evaluated:.4f}, {here_evaluated:.4f}; "
        f"{took:.0f} s",
        flush=True,
    )
    assert abs(trained - here) <= CLOSE * here, name
    assert abs(evaluated - here_evaluated) <= CLOSE * here_evaluated, name


def main() -> None:
    root = Path(sys.argv[1])
    assert set(RUNS) == {codec.model_fields["kind"].default for codec in members(Codec)}, "a codec has no run here"
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        toml = Path(folder, "run.toml")
        toml.write_text(TOML)
        examine(root, toml)
        with device(root) as there:
            golden = there.event("golden")
            assert golden["wrong"] == [], golden
            print(f"torch {golden['torch']}: the committed bytes of {golden['codecs']} codecs", flush=True)
            for name in RUNS:
                train(there, name, toml)
    print("the device took part in every run")


if __name__ == "__main__":
    main()
