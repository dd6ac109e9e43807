"""Measures the head's step on a cohort against a plain PyTorch loop at the same total batch: with and without mixup, and in NHWC.

python -m benchmarks.cohorts [--rounds 15]; `make bench-cohorts`. It writes cohorts.json and cohorts.md into benchmarks/results. One
thread, batches of 8, activations of the untrained cnn on real images; the step includes the checks, the split of the gradient by client,
and the optimiser. Every round times both sides, in turn, on the same cohorts.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import images
from benchmarks.page import Page, parser_of
from benchmarks.workloads import LR, MOMENTUM, WORKLOADS, sgd
from sl_common.messages.training import Smashed
from sl_common.protocol import Arrived, At, Head, Mixup
from sl_common.protocol.mix import Part
from sl_common.training.bank import Bank
from sl_common.training.optim import Sgd
from sl_common.training.segment import Segment

BATCH, GOAL = 8, 1.05
NOTE = (
    "One thread, batches of 8, activations of the untrained cnn on real images. Our step includes its checks, the split of the gradient "
    "by client, and the optimiser; the plain loop does the same computation. `until the reply`: the cut gradients are there, and those of "
    "large weights are still to be computed (`server.reply_first`); of the plain loop's whole step. `NHWC`: a whole step of ours with "
    "`server.channels_last`. All sides in turn, on the same cohorts; medians."
)
CURVE = (
    "What `server.channels_last` does to a loss curve: {steps} steps of a cohort of 16 on real images, the same batches for both, mean "
    "losses of {span} steps. The greatest difference of a single step's loss is {greatest:.2g}."
)
STEPS, SPAN = 200, 40
COHORTS = (1, 16, 64)
HEADS = {"plain": Head(), "mixup": Head(mix=Mixup())}


def cohort_of(clients: int, lower: nn.Module) -> list[Arrived]:
    """Real activations, the first images of the training set dealt out."""
    data = images()
    cohort = []
    for client in range(clients):
        rows = slice(client * BATCH, (client + 1) * BATCH)
        with torch.no_grad():
            z = lower(data.normalise(data.train[0][rows]))
        cohort.append(Arrived(client=client, batch=Smashed(step=0, z=z, y=data.train[1][rows]), samples=BATCH))
    return cohort


def plain_step(
    head: nn.Module, optimizer: torch.optim.Optimizer, cohort: Sequence[Arrived], mix: Mixup | None, at: At
) -> tuple[Tensor, ...]:
    """What a researcher would write: one forward, with mixup one more, one backward, one step, each client's gradient."""
    z = torch.cat([a.batch.z for a in cohort]).requires_grad_()
    y = torch.cat([a.batch.y for a in cohort])
    loss = F.cross_entropy(head(z), y)
    if mix is not None and len(cohort) > 1:
        loss = loss + _mixed(head, cohort, mix, at)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert z.grad is not None
    return tuple(dz * len(cohort) for dz in z.grad.split(BATCH))


def _mixed(head: nn.Module, cohort: Sequence[Arrived], mix: Mixup, at: At) -> Tensor:
    parts = [Part(client=a.client, z=a.batch.z, y=a.batch.y, weight=1 / len(cohort)) for a in cohort]
    pairs = [(own, *mix.draw(own, [p for p in parts if p is not own], at)[0]) for own in parts]
    share = torch.cat([torch.from_numpy(lam).float() for _, _, lam in pairs])
    beside = share.view(-1, 1, 1, 1)
    first, second = torch.cat([own.z for own, _, _ in pairs]), torch.cat([other.z for _, other, _ in pairs])
    logits = head(beside * first + (1 - beside) * second)
    ys = [torch.cat([pair[place].y for pair in pairs]) for place in (0, 1)]
    losses = [F.cross_entropy(logits, labels, reduction="none") for labels in ys]
    return (share * losses[0] + (1 - share) * losses[1]).mean()


def measure(kind: str, clients: int, rounds: int) -> dict[str, Any]:
    """Medians of both sides, and of the ratios of their pairs."""
    lower, head = WORKLOADS["cnn"].segments()
    cohort, rule = cohort_of(clients, lower), HEADS[kind]
    plain = copy.deepcopy(head)
    optimizer = sgd(plain)
    bank, last = bank_of(head), bank_of(head, channels_last=True)
    mix = rule.mix if isinstance(rule.mix, Mixup) else None
    repeat = max(1, 64 // clients)

    replies: list[float] = []  # seconds until each was there

    def ours(at: At) -> None:
        began = time.perf_counter()
        rule.step(bank, cohort, at)
        replies.append(time.perf_counter() - began)
        bank.run_deferred_step()

    def nhwc(at: At) -> None:
        rule.step(last, cohort, at)
        last.run_deferred_step()

    sides: dict[str, Callable[[At], object]] = {
        "ours": ours,
        "plain": lambda at: plain_step(plain, optimizer, cohort, mix, at),
        "nhwc": nhwc,
    }
    seconds: dict[str, list[float]] = {side: [] for side in (*sides, "reply")}
    for number in range(rounds + 2):
        for side in sides if number % 2 else reversed(sides):
            started = time.perf_counter()
            for step in range(repeat):
                sides[side](At(seed=0, round=number, step=step))
            if number > 1:
                seconds[side].append((time.perf_counter() - started) / repeat)
        if number > 1:
            seconds["reply"].append(statistics.mean(replies))
        replies.clear()
    ratios, reply, last_ratios = (
        [a / b for a, b in zip(seconds[side], seconds["plain"], strict=True)] for side in ("ours", "reply", "nhwc")
    )
    return {
        "head": kind,
        "clients": clients,
        "ours_us_per_sample": 1e6 * statistics.median(seconds["ours"]) / clients / BATCH,
        "plain_us_per_sample": 1e6 * statistics.median(seconds["plain"]) / clients / BATCH,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "reply": statistics.median(reply),
        "nhwc": statistics.median(last_ratios),
    }


def bank_of(head: nn.Module, *, channels_last: bool = False) -> Bank:
    """A server's, with a copy of this head."""

    def make() -> Segment:
        return Segment(copy.deepcopy(head), Sgd(lr=LR, momentum=MOMENTUM), channels_last=channels_last)

    return Bank({"head": make})


def curves() -> dict[str, list[float]]:
    """The head's loss in each of STEPS steps, in rows and in NHWC."""
    lower, head = WORKLOADS["cnn"].segments()
    data, clients = images(), 16
    found: dict[str, list[float]] = {}
    for name, bank in (("rows", bank_of(head)), ("nhwc", bank_of(head, channels_last=True))):
        found[name] = []
        for step in range(STEPS):
            rows = slice(step * clients * BATCH, (step + 1) * clients * BATCH)
            with torch.no_grad():
                z = lower(data.normalise(data.train[0][rows]))
            batch = Smashed(step=step, z=z, y=data.train[1][rows])
            replies = Head().step(
                bank, [Arrived(client=0, batch=batch, samples=len(z))], At(seed=0, round=0, step=step)
            )
            found[name].append(replies[0].loss)
    return found


def curve_table(found: dict[str, list[float]]) -> str:
    """Markdown: mean losses of SPAN steps."""
    places = range(0, STEPS, SPAN)
    lines = [
        "| steps | " + " | ".join(f"{at + 1} to {at + SPAN}" for at in places) + " |",
        "|---|" + "---:|" * len(places),
    ]
    for name, losses in found.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{statistics.mean(losses[at : at + SPAN]):.5f}" for at in places) + " |"
        )
    return "\n".join(lines)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| head | clients | ours, µs a sample | plain, µs a sample | ours ÷ plain (pairs) | ≤ 1.05 | until the reply | NHWC |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for r in results:
        spread = f"{min(r['ratios']):.2f} to {max(r['ratios']):.2f}"
        verdict = "met" if r["ratio"] <= GOAL else "NOT met"
        lines.append(
            f"| {r['head']} | {r['clients']} | {r['ours_us_per_sample']:.0f} | {r['plain_us_per_sample']:.0f} | "
            f"{r['ratio']:.3f} ({spread}) | {verdict} | {r['reply']:.2f} | {r['nhwc']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("cohorts", __doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(kind, clients, args.rounds) for kind in HEADS for clients in COHORTS]
    page = Page("cohorts", "cohorts")
    made = f"{page.made_by}, one thread, torch {page.setting['torch']}; images: {page.setting['images']}."
    found = curves()
    greatest = max(abs(a - b) for a, b in zip(*found.values(), strict=True))
    said = CURVE.format(steps=STEPS, span=SPAN, greatest=greatest)
    sections = ["# The head's step on a cohort", made, NOTE, table(results), said, curve_table(found)]
    page.save(args.results, sections, {"results": results, "losses": found})


if __name__ == "__main__":
    main()
