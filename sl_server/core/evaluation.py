"""Evaluation of the networks on held-out data: who evaluates what, batch by batch, and the result. Pure."""

from __future__ import annotations

from sl_common.messages.facts import BatchEvaluated
from sl_common.messages.training import Directive
from sl_server.core.claims import most_evaluated
from sl_server.core.launch import Launch
from sl_server.core.roster import Member
from sl_server.core.scores import evaluation
from sl_server.core.state import RunState
from sl_server.core.wave import Wave


class Evaluation:
    """The evaluation waves of one run."""

    def __init__(self, state: RunState, launch: Launch) -> None:
        self._config, self._progress = state.config, state.progress
        self._roster, self._outbox = state.roster, state.outbox
        self._agreement, self._bank, self._weights = state.agreement, state.bank, state.weights
        self._launch = launch

    def begin(self, taking_part: list[Member], *, last: bool) -> bool:
        """Begin an evaluation wave; `last`: of the run. Return False if nobody can evaluate.

        Shared weights: the test set is split over all clients; a client's own test set over those with an equal one.
        Private weights: every client that has trained evaluates the same samples.
        """
        config, learner = self._config, self._config.protocol.learner
        shared = self._weights.is_shared("lower")
        members = [m for m in taking_part if shared or m.taught]
        heads_elsewhere = "head" in learner.parts and not self._weights.is_shared("head")
        if not members or heads_elsewhere:  # the clients' own heads are not here to be evaluated
            return False
        at = self._progress.at(len(members))
        split = shared and config.sharded
        own = self._agreement.test_slices([m.shard for m in members]) if shared and not split else {}
        wave = Wave(at=at, directive=Directive(), window=config.client.window)
        for number, m in enumerate(members):
            part, parts = (number, len(members)) if split else own.get(m.shard, (0, 1))
            begin = self._launch.begin_for(
                m,
                at,
                evaluate=True,
                weights=self._launch.news_for(m),
                slice=part,
                slices=parts,
                samples=0 if split or last or not config.sharded else config.eval.samples,
            )
            wave.most_rows[m.shard] = most_evaluated(config, begin)
            wave.expect(m.shard, begin)
        self._launch.start(wave, members)
        return True

    def serve(self, wave: Wave) -> None:
        """Evaluate one batch that waits."""
        client = next(iter(wave.waiting))
        batch = wave.next_of(client)
        reply = self._config.protocol.head.evaluate(self._bank, client, batch)
        wave.losses[client, batch.step] = (reply.loss, len(batch.y))
        wave.correct[client] = wave.correct.get(client, 0) + reply.correct
        member, at = self._roster.by_shard(client), wave.at
        self._outbox.report(BatchEvaluated(client=member.name, round=at.round, wave=at.wave, samples=len(batch.y)))
        self._outbox.say(member.name, reply)

    def end(self, wave: Wave) -> None:
        """Report what an evaluation wave found, if any client finished it."""
        names = {client: self._roster.by_shard(client).name for client in wave.done}
        found = evaluation(wave, names, shared=self._weights.is_shared("lower"))
        if found is not None:
            self._outbox.report(found)
