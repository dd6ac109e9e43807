"""An algorithm is a record of six frozen values. The core names no algorithm; `sl_common.presets` does."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from sl_common.protocol.at import At
from sl_common.protocol.barrier import All, Barrier, Each, InTurn, WaitUntil
from sl_common.protocol.gate import Always, Gate, LossGate, Periodic
from sl_common.protocol.head import Head
from sl_common.protocol.learner import Await, Draws, Learner, Local, LocalLoss, Split, SplitWithLocalLoss, Tally
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
    "Record",
    "Sequential",
    "Split",
    "SplitWithLocalLoss",
    "Tally",
    "WaitUntil",
]


class Protocol(Value):
    """Who trains together, what each is asked, the client's loop, which batches join, how they become gradients, what of weights."""

    waves: Waves = Parallel()
    gate: Gate = Always()
    learner: Learner = Split()
    barrier: Barrier = Each()
    head: Head = Head()
    merge: Merge = Keep()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if isinstance(self.merge, Handoff) and not isinstance(self.waves, Sequential):
            raise ValueError("merge handoff needs waves sequential: in a parallel wave there is no one to hand over to")
        if self.head.copies == "per_client" and isinstance(self.barrier, All):
            raise ValueError("head.copies per_client needs barrier each or in_turn: a joint cohort has one head")
        known = {*self.learner.parts, "head"}
        unknown = [part for part in getattr(self.merge, "parts", ()) if part not in known]
        if unknown:
            raise ValueError(
                f"merge.parts names {unknown[0]!r}; learner {self.learner.kind} and the server hold {sorted(known)}"
            )
        return self

    @property
    def timing_free(self) -> bool:
        """True if the result does not depend on who is fast: all but a shared head that takes whoever comes."""
        alone = isinstance(self.waves, Sequential) or isinstance(self.learner, Local)
        return alone or not isinstance(self.barrier, Each) or self.head.copies == "per_client"
