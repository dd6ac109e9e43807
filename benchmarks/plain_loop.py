"""Measures the unsplit network in one process: the same batches and optimiser, no cut, no wire.

python -m benchmarks.plain_loop --workload cnn
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.workloads import WORKLOADS, Workload, batches, one_thread, sgd


def measure(workload: Workload, steps: int) -> float:
    """Steps per second over `steps` steps, after as many to warm up."""
    model = nn.Sequential(*workload.segments())
    optimizer = sgd(model)
    started = 0.0
    for number, (x, y) in enumerate(batches(workload, 2 * steps)):
        if number == steps:
            started = time.perf_counter()
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return steps / (time.perf_counter() - started)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--steps", type=int, help="by default the workload's")
    args = parser.parse_args()
    one_thread()
    workload = WORKLOADS[args.workload]
    print(json.dumps({"steps_per_s": measure(workload, args.steps or workload.steps)}))


if __name__ == "__main__":
    main()
