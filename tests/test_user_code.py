"""What a user's own code may do to a command beside its work: print, warn, call sys.exit, remove the folder, break on import."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from processes import Process, ran, started

from sl_client.data import load_data
from sl_common.errors import ConfigError, DataError
from sl_common.host.printed import MOST_HELD, Bytes, Printed
from sl_common.models import build

CODE = """
import os, sys, threading, warnings
import numpy as np
from torch import nn
from sl_client.data import Data

sys.stdout.reconfigure(line_buffering=True)
print("imported")

def digits(root):
    print("loading", end=" ... ")
    print("done")
    sys.stdout.buffer.write("büchse\\n".encode())
    os.write(1, b"beneath python\\n")
    warnings.warn("something is old")
    rng = np.random.default_rng(0)
    x, y = rng.random((64, 4), dtype=np.float32), np.arange(64) % 2
    return Data(train=(x, y), test=(x, y), classes=2)

class Talks(nn.Module):
    def forward(self, x):
        print("forward")
        return x

def net(input, classes):
    print("building")
    return [("low", nn.Sequential(nn.Linear(4, 4), Talks())), ("out", nn.Linear(4, classes))]

class Ends(nn.Module):
    def forward(self, x):
        if self.training and len(x) == 16:
            sys.exit(0)
        return x

def ends_low(input, classes):
    return [("low", nn.Sequential(nn.Linear(4, 4), Ends())), ("out", nn.Linear(4, classes))]

def ends_head(input, classes):
    return [("low", nn.Linear(4, 4)), ("out", nn.Sequential(Ends(), nn.Linear(4, classes)))]

class EndsBeside(nn.Module):
    def forward(self, x):
        if threading.current_thread().name.startswith("worker"):
            sys.exit(0)
        return x

def ends_worker(input, classes):
    return [("low", nn.Linear(4, 4)), ("out", nn.Sequential(EndsBeside(), nn.Linear(4, classes)))]

def ends_data(root):
    sys.exit(0)

def ends_build(input, classes):
    sys.exit(0)

def moves(root):
    import threading, torch
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    torch.set_grad_enabled(False)
    return digits(root)

def stays(root):
    import threading, time
    threading.Thread(target=lambda: time.sleep(8), name="prefetch").start()
    return digits(root)

def reads(root):
    x, y = [[0.0, 1.0]] * 4, ["a", "b"] * 2
    def test(pick):
        if root.name == "raises":
            raise OSError("gone")
        return {"lists": (x, y), "three": (x, y, y), "ends": sys}[root.name] if root.name != "ends" else sys.exit(0)
    return Data(train=(x, y), test=test, classes=2)
"""
TOML = """
[run]
name = "own"
rounds = 1
clients = 1
[model]
name = "talking.code:net"
input = [4]
classes = 2
[data]
name = "talking.code:digits"
batch_size = 16
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a package of the user's, a configuration, and nothing of this project."""
    (tmp_path / "talking").mkdir()
    (tmp_path / "talking/__init__.py").touch()
    (tmp_path / "talking/code.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "talking/old.py").write_text("import numpy as np\nx = np.float_of_old\ndef net(root): ...\n")
    (tmp_path / "talking/lazy.py").write_text("def __getattr__(name):\n    raise ImportError('no driver')\n")
    (tmp_path / "talking/script.py").write_text("import sys\nsys.exit(2)\n")
    (tmp_path / "run.toml").write_text(TOML, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "talking"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


# --- printing


def test_what_other_code_prints_is_no_line_of_a_runs_json(folder: Path) -> None:
    process = ran("sl-server", "simulate", "run.toml", "--out", "out", "--json", cwd=folder)
    assert process.code == 0, process.err
    assert {"joined", "round", "summary"} <= {event["event"] for event in process.events}
    beside = [line for line in process._errors if line != "beneath python"]
    told = [json.loads(line) for line in beside]
    printed = [event["text"] for event in told if event["event"] == "printed"]
    assert {"imported", "loading ... done", "büchse", "building", "forward"} == set(printed)
    assert [event["text"] for event in told if event["event"] == "warning"] == ["UserWarning: something is old"]
    assert len(beside) < len(process._errors), "what was written beneath Python"


def test_a_command_with_one_json_object_prints_that_alone(folder: Path) -> None:
    for command in (["sl-server", "check", "run.toml"], ["sl-server", "codecs", "run.toml"]):
        process = ran(*command, "--json", cwd=folder)
        assert process.code == 0, process.err
        assert json.loads(process.out)
    process = ran("sl-client", "digest", "talking.code:digits", "--allow", "talking", "--json", cwd=folder)
    assert json.loads(process.out)["event"] == "digest"
    plain = ran("sl-client", "digest", "talking.code:digits", "--allow", "talking", cwd=folder)
    assert plain.lines[:2] == ["imported", "loading ... done"], "without --json it is where it was"


def test_help_is_on_standard_output_whatever_the_variable_says() -> None:
    process = ran("sl-client", "run", "--help", env={"SL_JSON": "1"})
    assert "--save-lower" in process.out


def test_pieces_become_lines() -> None:
    lines: list[str] = []
    stream = Printed(lines.append)
    for piece in ("a", "b\nc", "", "d\n\n", "e"):
        assert stream.write(piece) == len(piece)
    assert lines == ["ab", "cd", ""]
    raw = stream.buffer
    assert isinstance(raw, Bytes)
    assert raw.write("é".encode()[:1]) == 1
    raw.write("é".encode()[1:])
    stream.end()
    stream.end()
    assert lines == ["ab", "cd", "", "eé"]
    stream.write("x" * (MOST_HELD + 1))
    assert len(lines[-1]) == MOST_HELD + 1
    with pytest.raises(TypeError):
        stream.write(b"x")  # type: ignore[arg-type]


# --- ending


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("old", r"cannot import 'talking.old' here: module 'numpy' has no attribute 'float_of_old'"),
        ("lazy", r"'talking.lazy' does not give 'absent': ImportError\('no driver'\)"),
        ("script", r"cannot import 'talking.script' here: it calls sys.exit\(2\)"),
        ("code", "module 'talking.code' has no 'absent'"),
    ],
)
def test_a_module_that_breaks_on_import_is_not_said_to_lack_the_function(module: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_data(f"talking.{module}:absent", None, None)


@pytest.mark.usefixtures("folder")
def test_a_function_that_calls_exit_ends_no_process() -> None:
    with pytest.raises(DataError, match=r"talking.code:ends_data': raised SystemExit: 0 .*sys.exit\(0\)"):
        load_data("talking.code:ends_data", None, None)
    with pytest.raises(ConfigError, match=r"model 'talking.code:ends_build' cannot be made .*SystemExit\(0\)"):
        build("talking.code:ends_build", input=(4,), classes=2, args={}, seed=0)


def both(folder: Path, **settings: str) -> tuple[Process, Process]:
    """A server and its one client, ended; the server waits for others where its client has failed."""
    words = [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    with started(
        "sl-server", "run", "run.toml", "--listen", "127.0.0.1:0", "--out", "out", "--json", *words, cwd=folder
    ) as server:
        address = server.event("listening")["address"]
        client = ran("sl-client", "run", "--server", address, "--allow", "talking", "--json", cwd=folder)
        if "left" in server.out:
            server.signal(signal.SIGINT)
        server.code = server.end()
        return server, client


def test_a_client_whose_layers_call_exit_has_failed_and_says_so(folder: Path) -> None:
    server, client = both(folder, model__name="talking.code:ends_low")
    assert client.code == 1
    assert "called sys.exit(0)" in client.err
    assert [event["reason"] for event in server.events if event["event"] == "left"] == ["failed: SystemExit(0)"]


def test_a_server_whose_layers_call_exit_has_failed_and_says_so(folder: Path) -> None:
    server, client = both(folder, model__name="talking.code:ends_head")
    assert (server.code, client.code) == (1, 1)
    assert "SystemExit(0)" in server.err


def test_a_server_whose_layers_call_exit_in_an_alignment_has_failed_too(folder: Path) -> None:
    """The auxiliary network is made of the head's blocks, and aligned in a thread of its own."""
    aux = {"protocol__learner__aux": '{ kind = "classifier", form = "head", blocks = 1 }'}
    server, client = both(folder, model__name="talking.code:ends_worker", protocol__preset="fsl_sage", **aux)
    assert (server.code, client.code) == (1, 1)
    assert "SystemExit(0)" in server.err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("raises", r"talking.code:reads': raised OSError: gone \(.*line"),
        ("three", "data.test is a tuple of 3, expected a pair"),
        ("ends", "raised SystemExit: 0"),
    ],
)
def test_a_function_for_the_test_set_is_the_users_code_too(root: str, told: str) -> None:
    data = load_data("talking.code:reads", Path(root), None)
    with pytest.raises(DataError, match=told):
        data.check((2,), 2)


@pytest.mark.usefixtures("folder")
def test_a_function_for_the_test_set_may_return_lists() -> None:
    data = load_data("talking.code:reads", Path("lists"), None)
    data.check((2,), 2)
    assert data.tests()[0][1].tolist() == [0, 1, 0, 1]


# --- what is the whole process's


def test_settings_that_a_function_changes_are_put_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sl-server", "simulate", "run.toml", "--json", "--out")
    same, moved = (
        ran(*words, "out", cwd=folder),
        ran(*words, "moved", "--set", "data.name=talking.code:moves", cwd=folder),
    )
    assert (same.code, moved.code) == (0, 0), moved.err
    shas = {json.loads((folder / out / "summary.json").read_text())["weights_sha256"] for out in ("out", "moved")}
    assert len(shas) == 1
    (folder / "talking/wide.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\n" + CODE)
    monkeypatch.chdir(folder)
    found = build("talking.wide:net", input=(4,), classes=2, args={}, seed=0)
    assert {p.dtype for _, module in found for p in module.parameters()} == {torch.float32}


def test_whom_the_end_waits_for_is_said(folder: Path) -> None:
    words = ("sl-client", "digest", "talking.code:stays", "--allow", "talking")
    assert "the process ends with them: 'prefetch'" in ran(*words, cwd=folder).err
    assert [
        json.loads(line)["text"][-10:] for line in ran(*words, "--json", cwd=folder)._errors if "go on" in line
    ] == ["'prefetch'"]


# --- Ctrl-C


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_is_130_wherever_it_comes(as_json: bool, folder: Path) -> None:
    code = "import time\ntime.sleep(0.1)\nopen('here', 'w').close()\ntime.sleep(60)\n"
    (folder / "talking/slow.py").write_text(code, encoding="utf-8")
    words = ["sl-server", "check", "run.toml", "--set", "model.name=talking.slow:net", *["--json"] * as_json]
    with started(*words, cwd=folder) as process:
        while process.is_running() and not (folder / "here").exists():
            pass
        process.signal(signal.SIGINT)
        assert process.end() == 130
        assert "Traceback" not in process.err
