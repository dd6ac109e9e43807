"""What each client is asked to do in a round: `decide(losses, at)` reads the mean training losses of the rounds so far.

Three kinds of rounds: clients train too (A), clients send but stay as they are while the head learns and records (B), clients are
silent and the head goes on learning from its records (C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sl_common.messages.training import Directive, Epoch, Newest
from sl_common.protocol.at import At
from sl_common.value import Value

GateState = Literal["A", "B", "C"]
DIRECTIVES: dict[GateState, Directive] = {
    "A": Directive(),
    "B": Directive(update=False, record=Epoch()),
    "C": Directive(send=False, update=False),
}


class Always(Value):
    """Every client sends and updates in every round.

    `record`: of each client the server keeps its newest samples. `align_every`: from these it aligns the auxiliary networks that it
    trains every so many rounds; one that was never aligned is aligned whatever this says (FSL-SAGE, Nair et al. 2025: record 1000,
    align every 10). `warm_start`: in so many first rounds the clients train those networks themselves instead, and nothing is
    recorded: as in the authors' code, the first alignment learns from the first batch of its own round.
    """

    kind: Literal["always"] = "always"
    record: PositiveInt | None = None  # samples
    align_every: PositiveInt | None = None  # rounds
    warm_start: Annotated[int, Field(ge=0)] = 0  # rounds

    def decide(self, losses: Sequence[float], at: At) -> Directive:  # noqa: ARG002
        """By the round's number."""
        warm = at.round < self.warm_start
        due = self.align_every is not None and (at.round - self.warm_start) % self.align_every == 0
        record = None if self.record is None or warm else Newest(samples=self.record)
        return Directive(record=record, align=due and not warm, warm=warm)


class LossGate(Value):
    """Loss-based asynchronous training (Chen, Li & Chakrabarti, SiPS 2021): clients train only while the loss still moves.

    After a round whose mean loss differs from the reference by `threshold` or more comes A, otherwise A → B → C → C. The first
    round has no reference, so A follows it. The difference is absolute: a rise calls the clients back too. The reference is the
    loss of the last A (so that a slow drift calls them back in the end; published in a framework that cites the paper, whose text we
    have not) or of the `previous` round. One state for all clients, driven by the mean over all their samples.
    """

    kind: Literal["loss"] = "loss"
    threshold: Annotated[float, Field(ge=0)] = 0.1
    reference: Literal["last_A", "previous"] = "last_A"

    def decide(self, losses: Sequence[float], at: At) -> Directive:  # noqa: ARG002
        """A function of all losses so far: nothing is remembered elsewhere."""
        return DIRECTIVES[self.states(losses)[-1]]

    def states(self, losses: Sequence[float]) -> list[GateState]:
        """The state of every round that is over, and of the one that comes."""
        states: list[GateState] = ["A"]
        reference: float | None = None
        for loss in losses:
            moved = reference is None or abs(reference - loss) >= self.threshold
            follows: GateState = "A" if moved else "B" if states[-1] == "A" else "C"
            if reference is None or follows == "A" or self.reference == "previous":
                reference = loss
            states.append(follows)
        return states


class Periodic(Value):
    """The baseline that the same paper compares with: of every k rounds one A, then one B, then C."""

    kind: Literal["periodic"] = "periodic"
    k: PositiveInt = 4

    def decide(self, losses: Sequence[float], at: At) -> Directive:  # noqa: ARG002
        """By the round's number."""
        turn = at.round % self.k
        return DIRECTIVES["A" if turn == 0 else "B" if turn == 1 else "C"]


Gate = Annotated[Always | LossGate | Periodic, Field(discriminator="kind")]
