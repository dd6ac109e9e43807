"""`sl-server serve` and `sl-client predict` as people and scripts use them: files, output, signals and exit codes."""

from __future__ import annotations

import gzip
import json
import signal
import struct
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from asked import trained_in
from authority import write_tokens
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from processes import PATIENCE_S, Process, ran_all, started
from safetensors.torch import load_file
from test_export import digits, plain_cnn
from test_predict import SMALL
from world import make_config

from sl_server.storage.export import export_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory, and a person's files: the first test samples of digits as an array, an IDX file and a picture."""
    folder = tmp_path_factory.mktemp("predict")
    trained_in(folder / "run", make_config("splitfed_v2", **SMALL))
    with np.load(str(files("sl_client.data") / "digits.npz")) as arrays:
        images = arrays["images"][4::5][:40].reshape(-1, 8, 8)
    np.save(folder / "images.npy", images)
    (folder / "images.gz").write_bytes(gzip.compress(struct.pack(">IIII", 0x0803, *images.shape) + images.tobytes()))
    Image.fromarray(images[0]).save(folder / "one.png")
    write_tokens(folder / "tokens.toml", {"north": "t" * 32})
    (folder / "north.token").write_text("t" * 32)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    """By environment variables alone, and with tokens."""
    env = {
        "SL_LISTEN": "127.0.0.1:0",
        "SL_METRICS": "127.0.0.1:0",
        "SL_TOKENS": str(folder / "tokens.toml"),
        "SL_JSON": "1",
    }
    with started("sl-server", "serve", folder / "run", env=env) as process:
        process.event("metrics")
        yield process


@pytest.fixture(scope="module")
def done(folder: Path, server: Process) -> dict[str, Process]:
    """Every command that ends by itself."""
    address = server.event("listening")["address"]
    predict = "sl-client", "predict", "--server", address, "--cache", folder / "cache"
    known = *predict, "--token", f"@{folder}/north.token"
    array, idx, png = (folder / name for name in ("images.npy", "images.gz", "one.png"))
    return ran_all(
        {
            "json": (*known, array, idx, png, "--json"),
            "text": (*known, png, array, "--batch", 8),
            "test": (*known, "--test", 0, "--json"),
            "no token": (*predict, array),
            "no such file": (*known, folder / "absent.png"),
            "nothing": (*known,),
            "both": (*known, array, "--test", 5),
            "no run": ("sl-server", "serve", folder),
        }
    )


def test_json_lines_hold_the_exported_networks_scores(folder: Path, done: dict[str, Process]) -> None:
    process = done["json"]
    assert process.code == 0, process.err
    found = [event for event in process.events if event["event"] == "prediction"]
    network = plain_cnn()
    network.load_state_dict(load_file(export_run(folder / "run")[0]))
    with torch.no_grad():
        wanted = network.eval()(digits()[0][:40])
    scores = torch.tensor([event["scores"] for event in found])
    torch.testing.assert_close(scores, torch.cat([wanted, wanted, wanted[:1]]), rtol=0, atol=1e-5)
    assert [event["class"] for event in found[:40]] == wanted.argmax(1).tolist()
    p = torch.tensor([event["probability"] for event in found[:40]])
    torch.testing.assert_close(p, wanted.softmax(1).max(1).values, rtol=0, atol=1e-5)
    names = [event["file"].rpartition("/")[2] for event in found]
    assert names == [f"images.npy[{n}]" for n in range(40)] + [f"images.gz[{n}]" for n in range(40)] + ["one.png"]
    summary = process.events[-1]
    assert (summary["event"], summary["samples"], summary["requests"]) == ("summary", 81, 3)
    assert 0 < summary["p50_ms"] <= summary["p99_ms"]
    assert summary["bytes_up"] > 81 * 4 * 4 * 4 * 4


def test_text_is_a_table(done: dict[str, Process]) -> None:
    process = done["text"]
    assert (process.code, process.err) == (0, "")
    head, first, *_, last = process.lines
    assert head.split() == ["file", "class", "probability", "ms"]
    assert first.split()[0].endswith("one.png")
    assert len(process.lines) == 1 + 41 + 1
    assert last.startswith("41 samples in 6 requests, ")
    assert last.endswith("; lower segment on cpu")


def test_the_accuracy_on_the_runs_own_test_set_is_the_runs(folder: Path, done: dict[str, Process]) -> None:
    process = done["test"]
    assert process.code == 0, process.err
    (summary,) = process.events
    evaluation = json.loads((folder / "run" / "summary.json").read_text())["evaluation"]
    assert (summary["accuracy"], summary["samples"]) == (evaluation["accuracy"], evaluation["samples"])


MISTAKES = {
    "no token": (3, "this server takes a client's own token"),
    "no such file": (2, "absent.png: no such file"),
    "nothing": (2, "give either files, or --test N for the run's test set"),
    "both": (2, "give either files, or --test N"),
    "no run": (2, "not a run directory"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_ends_with_its_code_and_says_why(done: dict[str, Process], what: str) -> None:
    code, told = MISTAKES[what]
    assert (done[what].code, told in done[what].err) == (code, True), done[what].err
    assert "Traceback" not in done[what].err


def test_a_server_that_is_told_to_end_sums_up(server: Process, done: dict[str, Process]) -> None:
    """After everybody else; health and metrics before that."""
    with grpc.insecure_channel(server.event("listening")["address"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service="sl.v1.SplitLearning"), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.event('metrics')['port']}/metrics", timeout=PATIENCE_S
    ) as page:
        text = page.read().decode()
    samples = 81 + 41 + done["test"].events[0]["samples"]
    assert f"sl_infer_samples_total {samples:.1f}\n" in text
    assert 'sl_rejected_total{reason="identity"} 1.0\n' in text
    server.signal(signal.SIGTERM)
    assert server.end() == 0, server.err
    assert server.events[-1]["event"] == "summary"
    assert server.events[-1]["samples"] == samples
