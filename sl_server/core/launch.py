"""The beginning of a wave: the Begin of each client, with its weights. Pure."""

from __future__ import annotations

from typing import Any

from sl_common.config.known_data import KNOWN_DATA
from sl_common.messages.facts import WaveBegun
from sl_common.messages.training import Begin
from sl_common.protocol import At
from sl_common.tensors import StateDict
from sl_server.core.roster import Member
from sl_server.core.state import RunState
from sl_server.core.wave import Wave


class Launch:
    """Begins training waves, and has the pieces for evaluation waves."""

    def __init__(self, state: RunState) -> None:
        self._config, self._progress, self._outbox = state.config, state.progress, state.outbox
        self._bank, self._weights, self._blame = state.bank, state.weights, state.blame
        self._alignments, self._recordings = state.alignments, state.recordings
        self.gate = state.config.protocol.gate

    def train(self, members: list[Member], losses: list[float]) -> None:
        """Begin a training wave; `losses`: the mean of each round so far, for the gate."""
        config, at = self._config, self._progress.at(len(members))
        directive = self.gate.decide(losses, at)
        samples = {m.shard: m.samples for m in members}
        wave = Wave(at=at, directive=directive, window=config.client.window, samples=samples)
        if not directive.send:
            self._play_back(wave, members)
            return
        for m in members:
            news = self.news_for(m)  # first: a new life's network was never aligned
            asked = self._alignments.directive(m.shard, directive)
            self._recordings.begin(m.shard, directive.record)
            begin = self.begin_for(
                m,
                at,
                steps=config.client.wave.batches(m.batches),
                first=m.trained,
                lr=config.client.lr(at.round, at.rounds),
                weights=news,
                upload=config.protocol.uploads(at, asked),
                directive=asked,
            )
            wave.expect(m.shard, begin)
        self._set_lr(at, members)
        self.start(wave, members)

    def _play_back(self, wave: Wave, members: list[Member]) -> None:
        """Begin a wave without messages to clients: the head goes on learning from their recorded batches."""
        recorded = [m for m in members if self._recordings.batches(m.shard)]
        wave.playback = {m.shard: self._recordings.play(m.shard, wave.at) for m in recorded}
        for m in recorded:
            steps = self._recordings.batches(m.shard)
            wave.expect(m.shard, Begin(round=wave.at.round, rounds=wave.at.rounds, steps=steps))
        self._set_lr(wave.at, recorded)
        self.start(wave, recorded)

    def _set_lr(self, at: At, members: list[Member]) -> None:
        """Set the head's learning rate. Call it after `news_for`, which may make a client's copy of the head anew."""
        lr = self._config.server.lr(at.round, at.rounds) * self._config.protocol.head.lr_factor(at.wave_size)
        for m in members:
            self._bank.get("head", m.shard).set_lr(lr)

    def begin_for(self, member: Member, at: At, **own: Any) -> Begin:
        """Return a Begin: the common fields, `own` ones, and, once, the order to go back to a checkpoint."""
        begin = Begin(
            round=at.round,
            rounds=at.rounds,
            wave=at.wave,
            wave_size=at.wave_size,
            checkpoint=self._progress.checkpoint,
            restore=member.restore,
            intact=member.intact,
            **own,
        )
        member.restore, member.intact = 0, False
        return begin

    def start(self, wave: Wave, members: list[Member]) -> None:
        """Make a wave the current one, and tell its clients."""
        self._progress.wave = wave
        wave.since = self._progress.now
        for m in members:
            if wave.playback is None:
                self._outbox.say(m.name, wave.begins[m.shard])
        self._outbox.report(
            WaveBegun(
                round=wave.at.round,
                rounds=wave.at.rounds,
                wave=wave.at.wave,
                clients=tuple(m.name for m in members),
                steps=sum(begin.steps for begin in wave.begins.values()),
                evaluate=wave.evaluate,
                held_out=sum(wave.most_rows.values()) if self._config.data.name in KNOWN_DATA else 0,
            )
        )

    def news_for(self, member: Member) -> dict[str, StateDict]:
        """Return the weights that a client lacks. For a new life, forget first what a former one had trained."""
        if not member.seen:
            self._bank.forget(member.shard)
            self._alignments.forget(member.shard)
            self._blame.forget(member.shard)
        return self._weights.news_for(member)
