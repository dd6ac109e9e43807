"""What is said of a run that is under way: lines every few seconds, JSON that says when and where, numbers counted alike everywhere."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from federation import Federation
from processes import Process, ran
from tally import Faults
from test_output import SMALL
from world import make_config

from sl_client.console.progress import WaveProgress
from sl_client.console.show import ClientLines
from sl_common.config.presets import PRESETS
from sl_common.errors import Refused
from sl_common.host.log import LOGGER, CommandLog, Level, json_line, name_run
from sl_common.host.progress import EVERY_S, Beat, Seldom, duration
from sl_common.messages.facts import (
    BatchEvaluated,
    ClientReady,
    Evaluated,
    Fact,
    RoundEnded,
    RunEnded,
    Trained,
    WaveBegun,
)
from sl_common.messages.training import Begin, Gradient
from sl_server.console.progress import RunProgress
from sl_server.console.show import ServerConsole
from sl_server.simulation.simulation import Simulation
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics
from sl_server.transport.refusals import PERIOD_S, Refusals

COMMON = {"time", "level", "event", "run", "host"}


def begun(**more: Any) -> WaveBegun:
    fields: dict[str, Any] = {
        "round": 0,
        "rounds": 4,
        "wave": 0,
        "clients": ("c0", "c1"),
        "steps": 10,
        "evaluate": False,
    }
    return WaveBegun(**(fields | more))


def trained(step: int) -> Trained:
    return Trained(client="c0", shard=0, round=0, wave=0, step=step, samples=8, loss=2.0, crc32="")


class Clock:
    """A time that moves when it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


# --- the server's line


def test_the_line_says_how_far_a_wave_is_and_how_long_it_takes() -> None:
    clock, ledger = Clock(), Ledger()
    progress = RunProgress(ledger, 4, 2, clock)
    text, fields = progress.line()
    assert (text, fields["state"], fields["clients"]) == ("waiting for clients: 0 of 2 are ready", "waiting", 0)
    progress.fact(ClientReady(client="c0", shard=0, samples=80))
    assert progress.line()[1]["clients"] == 1
    progress.fact(begun())
    clock.now += 5
    ledger.wire["up", "smashed"] = 5_000_000
    for step in range(4):
        progress.fact(trained(step))
    text, fields = progress.line()
    assert text == (
        "round 1/4, wave 1: 4/10 batches, loss 2.0000, 2 clients, waiting for c0, c1, 5.0 MB up, 0 B down so far, 1.00 MB/s; "
        "8 s left of this wave"
    )
    assert fields | {"bytes_per_s": 0} == {
        "state": "training", "round": 1, "rounds": 4, "wave": 1, "steps": 4, "steps_expected": 10, "samples": 32,
        "samples_expected": None, "clients": 2, "waiting_for": ["c0", "c1"], "loss": 2.0, "bytes_up": 5_000_000,
        "bytes_down": 0, "bytes_per_s": 0, "wave_eta_s": 7.5, "eta_s": None,
    }  # fmt: skip
    clock.now += 5
    progress.fact(RoundEnded(round=0, loss=2.0, samples=80, clients=2))
    progress.fact(begun(round=1))
    assert progress.line()[1]["eta_s"] == 30.0, "a round took 10 s, and three are to come"
    progress.fact(RunEnded(reason="over", finished=True))
    assert progress.line() is None


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_wave_does_as_much_as_was_expected(preset: str) -> None:
    """Evaluation too, which has its own total: held-out samples."""
    progress, waves = RunProgress(Ledger(), 2, 3), list[tuple[bool, int, int | None]]()
    facts = Simulation(make_config(preset)).run()
    for fact in facts:
        if isinstance(fact, WaveBegun | RunEnded) and progress.wave is not None:
            waves.append((progress.evaluating, progress.done, progress.total))
        progress.fact(fact)
    assert all(done == total for evaluates, done, total in waves if evaluates)
    evaluations = [fact.samples for fact in facts if isinstance(fact, Evaluated)]
    assert len([one for one in waves if one[0]]) == len(evaluations)
    batches = sum(isinstance(fact, Trained) for fact in facts)
    assert sum(done for evaluates, done, _ in waves if not evaluates) == batches


def test_a_bar_and_a_line_are_told_of_a_batch_that_is_evaluated() -> None:
    progress = RunProgress(Ledger(), 1, 1)
    progress.fact(begun(evaluate=True, held_out=40, steps=0))
    progress.fact(BatchEvaluated(client="c0", round=0, wave=0, samples=32))
    text, fields = progress.line()
    assert "evaluated 32/40 samples" in text
    assert (fields["state"], fields["samples"], fields["samples_expected"], fields["steps"]) == (
        "evaluating",
        32,
        40,
        None,
    )


def test_a_line_comes_at_least_every_ten_seconds() -> None:
    assert EVERY_S < 10
    said: list[int] = []
    beat = Beat(lambda: said.append(1), 0.01)
    beat.start()
    beat.start()
    while len(said) < 3:
        pass
    beat.stop()


def test_times_are_for_people() -> None:
    assert [duration(s) for s in (0.4, 99, 100, 3600, 11100)] == ["0 s", "99 s", "2 min", "60 min", "3 h 05 min"]


# --- the client's line


def test_a_clients_line_says_whom_it_waits_for() -> None:
    progress = WaveProgress()
    progress.looking("127.0.0.1:1")
    text, fields = progress.line()
    assert (fields["waiting_for"], "waiting for the server 127.0.0.1:1" in text) == ("server", True)
    simulation = Simulation(make_config("splitfed_v2"))
    progress.seated(simulation_seat(simulation))
    assert progress.line()[1]["waiting_for"] == "run"
    progress.begin(Begin(round=0, rounds=2, steps=3))
    assert progress.line()[1]["waiting_for"] is None
    progress.batch_sent()
    assert progress.line()[1]["waiting_for"] == "server"
    progress.answered(Gradient(step=0, loss=1.5))
    progress.batch(8)
    text, fields = progress.line()
    assert (fields["waiting_for"], fields["samples"], fields["loss"], fields["round"]) == (None, 8, 1.5, 1)
    assert f"trained 8 of {fields['samples_expected']} samples, loss 1.5000" in text
    progress.done()
    assert progress.line()[1]["waiting_for"] == "clients"


def simulation_seat(simulation: Simulation) -> Any:
    for _ in simulation.facts():
        if simulation.seats:
            break
    return next(iter(simulation.seats.values()))


# --- records


def test_json_lines_say_when_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    name_run("mine")
    try:
        show = ServerConsole(Ledger(), 2, as_json=True)
        show.warn("two\nlines \x1b[2J")
        show.say("round", "text", loss=float("nan"), round=1)
    finally:
        name_run(None)
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines())
    assert first.keys() == COMMON | {"text"}
    assert (first["level"], first["event"], first["run"], first["host"]) == (
        "warning",
        "warning",
        "mine",
        socket.gethostname(),
    )
    assert first["time"].endswith("Z")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(first["time"])).total_seconds()) < 60
    assert (second["level"], second["loss"]) == ("info", None)


def test_records_are_pythons_and_libraries_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    root = list(logging.getLogger().handlers), logging.getLogger().level
    try:
        ClientLines().say("one", "text", number=1)
        CommandLog("server").say("two", "text", Level.WARNING, {})
    finally:
        LOGGER.removeHandler(handler)
    assert [(r.name, r.levelname, r.event, r.fields) for r in kept] == [  # type: ignore[attr-defined]
        ("cutlayer.client", "INFO", "one", {"number": 1}),
        ("cutlayer.server", "WARNING", "two", {}),
    ]
    assert capsys.readouterr().out == "text\ntext\n"
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == root
    logging.getLogger("somebody.else").warning("theirs")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("level", list(Level))
def test_less_severe_records_are_not_shown(level: Level, capsys: pytest.CaptureFixture[str]) -> None:
    for show in (ServerConsole(Ledger(), 1, level=level), ClientLines(level=level)):
        show.say("one", "information")
        show.warn("of something")
        shown = capsys.readouterr().out
        assert ("information" in shown) == (level in (Level.DEBUG, Level.INFO))
        assert ("of something" in shown) == (level is not Level.ERROR)


def test_a_name_that_json_cannot_hold_is_written_all_the_same() -> None:
    assert json.loads(json_line("e", "info", {"path": Path("x"), "name": "\udcff"}))["name"] == "\udcff"


def lines_of(process: Process) -> list[dict]:
    for event in process.events:
        assert event.keys() >= COMMON, event
    return process.events


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def test_a_simulations_numbers_are_the_same_everywhere(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = ran("sl-server", "simulate", small, "--out", out, "--json")
    events = lines_of(process)
    assert {event["run"] for event in events} == {"small"}
    shown = {e["client"]: e["shard"] for e in events if e["event"] == "joined"}
    kept = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert shown == {"c0": 1, "c1": 2} == {e["client"]: e["shard"] for e in kept if e["event"] == "client_joined"}
    for name in ("round", "evaluation"):
        of_file = [e["round"] for e in kept if e["event"] == name]
        assert [e["round"] for e in events if e["event"] == name] == of_file
    assert [e["round"] for e in kept if e["event"] == "round"] == [1, 2]
    assert {(e["round"], e["wave"]) for e in kept if e["event"] == "wave_begun" and not e["evaluate"]} == {
        (1, 1),
        (2, 1),
    }
    digests = [line.split() for line in (out / "digests.log").read_text(encoding="utf-8").splitlines()]
    assert {round_ for _, round_, *_ in digests} == {"1", "2"}
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["evaluation"]["round"] == 2
    rows = (out / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2"]
    assert "sl_round 2" in metrics_text(kept)


def metrics_text(lines: list[dict]) -> str:
    metrics = Metrics(Ledger())
    for line in lines:
        if line["event"] == "round":
            fact: Fact = RoundEnded(round=line["round"] - 1, loss=None, samples=1, clients=1)
            metrics.fact(fact)
    return re.sub(r"(\d)\.0\b", r"\1", metrics.text().decode())


def test_a_quiet_run_says_nothing(small: Path, tmp_path: Path) -> None:
    for number, options in enumerate((("--quiet",), ("--log-level", "warning"))):
        process = ran("sl-server", "simulate", small, "--out", tmp_path / str(number), *options)
        assert (process.code, process.out, process.err) == (0, "", "")
    process = ran("sl-server", "simulate", small, "--out", tmp_path / "env", env={"SL_QUIET": "1"})
    assert (process.code, process.out) == (0, "")


BROKEN = """
import sys, threading, typer
from sl_common.host import commands
app = typer.Typer()
@app.command()
def main(json: bool = False) -> None:
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    raise KeyError("a bug of its own")
sys.argv = ["main", *sys.argv[1:]]
commands.run_command(app)
"""


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (("sl-server", "run", "nowhere.toml"), 2, "nowhere.toml: No such file or directory"),
        (("sl-server", "run", "{small}", "--listen", "x"), 2, "--listen 'x'"),
        (("sl-server", "simulate", "{small}", "--nonsense"), 2, "No such option"),
        (("sl-server", "simulate", "{small}", "--log-level", "loud"), 2, "loud"),
        (("sl-client", "run", "--server", "127.0.0.1:1", "--retry", "0"), 4, "127.0.0.1:1"),
        (("sl-client", "run", "--server", "nonsense"), 2, "--server 'nonsense'"),
    ],
    ids=["file", "option", "usage", "choice", "lost", "address"],
)
def test_the_end_of_a_command_is_a_json_line_too(
    command: tuple[str, ...], code: int, told: str, small: Path, tmp_path: Path
) -> None:
    words = [word.format(small=small) for word in command]
    process = ran(*words, "--json", cwd=tmp_path)
    last = lines_of(process)[-1]
    assert (process.code, last["event"], last["level"], last["code"]) == (code, "error", "error", code)
    assert told in last["text"]
    assert process._errors == [], "every line of a log that has both streams is JSON"


def test_a_bug_is_a_json_line_too_wherever_it_happens() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN, "--json"], capture_output=True, encoding="utf-8", check=False)
    first, last = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.returncode, done.stderr, last["text"]) == (1, "", "internal error: KeyError: 'a bug of its own'")
    assert "ZeroDivisionError" in first["text"]
    assert "in main" in last["traceback"]
    plain = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, encoding="utf-8", check=False)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert "KeyError: 'a bug of its own'" in plain.stderr


def test_waiting_is_said_less_and_less_often() -> None:
    seldom = Seldom()
    assert [n for n in range(1, 200) if seldom.lets("nobody here")] == [1, 2, 4, 8, 16, 32, 64, 128, 192]
    assert seldom.lets("one is here")


# --- a planned restart


def test_who_was_forgotten_and_joins_is_no_refusal() -> None:
    metrics, said, now = Metrics(Ledger()), list[str](), [0.0]
    refusals = Refusals(metrics, said.append, lambda: now[0])
    forgotten = Refused("forgotten", "join again")

    def counted() -> float | None:
        refusals.look()
        return metrics.registry.get_sample_value("sl_rejected_total", {"reason": "forgotten"})

    for name in ("c0", "c1", ""):
        refusals.note(f"{name!r} at 192.0.2.1", forgotten, name)
    assert counted() == 1, "one that says no name cannot be told from others"
    refusals.joined("c0")
    now[0] = PERIOD_S - 1
    assert counted() == 1
    now[0] = PERIOD_S
    assert counted() == 2
    assert said[-1] == "refused 'c1' at 192.0.2.1 (forgotten): join again"


def test_a_planned_restart_refuses_nobody(tmp_path: Path, faults: Faults) -> None:
    """SIGTERM and --resume: each client is told that its session is gone, joins anew, and the counter that alerts stays at 0."""
    from contextlib import ExitStack

    config = make_config("splitfed_v2", run__rounds=200, run__clients=2, client__wave="{ steps = 30 }")
    with ExitStack() as stack:
        run = Federation(stack, config, tmp_path, faults=faults, secured=("--metrics", "127.0.0.1:0"))
        run.join()
        run.wait_for(2)
        run.server.signal(15)
        assert run.server.end() == 0, run.server.err
        run.resume()
        port = run.server.event("metrics")["port"]
        for number in range(2):
            run.server.event("joined", client=f"c{number}")
            run.clients[number].event("forgotten")
        run.wait_for(len(run.lines()))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        refused = {
            line for line in text.splitlines() if line.startswith("sl_rejected_total") and not line.endswith(" 0.0")
        }
        assert refused == set()
        left = next(line for line in text.splitlines() if line.startswith("sl_clients_left_total"))
        assert left.endswith(" 0.0")
