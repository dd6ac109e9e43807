"""The table of faults counts what tests did, and calls survived what tests that passed did."""

from __future__ import annotations

from tally import Faults, table


def test_what_a_test_did_that_failed_is_lost() -> None:
    good, bad = Faults(), Faults()
    for kind in ("cut", "cut", "server kill"):
        good.tell("real processes", kind)
    bad.tell("in memory", "cut")
    lines = table({"good": good, "bad": bad}, {"good"})
    rows = {line[:12].strip(): line[12:].split() for line in lines[1:-1]}
    assert rows["cut"] == ["1", "0", "2", "2"]
    assert rows["server kill"] == ["0", "0", "1", "1"]
    assert rows["all"] == ["1", "0", "3", "3"]
    assert lines[-1] == "injected: 4, survived: 3, lost: 1"
    assert table({}, set()) == table({"none": Faults()}, set()) == []
