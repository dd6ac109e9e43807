"""Output that fails: no character, no reader and no disk ends a run; a command whose output nobody takes ends quietly."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import BIN, PATIENCE_S, ROOT, _environment, started
from small_run import SMALL

from sl_common.host.output import MAX_WAITING_OUTPUT, STUCK, Output, OutputFailed

SIGNS = "→ × ≈ … x̂ ‖ │ ─ é 中 \udcff"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


# --- the stream


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "shift_jis", "utf-8", "utf-16"])
def test_every_character_is_written_in_every_encoding(pipe: tuple[int, int], encoding: str) -> None:
    stream = Output(pipe[1], encoding)
    for _ in range(2):
        assert stream.write(SIGNS + "\n") == len(SIGNS) + 1
    os.close(pipe[1])
    with os.fdopen(os.dup(pipe[0]), "rb") as out:
        first, second = out.read().decode(encoding).splitlines()
    assert first == second
    assert first[-6:] == "\\udcff"
    if encoding == "ascii":
        assert first == "> x ~ ... x^ | | - \\xe9 \\u4e2d \\udcff"


def test_a_command_hears_that_nobody_reads(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(OutputFailed, match="Broken pipe"):
        Output(pipe[1]).write("x")
    Output(pipe[1], needed=False).write("x")


def going(handle: int) -> tuple[Output, list[str], threading.Event]:
    told: list[str] = []
    heard = threading.Event()
    stream = Output(handle)
    stream.keep_going(lambda why: (told.append(why), heard.set()))
    return stream, told, heard


def test_a_run_goes_on_without_a_reader_and_says_so_once(pipe: tuple[int, int]) -> None:
    stream, told, heard = going(pipe[1])
    stream.write("one\n")
    stream.drain()
    os.close(pipe[0])
    for _ in range(10):
        stream.write("two\n")
    stream.drain()
    assert heard.wait(PATIENCE_S)
    assert (stream.lost, stream.trouble, told) == (10, "Broken pipe", ["Broken pipe"])


def test_a_full_disk_costs_the_lines_and_nothing_else() -> None:
    handle = os.open("/dev/full", os.O_WRONLY)
    stream, _, heard = going(handle)
    stream.write("one\n")
    stream.drain()
    assert heard.wait(PATIENCE_S)
    assert (stream.lost, stream.trouble) == (1, "No space left on device")
    stream.move(os.open("/dev/null", os.O_WRONLY))  # there is room again
    stream.write("two\n")
    stream.drain()
    assert stream.lost == 1


def test_a_reader_that_never_reads_stops_nobody_and_gets_whole_lines_later(pipe: tuple[int, int]) -> None:
    stream, told, heard = going(pipe[1])
    line = "x" * 999 + "\n"
    count = 3 * MAX_WAITING_OUTPUT // len(line)
    for _ in range(count):
        stream.write(line)
    assert heard.wait(PATIENCE_S)
    assert told == [STUCK]
    assert 0 < stream.lost < count
    stream.drain(0.05)  # comes back although nobody reads
    kept = count - stream.lost
    with os.fdopen(os.dup(pipe[0]), encoding="ascii") as out:
        assert {next(out) for _ in range(kept)} == {line}
        stream.write("and on\n")
        assert next(out) == "and on\n"


def test_a_pipe_that_somebody_made_non_blocking_takes_all(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    stream, got = Output(pipe[1]), []

    def read() -> None:
        with os.fdopen(os.dup(pipe[0]), "rb") as out:
            got.append(out.read(1 << 20))

    reader = threading.Thread(target=read)
    reader.start()
    stream.write("x" * (1 << 20))
    reader.join(PATIENCE_S)
    assert len(got[0]) == 1 << 20


def test_what_is_not_text_is_refused(pipe: tuple[int, int]) -> None:
    with pytest.raises(TypeError):
        Output(pipe[1]).write(b"x")  # type: ignore[arg-type]


# --- runs


def ends(command: tuple[object, ...], **streams: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command that ends by itself; streams that are given are not caught."""
    caught = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    words = [BIN / str(command[0]), *map(str, command[1:])]
    done = subprocess.run(words, env=_environment(None), cwd=ROOT, timeout=PATIENCE_S, check=False, **caught)
    return done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()


def broken_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def stuck_pipe() -> int:
    """Full, and nobody reads it; its other end stays open in this process."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    os.set_inheritable(read, False)
    return write


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("sink", [broken_pipe, full_disk, stuck_pipe])
def test_a_run_ends_as_it_should_whatever_becomes_of_its_output(
    sink: Callable[[], int], as_json: bool, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, err = ends(("sl-server", "simulate", small, "--out", out, *["--json"] * as_json), stdout=sink())
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (code, summary["finished"]) == (0, True), err
    if sink is not stuck_pipe:  # which would take what fits into the memory for it
        assert "lines lost" in summary["lost_output"]
        assert "standard output cannot be written" in err
        events = [
            json.loads(line)["event"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert "warning" in events
    assert "Traceback" not in err


def test_without_standard_output_and_error_no_file_takes_their_numbers(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = f"exec {BIN}/sl-server simulate {small} --out {out} <&- >&- 2>&-"
    done = subprocess.run(["/bin/sh", "-c", line], cwd=ROOT, timeout=PATIENCE_S, env=_environment(None), check=False)
    assert done.returncode == 0
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["finished"] is True
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_a_server_and_a_client_go_on_when_their_readers_go_away(tmp_path: Path) -> None:
    path, out = tmp_path / "run.toml", tmp_path / "out"
    path.write_text(SMALL.replace("clients = 2", "clients = 1"), encoding="utf-8")
    words = [BIN / "sl-server", "run", path, "--listen", "127.0.0.1:0", "--out", out, "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(None), cwd=ROOT
    ) as server:
        address = json.loads(server.stdout.readline())["address"]
        server.stdout.close()
        client = ends(("sl-client", "run", "--server", address), stdout=broken_pipe())
        assert client[0] == 0, client
        _, err = server.stderr.read(), server.wait(PATIENCE_S)
    assert err == 0
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["finished"] is True


# --- commands that are not runs


@pytest.mark.parametrize("command", [("presets",), ("presets", "--json"), ("--help",)], ids=" ".join)
def test_a_command_whose_reader_went_away_ends_quietly(command: tuple[str, ...]) -> None:
    code, _, err = ends(("sl-server", *command), stdout=broken_pipe())
    assert code in (1, 141), code  # 1 where Typer itself was writing
    assert err == ""


def test_a_command_that_cannot_write_its_output_has_failed() -> None:
    code, _, err = ends(("sl-server", "presets"), stdout=full_disk())
    assert (code, err) == (1, "error: the output cannot be written: No space left on device\n")


# --- characters


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-16", "utf-8", "latin-1:strict"])
def test_a_table_comes_out_in_every_encoding(encoding: str, small: Path) -> None:
    words = [BIN / "sl-server", "codecs", small]
    env = _environment({"PYTHONIOENCODING": encoding})
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)
    text = done.stdout.decode(encoding.partition(":")[0])
    assert done.returncode == 0, done.stderr
    assert ("‖x − x̂‖ ÷ ‖x‖" in text) == encoding.startswith("utf")
    assert encoding.startswith("utf") or "|x - x^|" in text


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("locale", ["POSIX", "C.UTF-8"])
def test_files_are_utf_8_whatever_the_locale(locale: str, mark: str, tmp_path: Path) -> None:
    path, out = tmp_path / "run.toml", tmp_path / "out"
    path.write_text(f"{mark}# für die Geräte →\n{SMALL.replace('small', 'kühl')}", encoding="utf-8")
    env = _environment({"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
    words = [BIN / "sl-server", "simulate", path, "--out", out]
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["name"] == "kühl"
    again = subprocess.run(
        [BIN / "sl-server", "check", out / "config.json"], env=env, cwd=ROOT, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr


# --- signals


def test_a_terminal_that_closes_stops_a_server_to_be_resumed(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started("sl-server", "run", small, "--listen", "127.0.0.1:0", "--out", out, "--json") as server:
        server.event("listening")
        server.signal(signal.SIGHUP)
        assert server.event("drained")["out"] == str(out)
        assert server.end() == 0
    with started("sl-server", "run", "--resume", out, "--listen", "127.0.0.1:0", "--json") as server:
        server.event("listening")


def test_under_nohup_a_closed_terminal_stops_nobody(small: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does before it starts a command
    try:
        with started(
            "sl-server", "run", small, "--listen", "127.0.0.1:0", "--out", tmp_path / "out", "--json"
        ) as server:
            address = server.event("listening")["address"]
            server.signal(signal.SIGHUP)
            with started("sl-client", "run", "--server", address, "--json") as client:
                server.event("joined")
                client.event("joined")
                client.signal(signal.SIGHUP)
                with started("sl-client", "run", "--server", address, "--json") as other:
                    assert (client.end(), other.end(), server.end()) == (0, 0, 0), server.err
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_client_whose_terminal_closes_leaves_in_words(small: Path, tmp_path: Path) -> None:
    with started("sl-server", "run", small, "--listen", "127.0.0.1:0", "--out", tmp_path / "out", "--json") as server:
        address = server.event("listening")["address"]
        with started("sl-client", "run", "--server", address, "--json") as client:
            client.event("joined")
            client.signal(signal.SIGHUP)
            assert client.end() == 130
        assert server.event("left")["reason"] == "stopped by its user"


def test_a_run_that_its_operator_ended_can_go_on(small: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    listen = ("--listen", "127.0.0.1:0", "--json")

    def clients(server: object) -> list[subprocess.Popen[bytes]]:
        address = server.event("listening")["address"]
        words = [BIN / "sl-client", "run", "--server", address, "--state", state, "--id"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": _environment(None), "cwd": ROOT}
        return [subprocess.Popen([*words, f"c{number}"], **quiet) for number in range(2)]

    with started("sl-server", "run", small, "--out", out, "--set", "run.rounds=30", *listen) as server:
        two = clients(server)
        server.event("round", round=2)
        server.signal(signal.SIGINT)
        assert server.end() == 130
        assert [one.wait(PATIENCE_S) for one in two] == [1, 1]
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["finished"] is False
    with started("sl-server", "run", "--resume", out, *listen) as server:
        two = clients(server)
        assert server.end() == 0, server.err
        assert [one.wait(PATIENCE_S) for one in two] == [0, 0]
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["round"] for line in rounds if line["event"] == "round"] == [*range(1, 31)]


# --- the sources


def test_no_file_is_read_or_written_in_the_locales_encoding() -> None:
    """Python warns of each, in a mode of its own for that; here all modules' sources are asked."""
    paths = [path for package in ("sl_common", "sl_server", "sl_client") for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 150
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _reads_text(node)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "code", ["p.read_text()", "p.write_text(x)", "open(p)", "open(p, 'w')", "p.open('w')", "os.fdopen(1, 'w')"]
)
def test_the_rule_on_encodings_sees_them(code: str) -> None:
    assert any(_reads_text(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))


def _reads_text(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if ast.unparse(node.func) == "one.read_text" and ast.unparse(node.args[0]) == "'direct_url.json'":
        return False  # a distribution's own metadata, which importlib reads as UTF-8
    if name in ("read_text", "write_text"):
        return True
    if name in ("Popen", "run", "check_output"):
        return "text" in keywords or "universal_newlines" in keywords
    if name not in ("open", "fdopen"):
        return False
    of_module = isinstance(node.func, ast.Name) or name == "fdopen" or ast.unparse(node.func) in ("os.open", "io.open")
    place = 1 if of_module else 0
    mode = keywords.get("mode") or (node.args[place] if len(node.args) > place else None)
    if not of_module:  # a path's, or another object's that has nothing to do with files
        return isinstance(mode, ast.Constant) and mode.value in ("r", "w", "a", "x")
    if mode is None:
        return ast.unparse(node.func) != "os.open"
    return isinstance(mode, ast.Constant) and "b" not in str(mode.value)
