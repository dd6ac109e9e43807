"""Files in other units than training's: converted where only one thing can be meant, else refused with both ranges."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from asked import answering, trained_in
from PIL import Image

from sl_client.data import Scale
from sl_client.inference.command import PredictCommand
from sl_client.inference.fitting import check_test_set, fit, scale_in
from sl_client.inference.predictor import Predictor
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError
from sl_common.holdings import Inputs
from sl_server.storage.inputs import read_inputs
from sl_server.storage.trained import read_trained_run

FLOATS = Inputs(dtype="float32", low=0.0, high=255.0, mean=(100.0,), std=(90.0,))
SCALED = Inputs(dtype="float32", low=0.0, high=1.0)
BYTES = Inputs(dtype="uint8", low=0.0, high=255.0)
NORMALISED = Inputs(dtype="float32", low=-1.8, high=2.2)
SIXTEEN = Inputs(dtype="float32", low=0.0, high=16.0)
PIXELS = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def stored(inputs: Inputs, x: torch.Tensor, *, picture: bool = False) -> torch.Tensor:
    """As normalisation would have it without a mean."""
    return Scale().normalise(fit("a file", x, inputs, picture=picture).x)


# --- what can be meant in one way


@pytest.mark.parametrize("picture", [False, True])
def test_bytes_become_what_training_had(picture: bool) -> None:
    assert torch.equal(stored(FLOATS, PIXELS, picture=picture), PIXELS.float())
    assert torch.equal(stored(SCALED, PIXELS, picture=picture), PIXELS.float() / 255)
    assert torch.equal(stored(BYTES, PIXELS, picture=picture), PIXELS.float() / 255)


def test_floats_in_trainings_units_are_taken_as_they_are() -> None:
    for inputs in (FLOATS, SCALED, NORMALISED, SIXTEEN):
        x = inputs.low + (inputs.high - inputs.low) * PIXELS.float() / 255
        assert torch.equal(stored(inputs, x), x)
    assert torch.equal(stored(BYTES, PIXELS.float() / 255), PIXELS.float() / 255)


@pytest.mark.parametrize("inputs", [FLOATS, SCALED, BYTES, NORMALISED, SIXTEEN])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_black_picture_is_no_fault(inputs: Inputs, dtype: torch.dtype) -> None:
    black = torch.zeros(1, 1, 8, 8, dtype=dtype)
    if inputs is NORMALISED and dtype == torch.uint8:  # what black is there cannot be told
        return
    assert torch.equal(stored(inputs, black), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("value", [3, 200, 255])
def test_a_picture_of_one_colour_is_no_fault(value: int) -> None:
    plain = torch.full((1, 1, 8, 8), value, dtype=torch.uint8)
    for inputs, scale in ((FLOATS, 1), (SCALED, 255), (BYTES, 255)):
        assert torch.equal(stored(inputs, plain, picture=True), plain.float() / scale)


def test_one_sample_a_little_beyond_trainings_range_is_no_fault() -> None:
    for inputs in (FLOATS, SCALED, NORMALISED, SIXTEEN):
        x = torch.tensor([[inputs.low, 1.1 * inputs.high]])
        fitted = fit("a file", x, inputs, picture=False)
        assert (fitted.doubt, fitted.how, torch.equal(fitted.x, x)) == ("", "", True)


# --- what cannot


@pytest.mark.parametrize(
    ("inputs", "x", "said"),
    [
        (FLOATS, PIXELS.float() / 255, "float32 from 0 to 1, this run was trained on float32 from 0 to 255"),
        (SCALED, PIXELS.float(), "float32 from 0 to 255, this run was trained on float32 from 0 to 1"),
        (SCALED, PIXELS.float() / 255 / 255, "this run was trained on float32 from 0 to 1"),
        (
            FLOATS,
            PIXELS.float() / 100 - 0.4,
            "float32 from -0.4 to 2.15, this run was trained on float32 from 0 to 255",
        ),
        (NORMALISED, PIXELS.float(), "float32 from 0 to 255, this run was trained on float32 from -1.8 to 2.2"),
        (NORMALISED, PIXELS, "uint8 from 0 to 255, this run was trained on float32 from -1.8 to 2.2"),
        (SIXTEEN, PIXELS, "uint8 from 0 to 255, this run was trained on float32 from 0 to 16"),
        (SIXTEEN, PIXELS.float(), "float32 from 0 to 255, this run was trained on float32 from 0 to 16"),
        (SCALED, PIXELS.clamp(max=1), "whether 1 is white or nearly black cannot be told"),
    ],
)
def test_other_units_are_refused_with_both_ranges(inputs: Inputs, x: torch.Tensor, said: str) -> None:
    with pytest.raises(DataError) as caught:
        fit("a file", x, inputs, picture=False)
    assert said in str(caught.value)
    assert "a file: " in str(caught.value)
    assert "--as-is" in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "x", "said"),
    [
        (BYTES, PIXELS.clamp(max=1), "were they scaled to [0, 1] before they became whole numbers?"),
        (FLOATS, PIXELS.clamp(max=1), "were they scaled to [0, 1] before they became whole numbers?"),
        (NORMALISED, PIXELS.float() / 255, "none is negative here; were they normalised as those were?"),
        (SCALED, PIXELS.float() / 100 - 0.4, "are they in the same units?"),
    ],
)
def test_what_may_be_right_is_taken_and_said(inputs: Inputs, x: torch.Tensor, said: str) -> None:
    assert said in fit("a file", x, inputs, picture=False).doubt


def test_a_test_set_in_other_units_than_trainings_is_refused() -> None:
    assert (
        check_test_set(PIXELS, BYTES) == check_test_set(PIXELS, SCALED) == check_test_set(PIXELS.float(), FLOATS) == ""
    )
    with pytest.raises(DataError, match="the test set here holds float32 from 0 to 255"):
        check_test_set(PIXELS.float(), SCALED)
    with pytest.raises(DataError, match="the test set here holds float32 from 0 to 1"):
        check_test_set(PIXELS.float() / 255, FLOATS)
    with pytest.raises(DataError, match="the test set here holds uint8 from 0 to 1"):
        check_test_set(PIXELS, FLOATS)


def test_a_scale_is_as_training_had_it() -> None:
    assert scale_in(FLOATS) == Scale(mean=100.0, std=90.0)
    colours = Inputs(dtype="uint8", low=0, high=255, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert scale_in(colours) == Scale(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    assert scale_in(SCALED) is scale_in(None) is None


# --- from a run to its answers

DATA = """
from importlib.resources import files
import numpy as np
import torch
from torch import nn
from sl_client.data import Data

def raw():
    with np.load(str(files("sl_client.data") / "digits.npz")) as a:
        return a["images"].copy(), a["labels"].astype(np.int64)

def floats(root):
    x, y = raw()
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    if root is not None and root.name == "scaled":  # what the device has that asks
        x = x / 255
    if root is not None and root.name == "shuffled":
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
        x, y = x[order], y[order]
    return Data(train=(x[:1400], y[:1400]), test=(x[1400:], y[1400:]), mean=float(x.mean()), std=float(x.std()), classes=10)

def tanh(input, classes):
    low = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Tanh())
    return [("hidden1", low), ("out", nn.Linear(128, classes))]

def relu(input, classes):
    low = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
    return [("hidden1", low), ("out", nn.Linear(128, classes))]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fitted.py").write_text(DATA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fitted", raising=False)
    toml = """
[run]
rounds = 3
clients = 2
[model]
name = "fitted:relu"
input = [1, 8, 8]
classes = 10
[data]
name = "fitted:floats"
batch_size = 32
[protocol]
preset = "splitfed_v1"
[client]
optimizer = { kind = "adam", lr = 3e-3 }
[server]
optimizer = { kind = "adam", lr = 3e-3 }
"""
    summary = trained_in(tmp_path / "out", RunConfig.from_toml(toml))
    assert summary["evaluation"]["accuracy"] > 0.8
    assert summary["inputs"] == {"dtype": "float32", "low": 0.0, "high": 255.0}
    return tmp_path / "out"


def predicted(address: str, capsys: pytest.CaptureFixture[str], *files: Path, **more: object) -> list[dict]:
    settings = {"test": None, "batch": None, "data": None, "allowed": ("fitted",)} | more
    PredictCommand(
        lambda warn: Predictor(address, allowed=("fitted",), warn=warn), files=files, as_json=True, **settings
    ).run()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def right(found: list[dict], y: np.ndarray) -> float:
    return float((np.array([line["class"] for line in found if line["event"] == "prediction"]) == y).mean())


def test_every_form_of_a_file_is_right_or_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import fitted  # type: ignore[import-not-found]

    x, y = (part[1400:1480] for part in fitted.raw())
    for name, array in (("bytes", x), ("floats", x.astype(np.float64)), ("scaled", (x / 255).astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", array)
    pictures = [tmp_path / f"{number:02d}.png" for number in range(len(x))]
    for path, image in zip(pictures, x, strict=True):
        Image.fromarray(image[0]).save(path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    with answering(run) as live:
        known = right(predicted(live.address, capsys, tmp_path / "floats.npy"), y)
        assert known > 0.8
        for files in ([tmp_path / "bytes.npy"], pictures):
            found = predicted(live.address, capsys, *files)
            assert right(found, y) == known
            (how,) = (line["how"] for line in found if line["event"] == "converted")
            assert how == "taken as numbers from 0 to 255, as in training"
        with pytest.raises(DataError, match="float32 from 0 to 1, this run was trained on float32 from 0 to 255"):
            predicted(live.address, capsys, tmp_path / "scaled.npy")
        assert len(predicted(live.address, capsys, tmp_path / "scaled.npy", as_is=True)) == len(x) + 1
        assert predicted(live.address, capsys, tmp_path / "black.png")[-1]["samples"] == 1
        capsys.readouterr()
        (scored,) = predicted(live.address, capsys, test=80)
        assert scored["accuracy"] == pytest.approx(known)
        with pytest.raises(DataError, match="the test set here holds float32 from 0 to 1"):
            predicted(live.address, capsys, test=80, data=tmp_path / "scaled")
        with pytest.raises(
            DataError, match=f"the set here is not the run's, whose digest is {read_inputs(run).digest}"
        ):
            predicted(live.address, capsys, test=80, data=tmp_path / "shuffled")
        assert [
            line["event"] for line in predicted(live.address, capsys, test=80, data=tmp_path / "shuffled", as_is=True)
        ] == [
            "warning",
            "summary",
        ]


def test_a_device_with_other_code_gets_no_answers_from_it(run: Path) -> None:
    """Equal shapes, so that the weights would fit."""
    trained = read_trained_run(run, lambda _text: None)
    other = trained.config.model_copy(update={"model": trained.config.model.model_copy(update={"name": "fitted:tanh"})})
    for differs, said in (("refuse", []), ("accept", ["taken all the same: model.differs = 'accept'"])):
        model = other.model.model_copy(update={"differs": differs})
        config = other.model_copy(update={"model": model})
        warned: list[str] = []
        with answering(replace(trained, config=config)) as live:
            predictor = Predictor(live.address, allowed=("fitted",), warn=warned.append)
            if differs == "refuse":
                with (
                    predictor,
                    pytest.raises(ConfigError, match=r"it has \[.*Tanh\(\)\], the server's has \[.*ReLU\(\)\]"),
                ):
                    predictor.open()
            else:
                with predictor:
                    predictor.open()
        assert [text.rpartition("; ")[2] for text in warned] == said


def test_a_run_of_an_older_version_still_answers_and_the_doubt_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "inputs.json").unlink()
    np.save(tmp_path / "zeros.npy", np.zeros((3, 8, 8), np.float32))
    with answering(run) as live:
        found = predicted(live.address, capsys, tmp_path / "zeros.npy")
    assert [line["event"] for line in found].count("prediction") == 3
    assert ["does not say what numbers it was trained on" in line.get("text", "") for line in found].count(True) == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"dtype": "float32", "low": 1, "high": 0, "mean": [], "std": []}', '{"low": NaN}', "9" * 5000],
)
def test_a_file_of_inputs_that_makes_no_sense_is_named(run: Path, text: str) -> None:
    (run / "inputs.json").write_text(text)
    with pytest.raises(ConfigError, match=r"inputs\.json: not what a run trained on"):
        read_trained_run(run, lambda _text: None)


def test_a_run_without_one_normalisation_says_whose_is_taken(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = json.loads((run / "inputs.json").read_text())
    (run / "inputs.json").write_text(json.dumps(inputs | {"mean": [], "std": []}))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    with answering(run) as live:
        found = predicted(live.address, capsys, tmp_path / "black.png")
    assert "normalised as this device's own data" in next(line["text"] for line in found if line["event"] == "warning")


def test_a_folder_in_its_place_is_named(run: Path) -> None:
    (run / "inputs.json").unlink()
    assert read_inputs(run) is None
    (run / "inputs.json").mkdir()
    with pytest.raises(ConfigError, match=r"inputs\.json: Is a directory"):
        read_inputs(run)
