"""Gates choose the task of each client in a round: `decide(losses, at)` reads the mean losses of the rounds so far.

There are three kinds of rounds. A: clients send and train. B: clients send but stay as they are, while the head learns
and records. C: clients are silent, and the head goes on learning from its records.
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
    """Every client sends and trains in every round.

    `record`: the server keeps the newest samples of each client. `align_every`: from these, at this interval of
    rounds, it aligns the auxiliary networks that it trains; one that was never aligned is aligned in any case
    (FSL-SAGE, Nair et al. 2025: record 1000, align every 10). `warm_start`: in this number of first rounds the
    clients train those networks themselves and nothing is recorded; as in the authors' code, the first alignment
    learns from the first batch of its own round.
    """

    kind: Literal["always"] = Field("always", description="Every client sends and trains in every round.")
    record: PositiveInt | None = Field(None, description="Newest samples of each client that the server keeps.")
    align_every: PositiveInt | None = Field(
        None, description="Rounds between two alignments of the auxiliary networks that the server trains."
    )
    warm_start: int = Field(
        0, ge=0, description="First rounds in which the clients train the auxiliary networks themselves."
    )

    def decide(self, losses: Sequence[float], at: At) -> Directive:  # noqa: ARG002
        """Decide by the round's number."""
        warm = at.round < self.warm_start
        due = self.align_every is not None and (at.round - self.warm_start) % self.align_every == 0
        record = None if self.record is None or warm else Newest(samples=self.record)
        return Directive(record=record, align=due and not warm, warm=warm)


class LossGate(Value):
    """Loss-based asynchronous training (Chen, Li & Chakrabarti, SiPS 2021): clients train only while the loss changes.

    After a round whose mean loss differs from the reference by `threshold` or more comes A, otherwise A → B → C → C.
    The first round has no reference, so A follows it. The difference is absolute: a rise calls the clients back too.
    The reference is the loss of the last A or of the `previous` round. With the last A a slow drift calls the clients
    back in the end; this is published in a framework that cites the paper, whose text we do not have. One state for all
    clients, driven by the mean over all their samples.
    """

    kind: Literal["loss"] = Field("loss", description="Clients train only while the loss still changes.")
    threshold: float = Field(0.1, ge=0, description="Change of the mean loss from which the clients train again.")
    reference: Literal["last_A", "previous"] = Field(
        "last_A", description="The loss is compared with that of the last round A, or of the previous round."
    )

    def decide(self, losses: Sequence[float], at: At) -> Directive:  # noqa: ARG002
        """Decide by all losses so far; no other state is kept."""
        return DIRECTIVES[self.states(losses)[-1]]

    def states(self, losses: Sequence[float]) -> list[GateState]:
        """Return the state of every finished round and of the next one."""
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
    """A fixed period, the baseline of the same paper: of every k rounds one A, then one B, then C."""

    kind: Literal["periodic"] = Field("periodic", description="Clients train in one of every k rounds.")
    k: PositiveInt = Field(4, description="Rounds in one period.")

    def decide(self, losses: Sequence[float], at: At) -> Directive:  # noqa: ARG002
        """Decide by the round's number."""
        turn = at.round % self.k
        return DIRECTIVES["A" if turn == 0 else "B" if turn == 1 else "C"]


Gate = Annotated[Always | LossGate | Periodic, Field(discriminator="kind")]
