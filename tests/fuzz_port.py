"""The port of a real `sl-server` while two good clients, processes too, train through it: mutated streams over gRPC, raw bytes over TCP.

Afterwards the run has finished, its weights are the simulator's bits, and the server took no more memory than its limits allow.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from subprocess import TimeoutExpired

from authority import write_tokens
from fuzz_wire import PING, talk, wrong
from mutations import mutated
from processes import Process, started
from raw_http2 import CALL, Line, frame, headers, prefixed
from world import make_config

from sl_client.transport.access import Access
from sl_client.transport.stream import SERVICE_PATH, GrpcStream, StreamBroken
from sl_common.config.run_config import RunConfig
from sl_common.errors import CutlayerError
from sl_common.proto import split_pb2 as pb
from sl_common.wire import Hello, Refusal, read_answer
from sl_server.simulation.simulation import Simulation

ROOM_MB = 512  # what strangers may hold, 64 times 8 MiB: server.limits.strangers
TOKENS = {name: f"{name}-0123456789abcdef" for name in ("c0", "c1", "evil")}  # or whoever comes could take c0's name
QUICK = {"run__checkpoints": '"never"', "run__grace_s": 1, "eval__every": 0}
ALLOWED = {"server__limits__hellos_per_minute": 10**6, "server__limits__hello_s": 2, "server__limits__stall_s": 2}


def config_of(rounds: int) -> RunConfig:
    """A run whose third place is for the hostile one, which is never ready to train."""
    return make_config("splitfed_v1", run__clients=2, data__shards=3, run__rounds=rounds, **QUICK, **ALLOWED)


@lru_cache
def simulated_sha(rounds: int) -> str:
    """What undisturbed clients end with; the same for all runs of so many rounds."""
    simulation = Simulation(config_of(rounds))
    simulation.run()
    return simulation.coordinator.weights_sha256()


def _would_train(data: bytes) -> bool:
    """A Ready that the server would believe: then the hostile one were a client like any other."""
    with suppress(Exception):
        said = pb.ClientFrame.FromString(data)
        return said.WhichOneof("header") == "ready" and 1 <= said.ready.batches <= said.ready.samples
    return False


class Streams:
    """Hostile streams to one server, one at a time."""

    def __init__(self, address: str, rng: random.Random) -> None:
        self._address, self._rng = address, rng
        self._lives = itertools.count(1)
        self.ended: Counter[str] = Counter()

    def _hello(self) -> bytes:
        return Hello(life=next(self._lives).to_bytes(16, "big"), client="evil", shard=2).to_frame()

    def over_grpc(self) -> None:
        """A Hello, right or wrong, one to three frames that are slightly wrong, and at last one that cannot be right."""
        rng, carrier = self._rng, GrpcStream(self._address, Access(token=TOKENS["evil"]))
        hello = self._hello()
        frames = rng.choice((talk("plain"), talk("coded")))["up"]
        bad = [wrong(rng.choice(frames), "up", rng) for _ in range(rng.randint(1, 3))]
        said = [
            hello if rng.random() < 0.9 else mutated(hello, rng),
            *(one for one in bad if not _would_train(one)),
            b"\xff",
        ]
        try:
            for one in said:
                carrier.send(one)
            answer = read_answer(carrier.receive())
            while not isinstance(answer, Refusal):
                last = pb.ServerFrame.FromString(carrier.receive())
                if last.WhichOneof("header") == "refusal":
                    answer = Refusal(code=last.refusal.code, reason=last.refusal.reason)
            self.ended[answer.code] += 1
        except (StreamBroken, CutlayerError):
            self.ended["stream ended"] += 1
        finally:
            carrier.close()

    def over_tcp(self) -> None:
        """HTTP/2 by hand with bytes changed anywhere, or noise."""
        rng = self._rng
        block = headers(
            [*CALL.items(), ("authorization", f"Bearer {TOKENS['evil']}"), ("x-a", "b" * rng.choice((1, 9000)))]
        )
        body = b"".join(
            prefixed(one) for one in (self._hello(), wrong(talk("plain")["up"][-1], "up", rng)) if not _would_train(one)
        )
        good = frame(1, 4, 1, block) + frame(0, 0, 1, body[:16384])
        good += frame(1, 4, 3, headers(CALL | {":path": f"{SERVICE_PATH}/Probe"})) + frame(0, 1, 3, prefixed(PING))
        with suppress(OSError), Line(self._address) as line:
            line.send(rng.randbytes(rng.randint(1, 2000)) if rng.random() < 0.2 else mutated(good, rng, (good,)))
            line.heard(0.002)
        self.ended["bytes"] += 1


def _memory_mb(pid: int, what: str) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) // 1024


def episode(rng: random.Random, rounds: int, most: int) -> tuple[int, Counter[str], int]:
    """One run under attack: streams and connections while it trained, how they ended, and the server's peak memory in MiB."""
    config, sent = config_of(rounds), 0
    with tempfile.TemporaryDirectory(prefix="sl-fuzz-") as name, ExitStack() as stack:
        path, out = Path(name) / "config.json", Path(name) / "run"
        path.write_text(config.to_json())
        tokens = write_tokens(Path(name) / "tokens", TOKENS)

        def begin(*command: object) -> Process:
            return stack.enter_context(started(*command, "--json"))

        server = begin("sl-server", "run", path, "--listen", "127.0.0.1:0", "--out", out, "--tokens", tokens)
        address, pid = server.event("listening")["address"], server._process.pid
        places = [("--id", f"c{number}", "--shard", f"{number + 1}/3") for number in range(2)]
        shown = [("--token", TOKENS["c0"]), ("--token", TOKENS["c1"])]
        clients = [
            begin("sl-client", "run", "--server", address, *place, *token)
            for place, token in zip(places, shown, strict=True)
        ]
        for number in range(2):
            server.event("joined", client=f"c{number}")
        before, peak = _memory_mb(pid, "VmRSS"), 0
        streams = Streams(address, rng)
        while sent < most and all(client._process.poll() is None for client in clients):
            _ = streams.over_grpc() if rng.random() < 0.6 else streams.over_tcp()
            sent += 1
            with suppress(OSError, StopIteration):  # it may have ended
                peak = max(peak, _memory_mb(pid, "VmHWM"))
        try:
            codes = [process.end() for process in (*clients, server)]
        except TimeoutExpired as error:
            ended = [process._process.poll() for process in (*clients, server)]
            said = "\n".join(process.out[-3000:] + process.err for process in (*clients, server))
            raise AssertionError(f"not everybody ended: {ended}\n{said}") from error
        assert codes == [0, 0, 0], f"{codes}\n{server.out[-3000:]}\n{server.err}"
        told = [event["text"] for event in server.events if event["event"] == "warning"]
        assert not [text for text in told if not text.startswith(("refused ", "too many different"))], told
        summary = json.loads((out / "summary.json").read_text())
    assert peak - before < ROOM_MB, f"the server took {peak - before} MiB more than before"
    assert summary["finished"]
    assert summary["weights_sha256"] == simulated_sha(rounds), "the good ones were disturbed"
    return sent, streams.ended, peak
