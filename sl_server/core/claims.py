"""Checks of the numbers that a client claims, against those that the server knows or has counted. Pure.

Law: where the server knows a number, or can count it, the server's number holds; every other number is bounded by the
configuration. A claim that does not fit is refused with both values, and only its client is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sl_common.bounded import MAX_COUNT
from sl_common.config.known_data import KNOWN_DATA
from sl_common.config.run_config import RunConfig
from sl_common.errors import WireError
from sl_common.messages.training import Begin, Ready
from sl_common.protocol import LocalLoss
from sl_common.protocol.head import LARGE_LOSS

_LAST = {
    "keep": "",
    "drop": ", and a last, smaller one is left out in this run",
    "merge": ", and a last one of a single sample joins the one before in this run",
}
MAX_LOSS = LARGE_LOSS  # of a mean per sample that a client computed: the gate and the report use it


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """The batches of one client's training wave, as its loader deals the samples that it claims."""

    samples: int  # training samples in an epoch
    batches: int  # in an epoch
    batch_size: int
    first: int  # number of the wave's first batch since the run began
    steps: int
    sent: Sequence[int]  # steps whose batches cross the cut

    def rows(self, number: int) -> int:
        """Return the samples in one batch, by its number since the run began."""
        last = number % self.batches == self.batches - 1
        return self.samples - (self.batches - 1) * self.batch_size if last else self.batch_size

    @property
    def all_rows(self) -> int:
        """Samples in all batches of the wave."""
        short = (self.first + self.steps) // self.batches - self.first // self.batches  # batches that end an epoch
        return (self.steps - short) * self.batch_size + short * self.rows(self.batches - 1)

    @property
    def sent_rows(self) -> int:
        """Samples in the batches that cross the cut. Takes time in proportion to these: ask once they have arrived."""
        return sum(self.rows(self.first + step) for step in self.sent)


def due_of(config: RunConfig, samples: int, batches: int, begin: Begin) -> Due:
    """Return the batches that a client with so many samples must bring in the training wave of `begin`."""
    steps = begin.steps if begin.directive.send else 0
    return Due(
        samples=samples,
        batches=batches,
        batch_size=config.data.batch_size,
        first=begin.first,
        steps=steps,
        sent=config.protocol.learner.sent(steps),
    )


def check_ready(config: RunConfig, ready: Ready, client: str = "this client") -> None:
    """Raise WireError unless a client of this run can have these samples and batches, and they suffice to train."""
    most, why = _most_samples(config)
    if not 1 <= ready.samples <= most:
        raise WireError(f"ready with {ready.samples} training samples, 1 to {most} are possible: {why}")
    deal = config.deal(ready.samples)
    if ready.batches != deal.batches or ready.samples != deal.used:
        raise WireError(
            f"ready with {ready.samples} samples in {ready.batches} batches an epoch, "
            f"data.batch_size = {deal.batch_size} makes them {-(-ready.samples // deal.batch_size)}{_LAST[deal.last]}"
        )
    if nothing := sends_nothing(config, ready.batches):
        raise WireError(f"{client} {nothing}")
    if any(number > MAX_COUNT for number in ready.snapshots):
        raise WireError(f"ready with a snapshot of checkpoint {max(ready.snapshots)}, at most {MAX_COUNT} are possible")


def sends_nothing(config: RunConfig, batches: int) -> str | None:
    """Return why none of a client's batches would cross the cut though some should, or None. `batches`: in an epoch."""
    learner, steps = config.protocol.learner, config.client.wave.batches(batches)
    if not isinstance(learner, LocalLoss) or len(learner.sent(steps)):
        return None
    return (
        f"has {steps} batches in a wave, fewer than protocol.learner.send_every = {learner.send_every}, and would send "
        "nothing: protocol.learner.partial = 'send' sends a smaller group too; "
        "or take a longer client.wave or a smaller send_every"
    )


def _most_samples(config: RunConfig) -> tuple[int, str]:
    """Return the most training samples that one client can have, and the reason for this limit."""
    data, known = config.data, KNOWN_DATA.get(config.data.name)
    bounds = [(MAX_COUNT, "no run has more")]
    if known is not None:
        most = data.partition.most(known.train, config.shards)
        bounds.append((most, f"data.name = {data.name!r} has {known.train}, in {config.shards} shards"))
    if data.max_samples is not None:
        bounds.append((data.max_samples, f"data.max_samples = {data.max_samples}"))
    return min(bounds)


def most_evaluated(config: RunConfig, begin: Begin) -> int:
    """Return the most held-out samples that a client can bring in the evaluation of `begin`."""
    known = KNOWN_DATA.get(config.data.name)
    whole = known.test if known is not None else config.data.max_samples or MAX_COUNT
    whole = min(whole, begin.samples or whole)
    if known is None:  # only a bound: the size of a slice does not follow from it
        return whole
    return whole * (begin.slice + 1) // begin.slices - whole * begin.slice // begin.slices
