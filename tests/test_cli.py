"""The two commands as people and scripts use them: real processes, their output, files, signals and exit codes."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from processes import PATIENCE_S, Process, ran, ran_all, started
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file
from small_run import SMALL
from typer.testing import CliRunner
from world import make_config

from sl_client.cli.application import app as client_app
from sl_common import __version__
from sl_common.config.presets import PRESETS
from sl_common.config.run_config import RunConfig
from sl_common.wire import Frame
from sl_common.wire.accounting import WIRE_KINDS
from sl_server.cli.application import app
from sl_server.preflight.check import inspect
from sl_server.simulation.simulation import Simulation

ENDLESS = "run.rounds=100000"
SUMMARY_KEYS = {"name", "preset", "finished", "failed", "reason", "rounds", "clients", "train_loss", "evaluation", "bytes", "payload_bytes"} | {
    "seconds", "weights_sha256", "seed", "threads", "torch", "cutlayer", "device", "inputs"
}  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- commands that end by themselves, run side by side

# fmt: off
OPTIONS = {
    ("sl-server",): ["--version", "run", "simulate", "check", "codecs", "presets", "export", "serve", "certs", "report"],
    ("sl-server", "run"): ["--log-level", "--quiet", "SL_LOG_LEVEL", "SL_QUIET", "RUN.toml", "--listen", "--metrics", "--out", "--set", "--insecure", "--record", "--json",
                           "--cert", "--key", "--client-ca", "--tokens", "SL_CERT", "SL_KEY", "SL_CLIENT_CA", "SL_TOKENS",
                           "SL_LISTEN", "SL_METRICS", "SL_OUT", "SL_SET", "SL_INSECURE", "SL_RECORD", "SL_JSON",
                           "--tensorboard", "SL_TENSORBOARD",
                           "127.0.0.1:50051", "runs/NAME-TIME"],
    ("sl-server", "simulate"): ["--log-level", "--quiet", "SL_LOG_LEVEL", "SL_QUIET", "RUN.toml", "--data", "--out", "--set", "--stacked", "off|auto|on", "--tensorboard", "--json",
                                "SL_TENSORBOARD", "SL_DATA", "SL_OUT", "SL_SET", "SL_STACKED", "SL_JSON"],
    ("sl-server", "check"): ["RUN.toml", "--set", "--resolved", "--json", "SL_SET", "SL_RESOLVED", "SL_JSON"],
    ("sl-server", "codecs"): ["RUN.toml", "--on", "--data", "--set", "--json", "SL_ON", "SL_DATA", "SL_SET", "SL_JSON"],
    ("sl-server", "presets"): ["--json", "SL_JSON"],
    ("sl-server", "export"): ["RUNDIR", "--to", "--lower", "--head", "SL_TO", "SL_LOWER", "SL_HEAD"],
    ("sl-server", "report"): ["RUNDIR", "--out", "SL_REPORT_OUT", "FILE.html"],
    ("sl-server", "serve"): ["--log-level", "--quiet", "SL_LOG_LEVEL", "SL_QUIET", "RUNDIR", "--listen", "--metrics", "--max-wait", "--max-batch", "--device", "--cert", "--key",
                             "--client-ca", "--tokens", "--insecure", "--json", "SL_LISTEN", "SL_METRICS", "SL_MAX_WAIT",
                             "SL_MAX_BATCH", "SL_DEVICE", "SL_CERT", "SL_TOKENS", "SL_INSECURE", "SL_JSON"],
    ("sl-server", "certs"): ["DIR", "--clients", "--name", "--host", "--days", "--add", "--json", "SL_CLIENTS", "SL_NAME",
                             "SL_HOST", "SL_DAYS", "SL_ADD", "SL_JSON"],
    ("sl-client",): ["--version", "run", "predict", "doctor"],
    ("sl-client", "run"): ["--log-level", "--quiet", "SL_LOG_LEVEL", "SL_QUIET", "--device", "SL_DEVICE", "--server", "--id", "--data", "--shard", "--allow", "--retry", "--save-lower", "--insecure", "--json",
                           "SL_SERVER", "SL_ID", "SL_DATA", "SL_SHARD", "SL_ALLOW", "SL_RETRY", "SL_SAVE_LOWER",
                           "SL_INSECURE", "SL_JSON", "--ca", "--cert", "--key", "--token", "@FILE",
                           "SL_CA", "SL_CERT", "SL_KEY", "SL_TOKEN"],
    ("sl-client", "predict"): ["--log-level", "--quiet", "SL_LOG_LEVEL", "SL_QUIET", "--device", "SL_DEVICE", "FILE", "--server", "--test", "--batch", "--lower", "--shard", "--cache", "--id", "--data",
                               "--allow", "--retry", "--ca", "--cert", "--key", "--token", "--insecure", "--json",
                               "SL_SERVER", "SL_TEST", "SL_BATCH", "SL_LOWER", "SL_SHARD", "SL_CACHE", "SL_ID", "SL_DATA",
                               "SL_ALLOW", "SL_RETRY", "SL_CA", "SL_TOKEN", "SL_INSECURE", "SL_JSON"],
    ("sl-client", "doctor"): ["--server", "--insecure", "--json", "SL_SERVER", "SL_INSECURE", "SL_JSON",
                              "--ca", "--cert", "--key", "--token", "SL_CA", "SL_CERT", "SL_KEY", "SL_TOKEN"],
}

# name -> (command line, exit code, what stderr tells); {small} is a good file, {tmp} a folder, {taken} a port in use
MISTAKES: dict[str, tuple[str, int, str]] = {
    "bad key": ("sl-server check {tmp}/bad.toml", 2, "bad.toml: run.round: unknown key, did you mean 'rounds'?"),
    "no such file": ("sl-server run {tmp}/absent.toml", 2, "absent.toml: No such file or directory"),
    "no such option": ("sl-server run {small} --nonsense", 2, "No such option: --nonsense"),
    "no file": ("sl-server run", 2, "give a configuration RUN.toml, or --resume DIR"),
    "bad --set": ("sl-server simulate {small} --set run.rounds", 2, "--set 'run.rounds': write it as key.subkey=value"),
    "bad --listen": ("sl-server run {small} --listen nowhere", 2, "--listen 'nowhere': write it as HOST:PORT"),
    "port too high": ("sl-server run {small} --listen 127.0.0.1:65536", 2, "--listen '127.0.0.1:65536'"),
    "bad --metrics": ("sl-server run {small} --metrics x", 2, "--metrics 'x': write it as HOST:PORT"),
    "plaintext server": ("sl-server run {small} --listen 0.0.0.0:0", 2, "--listen 0.0.0.0:0 is not on this machine alone"),
    "half of TLS": ("sl-server run {small} --cert {small}", 2, "--cert and --key belong together"),
    "certs twice": ("sl-server certs {tmp}/certs --clients 1", 2, "{tmp}/certs/c0.pem exists and is not overwritten"),
    "no run to report": ("sl-server report {tmp}/absent", 2, "{tmp}/absent: not a run directory (No such file or directory: config.json)"),
    "report nowhere": ("sl-server report {finished} --out {tmp}/no/page.html", 2, "--out {tmp}/no/page.html: No such file or directory"),
    "no CA file": ("sl-client run --server 192.0.2.1:1 --ca {tmp}/absent", 2, "--ca {tmp}/absent: No such file or directory"),
    "token in the open": ("sl-client run --server 192.0.2.1:1 --insecure --token x", 2, "would be sent to 192.0.2.1:1 in plaintext"),
    "port taken": ("sl-server run {small} --listen 127.0.0.1:{taken} --out {tmp}/o1", 2, "127.0.0.1:{taken}: cannot be bound"),
    "metrics port taken": ("sl-server run {small} --listen 127.0.0.1:0 --metrics 127.0.0.1:{taken} --out {tmp}/o2", 2,
                           "--metrics 127.0.0.1:{taken}: Address already in use"),
    "--out finished": ("sl-server simulate {small} --out {finished}", 2, "holds a run already; choose another directory"),
    "another run there": ("sl-server run {small} --resume {finished} --set run.rounds=9", 2, "run.rounds is 9 here and"),
    "--stacked on": ("sl-server simulate {small} --set codec.up.kind=float8 --stacked on --out {tmp}/o4", 2,
                     "--stacked on: codec.up.kind = 'float8'"),
    "--out unwritable": ("sl-server simulate {small} --out {small}/run", 2, "/run: Not a directory"),
    "no data": ("sl-server simulate {small} --set data.name=fashion-mnist --data {tmp}/damaged --out {tmp}/o3", 2,
                "{tmp}/damaged: no train-labels-idx1-ubyte"),
    "bad --server": ("sl-client run --server here", 2, "--server 'here': write it as HOST:PORT"),
    "plaintext client": ("sl-client run --server 192.0.2.1:1", 2, "192.0.2.1:1 is another machine: add TLS with --ca"),
    "plaintext doctor": ("sl-client doctor --server example.org:1", 2, "example.org:1 is another machine"),
    "bad --shard": ("sl-client run --shard 3/2", 2, "--shard '3/2': write it as I/N with I from 1 to N"),
    "bad --save-lower": ("sl-client run --save-lower {tmp}/no/lower", 2, "there is no folder"),
    "nobody there": ("sl-client run --server 127.0.0.1:{free} --retry 1", 4, "no server at 127.0.0.1:{free} for 1 s"),
    "no doctor there": ("sl-client doctor --server 127.0.0.1:{free}", 4, "no server at 127.0.0.1:{free}"),
}
# fmt: on


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def simulated(small: Path) -> Iterator[tuple[Process, Path]]:
    """A run in one process whose output goes into a pipe, and its directory."""
    out = small.parent / "simulated"
    return ran("sl-server", "simulate", small, "--out", out), out


@pytest.fixture(scope="module")
def ended(small: Path, simulated: tuple[Process, Path]) -> Iterator[dict[str, tuple[Process, dict[str, str]]]]:
    """Every command that ends by itself, with what filled its command line in."""
    tmp = small.parent
    (tmp / "bad.toml").write_text("[run]\nround = 3")
    (tmp / "certs").mkdir()
    (tmp / "certs" / "c0.pem").touch()
    (tmp / "damaged").mkdir()
    (tmp / "damaged" / "train-images-idx3-ubyte").write_bytes(b"")
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = {"small": str(small), "tmp": str(tmp), "finished": str(simulated[1])}
        words |= {"taken": str(server.getsockname()[1]), "free": str(free_port())}
        lines = {" ".join(command) + " --help": " ".join(command) + " --help" for command in OPTIONS}
        lines |= {f"{command} --version": f"{command} --version" for command in ("sl-server", "sl-client")}
        lines |= {name: line.format(**words) for name, (line, _, _) in MISTAKES.items()}
        lines["presets --json"] = "sl-server presets --json"
        lines["check --json"] = f"sl-server check {simulated[1]}/config.json --json"
        lines["simulate --json"] = f"sl-server simulate {small} --json --out {tmp}/again"
        done = ran_all({name: tuple(line.split()) for name, line in lines.items()})
    return {name: (process, words) for name, process in done.items()}


@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_help_names_every_option_and_variable(ended: dict, command: tuple[str, ...]) -> None:
    process, _ = ended[" ".join(command) + " --help"]
    assert process.code == 0
    assert [word for word in OPTIONS[command] if word not in process.out] == []


@pytest.mark.parametrize("command", ["sl-server", "sl-client"])
def test_version(ended: dict, command: str) -> None:
    process, _ = ended[f"{command} --version"]
    assert (process.code, process.out) == (0, f"cutlayer {__version__}")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_its_code_and_says_why(ended: dict, name: str) -> None:
    process, words = ended[name]
    _, code, told = MISTAKES[name]
    assert process.code == code, process.out + process.err
    assert told.format(**words) in process.err
    assert "Traceback" not in process.err


def test_a_run_that_could_not_begin_leaves_its_place_free(ended: dict, small: Path) -> None:
    assert ended["no data"][0].code == 2
    assert not (small.parent / "o3").exists()


def in_a_pipe(*command: object) -> str:
    """Output of `sl-server` in this process, 80 columns wide."""
    words = [str(word) for word in command]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "80", "NO_COLOR": "1"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_presets_for_people() -> None:
    shown = in_a_pipe("presets")
    assert "[protocol] preset = NAME" in shown
    assert all(name in shown for name in PRESETS)
    assert "merge average, parts lower and head" in shown
    assert "…" not in shown  # nothing is cut off
    assert max(map(len, shown.splitlines())) <= 80


LATER = ["loss_async", "locsplitfed", "locfedsl", "locfedmix", "cse_fsl", "fsl_sage"]


def test_presets_for_programs(ended: dict) -> None:
    """Each preset's hooks, put under [protocol], make the preset."""
    process, _ = ended["presets --json"]
    rows = json.loads(process.out)
    assert list(rows) == ["sequential", "parallel", "sglr", "splitfed_v1", "splitfed_v2", *LATER, "fedavg"]
    for name, row in rows.items():
        assert RunConfig.from_json(json.dumps({"protocol": row["hooks"]})).protocol == PRESETS[name].protocol
        assert row["source"]
        assert row["traffic"]


def test_check_for_people(small: Path) -> None:
    shown = in_a_pipe("check", small, "--resolved")
    assert "run 'small': 2 rounds, 2 clients, splitfed_v2, model mlp on digits (1, 8, 8), batch 32" in shown
    assert "→ 1 │ hidden1 │ (16,)" in shown
    assert '"grace_s": 30.0' in shown  # --resolved
    assert "traffic of one pass over the data: 2|D|S + 2C|w_lower|" in shown


CODECS = (
    "--set",
    'codec.up={ kind = "mask", r = 0.9, signed = false }',
    "--set",
    'codec.down={ kind = "deflate", of = { kind = "float8" } }',
)


def test_check_shows_each_directions_bytes_and_ratio(small: Path) -> None:
    shown = in_a_pipe("check", small, *CODECS)
    assert "│ up   │ mask r=0.9 b=2" in shown
    assert "6.17×" in shown
    assert "≈" in next(line for line in shown.splitlines() if line.startswith("│ down"))
    (row,) = [row for row in json.loads(in_a_pipe("check", small, *CODECS, "--json"))["cuts"] if row["cut"] == 1]
    d = 32 * 16  # batch and cut
    assert row["up"]["encoded"] == 4 * (d // 10) + 2 * d // 8
    assert row["up"]["least"] == row["up"]["most"]
    assert (row["down"]["least"], row["down"]["most"]) == (1, d)


@pytest.mark.parametrize(
    ("preset", "up", "down"), [("parallel", True, True), ("cse_fsl", True, False), ("fedavg", False, False)]
)
def test_check_knows_what_crosses_the_cut(preset: str, up: bool, down: bool) -> None:
    report = inspect(make_config(preset))
    own = next(cut for cut in report.cuts if cut.cut == report.chosen)
    assert (own.up.plain, own.down.plain) == (32 * 16 * 4 * up, 32 * 16 * 4 * down)
    assert bool(own.up.wire) == up
    plain = next(cut for cut in inspect(make_config("parallel")).cuts if cut.cut == report.chosen)
    assert (own.client_memory > plain.client_memory) == (preset == "cse_fsl"), (
        "its auxiliary network is trained there too"
    )


def test_codecs_compares_all_of_them_on_real_data(small: Path) -> None:
    shown = in_a_pipe("codecs", small, *CODECS)
    assert "→ mask r=0.9 b=2 signed=false" in shown
    assert "a batch's activation: mlp on digits at cut 1, untrained, (32, 16)" in shown
    found = json.loads(in_a_pipe("codecs", small, *CODECS, "--on", "gradient", "--json"))
    rows = {row["codec"]: row for row in found["rows"]}
    assert rows["identity"]["error"] == 0
    assert rows["identity"]["ratio"] == 1
    assert rows["deflate of float8"]["configured"]
    assert {row["config"]["kind"] for row in found["rows"]} >= {
        "float8",
        "mask",
        "topk",
        "randtopk",
        "uniform",
        "masked",
    }
    assert 0 < rows["float8"]["error"] < rows["uniform bits=4"]["error"] < rows["topk r=0.99"]["error"] < 1


def test_checks_bytes_are_those_of_a_step(ended: dict, simulated: tuple[Process, Path]) -> None:
    """To the byte, for every full batch but a wave's first, whose number 0 takes no room."""
    process, _ = ended["check --json"]
    report = json.loads(process.out)
    assert report["config"] == read_json(simulated[1] / "config.json")  # a run's own config.json can be checked
    sent: dict[str, list[int]] = {"up": [], "down": []}

    def count(direction: str, frame: object) -> None:
        if isinstance(frame, Frame) and frame.tally[0][0] in ("smashed", "gradient"):
            sent[direction].append(sum(nbytes for _, nbytes in frame.tally))

    config = RunConfig.from_json(json.dumps(report["config"]))
    Simulation(config.model_copy(update={"run": config.run.model_copy(update={"rounds": 1})}), count=count).run()
    own = report["cuts"][report["cut"] - 1]
    for direction in ("up", "down"):
        first, *rest = sorted(sent[direction])[1:]  # there are two clients, and so two first batches
        assert set(rest) == {own[direction]["wire"]}
        assert own[direction]["wire"] - 2 == first
    assert own["shape"] == [16]
    assert own["lower_bytes"] == 4 * (64 * 16 + 16)
    assert report["head_bytes"] == 4 * (16 * 10 + 10)


# --- what a run leaves and shows


def test_simulate_writes_the_run_directory(simulated: tuple[Process, Path]) -> None:
    process, out = simulated
    assert process.code == 0, process.err
    assert {path.name for path in out.iterdir()} == {
        "config.json", "metrics.jsonl", "metrics.csv", "digests.log", "summary.json", "lower.safetensors", "head.safetensors",
        "weights.json", "run.json", "inputs.json", ".lock",
    }  # fmt: skip
    summary = read_json(out / "summary.json")
    assert summary.keys() == SUMMARY_KEYS
    assert (summary["name"], summary["preset"], summary["finished"]) == ("small", "splitfed_v2", True)
    assert (summary["rounds"], summary["clients"], summary["evaluation"]["samples"]) == (2, 2, 359)
    events = json_lines(out / "metrics.jsonl")
    assert [e["round"] for e in events if e["event"] == "round"] == [1, 2]
    trained = sum(e["steps"] for e in events if e["event"] == "client_done" and not e["evaluate"])
    assert len((out / "digests.log").read_text().splitlines()) == trained == 2 * 2 * 3
    assert load_file(out / "lower.safetensors").keys() == {"hidden1.1.weight", "hidden1.1.bias"}
    assert load_file(out / "head.safetensors").keys() == {"out.weight", "out.bias"}


def test_plain_lines_in_a_pipe(simulated: tuple[Process, Path]) -> None:
    """No colours, no bar, nothing wider than a terminal and nothing cut off."""
    process, out = simulated
    summary = read_json(out / "summary.json")
    assert process.lines[1:3] == ["c0 joined (shard 1)", "c1 joined (shard 2)"]
    assert process.lines[-2:] == [f"weights sha256 {summary['weights_sha256']}", f"everything is in {out}"]
    assert f"{summary['evaluation']['accuracy']:.2%} of 359 held-out samples" in process.out
    assert "\x1b" not in process.out
    assert "…" not in process.out
    assert max(len(line) for line in process.lines[:-1] if ", wave " not in line) <= 80, "progress aside"


def test_one_json_object_a_line(ended: dict, simulated: tuple[Process, Path]) -> None:
    """The same run again: the same weights."""
    process, _ = ended["simulate --json"]
    assert process.code == 0
    said = [e["event"] for e in process.events if e["event"] != "progress"]
    assert said == ["device"] + ["joined"] * 2 + ["round", "evaluation"] * 2 + ["summary"]
    again, first = process.events[-1], read_json(simulated[1] / "summary.json")
    assert again.keys() == SUMMARY_KEYS | {"time", "level", "event", "run", "host"}
    same = SUMMARY_KEYS - {"seconds"}
    assert {key: again[key] for key in same} == {key: first[key] for key in same}


# --- a live server, and everything that can knock at it


@pytest.fixture(scope="module")
def live(small: Path) -> Iterator[tuple[Process, str, int]]:
    """A server set up by environment variables alone, which waits for two clients; its address and metrics port."""
    env = {
        "SL_LISTEN": "127.0.0.1:0",
        "SL_METRICS": "127.0.0.1:0",
        "SL_OUT": str(small.parent / "live"),
        "SL_SET": f"{ENDLESS} run.name=live run.clients=2 client.wave={{steps=3}} model.args.width=4",
        "SL_JSON": "1",
    }
    with started("sl-server", "run", "examples/own_network.toml", env=env) as server:
        yield server, server.event("listening")["address"], server.event("metrics")["port"]


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Every sample by its name and label values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, *s.labels.values()): s.value for s in samples}


def test_doctor(live: tuple[Process, str, int]) -> None:
    _, address, _ = live
    process = ran("sl-client", "doctor", "--server", address, "--json")
    assert process.code == 0, process.err
    report = json.loads(process.out)
    assert (report["server"], report["tls"]) == (address, False)
    assert report["server_version"] == report["cutlayer"] == __version__
    assert report["server_wire_version"] == report["wire_version"]
    assert min(report["round_trip_ms"], report["up_mbit_per_s"], report["down_mbit_per_s"]) > 0
    shown = CliRunner().invoke(client_app, ["doctor", "--server", address], catch_exceptions=False)
    assert [line.split()[0] for line in shown.output.splitlines()] == list(report)


def test_health(live: tuple[Process, str, int]) -> None:
    with grpc.insecure_channel(live[1]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "sl.v1.SplitLearning"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service(live: tuple[Process, str, int]) -> None:
    with grpc.insecure_channel(live[1]) as channel:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([ask]), timeout=PATIENCE_S
        )
        names = {service.name for service in next(answers).list_services_response.service}
    assert {"sl.v1.SplitLearning", "grpc.health.v1.Health"} <= names


NAMES = {
    "sl_wire_bytes_total", "sl_payload_bytes_total", "sl_step_seconds_count", "sl_clients", "sl_round", "sl_loss", "sl_accuracy"
} | {"sl_reconnects_total", "sl_rejected_total", "sl_samples_total", "sl_steps_total", "sl_build_info"}  # fmt: skip
PHASES = {"client_forward", "encode", "wire", "queue_wait", "server_compute", "decode", "client_backward"}


def test_devices_that_cannot_take_part(live: tuple[Process, str, int], tmp_path: Path) -> None:
    """Each ends with 2; the server goes on and says why."""
    server, address, _ = live
    client = "sl-client", "run", "--server", address, "--id"
    gone = ran_all(
        {"refuses": (*client, "refuses"), "lacks": (*client, "lacks", "--allow", "examples", "--data", tmp_path)}
    )
    assert {name: process.code for name, process in gone.items()} == {"refuses": 2, "lacks": 2}
    told = "this device imports code only from allowed packages (none); start it with --allow examples"
    assert told in gone["refuses"].err
    assert told in server.event("left", client="refuses")["reason"]
    assert f"{tmp_path}/digits.npz: no such file" in gone["lacks"].err
    assert f"{tmp_path}/digits.npz: no such file" in server.event("left", client="lacks")["reason"]


def test_a_run_from_its_first_client_to_its_operators_interrupt(live: tuple[Process, str, int], small: Path) -> None:
    """Refusals, metrics and Ctrl-C on the server, one after the other in one run that would not end by itself."""
    server, address, port = live
    client = "sl-client", "run"
    with ExitStack() as stack:
        env = {"SL_SERVER": address, "SL_ID": "north", "SL_SHARD": "2/2", "SL_ALLOW": "other examples", "SL_JSON": "1"}
        north = stack.enter_context(started(*client, env=env))
        assert server.event("joined", client="north")["shard"] == 2
        wrong = ran_all(
            {
                "count": (*client, "--server", address, "--shard", "1/3"),
                "taken": (*client, "--server", address, "--shard", "2/2"),
            }
        )
        assert {name: process.code for name, process in wrong.items()} == {"count": 3, "taken": 3}
        assert "client says there are 3 shards, this run has 2" in wrong["count"].err
        assert "shard 2 belongs to client 'north'" in wrong["taken"].err

        other = stack.enter_context(started(*client, "--server", address, "--allow", "examples", "--json"))
        assert other.event("joined")["shard"] == 1
        server.event("evaluation")
        before = scrape(port)
        third = ran(*client, "--server", address)
        assert (third.code, "all 2 shards of this run have a client" in third.err) == (3, True), third.err
        server.event("round", round=before["sl_round",] + 2)
        after = scrape(port)
        check_metrics(before, after)

        server.signal(signal.SIGINT)
        assert server.end() == 130, server.err
        assert (north.end(), other.end()) == (1, 1), north.err + other.err
    assert "the run ended before its last round: stopped by its operator (SIGINT)" in north.err
    ended = {"event": "ended", "reason": "stopped by its operator (SIGINT)", "finished": False}
    assert any(ended.items() <= event.items() for event in north.events[-2:])
    out = small.parent / "live"
    summary = read_json(out / "summary.json")
    assert summary.keys() == SUMMARY_KEYS
    assert (summary["name"], summary["finished"], summary["reason"]) == (
        "live",
        False,
        "stopped by its operator (SIGINT)",
    )
    end = next(event for event in json_lines(out / "metrics.jsonl") if event["event"] == "run_ended")
    assert (end["reason"], end["finished"]) == (summary["reason"], False)
    assert load_file(out / "head.safetensors").keys() >= {"out.weight", "out.bias"}
    assert ({"event": "summary"} | summary).items() <= server.events[-1].items()
    for (direction, kind), value in wire(after).items():
        payload, sent = (summary[which][direction].get(kind, 0) for which in ("payload_bytes", "bytes"))
        assert max(value, payload) <= sent  # more went after the scrape, and nothing was compressed


def wire(samples: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """(direction, kind) -> bytes."""
    return {key[1:]: value for key, value in samples.items() if key[0] == "sl_wire_bytes_total"}


def check_metrics(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float]) -> None:
    assert {key[0] for key in after} >= NAMES
    assert wire(after).keys() == {(d, k) for d in ("up", "down") for k in WIRE_KINDS}
    for direction, kind in [
        ("up", "smashed"),
        ("up", "labels"),
        ("up", "eval"),
        ("up", "weights"),
        ("down", "gradient"),
        ("down", "weights"),
    ]:
        for name in ("sl_wire_bytes_total", "sl_payload_bytes_total"):
            assert 0 < before[name, direction, kind] < after[name, direction, kind]
    assert {
        phase for phase in PHASES if after["sl_step_seconds_count", phase] > before["sl_step_seconds_count", phase]
    } == PHASES
    assert (after["sl_clients", "connected"], after["sl_clients", "ready"], after["sl_clients", "away"]) == (2, 2, 0)
    assert before["sl_round",] < after["sl_round",]
    assert 0 < after["sl_loss",] < 10
    assert 0 <= after["sl_accuracy", "min"] <= after["sl_accuracy", "mean"] <= after["sl_accuracy", "max"] <= 1
    assert (after["sl_rejected_total", "shard"], after["sl_rejected_total", "full"]) == (2, 1)
    assert after["sl_steps_total",] * 32 >= after["sl_samples_total",] > before["sl_samples_total",] > 0
    assert after["sl_build_info", __version__] == 1


def test_metrics_and_summary_count_the_same_bytes(small: Path) -> None:
    """While the only client is held still nothing moves: what is scraped then is the summary, but for the farewell."""
    to = "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--out", small.parent / "still", "--json"
    with started("sl-server", "run", small, *to, "--set", "run.clients=1", "--set", ENDLESS) as server:
        port = server.event("metrics")["port"]
        with started("sl-client", "run", "--server", server.event("listening")["address"]) as client:
            server.event("round", round=2)
            client.signal(signal.SIGSTOP)
            last: dict[tuple[str, ...], float] = {}
            while last != (last := wire(scrape(port))):
                time.sleep(0.5)
            server.signal(signal.SIGINT)
            server.event("warning")
            client.signal(signal.SIGKILL)
        assert server.end() == 130, server.err
    summary = read_json(small.parent / "still" / "summary.json")["bytes"]
    counted = {key: value - summary[key[0]].get(key[1], 0) for key, value in last.items()}
    farewell = counted.pop(("down", "control"))
    assert set(counted.values()) == {0}
    assert -200 < farewell <= 0


def test_an_interrupted_client_leaves_the_others_at_work(small: Path) -> None:
    out = small.parent / "left"
    with ExitStack() as stack:
        to = "--listen", "127.0.0.1:0", "--out", out, "--json", "--set", "run.rounds=40"
        server = stack.enter_context(started("sl-server", "run", small, *to))
        address = server.event("listening")["address"]
        stays, goes = (
            stack.enter_context(started("sl-client", "run", "--server", address, "--id", n, "--json"))
            for n in ("stays", "goes")
        )
        goes.event("trained", round=2)
        goes.signal(signal.SIGINT)
        assert goes.end() == 130, goes.err
        assert "Traceback" not in goes.err
        assert (stays.end(), server.end()) == (0, 0), stays.err + server.err
    assert goes.events[-1]["event"] == "stopped"
    assert server.event("left", client="goes")["reason"] == "stopped by its user"
    summary = read_json(out / "summary.json")
    assert (summary["finished"], summary["clients"]) == (True, 2)
    trained = [line.split() for line in (out / "digests.log").read_text().splitlines()]
    rounds = {name: {int(number) for client, number, *_ in trained if client == name} for name in ("stays", "goes")}
    assert rounds["stays"] == set(range(1, 41))
    assert {1, 2} <= rounds["goes"] < rounds["stays"]
