"""A server that means harm ends a client with a typed error and an exit code, before much is done, and with printable text alone."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import EVIL, greeting, hostile, says, sends
from processes import ran

from sl_client.console.show import ClientLines
from sl_client.inference.predictor import Predictor
from sl_client.training.runner import Runner
from sl_client.transport.access import PLAINTEXT
from sl_client.transport.doctor import examine
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, CutlayerError, Refused, WireError
from sl_common.exits import exit_code
from sl_common.holdings import Build
from sl_common.host import commands
from sl_common.host.text import printable_lines
from sl_common.messages.inference import Offer, Scores
from sl_common.messages.training import Aligned, Begin, Bye, Directive, Gradient, Late, Message, Welcome
from sl_common.proto import split_pb2 as pb
from sl_common.wire.greeting import REFUSED_BY, Refusal

CONFIG = RunConfig.from_toml("", ["run.rounds=2", "model.name=mlp", "model.args={hidden=[8]}", "client.wave={steps=2}"])
WELCOME = Welcome(config=CONFIG.to_json(), client="c0", shard=0, shards=1, run="ab")
BEGIN = Begin(round=0, rounds=2, steps=2, lr=0.1)
GOOD = Gradient(step=0, loss=1.0, dz=torch.zeros(64, 8))
AUX = {"aux": {"w": torch.zeros(1)}}


def run_client(address: str, **options: Any) -> Bye:
    return Runner(address, name="c0", show=ClientLines(), retry_s=0.0, **options).run()


def welcome(**changes: Any) -> Welcome:
    """With a changed configuration: its raw JSON, key by key."""
    raw = json.loads(CONFIG.to_json())
    for path, value in changes.items():
        node = raw
        *tables, key = path.split("__")
        for table in tables:
            node = node[table]
        node[key] = value
    return replace(WELCOME, config=json.dumps(raw))


def learner(**fields: Any) -> Welcome:
    return welcome(protocol__learner={"kind": "local_loss", **fields})


OUT_OF_PLACE: dict[str, list[Message]] = {
    "begin before welcome": [BEGIN],
    "late before welcome, then begin": [Late(round=0, wave=0), BEGIN],
    "welcome twice": [WELCOME, WELCOME],
    "gradient before a batch": [WELCOME, GOOD],
    "aligned that nobody awaits": [WELCOME, Aligned(round=0, wave=0, weights=AUX, before=1.0, after=1.0)],
    "shard beyond the shards": [replace(WELCOME, shard=3)],
    "no shards": [replace(WELCOME, shards=0)],
    "shards without end": [replace(WELCOME, shards=(1 << 32) - 1)],
    "no name": [replace(WELCOME, client="")],
    "the name of another": [replace(WELCOME, client="c1")],
    "a name of control characters": [replace(WELCOME, client=EVIL)],
    "a run of control characters": [replace(WELCOME, run=EVIL)],
    "a path for a run": [replace(WELCOME, run="../../x")],
    "no slices": [WELCOME, replace(BEGIN, evaluate=True, slices=0)],
    "slice beyond the slices": [WELCOME, replace(BEGIN, evaluate=True, slice=1, slices=1)],
    "slices without end": [WELCOME, replace(BEGIN, evaluate=True, slices=(1 << 32) - 1)],
    "round beyond the rounds": [WELCOME, replace(BEGIN, round=2)],
    "other rounds": [WELCOME, replace(BEGIN, rounds=3)],
    "no rounds": [WELCOME, replace(BEGIN, rounds=0)],
    "nobody in the wave": [WELCOME, replace(BEGIN, wave_size=0)],
    "more batches than a wave has": [WELCOME, replace(BEGIN, steps=3)],
    "batches without end": [WELCOME, replace(BEGIN, steps=(1 << 64) - 1)],
    "a first batch without end": [WELCOME, replace(BEGIN, first=(1 << 64) - 1)],
    "a checkpoint without end": [WELCOME, replace(BEGIN, checkpoint=(1 << 64) - 1)],
    "a checkpoint that is not here": [WELCOME, replace(BEGIN, restore=1)],
    "what was here when nothing was": [WELCOME, replace(BEGIN, intact=True)],
    "weights of a part that is not here": [WELCOME, replace(BEGIN, weights={"head": {}})],
    "weights of another network": [WELCOME, replace(BEGIN, weights={"lower": {"w": torch.zeros(1)}})],
    "no weights of a part": [WELCOME, replace(BEGIN, weights={"lower": {}})],
    "a part wanted that is not here": [WELCOME, replace(BEGIN, upload=("head",))],
    "a part wanted twice": [WELCOME, replace(BEGIN, upload=("lower", "lower"))],
    "waves without end": [WELCOME, *[BEGIN] * 80],
    "waves that are over without end": [WELCOME, *[Late(round=n, wave=0) for n in range(80)], BEGIN],
    "a gradient that is none": [WELCOME, BEGIN, Gradient(step=0, loss=1.0)],
    "a gradient of another shape": [WELCOME, BEGIN, replace(GOOD, dz=torch.zeros(64, 9))],
    "a gradient of another size": [WELCOME, BEGIN, replace(GOOD, dz=torch.zeros(1, 8))],
    "a gradient of another type": [WELCOME, BEGIN, replace(GOOD, dz=torch.zeros(64, 8, dtype=torch.float64))],
    "a gradient of integers": [WELCOME, BEGIN, replace(GOOD, dz=torch.zeros(64, 8, dtype=torch.int64))],
    "a reply to another batch": [WELCOME, BEGIN, replace(GOOD, step=1 << 40)],
    "an aligned network of another kind": [
        learner(),
        replace(BEGIN, directive=Directive(align=True)),
        Aligned(round=0, wave=0, weights=AUX, before=1.0, after=1.0),
    ],
}


@pytest.mark.parametrize("what", OUT_OF_PLACE)
def test_no_word_of_a_server_is_more_than_an_error(what: str) -> None:
    with hostile(says(*OUT_OF_PLACE[what])) as address, pytest.raises(WireError) as caught:
        run_client(address)
    assert exit_code(caught.value) == 3


ABSURD: dict[str, Welcome] = {
    "60,000 layers": welcome(model__args={"hidden": [1] * 60_000}),
    "layers wider than memory": welcome(model__args={"hidden": [1 << 40]}),
    "layers wider than numbers": welcome(model__args={"hidden": [1 << 62, 1 << 62]}),
    "layers of text": welcome(model__args={"hidden": "x" * 500}),
    "layers below nothing": welcome(model__args={"hidden": [-1]}),
    "deep arguments": welcome(model__args={"hidden": json.loads("[" * 90 + "]" * 90)}),
    "a wide auxiliary network": learner(aux={"kind": "classifier", "form": "mlp", "hidden": 1 << 40}),
    "an auxiliary copy of a large head": replace(
        learner(aux={"kind": "classifier", "form": "head"}),
        config=learner(aux={"kind": "classifier", "form": "head"}).config.replace(
            '"hidden": [8]', f'"hidden": [8, {1 << 20}, {1 << 20}]'
        ),
    ),
    "a wide decoder": learner(aux={"kind": "decoder", "hidden": 1 << 40}),
    "threads without end": welcome(run__threads=1 << 40),
    "a batch without end": welcome(data__batch_size=1 << 62),
    "an integer of 4,000 digits": welcome(data__batch_size=10**4000),
    "a window without end": welcome(client__window=1 << 40),
    "clients without end": welcome(run__clients=1 << 40),
    "shards without end": welcome(data__shards=1 << 40),
    "rounds without end": welcome(run__rounds=1 << 70),
    "a seed without end": welcome(run__seed=1 << 70),
    "samples larger than memory": welcome(model__input=[1 << 30, 1 << 30]),
    "samples of many sides": welcome(model__input=[1] * 100),
    "samples of another shape": welcome(model__input=[3, 512, 512]),
    "classes without end": welcome(model__classes=1 << 40),
    "a cut beyond the network": welcome(model__cut=1 << 40),
    "no such model": welcome(model__name="x" * 4000),
    "code that is not allowed": welcome(model__name="shutil:rmtree"),
    "data that are not allowed": welcome(data__name="shutil:rmtree", model__input=[1], model__classes=2),
    "NaN": replace(WELCOME, config=CONFIG.to_json().replace('"lr":0.05', '"lr":NaN')),
    "no JSON": replace(WELCOME, config="{"),
    "JSON without end": replace(WELCOME, config="[" * 100_000),
    "JSON of nothing": replace(WELCOME, config="null"),
    "100,000 unknown keys": replace(WELCOME, config=json.dumps(dict.fromkeys(map(str, range(60_000)), 1))),
    "keys of control characters": replace(WELCOME, config=json.dumps({EVIL: {EVIL: EVIL}})),
}


@pytest.mark.parametrize("what", ABSURD)
def test_no_configuration_costs_more_than_its_refusal(what: str) -> None:
    began = time.process_time()
    with hostile(says(ABSURD[what])) as address, pytest.raises(ConfigError) as caught:
        run_client(address)
    assert exit_code(caught.value) == 2
    assert time.process_time() - began < 20.0  # 60,000 layers took 90 s


def test_a_configuration_that_is_larger_than_a_message_is_not_read() -> None:
    with (
        hostile(says(replace(WELCOME, config=" " * (2 << 20)))) as address,
        pytest.raises(WireError, match="a header of"),
    ):
        run_client(address)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"model__args": {"hidden": [1 << 40]}}, ConfigError), ({"model__input": [1 << 30, 1 << 30]}, ConfigError)],
)
def test_a_prediction_builds_nothing_that_does_not_fit(change: dict[str, Any], error: type[CutlayerError]) -> None:
    offer = Offer(config=welcome(**change).config, lower_sha256=bytes(32))
    with (
        hostile(says(offer, call="infer")) as address,
        Predictor(address, retry_s=0.0) as predictor,
        pytest.raises(error),
    ):
        predictor.open()


def test_a_build_that_is_not_ours_is_shown_plainly() -> None:
    build = Build(part="lower", layout_sha256=bytes(32), layout=EVIL, modules_sha256=bytes(32), modules=EVIL)
    offer = Offer(config=CONFIG.to_json(), lower_sha256=bytes(32), build=build, torch=EVIL[:9])
    with (
        hostile(says(offer, call="infer")) as address,
        Predictor(address, retry_s=0.0) as predictor,
        pytest.raises(ConfigError, match="is not the server's") as caught,
    ):
        predictor.open()
    assert is_shown_plainly(printable_lines(caught.value))


@pytest.mark.parametrize("size", [1, 31, 33, 5000])
def test_a_digest_has_32_bytes(size: int) -> None:
    offer = Offer(config=CONFIG.to_json(), lower_sha256=bytes(size))
    with (
        hostile(says(offer, call="infer")) as address,
        Predictor(address, retry_s=0.0) as predictor,
        pytest.raises(WireError),
    ):
        predictor.open()


@pytest.mark.parametrize(
    "scores",
    [
        torch.zeros(2, 10, dtype=torch.int64),
        torch.zeros(2, 10, dtype=torch.bool),
        torch.full((2, 10), float("nan")),
        torch.full((2, 10), float("inf")),
        torch.zeros(2, 9),
        torch.zeros(0),
    ],
)
def test_scores_are_finite_numbers_of_the_runs_classes(scores: torch.Tensor, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from sl_common.network.network import Network

    lower = tmp_path / "lower.safetensors"
    save_file(Network.build(CONFIG).lower.state_dict(), lower)
    offer = Offer(config=CONFIG.to_json(), lower_sha256=b"")
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(hostile(says(offer, Scores(step=0, scores=scores), call="infer")))
        predictor = stack.enter_context(Predictor(address, retry_s=0.0, lower=lower))
        predictor.open()
        with pytest.raises(WireError):
            list(predictor.ask([torch.zeros(2, 1, 8, 8)]))


def test_a_probe_that_ends_early_or_makes_no_sense() -> None:
    with hostile(lambda _frames: iter(())) as address, pytest.raises(WireError, match="ended the probe"):
        examine(address, PLAINTEXT, as_json=False)
    with hostile(lambda _frames: iter([b"\xff"])) as address, pytest.raises(WireError, match="no answer to a ping"):
        examine(address, PLAINTEXT, as_json=False)


# --- exit codes


@pytest.mark.parametrize(("finished", "code"), [(True, 0), (False, 1)])
def test_a_run_that_failed_is_no_success(finished: bool, code: int) -> None:
    with hostile(says(WELCOME, Bye(reason="out of luck", finished=finished))) as address:
        process = ran("sl-client", "run", "--server", address, "--insecure")
    assert process.code == code
    assert "over: out of luck" in process.out
    assert ("the run ended before its last round: out of luck" in process.err) is (not finished)


# --- text

EVERYWHERE: dict[str, Any] = {
    "the reason of a refusal": lambda _: iter([Refusal(code="full", reason=EVIL).to_frame()]),
    "the code of a refusal": lambda _: iter([Refusal(code=EVIL, reason="x").to_frame()]),
    "a refusal for now": lambda _: iter([Refusal(code="crowded", reason=EVIL).to_frame()]),
    "the client's name": lambda _: iter([greeting(EVIL)]),
    "the reason of a bye": says(WELCOME, Bye(reason=EVIL, finished=False)),
    "the run's name": says(welcome(run__name=EVIL)),
    "the model's name": says(welcome(model__name=EVIL)),
    "the model's code": says(welcome(model__name=f"{EVIL}:{EVIL}")),
    "the model's arguments": says(welcome(model__args={EVIL: EVIL})),
    "the cut": says(welcome(model__cut=EVIL)),
    "the data's name": says(welcome(data__name=EVIL)),
    "the data's code": says(welcome(data__name=f"{EVIL}:x", model__input=[1], model__classes=2)),
    "the preset": says(welcome(preset=EVIL), Bye(reason="x", finished=True)),
    "a kind": says(welcome(protocol__learner={"kind": EVIL})),
    "a key": says(welcome(**{f"run__{EVIL}": EVIL})),
    "a part that begins": says(WELCOME, replace(BEGIN, weights={EVIL: {EVIL: torch.zeros(1)}})),
    "a tensor's name": says(WELCOME, replace(BEGIN, weights={"lower": {EVIL: torch.zeros(1)}})),
    "a part that is wanted": says(WELCOME, replace(BEGIN, upload=(EVIL,))),
    "an aligned part": says(WELCOME, Aligned(round=0, wave=0, weights={EVIL: {}}, before=1.0, after=1.0)),
    "a codec": sends(
        {
            "begin": pb.Begin(
                parts=["x"], weights=[pb.NamedTensor(part="x", name="y", tensor=pb.Tensor(codec=EVIL, dtype=1))]
            )
        }
    ),
    "a refusal in the middle": sends({"refusal": pb.Refusal(code=EVIL, reason=EVIL)}),
}


def is_shown_plainly(text: str) -> bool:
    return all(one.isprintable() for line in text.split("\n") for one in line)


@pytest.mark.parametrize("where", EVERYWHERE)
def test_no_control_character_reaches_the_clients_terminal(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    with hostile(EVERYWHERE[where]) as address:
        try:
            run_client(address)
        except CutlayerError as error:
            with pytest.raises(SystemExit):
                commands.fail(error)
    out, err = capfd.readouterr()
    assert out + err
    assert is_shown_plainly(out)
    assert is_shown_plainly(err)


def test_a_status_of_grpcs_is_shown_plainly(capfd: pytest.CaptureFixture[str]) -> None:
    """Its details may hold what protobuf's text may not."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    def refuse(_frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_trailing_metadata(((REFUSED_BY, "rate"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, EVIL)
        yield b""

    server = grpc.server(ThreadPoolExecutor(2))
    method = {"Train": grpc.stream_stream_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("sl.v1.SplitLearning", method)])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(CutlayerError) as caught:
            run_client(address)
    finally:
        server.stop(grace=0).wait()
    with pytest.raises(SystemExit):
        commands.fail(caught.value)
    out, err = capfd.readouterr()
    assert "a" in out + err
    assert is_shown_plainly(out + err)


def test_a_doctor_shows_what_a_server_says_of_itself_plainly(capfd: pytest.CaptureFixture[str]) -> None:
    def pong(frames: Iterator[bytes]) -> Iterator[bytes]:
        for data in frames:
            ping = pb.Ping.FromString(data)
            yield pb.Ping(payload=bytes(ping.reply_bytes), software=EVIL, version=99).SerializeToString()

    with hostile(pong) as address, pytest.raises(Refused):
        examine(address, PLAINTEXT, as_json=False)
    out, _ = capfd.readouterr()
    assert "server_version" in out
    assert is_shown_plainly(out)


def test_every_text_that_a_server_can_send_is_in_the_table() -> None:
    """A new field needs a row above."""
    fields = {
        f"{message.name}.{field.name}"
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.type == field.TYPE_STRING
    }
    client_says = {"Hello.software", "Hello.client", "Leave.reason", "Digest.part", "Ready.torch"}
    told = {"Refusal.code", "Refusal.reason", "Greeting.client", "Greeting.software", "Bye.reason", "Ping.software"}
    told |= {
        "Welcome.config",
        "Welcome.client",
        "Welcome.run",
        "Offer.config",
        "Tensor.codec",
        "Begin.upload",
        "Begin.parts",
    }
    told |= {"NamedTensor.part", "NamedTensor.name", "Aligned.parts", "Done.parts", "Lower.parts"}
    told |= {
        "Offer.torch",
        "Build.part",
        "Build.layout",
        "Build.modules",
        "Inputs.dtype",
        "Inputs.digest",
    }  # an Offer's
    assert fields <= told | client_says
