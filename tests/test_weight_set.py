"""Weights in several files: one consistent set at every crash and beside a writer at work, or a clear no."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from asked import trained_in
from crashes import copied, every_crash
from safetensors.torch import load_file
from torch import Tensor
from world import make_config

from sl_common.errors import ConfigError
from sl_server.storage.export import export_run
from sl_server.storage.trained import read_trained_run
from sl_server.storage.weight_set import MANIFEST, put_in_place, read_weights_of, write_weights

SMALL = {"run__rounds": 2, "model__args": "{ hidden = [16] }", "client__wave": "{ steps = 2 }"}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ended") / "run"
    trained_in(out, make_config("splitfed_v2", **SMALL))
    return out


def filled(folder: Path, value: float) -> dict[str, dict[str, Tensor]]:
    """The run's own parts, every number in them this one."""
    return {
        part: {k: torch.full_like(t, value) for k, t in load_file(folder / f"{part}.safetensors").items()}
        for part in ("lower", "head")
    }


def value_of(path: Path) -> set[float]:
    """All numbers in a file."""
    return {number for tensor in load_file(path).values() for number in tensor.float().unique().tolist()}


def test_an_export_after_any_crash_is_of_one_evaluation(ended: Path, tmp_path: Path) -> None:
    """Killed before any write, rename or fsync of the second evaluation: export and serve use the first or the second, never both."""
    first, out = tmp_path / "first", tmp_path / "run"
    copied(ended, first)
    (first / "summary.json").unlink()
    write_weights(first, filled(ended, 1.0), 1)
    seen = []
    for at in every_crash(lambda: write_weights(out, filled(ended, 2.0), 2), lambda: copied(first, out)):
        exported, _ = export_run(out, to=tmp_path / "whole.safetensors")
        (value,) = value_of(exported)
        assert {t.unique().item() for t in (read_trained_run(out, lambda _text: None).lower or {}).values()} == {
            value
        }, at
        put_in_place(out)  # what the next writer does first
        assert value_of(out / "lower.safetensors") == value_of(out / "head.safetensors") == {value}
        assert not list(out.glob(".*.new"))
        seen.append(value)
    assert sorted(seen) == seen
    assert set(seen) == {1.0, 2.0}


def test_parts_that_are_no_longer_shared_go_with_the_set_that_has_none(ended: Path, tmp_path: Path) -> None:
    """A run whose heads come apart: at no crash are there both kinds."""
    first, out = tmp_path / "first", tmp_path / "run"
    first.mkdir()
    one = filled(ended, 1.0)
    write_weights(first, one, 1)
    apart = {f"head-{shard}": one["head"] for shard in range(2)}
    seen = {
        tuple(sorted(read_weights_of(out)))
        for _ in every_crash(lambda: write_weights(out, apart, 2), lambda: copied(first, out))
    }
    assert seen == {("head", "lower"), ("head-0", "head-1")}
    write_weights(out, apart, 2)
    assert {path.name for path in out.iterdir()} == {MANIFEST, "head-0.safetensors", "head-1.safetensors"}


def test_a_mixed_set_is_refused(ended: Path, tmp_path: Path) -> None:
    """As an older version left it, or a person who copies files: the digests tell."""
    out = tmp_path / "run"
    copied(ended, out)
    write_weights(out, filled(ended, 1.0), 1)
    old = (out / "lower.safetensors").read_bytes()
    write_weights(out, filled(ended, 2.0), 2)
    (out / "lower.safetensors").write_bytes(old)
    with pytest.raises(
        ConfigError, match=r"a mixed set of weights: .* after round 2, and lower\.safetensors is missing"
    ):
        export_run(out, to=tmp_path / "whole.safetensors")
    with pytest.raises(ConfigError, match="a mixed set of weights"):
        read_trained_run(out, lambda _text: None)
    assert not (tmp_path / "whole.safetensors").exists()


def test_without_a_manifest_only_a_run_that_is_over_is_taken(ended: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    copied(ended, out)
    (out / MANIFEST).unlink()
    assert export_run(out)[1] == export_run(ended, to=tmp_path / "whole.safetensors")[1]
    (out / "summary.json").unlink()
    with pytest.raises(
        ConfigError, match=r"no weights\.json and the run is not over: head\.safetensors, lower\.safetensors"
    ):
        export_run(out)
    chosen = {"lower": tmp_path / "l.safetensors", "head": tmp_path / "h.safetensors"}
    for part, path in chosen.items():
        path.write_bytes((out / f"{part}.safetensors").read_bytes())
    export_run(out, **chosen)  # files that the user names are the user's choice


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"round": 1, "files": {"../x": {"file": "../x.safetensors", "nbytes": 1, "sha256": ""}}}'],
)
def test_a_manifest_that_makes_no_sense(ended: Path, tmp_path: Path, content: bytes) -> None:
    copied(ended, tmp_path / "run")
    (tmp_path / "run" / MANIFEST).write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights\.json: not a list of weights"):
        export_run(tmp_path / "run")


def test_a_reader_beside_a_writer_gets_one_set(ended: Path, tmp_path: Path) -> None:
    """Evaluation after evaluation is written while it reads."""
    sets = [filled(ended, float(value)) for value in range(4)]
    write_weights(tmp_path, sets[0], 0)
    over = threading.Event()

    def write() -> None:
        for number in range(60):
            write_weights(tmp_path, sets[number % 4], number)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads, seen = 0, set()
    while not over.is_set() or not reads:
        states = read_weights_of(tmp_path)
        values = {tensor.unique().item() for state in states.values() for tensor in state.values()}
        assert len(values) == 1
        seen |= values
        reads += 1
    writer.join()
    assert len(seen) > 1, "it read while others were written"


def test_the_manifest_says_which_round(ended: Path) -> None:
    found = json.loads((ended / MANIFEST).read_text())
    assert found["round"] == 2
    assert {part: one["file"] for part, one in found["files"].items()} == {
        "lower": "lower.safetensors",
        "head": "head.safetensors",
    }
