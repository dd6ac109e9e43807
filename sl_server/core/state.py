"""The state of one run: a record of pieces, each of which owns its contents. Pure."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.network.network import Network
from sl_common.tensors import constants_of
from sl_common.training.bank import Bank
from sl_common.training.segment import Alone, Segment
from sl_server.core.agreement import Agreement
from sl_server.core.alignments import Alignments
from sl_server.core.blame import Blame
from sl_server.core.merged import Constants
from sl_server.core.outbox import Outbox
from sl_server.core.progress import Progress
from sl_server.core.recordings import Recordings, Spill
from sl_server.core.redo import RedoBudget
from sl_server.core.rejoin import Rejoin
from sl_server.core.roster import Roster
from sl_server.core.singles import Singles
from sl_server.core.weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunState:
    """The pieces that the parts of a coordinator share; each part takes those that it needs."""

    run: str  # name of the run
    config: RunConfig
    network: Network
    progress: Progress
    roster: Roster
    outbox: Outbox
    bank: Bank
    weights: Weights
    recordings: Recordings
    alignments: Alignments
    agreement: Agreement
    blame: Blame
    redo: RedoBudget
    rejoin: Rejoin
    singles: Singles
    constants: Constants  # initial values beyond the guard's limit, which are let through

    @classmethod
    def new(
        cls, config: RunConfig, network: Network, *, device: str, spill: Spill | None, alone: Alone | None, run: str
    ) -> RunState:
        """Return the state of a run that has not begun."""
        learner, guard = config.protocol.learner, config.server.guard
        bank = _new_bank(config, network, device, alone or nullcontext())
        recordings = Recordings(config.codec, config.server.recordings, spill)
        parts = {"head", *learner.parts, *bank.parts}
        own = frozenset({"lower"}) if config.client.initial == "own" else frozenset[str]()
        return cls(
            run=run,
            config=config,
            network=network,
            progress=Progress(config),
            roster=Roster(config.shards, config.sharded, 2 * config.server.limits.sessions),
            outbox=Outbox(),
            bank=bank,
            weights=Weights(network, learner.parts, bank, own=own),
            recordings=recordings,
            alignments=Alignments(config, bank, recordings),
            agreement=Agreement(config, network, alone),
            blame=Blame(config.protocol.head, bank, network),
            redo=RedoBudget(config.run.redo_limit),
            rejoin=Rejoin(),
            singles=Singles(config, network),
            constants={part: constants_of(network.part(part).state_dict(), guard.weights) for part in parts},
        )


def _new_bank(config: RunConfig, network: Network, device: str, alone: Alone) -> Bank:
    """Return the server's segments: the head, and the auxiliary networks if the server trains them."""
    server, protocol = config.server, config.protocol
    optimizers = {"head": server.optimizer} | ({"aux": server.alignment.optimizer} if protocol.aligns else {})
    per_client = {"aux"} | ({"head"} if protocol.head.copies == "per_client" else set())

    def make(part: str) -> Segment:
        module = copied(network.part(part))
        halves, last = server.reply_first and network.halves, server.channels_last
        return Segment(module, optimizers[part], device=device, alone=alone, halves=halves, channels_last=last)

    return Bank({part: partial(make, part) for part in optimizers}, frozenset(per_client & optimizers.keys()))
