"""The server as a deterministic state machine.

Law: the same events in the same order give the same messages and the same weights, bit for bit. `handle` takes an event in;
`advance` does at most one cohort's work and returns everything that came of it as one `Turn`. Nothing here
knows a clock, a thread, a file or a socket; time comes as Tick.

    round:   plan waves -> [ begin -> cohorts … -> all Done -> merge after the wave ]… -> merge after the round -> evaluate
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from sl_common.bounded import MAX_COUNT
from sl_common.config.run_config import KNOWN_DATA, RunConfig
from sl_common.errors import Diverged, Refused, Unfit, WireError
from sl_common.messages.facts import (
    BatchEvaluated,
    ClientDone,
    ClientJoined,
    ClientLate,
    ClientLeft,
    ClientReady,
    ClientsDoubtful,
    Fact,
    RedoSpent,
    RoundEnded,
    RunEnded,
    Trained,
    WaveBegun,
)
from sl_common.messages.training import (
    MOST_LATE,
    Aligned,
    Alive,
    Begin,
    Bye,
    Directive,
    Done,
    Event,
    Gradient,
    Joined,
    Late,
    Leave,
    Left,
    Newest,
    Ready,
    Saved,
    Smashed,
    Tick,
    ToClient,
    Welcome,
)
from sl_common.names import MAX_REASON
from sl_common.network.contents import copies
from sl_common.network.network import Network
from sl_common.protocol import Arrived, At, Record, WaitUntil, Without
from sl_common.protocol.merge import Merged
from sl_common.tensors import StateDict, check_copies, check_state, checksum, constants_of
from sl_common.training.segment import Alone, Bank, Segment, Tree
from sl_server.core.agreement import Agreement
from sl_server.core.alignments import Alignments
from sl_server.core.blame import Blame
from sl_server.core.claims import check_ready, due_of, most_evaluated
from sl_server.core.guard import guarded_batch, guarded_state
from sl_server.core.merged import checked_merge
from sl_server.core.outbox import Outbox, Turn
from sl_server.core.recordings import Recordings, Spill
from sl_server.core.redo import RedoBudget
from sl_server.core.rejoin import Comeback
from sl_server.core.roster import Member, Roster
from sl_server.core.scores import evaluation, mean_loss
from sl_server.core.singles import Singles
from sl_server.core.wave import Wave
from sl_server.core.weights import Weights

# over: the run has ended. redo: a client was lost, and the run is to go back to its last checkpoint (`restore`) and wait for it.
# wave: a wave is under way, or messages are to be sent. rest: neither. checkpoint: rest, and the state is to be made durable now.
Stage = Literal["over", "redo", "wave", "rest", "checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a run keeps on the server for now."""

    waiting_batches: int  # for their cohort
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

        `alone`: a lock, for whoever runs `jobs` in other threads. `run` names this run, also after a restart.
        """
        self.run = run
        self.device = device
        self.config = config
        self.network = network
        self.protocol = config.protocol
        self.roster = Roster(config.shards, config.sharded, 2 * config.server.limits.sessions)
        self.bank = self._new_bank(device, alone or nullcontext())
        self.recordings = Recordings(config.codec, config.server.recordings, spill)
        self.alignments = Alignments(config, self.bank, self.recordings)
        own = frozenset({"lower"}) if config.client.initial == "own" else frozenset[str]()
        self.agreement = Agreement(config, network, alone)
        limit = config.server.guard.weights
        self._constants = {part: constants_of(network.part(part).state_dict(), limit) for part in self._all_parts()}
        self._blame = Blame(self.protocol.head, self.bank, network)
        self._singles = Singles(config, network)
        self._outbox = Outbox()
        self._weights = Weights(network, self.protocol.learner.parts, self.bank, own=own)
        # Enough clients were here since the run began or was taken up: below_min = end waits for that.
        self._gathered = False
        self._round = 0
        self._plan: list[list[int]] | None = None  # waves of this round still to come; None: the round has not begun
        self._waves = 0
        self._wave: Wave | None = None
        self._over: list[Wave] = []  # training waves of this round that are over
        self._losses: list[float] = []  # of the rounds so far
        self._now = 0.0
        self.completed_waves = 0  # training waves that are over: between two of them the state can be kept
        self._has_rested = False  # a training wave has just ended, and nothing has begun since
        self.checkpoint = 0  # after which of them it was last made durable
        self._must_redo = False  # a client was lost
        self._redo = RedoBudget(config.run.redo_limit)
        self._comeback = Comeback()
        self._barrier_at: float | None = None  # when the barrier wants to be asked again
        self.ended: RunEnded | None = None

    def _all_parts(self) -> set[str]:
        return {"head", *self.protocol.learner.parts, *self.bank.parts}

    def _new_bank(self, device: str, alone: Alone) -> Bank:
        server, protocol = self.config.server, self.protocol
        optimizers = {"head": server.optimizer} | ({"aux": server.alignment.optimizer} if protocol.aligns else {})
        per_client = {"aux"} | ({"head"} if protocol.head.copies == "per_client" else set())

        def make(part: str) -> Segment:
            module = copy.deepcopy(self.network.part(part))
            halves, last = server.reply_first and self.network.halves, server.channels_last
            return Segment(module, optimizers[part], device=device, alone=alone, halves=halves, channels_last=last)

        return Bank({part: partial(make, part) for part in optimizers}, frozenset(per_client & optimizers.keys()))

    # --- events in

    def place(self, name: str, shard: int | None, shards: int | None) -> tuple[str, int]:
        """The name and shard that a newcomer would get; changes nothing. Raises Refused."""
        if self.ended is not None:
            raise Refused("over", f"the run is over: {self.ended.reason}")
        return self.roster.place(name, shard, shards)

    def handle(self, client: str, event: Event) -> None:
        """Take one event. Raises WireError, with nothing changed, if the client may not say this now, or Refused if it holds what this
        run's clients must not."""
        if self.ended is not None and not isinstance(event, Left | Leave):
            return  # it crossed with our Bye, or comes too late
        match event:
            case Smashed():
                if not self._is_late(client, event):
                    batch = guarded_batch(event, self.config.server.guard)
                    self.network.check(batch)
                    self._current_wave(f"batch {event.step}").take(self.roster[client].shard, batch)
            case Joined(shard=shard, shards=shards):
                self._join(*self.place(client, shard, shards))
            case Ready():
                self._ready(self.roster[client], event)
            case Done():
                if not self._is_late(client, event):
                    self._done(self.roster[client], event)
            case Left(reason=reason) | Leave(reason=reason):
                if isinstance(event, Left) and self.config.run.on_lost == "redo":
                    self._lost(self.roster[client])
                self._left(self.roster[client], reason)
            case Aligned():
                self._aligned(client, event)
            case Saved(number=number):
                self.checkpoint = number
                self._redo.saved()
            case Tick(now=now):
                self._tick(now)
            case Alive(samples=samples):
                if samples > MAX_COUNT:
                    raise WireError(f"alive after {samples} samples, at most {MAX_COUNT} are possible")

    def stop(self, reason: str) -> None:
        """End the run before its last round."""
        if self.ended is None:
            self._end(reason, finished=False)

    def owes(self, name: str) -> bool:
        """Whether the run waits for this client to say something."""
        member = self.roster.find(name)
        if member is None or not member.here or self.ended is not None:
            return False
        return not member.ready or (self._wave is not None and self._wave.owes(member.shard))

    @property
    def stage(self) -> Stage:
        """Where the run stands. A driver that keeps checkpoints asks before each `advance`."""
        if self.ended is not None:
            return "over"
        if self._must_redo:
            return "redo"
        if self._wave is not None or self._outbox.has_messages:
            return "wave"
        which = self.config.run.checkpoints
        due = which == "wave" or (which == "round" and not self._plan)
        return "checkpoint" if due and (self._has_rested or self._is_beginning()) else "rest"

    def _is_beginning(self) -> bool:
        """Everybody is here and has a shard, nothing is trained yet, and the first wave is next."""
        fresh = self.completed_waves == 0 and self._plan is None and not self._comeback
        return fresh and self._are_enough(self._taking_part())

    def load(self) -> Load:
        """Return what is kept here for now. May be called from any thread; right as of some moment."""
        wave = self._wave
        waiting = 0 if wave is None else sum(len(batches) for batches in list(wave.waiting.values()))
        return Load(
            waiting_batches=waiting,
            recorded_memory_bytes=self.recordings.memory_bytes,
            recorded_disk_bytes=self.recordings.spilled_bytes,
        )

    def run_deferred_step(self) -> None:
        """Apply the optimiser steps that `Head.step` deferred. The driver calls this after it has sent the replies."""
        self.bank.settle()

    def _join(self, name: str, shard: int) -> None:
        member = self.roster.join(name, shard)
        self._outbox.report(ClientJoined(client=name, shard=shard))
        config = self.config.to_json()
        welcome = Welcome(config=config, client=name, shard=shard, shards=self.config.shards, run=self.run)
        self._say(member, welcome)

    def _ready(self, member: Member, event: Ready) -> None:
        if member.ready:
            raise WireError("a second ready in one life")
        check_ready(self.config, event, member.name)
        self._singles.check_client(f"client {member.name!r}", event.samples)
        for text in self.agreement.check(member.name, member.shard, event):
            self._outbox.report(ClientsDoubtful(clients=(member.name,), text=text))
        member.samples, member.batches, member.ready = event.samples, event.batches, True
        self._comeback.arrive(member, event, self.checkpoint)
        self._outbox.report(ClientReady(client=member.name, shard=member.shard, samples=event.samples))

    def _tick(self, now: float) -> None:
        self._now = now
        for m in self._comeback.give_up(now):
            self._gathered = True
            reason = f"did not come back within run.rejoin_s = {self.config.run.rejoin_s:g} s after the server did"
            self._outbox.report(ClientLeft(client=m.name, shard=m.shard, reason=reason, was_ready=False))

    def _done(self, member: Member, done: Done) -> None:
        wave = self._current_wave("done")
        parts = () if wave.evaluate else self.protocol.learner.parts
        if {(part, len(sha)) for part, sha in done.digests.items()} != {(part, 32) for part in parts}:
            raise WireError(
                f"done carries digests of {sorted(done.digests)}, expected 32 bytes for each of {sorted(parts)}"
            )
        whose = {part: f"{member.name}'s {part}" for part in done.weights}
        guard = self.config.server.guard
        given = self._constants
        weights = {p: guarded_state(state, guard, whose[p], given.get(p, {})) for p, state in done.weights.items()}
        done = replace(done, weights=weights)
        for part, state in done.weights.items():
            own = self.network.part(part).state_dict()
            check_state(state, {k: (t.dtype, tuple(t.shape)) for k, t in own.items()}, whose[part], given.get(part, {}))
            check_copies(state, own, copies(self.network.ties, part), whose[part])
        begin = wave.begins.get(member.shard)
        due = None
        if begin is not None and not begin.evaluate:
            due = due_of(self.config, member.samples, member.batches, begin)
        wave.finish(member.shard, done, due)
        if not wave.evaluate:
            member.trained += done.steps
            member.taught = True
            member.holds.update(done.digests)
        self._outbox.report(
            ClientDone(
                client=member.name,
                round=done.round,
                wave=done.wave,
                steps=done.steps,
                samples=done.samples,
                evaluate=wave.evaluate,
            )
        )

    def _aligned(self, name: str, event: Aligned) -> None:
        """An alignment is over; its client may have left meanwhile."""
        member, wave = self.roster.find(name), self._wave
        if member is None or wave is None or member.shard not in wave.aligning:
            return
        if (event.round, event.wave) != (wave.at.round, wave.at.wave):
            return
        wave.aligning.discard(member.shard)
        self.bank.get("aux", member.shard).load(event.weights["aux"], "an aligned auxiliary network")
        self._say(member, event)

    def _lost(self, member: Member) -> None:
        """Go back for it, once for all who are lost together, unless it has made the run do so too often."""
        if not member.ready or self._must_redo or self.ended is not None:
            return
        self._must_redo = self._redo.spend(member.shard)
        if not self._must_redo:
            self._outbox.report(RedoSpent(client=member.name, shard=member.shard, limit=self._redo.limit))

    def _left(self, member: Member, reason: str) -> None:
        was_ready, member.here, member.ready = member.ready, False, False
        self.recordings.forget(member.shard)
        if self._wave is not None:
            self._wave.drop(member.shard)
        self._outbox.drop(member.name)
        begun = bool(self.completed_waves) or self._plan is not None
        self.agreement.left(member.shard, alone=not begun and not self._comeback and not self.roster.ready())
        if self.ended is not None:  # nothing follows the end of a run
            return
        left = ClientLeft(client=member.name, shard=member.shard, reason=reason[:MAX_REASON], was_ready=was_ready)
        self._outbox.report(left)

    def _expel(self, member: Member, why: str, did: str = "broke the protocol") -> None:
        """A client is refused whose fault was found in the middle of work: no event says so, as replaying this work finds it again."""
        self._outbox.expel(member.name, why)
        if self._wave is not None:
            self._wave.done.pop(member.shard, None)  # it may have ended its wave while its batch was waiting
        self._left(member, f"{did}: {why}")

    def _is_late(self, client: str, said: Smashed | Done) -> bool:
        """Whether it is of a wave that went on without this client; it will hear so, or has heard meanwhile."""
        late, when = self.roster[client].late, (said.round, said.wave)
        if not late:
            return False
        late[:] = [other for other in late if other >= when]  # it has come so far
        return when in late

    def _current_wave(self, what: str) -> Wave:
        if self._wave is None:
            raise WireError(f"{what} while no wave is under way")
        return self._wave

    # --- work

    def advance(self) -> Turn:
        """Do at most one cohort's work, or none where messages are to be sent first, and return what came of it."""
        self.bank.settle()  # where no driver does: a deferred step holds on to a whole graph
        worked = False
        if not self._outbox.has_messages and self.ended is None:
            worked = self._begin_next() if self._wave is None else self._serve() or self._end_wave()
        return self._outbox.turn(
            worked=worked,
            jobs=self.alignments.jobs(),
            wake_at=self._comeback.until if self._comeback else self._barrier_at,
            waiting=self._wave is not None and bool(self._wave.waiting),
            ended=self.ended,
        )

    def _say(self, member: Member, message: ToClient) -> None:
        self._outbox.say(member.name, message)

    def _begin_next(self) -> bool:
        """The next wave of this round, or the round's end; False if there are too few clients."""
        self._has_rested = False
        if self._comeback:
            return False
        ready = self._taking_part()
        if self._plan is None:
            run = self.config.run
            if not self._are_enough(ready):
                if self._gathered and run.below_min == "end":
                    self._end(f"{len(ready)} clients are left, run.min_clients = {run.min_clients}", finished=False)
                    return True
                return False
            self._gathered = True
            for names, text in self.agreement.same_sets([m.shard for m in ready]):
                self._outbox.report(ClientsDoubtful(clients=names, text=text))
            self._plan = self.protocol.waves.plan([m.shard for m in ready], self._at())
            self._waves = 0
        while self._plan:
            shards = set(self._plan.pop(0))
            members = self._without_lone([m for m in ready if m.shard in shards])
            if members:
                self._begin_training(members)
                return True
        self._end_round()
        return True

    def _without_lone(self, members: list[Member]) -> list[Member]:
        """Those that can train together; a client whose batch of one would be alone in a head that cannot take it is sent away."""
        while lone := self._singles.lone({m.shard: m.samples for m in members}):
            for member in [m for m in members if m.shard in lone]:
                self._send_away(member)
                members.remove(member)
        return members

    def _send_away(self, member: Member) -> None:
        try:
            self._singles.check_head(f"client {member.name!r}", member.samples)
        except Unfit as error:
            self._expel(member, str(error), "cannot take part")

    def _taking_part(self) -> list[Member]:
        """Those that can train, without those of whom nothing was heard for so many waves: what they were told waits in our memory."""
        return [m for m in self.roster.ready() if len(m.late) < MOST_LATE]

    def _are_enough(self, ready: list[Member]) -> bool:
        run = self.config.run
        return bool(ready) and len(ready) >= (run.clients if self._round == 0 else run.min_clients)

    def _at(self, wave_size: int = 1) -> At:
        run = self.config.run
        return At(
            seed=run.seed, round=self._round, rounds=run.rounds, wave=self._waves, wave_size=wave_size, now=self._now
        )

    def _begin_training(self, members: list[Member]) -> None:
        at = self._at(len(members))
        directive = self.protocol.gate.decide(self._losses, at)
        wave = Wave(
            at=at, directive=directive, window=self.config.client.window, samples={m.shard: m.samples for m in members}
        )
        if not directive.send:
            self._begin_playback(wave, members)
            return
        for m in members:
            news = self._news_for(m)  # first: a new life's network was never aligned
            asked = self.alignments.directive(m.shard, directive)
            self.recordings.begin(m.shard, directive.record)
            begin = self._begin_of(
                m,
                at,
                steps=self.config.client.wave.batches(m.batches),
                first=m.trained,
                lr=self.config.client.lr(at.round, at.rounds),
                weights=news,
                upload=self.protocol.uploads(at, asked),
                directive=asked,
            )
            wave.expect(m.shard, begin)
        self._set_lr(at, members)
        self._begin(wave, members)

    def _begin_of(self, member: Member, at: At, **own: Any) -> Begin:
        """What every Begin says, once about going back to a checkpoint, and what this one says besides."""
        begin = Begin(
            round=at.round,
            rounds=at.rounds,
            wave=at.wave,
            wave_size=at.wave_size,
            checkpoint=self.checkpoint,
            restore=member.restore,
            intact=member.intact,
            **own,
        )
        member.restore, member.intact = 0, False
        return begin

    def _begin_playback(self, wave: Wave, members: list[Member]) -> None:
        """The clients hear nothing; the head goes on learning from what it recorded of them."""
        recorded = [m for m in members if self.recordings.batches(m.shard)]
        wave.playback = {m.shard: self.recordings.play(m.shard, wave.at) for m in recorded}
        for m in recorded:
            steps = self.recordings.batches(m.shard)
            wave.expect(m.shard, Begin(round=wave.at.round, rounds=wave.at.rounds, steps=steps))
        self._set_lr(wave.at, recorded)
        self._begin(wave, recorded)

    def _set_lr(self, at: At, members: list[Member]) -> None:
        """After the news for them: a client's copy of the head may be new, a former life's was forgotten."""
        lr = self.config.server.lr(at.round, at.rounds) * self.protocol.head.lr_factor(at.wave_size)
        for m in members:
            self.bank.get("head", m.shard).set_lr(lr)

    def _begin(self, wave: Wave, members: list[Member]) -> None:
        self._wave = wave
        wave.since = self._now
        for m in members:
            if wave.playback is None:
                self._say(m, wave.begins[m.shard])
        self._outbox.report(
            WaveBegun(
                round=wave.at.round,
                rounds=wave.at.rounds,
                wave=wave.at.wave,
                clients=tuple(m.name for m in members),
                steps=sum(begin.steps for begin in wave.begins.values()),
                evaluate=wave.evaluate,
                held_out=sum(wave.most_rows.values()) if self.config.data.name in KNOWN_DATA else 0,
            )
        )

    def _news_for(self, member: Member) -> dict[str, StateDict]:
        """The weights that a client must hear of before it begins."""
        if not member.seen:
            self.bank.forget(member.shard)  # what a former life of this shard had trained
            self.alignments.forget(member.shard)
            self._blame.forget(member.shard)
        return self._weights.news_for(member)

    def _serve(self) -> bool:
        """One cohort, or one batch to evaluate; False if none is complete."""
        wave = self._wave
        if wave is None or not wave.waiting:
            return False
        self._barrier_at = None
        if wave.evaluate:
            client = next(iter(wave.waiting))
            self._evaluate(wave, client, wave.next_of(client))
            return True
        at = wave.now(self._now)
        cohort = self.protocol.barrier.cohort(wave.waiting.keys(), wave.training, at)
        if isinstance(cohort, WaitUntil):
            self._barrier_at = cohort.now
            return False
        if isinstance(cohort, Without):
            for shard in cohort.late:
                self._go_on_without(wave, self.roster.by_shard(shard))
            cohort = cohort.cohort
        if cohort:
            self._train(wave, cohort, at)
        return bool(cohort)

    def _go_on_without(self, wave: Wave, member: Member) -> None:
        """It takes part again in the next wave; the batches that were trained of it count as trained."""
        member.trained += wave.training.get(member.shard, 0)
        member.late.append((wave.at.round, wave.at.wave))
        member.holds.clear()  # what it has now is for nobody
        wave.drop(member.shard)
        self._say(member, Late(round=wave.at.round, wave=wave.at.wave))
        self._outbox.report(ClientLate(client=member.name, round=wave.at.round, wave=wave.at.wave))

    def _train(self, wave: Wave, cohort: list[int], at: At) -> None:
        members = {client: self.roster.by_shard(client) for client in cohort}
        came = {c: wave.next_of(c) for c in cohort}
        arrived = [
            Arrived(client=c, batch=self.alignments.wanting(batch), samples=members[c].samples)
            for c, batch in came.items()
        ]
        replies = self._step(arrived, at)
        if not arrived:
            return
        wave.cohorts += 1
        wave.since = self._now
        for a in arrived:
            reply, batch = replies[a.client], came[a.client]
            wave.losses[a.client, batch.step] = (reply.loss, len(batch.y))
            if wave.playback is None:
                self._say(members[a.client], reply if batch.needs_grad else replace(reply, dz=None))
            self._outbox.report(partial(_trained, members[a.client].name, a, at, reply.loss))
            self._record_batch(wave, members[a.client], batch, reply)

    def _step(self, cohort: list[Arrived], at: At) -> dict[int, Gradient]:
        """Train the head on a cohort, from which clients are taken, and refused, whose batches make that impossible."""
        if len(cohort) == 1 and len(cohort[0].batch.y) == 1 and not self._singles.takes_one:
            # The others that it would have trained with have left.
            self._send_away(self.roster.by_shard(cohort.pop().client))
        while cohort:
            try:
                replies = self.protocol.head.step(self.bank, cohort, at)
            except Diverged as error:
                for client in self._blame.guilty(cohort, at, error):
                    (poisoned,) = (a for a in cohort if a.client == client)
                    cohort.remove(poisoned)
                    self._expel(self.roster.by_shard(client), f"its batch {poisoned.batch.step} is to blame: {error}")
            else:
                self._blame.trained(cohort)
                return replies
        return {}

    def _record_batch(self, wave: Wave, member: Member, batch: Smashed, reply: Gradient) -> None:
        """Keep it if that was asked, and align the client's auxiliary network once its first batch is there."""
        rule = wave.directive.record
        if rule is None:
            return
        stored = reply.dz * len(batch.y) if self.alignments.stores_targets and reply.dz is not None else None
        self.recordings.keep(member.shard, batch, rule, stored)
        if isinstance(rule, Newest) and batch.step == 0 and wave.begins[member.shard].directive.align:
            try:
                self.alignments.begin(member.name, member.shard, rule, wave.at)
            except Diverged as error:
                self._blame.check_state(member.shard, wave.at, error)
                self._expel(member, f"its recorded batches are to blame: {error}")
                return
            wave.aligning.add(member.shard)

    def _evaluate(self, wave: Wave, client: int, batch: Smashed) -> None:
        reply = self.protocol.head.evaluate(self.bank, client, batch)
        wave.losses[client, batch.step] = (reply.loss, len(batch.y))
        wave.correct[client] = wave.correct.get(client, 0) + reply.correct
        member, at = self.roster.by_shard(client), wave.at
        self._outbox.report(BatchEvaluated(client=member.name, round=at.round, wave=at.wave, samples=len(batch.y)))
        self._say(member, reply)

    # --- ends

    def _end_wave(self) -> bool:
        """Merge or score once nobody is training any more; False if somebody is."""
        wave = self._wave
        if wave is None or wave.training:
            return False
        self._wave = None
        if wave.evaluate:
            names = {client: self.roster.by_shard(client).name for client in wave.done}
            found = evaluation(wave, names, shared=self._weights.is_shared("lower"))
            if found is not None:
                self._outbox.report(found)
            self._next_round()
            return True
        self._over.append(wave)
        self._waves += 1
        if wave.done and wave.directive.update:
            self._weights.trained()
        self._merge(self.protocol.merge.after_wave, [wave])
        self._check_head(wave.at)
        self.completed_waves += 1
        self._has_rested = True
        self._redo.finished(wave.done)
        return True

    def _check_head(self, at: At) -> None:
        """Raise Diverged if the head that all share is one that nobody could go on from: it is about to be kept, or evaluated and written."""
        if self.bank.is_per_client("head"):  # a client's own copy costs nobody else anything
            return
        try:
            self.bank.get("head").check("head")
        except WireError as error:
            raise Diverged(f"{error} after round {at.round}, wave {at.wave}: lower the learning rates") from error

    def _end_round(self) -> None:
        self._merge(self.protocol.merge.after_round, self._over)
        loss, samples = mean_loss(self._over)
        if samples:
            self._losses.append(loss)
        finished = len({client for wave in self._over for client in wave.done})
        self._outbox.report(
            RoundEnded(round=self._round, loss=loss if samples else None, samples=samples, clients=finished)
        )
        self._over = []
        every, last = self.config.eval.every, self._round + 1 == self.config.run.rounds
        if last or (every and (self._round + 1) % every == 0):
            self._begin_evaluation(last)
        else:
            self._next_round()

    def _merge(self, merge: Callable[[Record], Merged], waves: list[Wave]) -> None:
        """Without the clients whose weights would spoil it."""
        limits = dict.fromkeys(self.protocol.learner.parts, self.config.server.guard.weights)  # ours need but be finite
        merged, guilty = checked_merge(merge, self._record(waves), limits, self._constants)
        for client, why in sorted(guilty.items()):
            for wave in waves:
                wave.done.pop(client, None)
            member = self.roster.by_shard(client)
            if member.here and member.taught:  # not whoever has its shard now
                self._expel(member, why)
        self._weights.merge(merged)
        self._outbox.note_merge()

    def _next_round(self) -> None:
        self._round += 1
        self._plan = None
        if self._round == self.config.run.rounds:
            self._end("all rounds are done", finished=True)

    def _end(self, reason: str, *, finished: bool) -> None:
        self.ended = RunEnded(reason=reason, finished=finished)
        for member in self.roster.known():
            if member.here:
                self._say(member, Bye(reason=reason, finished=finished))
        self._outbox.report(self.ended)

    def _record(self, waves: list[Wave]) -> Record:
        """What the clients that finished these waves brought; a part that lives here comes from the bank."""
        done = [(client, wave.done[client]) for wave in waves for client in sorted(wave.done)]
        weights: dict[str, dict[int, StateDict]] = {}
        for client, said in done:
            for part, state in said.weights.items():
                weights.setdefault(part, {})[client] = state
        for part in set(self.bank.parts) - set(self.protocol.learner.parts):
            if self.bank.is_per_client(part):
                weights[part] = {client: self.bank.get(part, client).state() for client, _ in done}
        samples = {client: n for wave in waves for client, n in wave.samples.items()}
        at = waves[-1].at if waves else self._at()
        return Record(at=at, samples=samples, weights=weights)

    # --- checkpoints

    def snapshot(self) -> Tree:
        """Everything that the run goes on from, between two waves."""
        assert self._wave is None, "a wave is under way"
        return {
            "rests": self.completed_waves,
            "round": self._round,
            "plan": self._plan,
            "waves": self._waves,
            "over": [wave.snapshot() for wave in self._over],
            "losses": self._losses,
            "bank": self.bank.snapshot(),
            "weights": self._weights.snapshot(),
            "roster": self.roster.snapshot(),
            "recordings": self.recordings.snapshot(),
            "alignments": self.alignments.snapshot(),
            "blame": self._blame.snapshot(),
            "agreement": self.agreement.snapshot(),
        }

    def restore(self, tree: Tree, now: float = 0.0) -> None:
        """Go back to a snapshot. Nobody is here then; those who were are waited for until `run.rejoin_s` after `now`."""
        self._wave, self.ended, self._must_redo = None, None, False
        self._gathered = self._has_rested = False
        self._outbox.clear()
        self.completed_waves = self.checkpoint = tree["rests"]
        self._round, self._plan, self._waves = tree["round"], copy.deepcopy(tree["plan"]), tree["waves"]
        self._over = [Wave.restored(one) for one in tree["over"]]
        self._losses = list(tree["losses"])
        self.bank.restore(tree["bank"])
        self._weights.restore(tree["weights"])
        self.recordings.restore(tree["recordings"])
        self.alignments.restore(tree["alignments"])
        self._redo.went_back()
        self._blame.restore(tree.get("blame", {}))
        self.agreement.restore(tree.get("agreement", {}))
        self._comeback.expect(self.roster.restore(tree["roster"]), now + self.config.run.rejoin_s)
        self._now, self._barrier_at = now, None

    # --- evaluation and the result

    def _begin_evaluation(self, last: bool) -> None:
        """Shared: the test set is split over everybody, and each own one over those who have it. Private: every client that has trained gets the same samples."""
        shared = self._weights.is_shared("lower")
        members = [m for m in self._taking_part() if shared or m.taught]
        heads_elsewhere = "head" in self.protocol.learner.parts and not self._weights.is_shared("head")
        if not members or heads_elsewhere:  # the clients' own heads are not here to be evaluated
            self._next_round()
            return
        at = self._at(len(members))
        split = shared and self.config.sharded
        own = self.agreement.test_slices([m.shard for m in members]) if shared and not split else {}
        wave = Wave(at=at, directive=Directive(), window=self.config.client.window)
        for number, m in enumerate(members):
            part, parts = (number, len(members)) if split else own.get(m.shard, (0, 1))
            begin = self._begin_of(
                m,
                at,
                evaluate=True,
                weights=self._news_for(m),
                slice=part,
                slices=parts,
                samples=0 if split or last or not self.config.sharded else self.config.eval.samples,
            )
            wave.most_rows[m.shard] = most_evaluated(self.config, begin)
            wave.expect(m.shard, begin)
        self._begin(wave, members)

    def weights(self) -> dict[str, StateDict]:
        """What the server has: `lower` if all share it, `head`, or `head-<shard>` where copies differ."""
        return self._weights.on_server()

    def weights_sha256(self) -> str:
        """One fingerprint of all weights of the run, the private ones by the digests that their clients reported."""
        return self._weights.sha256(self.roster.known())


def _trained(client: str, arrived: Arrived, at: At, loss: float) -> Fact:
    return Trained(
        client=client,
        shard=arrived.client,
        round=at.round,
        wave=at.wave,
        step=arrived.batch.step,
        samples=len(arrived.batch.y),
        loss=loss,
        crc32=checksum(arrived.batch.z),
    )
