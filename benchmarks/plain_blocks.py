"""One side of benchmarks.memory: the blocks below a cut, trained by torch alone on random batches; says so, and stays.

python -m benchmarks.plain_blocks MODEL CUT STEPS SIZE…
"""

from __future__ import annotations

import sys
import time

import torch

from sl_common.models import build, cut_index, join


def main(model: str, cut: str, steps: int, input: tuple[int, ...]) -> None:
    """Batches of 64, as in anybody's loop."""
    torch.set_num_threads(1)
    blocks = build(model, input=input, classes=10, args={}, seed=0)
    lower = join(blocks[: cut_index(blocks, cut)])
    del blocks
    optimizer = torch.optim.SGD(lower.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        z = lower(torch.rand(64, *input))
        z.backward(torch.ones_like(z))  # type: ignore[no-untyped-call]
        optimizer.step()
    print('{"trained": true}', flush=True)
    time.sleep(30)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), tuple(map(int, sys.argv[4:])))
