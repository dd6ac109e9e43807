"""An algorithm is a record of six frozen values. The core names no algorithm; `sl_common.config.presets` does."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sl_common.messages.training import Directive
from sl_common.protocol.at import At
from sl_common.protocol.barrier import All, Barrier, Each, InTurn, Quorum, WaitUntil, Without
from sl_common.protocol.exchange import Await, AwaitAligned, Draws, WaveTally
from sl_common.protocol.gate import Always, Gate, LossGate, Periodic
from sl_common.protocol.head import Head
from sl_common.protocol.learner import Learner, Local, Split, SplitWithLocalLoss
from sl_common.protocol.local_loss import LocalLoss
from sl_common.protocol.merge import Average, Handoff, Keep, Merge, Record
from sl_common.protocol.mix import Arrived, Mixup
from sl_common.protocol.scatter import Averaged, Own
from sl_common.protocol.waves import Parallel, Sequential, Waves
from sl_common.value import Value

__all__ = [
    "All",
    "Always",
    "Arrived",
    "At",
    "Average",
    "Averaged",
    "Await",
    "AwaitAligned",
    "Draws",
    "Each",
    "Handoff",
    "Head",
    "InTurn",
    "Keep",
    "Local",
    "LocalLoss",
    "LossGate",
    "Mixup",
    "Own",
    "Parallel",
    "Periodic",
    "Protocol",
    "Quorum",
    "Record",
    "Sequential",
    "Split",
    "SplitWithLocalLoss",
    "WaitUntil",
    "WaveTally",
    "Without",
]


class Protocol(Value):
    """A training algorithm as a record of six values, one for each question of split learning.

    The questions are: the clients of a wave, their tasks in a round, the client's loop, the batches of a cohort, the
    gradients made of it, and the exchange of weights.
    """

    waves: Waves = Field(Parallel(), description="Which clients train together in a wave.")
    gate: Gate = Field(Always(), description="What each client is asked to do in a round.")
    learner: Learner = Field(Split(), description="The client's training loop.")
    barrier: Barrier = Field(Each(), description="Which waiting batches the server joins into one cohort.")
    head: Head = Field(Head(), description="How a cohort becomes a step of the head, and gradients for the clients.")
    merge: Merge = Field(Keep(), description="What happens to the clients' weights after a wave or a round.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if isinstance(self.merge, Handoff) and not isinstance(self.waves, Sequential):
            raise ValueError("merge handoff needs waves sequential: in a parallel wave there is no one to hand over to")
        if self.head.copies == "per_client" and self.barrier.joint:
            raise ValueError("head.copies per_client needs barrier each or in_turn: a joint cohort has one head")
        known = {*self.learner.parts, "head"}
        unknown = [part for part in getattr(self.merge, "parts", ()) if part not in known]
        if unknown:
            raise ValueError(
                f"merge.parts names {unknown[0]!r}; learner {self.learner.kind} and the server hold {sorted(known)}"
            )
        return self

    @model_validator(mode="after")
    def _can_align(self) -> Self:
        gate = self.gate if isinstance(self.gate, Always) else Always()
        if not self.aligns:
            if gate.align_every is not None or gate.warm_start:
                raise ValueError(
                    f"gate.align_every = {gate.align_every}, gate.warm_start = {gate.warm_start} are for learner "
                    "local_loss with train_aux = false: no other auxiliary network is the server's to align"
                )
            return self
        if gate.record is None:
            raise ValueError("learner.train_aux = false needs gate.record, the samples to align with")
        if not self.learner.aux.predicts:  # type: ignore[union-attr]
            raise ValueError(
                "learner.train_aux = false needs learner.aux.kind classifier: a decoder estimates no gradient"
            )
        if gate.warm_start and "aux" not in getattr(self.merge, "parts", ()):
            raise ValueError(
                f"gate.warm_start = {gate.warm_start} needs merge.parts = ['lower', 'aux']: all begin from the mean "
                "of the networks that the clients trained; in later rounds aux is not exchanged"
            )
        return self

    @property
    def aligns(self) -> bool:
        """True if the server trains the clients' auxiliary networks."""
        return not getattr(self.learner, "train_aux", True)

    def uploads(self, at: At, directive: Directive) -> tuple[str, ...]:
        """Return the parts that clients upload after a wave: those the merge needs, if the clients trained them."""
        if not directive.update:
            return ()
        frozen = {"aux"} if self.aligns and not directive.warm else set[str]()
        return tuple(part for part in self.merge.needs(at) if part in self.learner.parts and part not in frozen)

    @property
    def timing_free(self) -> bool:
        """True if the result does not depend on the speed of the clients.

        False with a quorum, and with a shared head that takes batches in order of arrival.
        """
        if self.barrier.timed:
            return False
        alone = isinstance(self.waves, Sequential) or isinstance(self.learner, Local)
        return alone or not isinstance(self.barrier, Each) or self.head.copies == "per_client"
