"""Cost of the server's alignments of auxiliary networks, estimated from one batch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.host.progress import size
from sl_common.messages.training import Newest
from sl_common.network.network import Network
from sl_common.protocol import At
from sl_common.protocol.align import AlignmentSamples
from sl_common.seeds import torch_generator
from sl_common.training.segment import Segment

MEASURED = 128  # most samples that are used to measure an alignment


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentCost:
    """Time and bytes of the server's alignments, estimated from one batch of noise on this machine's CPU."""

    samples: int  # in a client's memory, once it is full
    times: int  # number of alignments in the run, over all clients
    seconds: float  # of one alignment, with a full memory
    aux_bytes: int  # sent down to a client each time

    def __str__(self) -> str:
        return (
            f"alignment of one client's auxiliary network ({size(self.aux_bytes)}) on {self.samples} samples: about "
            f"{self.seconds:.1f} s on this machine's CPU; {self.times} of them in this run, about "
            f"{self.times * self.seconds:.0f} s of work beside the training"
        )


def measure_alignment(config: RunConfig, network: Network) -> AlignmentCost:
    """Measure an alignment by the second of two equal batches: the first warms up."""
    how, gate, run = config.server.alignment, config.protocol.gate, config.run
    directives = [gate.decide([], At(seed=run.seed, round=r, rounds=run.rounds)) for r in range(run.rounds)]
    records = (d.record for d in directives if not d.warm)
    record = next(records, None) or Newest(samples=1)  # every round may be warm
    assert isinstance(record, Newest)
    count = min(how.batch_size, record.samples, MEASURED)
    z = torch.randn(count, *network.cut_shape, generator=torch_generator(run.seed, "check", "align"))
    memory = AlignmentSamples(z=z, y=torch.zeros(count, dtype=torch.int64), targets=torch.zeros_like(z))
    aux = Segment(copied(network.part("aux")), how.optimizer)
    elapsed_s = 0.0
    for _ in range(2):
        began = time.perf_counter()
        how.model_copy(update={"epochs": 1}).run(aux, memory, (run.seed, "check"))
        elapsed_s = time.perf_counter() - began
    first = next((r for r, d in enumerate(directives) if not d.warm), run.rounds)
    times = sum(d.align or r == first for r, d in enumerate(directives)) * run.clients
    seconds = elapsed_s * how.epochs * record.samples / count
    return AlignmentCost(samples=record.samples, times=times, seconds=seconds, aux_bytes=aux.nbytes)
