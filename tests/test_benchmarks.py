"""What all benchmarks stand on: the images that they train on, and the ways in which a bare program picks and computes."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import cost, cost_page, data, sides
from benchmarks.bandwidth import CODECS
from benchmarks.data import HELD_OUT, images, what
from benchmarks.processes import BenchmarkFailed, started
from benchmarks.step import RESULTS
from benchmarks.targets import PAGE, TARGETS, Target, page, value
from benchmarks.workloads import WORKLOADS, Workload, chosen
from sl_common.config.run_config import RunConfig


def test_the_images_are_there() -> None:
    data = images()
    data.check((1, 28, 28), 10)
    assert [len(data.train[0]), len(data.tests()[1])] == [60_000, HELD_OUT]
    assert what()


def test_workloads_have_a_name_each() -> None:
    assert all(name == one.name for name, one in WORKLOADS.items())


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_a_workload_is_cut_where_it_says(workload: Workload) -> None:
    """And its data fits it."""
    getattr(data, workload.data)().check(workload.input, 10)
    lower, head = workload.segments()
    z = lower(torch.zeros(2, *workload.input))
    assert z.shape == (2, *workload.cut)
    assert head(z).shape == (2, 10)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
@pytest.mark.parametrize("codec", CODECS)
def test_our_side_s_configuration_is_one(workload: Workload, codec: str) -> None:
    config = RunConfig.from_toml(sides.config(workload, 3) + CODECS[codec])
    assert config.codec.up.kind == codec


def test_all_workloads_means_the_usual_ones() -> None:
    assert [w.name for w in chosen("all")] == ["mlp", "cnn"]
    assert [w.name for w in chosen("wide")] == ["wide"]


def test_coloured_images_are_the_grey_ones() -> None:
    grey, coloured = images(), data.coloured()
    coloured.check((3, 32, 32), 10)
    x = coloured.train[0][:5]
    assert all(torch.equal(x[:, colour, 2:-2, 2:-2], grey.train[0][:5, 0]) for colour in range(3))
    assert not x[:, :, :2].any()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.what)
def test_every_target_finds_its_number_in_the_committed_page(target: Target) -> None:
    there = (RESULTS / f"{target.page}.json").exists()
    assert (value(target, RESULTS) is not None) == there, "the table calls what has no page not measured"


def test_the_committed_table_is_of_the_committed_pages() -> None:
    assert PAGE.read_text() == page(), "make bench-table"


# --- CPU time a step: the arithmetic on rows that were made up, and one small run of the instrument


def rows(*pairs: tuple[float, float]) -> list[dict[str, dict[str, float]]]:
    """Pairs of (bare, ours) for the server's ms; the client's are 1, steps/s 1000 of the sum."""

    def side(ms: float) -> dict[str, float]:
        return {"server_ms": ms, "client_ms": 1.0, "steps_per_s": 1e3 / (ms + 1)}

    return [{"bare": side(bare), "ours": side(ours)} for bare, ours in pairs]


def run_of(cpu: str, pairs: list[dict[str, dict[str, float]]], **other: object) -> dict[str, object]:
    setting = {
        "date": "2026-01-02",
        "cpu": cpu,
        "cpus": 4,
        "cores": 2,
        "system": "Linux",
        "kernel": "6.1",
        "python": "3.11",
    }
    made = {
        "command": "c",
        "torch": "2",
        "grpcio": "1",
        "images": "i",
        "load_before": [0.0, 0.1, 0.2],
        "kept_awake": True,
    }
    return {**setting, **made, "results": [{"workload": "mlp", "steps": 9, "pairs": pairs}], **other}


def test_a_ratio_is_taken_pair_by_pair() -> None:
    """Not of the medians: a machine that is slow for one pair is slow for both sides."""
    found = rows((1.0, 2.0), (10.0, 15.0), (2.0, 8.0))
    assert cost_page.ratio(found, "server_ms") == cost_page.Spread(2.0, 1.75, 3.0, 1.5, 4.0)
    assert cost_page.ratio(found, "both_ms").median == pytest.approx(3 / 2)  # of 3/2, 16/11, 9/3
    assert cost_page.ratio(found, "steps_per_s").median == pytest.approx(2 / 3)
    assert cost_page.of_side(found, "bare", "both_ms") == cost_page.Spread(3.0, 2.5, 7.0, 2.0, 11.0)


def test_the_spread_of_nine_is_the_third_to_the_seventh() -> None:
    spread = cost_page.Spread.of([9, 1, 8, 2, 7, 3, 6, 4, 5])
    assert spread == cost_page.Spread(5, 3, 7, 1, 9)
    assert spread.text(2) == "5.00 (3.00 to 7.00)"
    assert cost_page.Spread.of([4]) == cost_page.Spread(4, 4, 4, 4, 4)


def test_a_host_has_one_run_and_others_keep_theirs() -> None:
    first, second = run_of("A", rows((1, 2))), run_of("B", rows((1, 3)))
    again = run_of("A", rows((1, 4)), kernel="6.2")
    assert cost.joined(cost.joined(cost.joined([], first), second), again) == [again, second]
    with pytest.raises(BenchmarkFailed, match="would lose"):
        cost.joined([run_of("A", [], results=[{"workload": "mlp"}, {"workload": "cnn"}])], again)


def test_pages_state_medians_and_hosts() -> None:
    hosts = [run_of("A", rows((1, 2), (1, 2), (1, 5))), run_of("B", rows((2, 3)))]
    text, said = cost_page.page(hosts), cost_page.statement(hosts)
    assert "## A × 2" in text
    assert "Load before: 0.00 0.10 0.20." in text
    assert "| **2.00** (2.00 to 3.50) | 2.00 to 5.00 |" in text
    assert "| `mlp` | 2.00 (2.00 to 3.50) | 1.00 (1.00 to 1.00) | 0.67 (0.50 to 0.67) | A × 2 on 2026-01-02 |" in said
    assert "| `mlp` | 1.50 (1.50 to 1.50) | 1.00 (1.00 to 1.00) | 0.75 (0.75 to 0.75) | B × 2 on 2026-01-02 |" in said
    stated = cost_page.with_statement("a\n<!-- bench-cost -->\nold\n<!-- /bench-cost -->\nb\n", said)
    linked = said.replace("](benchmarks/", "](../../benchmarks/")
    assert stated == f"a\n<!-- bench-cost -->\n{linked}\n<!-- /bench-cost -->\nb\n"
    with pytest.raises(ValueError, match="speed"):
        cost_page.with_statement("no markers", said)


def test_the_last_host_counts_for_the_targets() -> None:
    raw = {"hosts": [run_of("A", rows((1, 1))), run_of("B", rows((1, 2)))]}
    assert cost_page.rows_of(raw, "mlp") == rows((1, 2))
    with pytest.raises(LookupError):
        cost_page.rows_of(raw, "cnn")


def test_the_page_on_speed_states_the_committed_numbers() -> None:
    hosts = cost_page.hosts_of()
    text = cost_page.SPEED.read_text()
    assert cost_page.with_statement(text, cost_page.statement(hosts)) == text, "make bench-table"
    page = RESULTS / "cost.md"
    assert not hosts or page.read_text() == cost_page.page(hosts), "make bench-cost"


@pytest.mark.skipif(sys.platform != "linux", reason="reads CPU clocks of other processes")
def test_cpu_time_of_a_process_is_its_own_account() -> None:
    """What we read of a child from outside is what the child reads of itself; it waits for a line before it ends."""
    code = "import json, time; sum(range(10**6)); print(json.dumps({'cpu_s': time.process_time()}), flush=True); time.sleep(30)"
    with started([sys.executable, "-c", code]) as process:
        inside = process.line("cpu_s", 60)["cpu_s"]
        assert inside > 0.005
        assert 0 <= process.cpu_s() - inside < 0.05


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads CPU clocks of other processes")
def test_the_instrument_counts_steps_of_both_sides() -> None:
    """A few steps of each: times are not compared, only that all of them were counted."""
    measured = cost.measure(WORKLOADS["mlp"], steps=20, pairs=1)
    (pair,) = measured["pairs"]
    assert pair.keys() == {"bare", "ours"}
    for numbers in pair.values():
        assert numbers.keys() == {"server_ms", "client_ms", "steps_per_s"}
        assert all(value > 0 for value in numbers.values())
