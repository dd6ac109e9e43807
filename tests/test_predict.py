"""Split inference over real streams: the same scores as the unsplit network, whoever shares the pass and whatever breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from asked import LiveAnswers, Stranger, answering, trained_in
from authority import TOKENS, Authority, write_tokens
from live import FlakyCarrier, OfBefore, serving
from safetensors.torch import load_file, save_file
from test_codec_network import LINKS
from test_export import digits, plain_cnn
from torch import Tensor
from world import make_config

from sl_client.console.show import ClientLines
from sl_client.inference.predictor import Predictor
from sl_client.training.runner import Runner
from sl_client.transport.access import Access
from sl_client.transport.connection import Interrupted
from sl_common.codec import Coding, Link
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, PeerLost, Refused, WireError
from sl_common.messages.inference import Fetch, Offer, Query
from sl_common.messages.training import Smashed
from sl_common.wire import WIRE_VERSION, Endpoint
from sl_server.inference.microbatch import MicroBatching
from sl_server.security.credentials import Credentials
from sl_server.security.tokens import Tokens
from sl_server.storage.export import export_run
from sl_server.storage.trained import read_trained_run
from sl_server.storage.weight_set import write_weights

SMALL = {"model__name": "cnn", "model__args": "{ channels = [4, 8], hidden = 16 }", "run__rounds": 1}
KEEP = {"protocol__merge": '{ kind = "keep" }'} | SMALL
X, Y = digits()
PATIENT = MicroBatching(max_wait_s=30.0)  # a pass waits for everybody who is connected


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose clients and server share everything at the end."""
    out = tmp_path_factory.mktemp("shared") / "run"
    trained_in(out, make_config("splitfed_v1", **SMALL))
    return out


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose clients kept their lower segments, and the server a head for each."""
    out = tmp_path_factory.mktemp("private") / "run"
    trained_in(out, make_config("splitfed_v1", **KEEP))
    return out


@pytest.fixture(scope="module")
def live(shared: Path) -> Iterator[LiveAnswers]:
    with answering(shared) as live:
        yield live


def predictor(live: LiveAnswers, **options: object) -> Predictor:
    return Predictor(live.address, **options)


def ask(live: LiveAnswers, batches: list[Tensor], window: int | None = None, **options: object) -> Tensor:
    """Scores of all batches together."""
    with predictor(live, **options) as asked:
        asked.open()
        return torch.cat([answer.scores for answer in asked.ask(batches, window)])


def unsplit(weights: Path, x: Tensor = X) -> Tensor:
    """By plain PyTorch, which knows nothing of this project."""
    network = plain_cnn()
    network.load_state_dict(load_file(weights))
    with torch.no_grad():
        return network.eval()(x)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((found - wanted).abs().max() <= tolerance)


# --- the same as without a cut


@pytest.mark.parametrize("size", [1, 7, 32])
def test_scores_are_those_of_the_exported_network(shared: Path, live: LiveAnswers, tmp_path: Path, size: int) -> None:
    path, _ = export_run(shared, to=tmp_path / "model.safetensors")
    assert close(ask(live, list(X[:70].split(size))), unsplit(path, X[:70]))


@pytest.mark.parametrize("preset", ["sequential", "fedavg", "cse_fsl"])
def test_of_whatever_protocol(preset: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained_in(out, make_config(preset, **SMALL))
    path, _ = export_run(out)
    with answering(out) as live:
        assert close(ask(live, list(X[:64].split(32))), unsplit(path, X[:64]))


@pytest.mark.parametrize("kind", [name for name, link in LINKS.items() if "up" in link])
def test_through_a_codec_they_are_those_of_encoding_and_decoding_by_hand(
    shared: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    config = make_config("splitfed_v1", codec__up=LINKS[kind]["up"], **SMALL)
    (out / "config.json").write_text(config.to_json())
    for name in ("lower.safetensors", "head.safetensors", "weights.json"):
        (out / name).write_bytes((shared / name).read_bytes())
    whole = plain_cnn()
    whole.load_state_dict(load_file(export_run(out)[0]))
    wanted = []
    with torch.no_grad():
        for step, x in enumerate(X[:64].split(32)):
            coding = Coding(training=False, draw=(0, 0, "codec", "z", step))
            z = whole.eval()[0](x)
            wanted.append(whole[1:](config.codec.up.decode(config.codec.up.encode(z, coding), coding)))
    with answering(out) as live:
        found = ask(live, list(X[:64].split(32)))
    assert close(found, torch.cat(wanted))
    assert not close(found, unsplit(out / "model.safetensors", X[:64])), "the codec is in between"


# --- who shares a pass


def test_queries_of_several_clients_go_through_the_head_together(shared: Path, live: LiveAnswers) -> None:
    """Four clients in step: each pass has one query of each; its scores are those that each would get alone."""
    shares = [list(X[n : n + 20].split(1)) for n in range(0, 80, 20)]
    alone = [ask(live, share, window=1) for share in shares]
    found: dict[int, Tensor] = {}
    with answering(shared, PATIENT) as crowded:
        here = threading.Barrier(len(shares))

        def client(number: int) -> None:
            with predictor(crowded) as asked:
                asked.open()
                here.wait(20)
                found[number] = torch.cat([answer.scores for answer in asked.ask(shares[number], window=1)])
                here.wait(20)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(len(shares))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        passes = crowded.sample("sl_infer_batch_size_count")
        samples = crowded.sample("sl_infer_samples_total")
    assert (passes, samples) == (20, 80)
    assert all(close(found[n], alone[n], 1e-5) for n in range(len(shares)))


def test_a_lone_client_waits_for_nobody(shared: Path) -> None:
    with answering(shared, PATIENT) as live:
        assert len(ask(live, list(X[:20].split(1)))) == 20


def test_who_is_silent_is_waited_for_no_longer_than_agreed(shared: Path) -> None:
    with answering(shared, MicroBatching(max_wait_s=0.05)) as live, predictor(live) as silent:
        silent.open()
        with predictor(live) as asked:
            asked.open()
            seconds = [answer.seconds for answer in asked.ask(list(X[:5].split(1)), window=1)]
    assert min(seconds) >= 0.05
    assert max(seconds) < 5


# --- private parts


def test_each_clients_lower_segment_goes_with_its_own_head(private: Path, tmp_path: Path) -> None:
    lowers = [private.parent / f"lower-{n}.safetensors" for n in range(3)]
    with answering(private) as live:
        for n, lower in enumerate(lowers):
            path, _ = export_run(
                private, lower=lower, head=private / f"head-{n}.safetensors", to=tmp_path / f"{n}.safetensors"
            )
            found = ask(live, list(X[:64].split(32)), lower=lower, shard=n, shards=3)
            assert close(found, unsplit(path, X[:64]))
        other = ask(live, [X[:32]], lower=lowers[0], shard=1)
        assert not close(other, unsplit(tmp_path / "0.safetensors", X[:32])), "another's head gives other scores"


def test_heads_of_different_clients_never_share_a_pass(private: Path) -> None:
    """With patience for everybody of the same head only, each is answered at once."""
    with (
        answering(private, PATIENT) as live,
        predictor(live, lower=private.parent / "lower-0.safetensors", shard=0) as idle,
    ):
        idle.open()
        assert len(ask(live, list(X[:5].split(1)), lower=private.parent / "lower-1.safetensors", shard=1)) == 5


PRIVATE_MISTAKES = {
    "no lower": ({"shard": 0}, ConfigError, r"lower segments of their own, and the server has none: give --lower FILE"),
    "no shard": ({}, Refused, r"had a head of its own: say whose, with --shard I/3 \(there are 1, 2, 3\)"),
    "no such shard": ({"shard": 7}, Refused, r"there is none of shard 8, with --shard I/3"),
    "shards": ({"shard": 0, "shards": 4}, Refused, r"client says there are 4 shards, this run has 3"),
}


@pytest.mark.parametrize("what", PRIVATE_MISTAKES)
def test_what_must_be_said_where_parts_are_private(private: Path, what: str) -> None:
    options, error, told = PRIVATE_MISTAKES[what]
    with answering(private) as live, pytest.raises(error, match=told), predictor(live, **options) as asked:
        asked.open()


# --- the lower segment on the device


def weights_sent(live: LiveAnswers) -> float:
    return live.sample("sl_wire_bytes_total", direction="down", kind="weights")


def test_the_lower_segment_is_sent_once_and_kept_by_its_digest(live: LiveAnswers, tmp_path: Path) -> None:
    first = ask(live, [X[:32]], cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.stem == live.trained.lower_sha256.hex()
    before = weights_sent(live)
    assert torch.equal(ask(live, [X[:32]], cache=tmp_path / "cache"), first)
    assert weights_sent(live) == before > 0
    kept.write_bytes(kept.read_bytes()[:-1])
    assert torch.equal(ask(live, [X[:32]], cache=tmp_path / "cache"), first)
    assert weights_sent(live) > before, "a damaged one is fetched again"
    changed = {name: tensor + 1 for name, tensor in load_file(kept).items()}
    save_file(changed, kept)
    assert torch.equal(ask(live, [X[:32]], cache=tmp_path / "cache"), first), "and so is a changed one"


def test_a_cache_that_cannot_be_written_costs_a_warning(live: LiveAnswers, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    assert len(ask(live, [X[:32]], cache=tmp_path / "file", warn=said.append)) == 32
    assert said == [f"--cache {tmp_path}/file: File exists; the lower segment is fetched again next time"]


def test_a_lower_segment_of_ones_own(shared: Path, live: LiveAnswers, tmp_path: Path) -> None:
    said: list[str] = []
    before = weights_sent(live)
    own = ask(live, [X[:32]], lower=shared / "lower.safetensors", warn=said.append)
    assert (weights_sent(live), said) == (before, [])
    assert torch.equal(own, ask(live, [X[:32]]))
    other = {name: 2 * tensor for name, tensor in load_file(shared / "lower.safetensors").items()}
    save_file(other, tmp_path / "other.safetensors")
    assert not torch.equal(own, ask(live, [X[:32]], lower=tmp_path / "other.safetensors", warn=said.append))
    assert said == [f"--lower {tmp_path}/other.safetensors is not the one that all clients of this run shared"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("absent", r"--lower .*absent: No such file"),
        ("config.json", r"--lower .*config\.json: "),
        ("head.safetensors", r"--lower .*head\.safetensors: weights of the lower segment do not fit this model"),
    ],
)
def test_a_file_that_is_no_lower_segment(shared: Path, live: LiveAnswers, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told), predictor(live, lower=shared / name) as asked:
        asked.open()


def test_code_of_the_users_is_imported_only_where_it_is_allowed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    toml = Path("examples/own_network.toml").read_text()
    trained_in(out, RunConfig.from_toml(toml, ["run.rounds=1", "run.clients=2", "client.wave={ steps = 2 }"]))
    with answering(out) as live:
        with (
            pytest.raises(ConfigError, match="start it with --allow examples"),
            predictor(live, allowed=("other",)) as asked,
        ):
            asked.open()
        with predictor(live, allowed=("examples",)) as asked:
            config = asked.open()
            (answer,) = asked.ask([torch.zeros(2, *config.input)])
            assert answer.scores.shape == (2, config.classes)


# --- streams that break, servers that go and come


@pytest.mark.parametrize("frames", [8, 9, 13])  # three open a stream, four ask, the others answer
def test_what_was_not_answered_is_asked_again(live: LiveAnswers, frames: int) -> None:
    said: list[str] = []
    batches = list(X[:160].split(8))
    connect = partial(FlakyCarrier, frames=frames, call="Infer")
    found = ask(live, batches, connect=connect, warn=said.append)
    assert close(found, ask(live, batches), 1e-5)
    assert len(said) >= 3
    assert all("the test cut this stream" in text for text in said)


def test_a_server_that_stops_answers_what_is_waiting(shared: Path) -> None:
    with answering(shared, PATIENT) as live, predictor(live) as idle, predictor(live, retry_s=0.0) as asked:
        idle.open()  # so that the other's query waits
        asked.open()
        found: list[Tensor] = []

        def client() -> None:
            answers = asked.ask(iter([X[:8], X[8:16]]), window=1)
            found.append(next(answers).scores)
            with pytest.raises(PeerLost, match="no server at"):
                next(answers)

        thread = threading.Thread(target=client)
        thread.start()
        while live.sample("sl_wire_bytes_total", direction="up", kind="infer") == 0:
            live.over.wait(0.01)
        live.inference.drain()
        thread.join(20)
        assert not thread.is_alive()
        assert len(found) == 1


def test_another_network_in_the_servers_place_is_told(shared: Path, private: Path) -> None:
    with answering(shared) as live:
        asked = predictor(live, lower=shared / "lower.safetensors", shard=0)
        asked.open()
        assert len(list(asked.ask([X[:8]]))) == 1
    with (
        answering(private, listen=live.address),
        pytest.raises(WireError, match="came back with another network"),
        asked,
    ):
        list(asked.ask([X[:8]]))


def test_a_client_that_is_interrupted(shared: Path) -> None:
    with answering(shared, PATIENT) as live, predictor(live) as idle, predictor(live) as asked:
        idle.open()
        asked.open()
        threading.Timer(0.3, asked.interrupt).start()
        with pytest.raises(Interrupted):
            list(asked.ask([X[:8]]))


# --- rules, and who breaks them


Z = torch.zeros(8, 4, 4, 4)
RUDE = {
    "shape": ([Query(step=0, z=torch.zeros(8, 4, 4))], "protocol", "(8, 4, 4), this run's cut has torch.float32"),
    "scalar": ([Query(step=0, z=torch.zeros(()))], "protocol", "activations are torch.float32 ()"),
    "dtype": ([Query(step=0, z=Z.double())], "protocol", "activations are torch.float64 (8, 4, 4, 4)"),
    "none": ([Query(step=0, z=Z[:0])], "protocol", "activations are torch.float32 (0, 4, 4, 4)"),
    "too many": ([Query(step=0, z=torch.zeros(33, 4, 4, 4))], "protocol", "'1 to 32', 4, 4, 4"),
    "too large": ([Query(step=0, z=torch.zeros(1000, 4, 40, 4))], "protocol", "this run allows"),
    "NaN": ([Query(step=0, z=Z + torch.nan)], "protocol", "activations hold NaN or Inf"),
    "training": ([Smashed(step=0, z=Z, y=torch.zeros(8, dtype=torch.int64))], "protocol", "smashed is not said on"),
    "weights twice": ([Fetch(), Fetch()], "limit", "sent once on a stream"),
}


@pytest.mark.parametrize("what", RUDE)
def test_who_breaks_the_rules_is_sent_away_and_nobody_else(live: LiveAnswers, what: str) -> None:
    messages, code, told = RUDE[what]
    with predictor(live) as polite:
        polite.open()
        before = live.sample("sl_rejected_total", reason=code)
        stranger = Stranger(live)
        stranger.say(*messages)
        refused = stranger.is_refused()
        assert (refused.code, told in refused.reason) == (code, True), refused.reason
        assert live.sample("sl_rejected_total", reason=code) == before + 1
        (answer,) = polite.ask([X[:8]])
        assert answer.scores.shape == (8, 10)


def test_who_asks_without_reading_is_sent_away(live: LiveAnswers) -> None:
    """For too many queries under way, or for an answer that is not acknowledged, whichever comes first."""
    stranger = Stranger(live)
    stranger.say(*(Query(step=n, z=Z) for n in range(5)))
    refused = stranger.is_refused()
    assert refused.code in ("limit", "protocol")
    assert "client.window = 4" in refused.reason


def test_a_window_is_as_wide_as_it_says(live: LiveAnswers) -> None:
    stranger = Stranger(live)
    assert isinstance(stranger.hear(), Offer)
    stranger.say(*[Query(step=n, z=Z) for n in range(4)])
    assert [stranger.hear().step for _ in range(4)] == [0, 1, 2, 3]
    stranger.say(Query(step=4, z=Z))
    assert stranger.hear().step == 4
    stranger.carrier.close()


def test_another_version_is_refused(live: LiveAnswers) -> None:
    with pytest.raises(Refused, match="client speaks wire version 99"):
        Endpoint("client", link=Link(), limit_bytes=1, call="infer").feed(Stranger(live, version=99).greeting)


def test_a_server_of_another_version_is_left_with_both_versions(live: LiveAnswers) -> None:
    with pytest.raises(Refused, match=f"the server speaks wire version 1 .*, this client {WIRE_VERSION} ") as caught:
        Predictor(live.address, connect=partial(OfBefore, call="Infer"), retry_s=5.0).open()
    assert caught.value.code == "version"


def test_each_server_refuses_the_others_call(live: LiveAnswers) -> None:
    with pytest.raises(Refused, match=r"answers predictions \(sl-server serve\)") as caught:
        Runner(live.address, show=ClientLines(), retry_s=0.0).run()
    assert caught.value.code == "over"
    with (
        serving(make_config("parallel", run__clients=1)) as trains,
        pytest.raises(Refused, match=r"this server trains \(sl-server run\)"),
        Predictor(trains.address) as asked,
    ):
        asked.open()


def test_tokens_and_certificates_are_asked_for_as_in_a_run(shared: Path, tmp_path: Path) -> None:
    ours = Authority(tmp_path / "ca")
    tokens = write_tokens(tmp_path / "tokens.toml")
    with answering(shared, door=ours.door(tokens=tokens)) as live:
        with predictor(live, access=ours.access("c0", token=TOKENS["c0"])) as asked:
            asked.open()
            assert len(list(asked.ask([X[:8]]))) == 1
        for access, told in (
            (ours.access("c0", token=TOKENS["c1"]), "a client's own token"),
            (ours.access("c0"), "a client's own token"),
            (ours.access(), "wants a client certificate"),
            (Access(), "speaks TLS"),
        ):
            with pytest.raises(Refused, match=told), predictor(live, access=access, retry_s=0.0) as asked:
                asked.open()
        assert live.sample("sl_rejected_total", reason="identity") == 2
    with answering(shared, door=Credentials(tokens=Tokens(tokens))) as live:
        assert len(ask(live, [X[:8]], access=Access(token=TOKENS["c2"]))) == 8


# --- what is counted


def test_what_is_counted_is_what_was_sent(shared: Path) -> None:
    with answering(shared) as live:
        with predictor(live) as asked:
            asked.open()
            assert len(list(asked.ask(list(X[:96].split(8)), window=2))) == 12
            up, down = asked.bytes_up, asked.bytes_down
        while live.sample("sl_infer_requests_total") < 12:
            live.over.wait(0.01)
        wire = {way: live.ledger.total(way) for way in ("up", "down")}
        assert wire == {"up": up, "down": down}
        z = 96 * 4 * 4 * 4 * 4
        assert live.sample("sl_payload_bytes_total", direction="up", kind="infer") == z
        assert live.sample("sl_payload_bytes_total", direction="down", kind="infer") == 96 * 10 * 4
        assert z < live.sample("sl_wire_bytes_total", direction="up", kind="infer") < z + 12 * 100
        assert live.sample("sl_infer_requests_total") == 12
        assert live.sample("sl_infer_samples_total") == live.sample("sl_infer_batch_size_sum") == 96
        told = 12 - 2  # a client's own measures ride with the query that follows the answer
        for phase, count in {"queue_wait": 12, "server_compute": 12, "wire": told, "client_forward": told}.items():
            assert live.sample("sl_infer_seconds_count", phase=phase) == count, phase
        while live.sample("sl_clients", state="connected"):
            live.over.wait(0.01)


# --- directories


def test_a_directory_that_cannot_answer(shared: Path, tmp_path: Path) -> None:
    warned: list[str] = []
    lower, head = load_file(shared / "lower.safetensors"), load_file(shared / "head.safetensors")
    with pytest.raises(ConfigError, match=r"not a run directory"):
        read_trained_run(tmp_path, warned.append)
    (tmp_path / "config.json").write_bytes((shared / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=r"no head\.safetensors here: weights are written when a run evaluates"):
        read_trained_run(tmp_path, warned.append)
    write_weights(tmp_path, {"head": lower}, 1)
    with pytest.raises(ConfigError, match=r"head\.safetensors do not fit this model"):
        read_trained_run(tmp_path, warned.append)
    write_weights(tmp_path, {"lower": head, "head": head}, 1)
    with pytest.raises(ConfigError, match=r"lower\.safetensors do not fit this model"):
        read_trained_run(tmp_path, warned.append)
    write_weights(tmp_path, {"head": head}, 1)
    assert warned == []
    assert read_trained_run(tmp_path, warned.append).lower is None
    assert warned == [
        f"{tmp_path}: the run is not over: these are the weights of its last evaluation, or of when it was stopped"
    ]


def test_weights_of_an_earlier_round_do_not_stay_beside_the_last_ones(tmp_path: Path) -> None:
    """Averaged after the second of three rounds: at the end every client and the server go by their own again."""
    out = tmp_path / "run"
    merge = '{ kind = "average", every = 2 }'
    rounds = SMALL | {"run__rounds": 3}
    trained_in(out, make_config("splitfed_v1", protocol__merge=merge, **rounds))
    assert sorted(path.name for path in out.glob("*.safetensors")) == [f"head-{n}.safetensors" for n in range(3)]
