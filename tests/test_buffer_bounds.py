"""The rest of SECURITY.md's table of buffers: each is driven to its bound and counted; and the table names a test for each of its rows."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsBytes

import pytest
import torch
from hostile import Answer, greeting
from hostile import hostile as hostile_server
from live import ClientThread, LiveServer, Quiet, serving
from test_buffers import Pair, batch, reply, until_refused
from test_limits import hostile
from world import make_config

from sl_client.training.runner import UNHEARD, Runner
from sl_client.training.snapshots_on_disk import KEPT_FOLDERS, KEPT_RUNS, StateFolders, find_snapshots
from sl_common.client.flow import Flow
from sl_common.client.program import AwaitServer, Window
from sl_common.client.snapshots import KEPT_SNAPSHOTS
from sl_common.codec import Link
from sl_common.codec.feedback import Feedback
from sl_common.config.server_section import Budget
from sl_common.errors import ConfigError, WireError
from sl_common.host.locks import sole_writer
from sl_common.messages.training import (
    Alive,
    Begin,
    Bye,
    Directive,
    Done,
    Epoch,
    Gradient,
    Late,
    Newest,
    Smashed,
    Welcome,
)
from sl_common.proto import split_pb2 as pb
from sl_common.protocol import At, Await
from sl_common.wire import Endpoint, Greeting, Hello
from sl_common.wire.bounds import MAX_SLOT
from sl_server.core.identity import StreamIdentity
from sl_server.core.recordings import Recordings
from sl_server.core.wave import Wave
from sl_server.transport.server_stream import ServerStream
from sl_server.transport.streams import MAX_UNWRITTEN

ROOT = Path(__file__).parent.parent


# --- the table


def rows() -> Iterator[list[str]]:
    """Its cells, without its head."""
    section = (ROOT / "SECURITY.md").read_text().split("### Buffers whose size a peer decides")[1].split("\n\n")
    (table,) = (part for part in section[:4] if part.startswith("| buffer |"))
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_each_row_of_the_table_names_tests_that_are_there() -> None:
    missing = []
    for buffer, *_, tests in rows():
        named = re.findall(r"`(\w+)::(\w+)`", tests)
        assert named, f"{buffer}: no test is named"
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
            if test not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
                missing.append(f"{file}::{test}")
    assert not missing


# --- the wire


def test_a_client_whose_messages_cannot_be_kept_is_refused_and_the_others_train() -> None:
    """Nothing that a client can say gets so far; the engine does not rely on that."""
    config = make_config("parallel", run__clients=2, run__rounds=1, eval__every=0)
    with serving(config) as live, hostile(live) as evil:
        assert isinstance(evil.hello(shard=None), Greeting)
        evil.receive()
        evil.send(pb.ClientFrame(seq=1, ack=1, ready=pb.Ready(samples=32, batches=1)).SerializeToString())
        endpoint = live.engine.sessions.by_client["evil"].endpoint
        while not endpoint.received:
            time.sleep(0.01)
        most = endpoint.delivery.causes.most
        live.engine.inbox.put(lambda: [endpoint.pack(Late(round=0, wave=0)) for _ in range(most)])
        while endpoint.unacknowledged < most:
            time.sleep(0.01)
        good = ClientThread(live.address)
        assert evil.refusal() == "protocol"
        good.join(60)
        assert good.bye is not None
        assert good.bye.finished
        assert endpoint.unacknowledged == len(endpoint.delivery._unacked) == most
        (told,) = [text for text in live.warnings if "evil" in text]
        assert f"{most} messages to the peer are not acknowledged, at most {most} are kept" in told


class Stuck:
    """Flow control: the peer reads nothing."""

    async def write(self, _data: bytes) -> None:
        await asyncio.sleep(3600)


def test_no_acknowledgements_are_put_behind_what_a_peer_does_not_read() -> None:
    """Each small frame of a message draws one."""

    async def scenario() -> None:
        live = LiveServer(make_config("parallel"))  # its loop does not run
        stream = ServerStream("peer")
        writer = asyncio.create_task(stream.write_to(Stuck()))
        live.engine.links.open(stream, Hello(life=bytes(15) + b"\1", client="c0").to_frame(), StreamIdentity())
        y = pb.Tensor(codec="identity", dtype=5, shape=[32], nbytes=256)
        z = pb.Tensor(codec="identity", dtype=1, shape=[32, 16], nbytes=2048)
        first = pb.ClientFrame(seq=1, smashed=pb.Smashed(y=y, z=z), chunk=b"x").SerializeToString()
        rest = [pb.ClientFrame(seq=seq, chunk=b"x").SerializeToString() for seq in range(2, 10 * MAX_UNWRITTEN)]
        for frame in (first, *rest):
            live.engine.links.feed(stream, frame, 0.0)
        assert live.engine.sessions.by_client["c0"].endpoint.received == len(rest) + 1
        await asyncio.sleep(0)
        assert stream.waiting == MAX_UNWRITTEN
        writer.cancel()

    asyncio.run(scenario())


class Nowhere:
    """A stream whose other end acknowledges nothing."""

    def __init__(self) -> None:
        self.sent: list[SupportsBytes] = []

    def send(self, frame: SupportsBytes) -> None:
        self.sent.append(frame)


def test_signs_of_life_that_nobody_acknowledges_end() -> None:
    runner = Runner("nowhere:1", show=Quiet())
    runner.connection.session.stream = nowhere = Nowhere()
    for number in range(10 * UNHEARD):
        runner._alive_at = -1e9  # the last one is long ago
        runner._say(Alive(samples=number))
    endpoint = runner.connection.session.endpoint
    assert len(nowhere.sent) == len(endpoint.delivery._unacked) == endpoint.unacknowledged == UNHEARD


class Chatterbox:
    """A server's stream that acknowledges nothing and goes on saying Late."""

    def __init__(self) -> None:
        self._server = Endpoint("server", link=Link(), limit_bytes=1 << 20)
        self.said = 0

    def send(self, frame: SupportsBytes) -> None:
        pass

    def receive(self) -> bytes:
        self.said += 1
        (frame,) = self._server.pack(Late(round=self.said, wave=0))
        return bytes(frame)

    def check(self, acknowledged: int) -> None:
        pass


def test_words_that_come_while_a_message_goes_out_are_bounded() -> None:
    runner = Runner("nowhere:1", show=Quiet())
    session = runner.connection.session
    session.endpoint = Endpoint("client", link=Link(), limit_bytes=1 << 20, window=2)
    session.endpoint.resend(0, slow=True)
    session.stream = server = Chatterbox()
    with pytest.raises(WireError, match="51 messages of the peer's wait while ours goes out, at most 50 can"):
        runner._say(Smashed(step=0, z=torch.zeros(64, 1024), y=torch.zeros(64, dtype=torch.int64)))
    assert server.said == len(session.waiting) == 51


def test_checked_headers_that_are_kept_are_few() -> None:
    """Batches and gradients of a new size each time; weights, whose headers are many, are never kept."""
    ends = {side: Endpoint(side, link=Link(), limit_bytes=1 << 20) for side in ("client", "server")}
    most = dict.fromkeys(ends, 0)
    for number in range(1, 300):
        z = torch.ones(number, 3)
        said = {
            "server": Smashed(step=0, z=z, y=torch.zeros(number, dtype=torch.int64)),
            "client": Gradient(step=0, loss=0.0, dz=z),
        }
        weights = {"lower": {str(n): torch.ones(number) for n in range(5)}}
        also = {
            "server": Done(round=0, wave=0, steps=0, samples=0, weights=weights),
            "client": Begin(round=0, rounds=1, weights=weights),
        }
        for side, end in ends.items():
            other = next(one for one in ends.values() if one is not end)
            for message in (said[side], also[side]):
                for frame in other.pack(message):
                    end.feed(frame.data)
            most[side] = max(most[side], len(end._incoming._plans))
            assert all(len(slots) <= 4 for _, slots in end._incoming._plans), "batches, not weights"
            kept = sum(len(slot) for _, slots in end._incoming._plans for slot in slots)
            assert kept <= 64 * 4 * MAX_SLOT
    assert most == {"client": 64, "server": 64}


def test_what_codecs_with_feedback_carry_over_is_one_tensor_for_each_that_is_sent() -> None:
    pair = Pair(link=Link(down=Feedback(), state=Feedback()))
    weights = {"lower": {name: torch.ones(4) for name in ("a", "b")}}
    for wave in range(1, 50):
        pair.down(Begin(round=0, rounds=1, wave=wave, weights=weights))
        rows = 1 + wave % 7  # batches of another size each time
        pair.down(Gradient(step=wave, loss=0.0, dz=torch.ones(rows, 3)))
        pair.up(Done(round=0, wave=wave, steps=0, samples=0, weights=weights))
        sizes = {name: tuple(one.shape) for name, one in pair.server.residuals.items()}
        assert sizes == {"lower/a": (4,), "lower/b": (4,), "dz": (rows, 3)}
        assert set(pair.client.residuals) == {"lower/a", "lower/b"}


# --- the server


def test_batches_of_a_client_that_wait_for_their_cohort_are_no_more_than_its_window() -> None:
    wave = Wave(at=At(seed=0), directive=Directive(), window=3)
    for client in (0, 1):
        wave.expect(client, Begin(round=0, rounds=1, steps=1000))
    text = until_refused(lambda step: wave.take(0, batch(step)))
    assert text == "batch 3 while 3 are under way, client.window = 3"
    assert {client: len(waiting) for client, waiting in wave.waiting.items()} == {0: 3}


def moved(data: memoryview) -> memoryview:
    """To another place."""
    return memoryview(bytearray(data))


def test_recorded_activations_stop_at_their_budget() -> None:
    recordings = Recordings(Link(), Budget(memory_mb=0.01, disk_mb=0.02), moved)

    def record() -> None:
        for step in range(10_000):
            recordings.keep(step % 3, batch(step), Epoch())

    with pytest.raises(ConfigError, match=r"server.recordings.memory_mb = 0.01 and server.recordings.disk_mb = 0.02"):
        record()
    kept = [one.nbytes for of_one in recordings._kept.values() for one in of_one]
    assert sum(kept) == recordings.memory_bytes + recordings.spilled_bytes
    assert 0.01e6 - max(kept) < recordings.memory_bytes <= 0.01e6
    assert 0.02e6 - max(kept) < recordings.spilled_bytes <= 0.02e6


def test_of_the_newest_batches_no_more_are_recorded_than_hold_the_samples() -> None:
    recordings = Recordings(Link(), Budget())
    for step in range(1000):
        recordings.keep(0, batch(step), Newest(samples=9))
        assert recordings.batches(0) <= 5  # of two samples each
    assert recordings.memory_bytes == 5 * next(iter(recordings._kept[0])).nbytes


# --- the client


def test_replies_that_were_not_used_yet_are_those_of_batches_under_way() -> None:
    def life() -> Iterator[Any]:
        yield Window(3)
        for step in range(1000):
            yield batch(step)
            if step >= 2:
                yield Await(step - 2)

    flow, sent = Flow(life()), list[int]()
    for _ in range(50):
        sent += [message.step for message in flow.run()]
        for step in reversed(sent[-2:]):  # the one that it waits for comes last
            flow.deliver(reply(step))
            assert len(flow._replies) <= 3
            with pytest.raises(WireError, match=f"reply to batch {step}, which is not under way"):
                flow.deliver(reply(step))
        if set(flow._under_way):
            flow.deliver(reply(min(flow._under_way)))
        assert len(flow._replies) <= 3
    assert len(sent) > 50


def test_replies_that_nobody_awaits_are_not_kept() -> None:
    def life() -> Iterator[Any]:
        for step in range(100):
            yield batch(step, train=False, needs_grad=False)
        yield AwaitServer()

    flow, answered = Flow(life()), list[int]()
    for message in flow.run():
        flow.deliver(reply(message.step, needs_grad=False))
        answered.append(message.step)
        assert not flow._replies
    assert answered == list(range(100))


def test_snapshots_on_disk_are_few_whatever_numbers_checkpoints_have(tmp_path: Path) -> None:
    past = find_snapshots(tmp_path, "run", "c0", lambda _text: None)
    for wave in range(1, 60):
        number = 1000 + (wave if wave % 20 < 15 else -wave)  # the server goes back now and then
        past.drop_after(number)
        past.keep(number, lambda w=wave: {"number": w})
        past.save_after_wave(lambda w=wave: {"number": w})
        assert len(list(tmp_path.glob("*/*"))) <= KEPT_SNAPSHOTS + 1
        assert len(past.numbers) <= KEPT_SNAPSHOTS


def test_a_server_that_thinks_up_runs_makes_a_client_keep_no_more_than_some(tmp_path: Path) -> None:
    """In one process, as after a server that was forgotten, or in one for each."""
    warned: list[str] = []
    one = StateFolders(tmp_path)
    for number in range(3 * KEPT_RUNS):
        past = one if number % 2 else StateFolders(tmp_path)
        found = past.find(f"run {number}", "a", warned.append)
        found.save_after_wave(lambda n=number: {"number": n})
        if past is not one:
            past.close()
        assert len(list(tmp_path.iterdir())) <= KEPT_RUNS + 1  # the one that `one` still holds may be the oldest
    one.close()
    newest = StateFolders(tmp_path)
    newest.find("the last", "a", warned.append)
    assert len(list(tmp_path.iterdir())) <= KEPT_RUNS
    found = find_snapshots(tmp_path, f"run {3 * KEPT_RUNS - 1}", "a", warned.append)
    assert found.last == {"number": 3 * KEPT_RUNS - 1}, "those that were used last stay"
    newest.close()
    assert all("; 16 of a client are kept" in text for text in warned)


def test_a_client_of_many_runs_says_once_that_it_removes_some(tmp_path: Path) -> None:
    warned: list[str] = []
    past = StateFolders(tmp_path)
    for number in range(2 * KEPT_RUNS):
        past.find(f"run {number}", "a", warned.append).save_after_wave(dict)
    assert warned == [f"--state {tmp_path}: removed 1 run that was used longest ago; 16 of a client are kept"]
    assert len(list(tmp_path.iterdir())) == KEPT_RUNS
    assert len(past._locked) == 1, "folders of runs that are over are let go"
    past.close()


def thinks_up(run: str) -> Answer:
    """A server that begins a wave of this run, whose checkpoint asks for a snapshot, and ends it at once."""

    def answer(frames: Iterator[bytes]) -> Iterator[bytes]:
        Hello.from_frame(next(frames))
        yield greeting()
        config = make_config("parallel")
        end = Endpoint("server", link=Link(), limit_bytes=1 << 26)
        for frame in end.pack(Welcome(config=config.to_json(), client="c0", shard=0, shards=3, run=run)):
            yield frame.data
        while end.feed(next(frames)).message is None:
            pass
        begin = Begin(round=0, rounds=config.run.rounds, wave_size=3, steps=1, checkpoint=1)
        for message in (begin, Bye(reason="enough", finished=False)):
            for frame in end.pack(message):
                yield frame.data
        for _ in frames:
            pass

    return answer


def test_a_real_client_of_such_a_server_keeps_no_more(tmp_path: Path) -> None:
    """A new process for each run."""
    for number in range(KEPT_RUNS + 3):
        with hostile_server(thinks_up(f"run {number}")) as address:
            client = ClientThread(address, name="c0", state=tmp_path)
            client.join(30)
            assert client.error is None
            client.runner.leave_state(finished=client.bye.finished)
        assert (
            len(list(tmp_path.glob("*/snapshot-*.tree"))) == len(list(tmp_path.iterdir())) == min(number + 1, KEPT_RUNS)
        )


def left_by(state: Path, name: str) -> Path:
    """The folder of a run that a former process of this client was in."""
    before = set(state.iterdir())
    past = StateFolders(state)
    past.find("run", name, lambda _text: None).save_after_wave(lambda: {"of": name})
    past.close()
    (where,) = set(state.iterdir()) - before
    return where


def thought_up(state: Path, runs: int) -> None:
    """A client called a is made to join so many runs."""
    past = StateFolders(state)
    for number in range(runs):
        past.find(f"run {number}", "a", lambda _text: None).save_after_wave(dict)
    past.close()


def test_what_another_process_holds_is_kept_and_so_is_another_clients(tmp_path: Path) -> None:
    mine, other = left_by(tmp_path, "a"), left_by(tmp_path, "b")
    with sole_writer(mine, "--state"):
        os.utime(mine, ns=(0, 0))  # the oldest of all
        thought_up(tmp_path, 2 * KEPT_RUNS)
        assert find_snapshots(tmp_path, "run", "a", lambda _text: None).last == {"of": "a"}
    os.utime(mine, ns=(0, 0))
    thought_up(tmp_path, 1)
    assert not mine.exists(), "nobody holds it any more"
    assert len(list(tmp_path.iterdir())) == KEPT_RUNS + 1
    assert find_snapshots(tmp_path, "run", "b", lambda _text: None).last == {"of": "b"}
    assert other.exists()


def test_a_server_that_thinks_up_names_makes_a_client_keep_no_more_than_some(tmp_path: Path) -> None:
    """A client without `--id` is called what its server likes."""
    for number in range(KEPT_FOLDERS + 20):
        find_snapshots(tmp_path, "run", f"name {number}", lambda _text: None).save_after_wave(dict)
    past, warned = StateFolders(tmp_path), list[str]()
    past.find("run", f"name {KEPT_FOLDERS + 20}", warned.append)
    assert len(list(tmp_path.iterdir())) == KEPT_FOLDERS
    assert find_snapshots(tmp_path, "run", f"name {KEPT_FOLDERS + 19}", warned.append).last == {}, (
        "those that were used last stay"
    )
    assert warned == [f"--state {tmp_path}: removed 21 runs that were used longest ago; 16 of a client are kept"]
    past.close()


def test_a_folder_with_something_else_in_it_stays(tmp_path: Path) -> None:
    where = left_by(tmp_path, "a")
    (where / "notes.txt").write_text("mine")
    thought_up(tmp_path, 2 * KEPT_RUNS)
    assert (where / "notes.txt").read_text() == "mine"
