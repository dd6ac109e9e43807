"""The order of a run: the next wave, the end of a wave, of a round and of the run. Pure.

round: plan -> [ begin -> cohorts … -> all Done -> merge after the wave ]… -> merge after the round -> evaluate
"""

from __future__ import annotations

from sl_common.messages.facts import ClientsDoubtful, RoundEnded, RunEnded
from sl_common.messages.training import MOST_LATE, Bye
from sl_common.training.segment import Tree
from sl_server.core.departures import Departures
from sl_server.core.evaluation import Evaluation
from sl_server.core.launch import Launch
from sl_server.core.merges import Merges
from sl_server.core.roster import Member
from sl_server.core.scores import mean_loss
from sl_server.core.state import RunState
from sl_server.core.wave import Wave


class RunSchedule:
    """Begins and ends waves, rounds and the run."""

    def __init__(
        self,
        state: RunState,
        departures: Departures,
        evaluation: Evaluation,
        launch: Launch,
        merges: Merges,
    ) -> None:
        self._config, self._progress = state.config, state.progress
        self._roster, self._outbox = state.roster, state.outbox
        self._agreement, self._singles = state.agreement, state.singles
        self._redo, self._rejoin = state.redo, state.rejoin
        self._departures, self._evaluation = departures, evaluation
        self._launch, self._merges = launch, merges
        self._ended_waves: list[Wave] = []  # training waves of this round
        self.losses: list[float] = []  # mean of each round so far

    def snapshot(self) -> Tree:
        """Return what the end of the round needs of its ended waves, and the losses of earlier rounds."""
        return {"over": [wave.snapshot() for wave in self._ended_waves], "losses": self.losses}

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot."""
        self._ended_waves = [Wave.restored(one) for one in tree["over"]]
        self.losses = list(tree["losses"])

    def is_beginning(self) -> bool:
        """Return True if enough clients are here, nothing is trained yet, and the first wave is next."""
        return not self._progress.has_begun and not self._rejoin and self._are_enough(self._taking_part())

    def begin_next(self) -> bool:
        """Begin the next wave of this round, or end the round. Return False if there are too few clients."""
        progress = self._progress
        progress.has_rested = False
        if self._rejoin:
            return False
        ready = self._taking_part()
        if progress.plan is None:
            run = self._config.run
            if not self._are_enough(ready):
                if progress.gathered and run.below_min == "end":
                    self.end(f"{len(ready)} clients are left, run.min_clients = {run.min_clients}", finished=False)
                    return True
                return False
            self._plan_round(ready)
        while progress.plan:
            shards = set(progress.plan.pop(0))
            members = self._without_lone([m for m in ready if m.shard in shards])
            if members:
                self._launch.train(members, self.losses)
                return True
        self._end_round()
        return True

    def _plan_round(self, ready: list[Member]) -> None:
        progress = self._progress
        progress.gathered = True
        for names, text in self._agreement.same_sets([m.shard for m in ready]):
            self._outbox.report(ClientsDoubtful(clients=names, text=text))
        progress.plan = self._config.protocol.waves.plan([m.shard for m in ready], progress.at())
        progress.waves = 0

    def _without_lone(self, members: list[Member]) -> list[Member]:
        """Return the clients that can train together; expel one whose batch of one would be alone in the head."""
        while lone := self._singles.lone({m.shard: m.samples for m in members}):
            for member in [m for m in members if m.shard in lone]:
                self._departures.send_away(member)
                members.remove(member)
        return members

    def _taking_part(self) -> list[Member]:
        """Return the clients that can train, without those late MOST_LATE times: messages to them fill the memory."""
        return [m for m in self._roster.ready() if len(m.late) < MOST_LATE]

    def _are_enough(self, ready: list[Member]) -> bool:
        run = self._config.run
        return bool(ready) and len(ready) >= (run.clients if self._progress.round == 0 else run.min_clients)

    def end_wave(self, wave: Wave) -> bool:
        """Merge, or report an evaluation, once no client works in this wave any more. Return False if one does."""
        if wave.training:
            return False
        progress = self._progress
        progress.wave = None
        if wave.evaluate:
            self._evaluation.end(wave)
            self._next_round()
            return True
        self._ended_waves.append(wave)
        progress.waves += 1
        self._merges.after_wave(wave, self._ended_waves)
        progress.completed_waves += 1
        progress.has_rested = True
        self._redo.finished(wave.done)
        return True

    def _end_round(self) -> None:
        waves, progress = self._ended_waves, self._progress
        self._merges.after_round(waves)
        loss, samples = mean_loss(waves)
        if samples:
            self.losses.append(loss)
        finished = len({client for wave in waves for client in wave.done})
        mean = loss if samples else None
        self._outbox.report(RoundEnded(round=progress.round, loss=mean, samples=samples, clients=finished))
        self._ended_waves = []
        every, last = self._config.eval.every, progress.round + 1 == self._config.run.rounds
        due = last or (every and (progress.round + 1) % every == 0)
        if not due or not self._evaluation.begin(self._taking_part(), last=last):
            self._next_round()

    def _next_round(self) -> None:
        progress = self._progress
        progress.round += 1
        progress.plan = None
        if progress.round == self._config.run.rounds:
            self.end("all rounds are done", finished=True)

    def end(self, reason: str, *, finished: bool) -> None:
        """End the run, and send a Bye to every client that is here."""
        ended = RunEnded(reason=reason, finished=finished)
        self._progress.ended = ended
        for member in self._roster.known():
            if member.here:
                self._outbox.say(member.name, Bye(reason=reason, finished=finished))
        self._outbox.report(ended)
