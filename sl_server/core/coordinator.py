"""The server as a deterministic state machine.

Law: the same events in the same order give the same messages and the same weights, bit for bit. `handle` takes an
event; `advance` does at most one cohort's work and returns its result as one `Turn`. Nothing here knows a clock, a
thread, a file or a socket; time comes as Tick.

    handle(event) -> Intake -> state
    advance() -> RunSchedule (waves, rounds, merges) or Cohorts (batches -> head -> replies) -> Outbox -> Turn
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sl_common.config.run_config import RunConfig
from sl_common.messages.events import Event, Joined, Left, Saved, Tick
from sl_common.messages.facts import RunEnded
from sl_common.messages.training import Aligned, Alive, Done, Leave, Ready, Smashed
from sl_common.network.network import Network
from sl_common.tensors import StateDict
from sl_common.training.segment import Alone, Tree
from sl_server.core.cohorts import Cohorts
from sl_server.core.departures import Departures
from sl_server.core.evaluation import Evaluation
from sl_server.core.intake import Intake
from sl_server.core.launch import Launch
from sl_server.core.merges import Merges
from sl_server.core.outbox import Turn
from sl_server.core.recordings import Spill
from sl_server.core.schedule import RunSchedule
from sl_server.core.state import RunState

# over: the run has ended. redo: a client was lost, and the run must go back to its last checkpoint (`restore`).
# wave: a wave is under way, or messages are unsent. rest: neither. checkpoint: rest, and the state must be saved now.
RunStage = Literal["over", "redo", "wave", "rest", "checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """The batches that a run keeps on the server."""

    waiting_batches: int  # for a cohort to be complete
    recorded_memory_bytes: int
    recorded_disk_bytes: int


class Coordinator:
    """One run. Clients go by name outside and by shard inside."""

    def __init__(
        self,
        config: RunConfig,
        network: Network,
        *,
        device: str = "cpu",
        spill: Spill | None = None,
        alone: Alone | None = None,
        run: str = "",
    ) -> None:
        """`spill` moves recorded batches out of memory; without it nothing is recorded beyond the memory's budget.

        `alone`: a lock, for drivers that run jobs in other threads. `run` names this run, also after a restart.
        """
        state = RunState.new(config, network, device=device, spill=spill, alone=alone, run=run)
        self.run, self.device, self.config, self.network = run, device, config, network
        self.progress, self.roster, self.bank = state.progress, state.roster, state.bank
        self.recordings, self.alignments, self.agreement = state.recordings, state.alignments, state.agreement
        self._weights, self._blame = state.weights, state.blame
        self._outbox, self._redo, self._rejoin = state.outbox, state.redo, state.rejoin
        self._departures = Departures(state)
        self._intake = Intake(state, self._departures)
        self._launch = Launch(state)
        evaluation = Evaluation(state, self._launch)
        self._cohorts = Cohorts(state, self._departures, evaluation)
        merges = Merges(state, self._departures)
        self._schedule = RunSchedule(state, self._departures, evaluation, self._launch, merges)

    # --- events in

    def place(self, name: str, shard: int | None, shards: int | None) -> tuple[str, int]:
        """Return the name and shard that a newcomer would get; change nothing. Raises Refused."""
        return self._intake.place(name, shard, shards)

    def handle(self, client: str, event: Event) -> None:
        """Take one event.

        Raises, with nothing changed, WireError if the client may not say this now, or Refused if it may not take part.
        """
        if self.progress.ended is not None and not isinstance(event, Left | Leave):
            return  # it crossed with the server's Bye, or comes too late
        match event:
            case Smashed():
                self._intake.smashed(client, event)
            case Joined():
                self._intake.joined(client, event)
            case Ready():
                self._intake.ready(client, event)
            case Done():
                self._intake.done(client, event)
            case Left() | Leave():
                self._intake.left(client, event)
            case Aligned():
                self._intake.aligned(client, event)
            case Saved(number=number):
                self.progress.checkpoint = number
                self._redo.saved()
            case Tick(now=now):
                self._intake.tick(now)
            case Alive():
                self._intake.alive(event)

    def stop(self, reason: str) -> None:
        """End the run before its last round."""
        if self.progress.ended is None:
            self._schedule.end(reason, finished=False)

    # --- work

    def advance(self) -> Turn:
        """Do at most one cohort's work, or none where messages are to be sent first, and return what came of it."""
        self.bank.run_deferred_step()  # where no driver does: a deferred step holds on to a whole graph
        progress, worked = self.progress, False
        if not self._outbox.has_messages and progress.ended is None:
            wave = progress.wave
            if wave is None:
                worked = self._schedule.begin_next()
            else:
                worked = self._cohorts.serve(wave) or self._schedule.end_wave(wave)
        return self._outbox.turn(
            worked=worked,
            jobs=self.alignments.jobs(),
            wake_at=self._rejoin.until if self._rejoin else self._cohorts.wake_at,
            waiting=progress.wave is not None and bool(progress.wave.waiting),
            ended=progress.ended,
        )

    def run_deferred_step(self) -> None:
        """Apply the optimiser steps that `Head.step` deferred. The driver calls this after it has sent the replies."""
        self.bank.run_deferred_step()

    # --- questions

    @property
    def stage(self) -> RunStage:
        """Where the run stands. A driver that keeps checkpoints asks before each `advance`."""
        progress = self.progress
        if progress.ended is not None:
            return "over"
        if self._departures.must_redo:
            return "redo"
        if progress.wave is not None or self._outbox.has_messages:
            return "wave"
        which = self.config.run.checkpoints
        due = which == "wave" or (which == "round" and not progress.plan)
        return "checkpoint" if due and (progress.has_rested or self._schedule.is_beginning()) else "rest"

    @property
    def ended(self) -> RunEnded | None:
        """How the run ended, or None while it goes on."""
        return self.progress.ended

    @property
    def completed_waves(self) -> int:
        """Training waves of the run that have ended: the number of a checkpoint that is made now."""
        return self.progress.completed_waves

    def owes(self, name: str) -> bool:
        """True if the run waits for this client to say something."""
        member, progress = self.roster.find(name), self.progress
        if member is None or not member.here or progress.ended is not None:
            return False
        return not member.ready or (progress.wave is not None and progress.wave.owes(member.shard))

    def load(self) -> Load:
        """Return what is kept here. May be called from any thread; true for some recent moment."""
        wave = self.progress.wave
        waiting = 0 if wave is None else sum(len(batches) for batches in list(wave.waiting.values()))
        return Load(
            waiting_batches=waiting,
            recorded_memory_bytes=self.recordings.memory_bytes,
            recorded_disk_bytes=self.recordings.spilled_bytes,
        )

    def weights(self) -> dict[str, StateDict]:
        """Return the server's weights: `lower` if all share it, `head`, or `head-<shard>` where copies differ."""
        return self._weights.on_server()

    def weights_sha256(self) -> str:
        """Return a fingerprint of all weights of the run; private ones by the digests that clients reported."""
        return self._weights.sha256(self.roster.known())

    # --- checkpoints

    def snapshot(self) -> Tree:
        """Return everything that the run goes on from, between two waves."""
        return {
            **self.progress.snapshot(),
            **self._schedule.snapshot(),
            "bank": self.bank.snapshot(),
            "weights": self._weights.snapshot(),
            "roster": self.roster.snapshot(),
            "recordings": self.recordings.snapshot(),
            "alignments": self.alignments.snapshot(),
            "blame": self._blame.snapshot(),
            "agreement": self.agreement.snapshot(),
        }

    def restore(self, tree: Tree, now: float = 0.0) -> None:
        """Go back to a snapshot, without clients. Those that were here are awaited until `run.rejoin_s` after `now`."""
        self.progress.restore(tree, now)
        self._schedule.restore(tree)
        self._outbox.clear()
        self._cohorts.wake_at = None
        self.bank.restore(tree["bank"])
        self._weights.restore(tree["weights"])
        self.recordings.restore(tree["recordings"])
        self.alignments.restore(tree["alignments"])
        self._departures.restore()
        self._blame.restore(tree.get("blame", {}))
        self.agreement.restore(tree.get("agreement", {}))
        self._rejoin.expect(self.roster.restore(tree["roster"]), now + self.config.run.rejoin_s)
