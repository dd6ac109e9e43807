"""Merges of weights after waves and rounds, without clients whose weights would spoil them. Pure."""

from __future__ import annotations

from collections.abc import Callable

from sl_common.errors import Diverged, WireError
from sl_common.protocol import Record
from sl_common.protocol.merge import Merged
from sl_common.tensors import StateDict
from sl_server.core.departures import Departures
from sl_server.core.merged import checked_merge
from sl_server.core.state import RunState
from sl_server.core.wave import Wave


class Merges:
    """Calls the merge hook of the protocol, checks its result, and hands it to Weights."""

    def __init__(self, state: RunState, departures: Departures) -> None:
        config = state.config
        self._hook, self._parts = config.protocol.merge, config.protocol.learner.parts
        self._limits = dict.fromkeys(
            self._parts, config.server.guard.weights
        )  # weights that stay here need only be finite
        self._constants, self._bank, self._weights = state.constants, state.bank, state.weights
        self._progress, self._roster, self._outbox = state.progress, state.roster, state.outbox
        self._departures = departures

    def after_wave(self, wave: Wave, waves: list[Wave]) -> None:
        """Merge after a training wave, the last of this round's `waves` so far. Raises Diverged."""
        if wave.done and wave.directive.update:
            self._weights.trained()
        self._merge(self._hook.after_wave, [wave])
        self._check_heads(wave, waves)

    def after_round(self, waves: list[Wave]) -> None:
        """Merge after the training waves of a round. Raises Diverged."""
        self._merge(self._hook.after_round, waves)

    def _merge(self, merge: Callable[[Record], Merged], waves: list[Wave]) -> None:
        """Merge without the clients whose weights would spoil it; these are expelled."""
        merged, guilty = checked_merge(merge, self._record(waves), self._limits, self._constants)
        for client, why in sorted(guilty.items()):
            for wave in waves:
                wave.done.pop(client, None)
            member = self._roster.by_shard(client)
            if member.here and member.taught:  # not another client that has the shard now
                self._departures.expel(member, why)
        self._weights.merge(merged)
        self._outbox.note_merge()

    def _check_heads(self, wave: Wave, waves: list[Wave]) -> None:
        """Raise Diverged if the head that all share is not finite, or if no client has a finite copy of its own.

        The heads are about to be saved or evaluated. Where other clients have finite copies, a client whose copy is not
        finite is expelled and its copy forgotten.
        """
        wrong = self._spoilt_heads(wave)
        if wrong and len(wrong) == max(len(self._bank.copies("head")), 1):
            why, at = next(iter(wrong.values())), wave.at
            raise Diverged(f"{why} after round {at.round + 1}, wave {at.wave + 1}: lower the learning rates")
        for client, why in sorted(wrong.items()):
            for one in waves:
                one.done.pop(client, None)
            self._bank.forget(client)
            member = self._roster.by_shard(client)
            if member.here and member.taught:  # not another client that has the shard now
                self._departures.expel(member, why)

    def _spoilt_heads(self, wave: Wave) -> dict[int, str]:
        """The heads of this wave that are not finite, and why: by client where each has a copy, else under -1."""
        own = self._bank.is_per_client("head")
        heads = {client: head for client, head in self._bank.copies("head").items() if client in wave.begins}
        wrong = {}
        for client, head in heads.items() if own else [(-1, self._bank.get("head"))]:
            try:
                head.check("its head" if own else "head")
            except WireError as error:
                wrong[client] = str(error)
        return wrong

    def _record(self, waves: list[Wave]) -> Record:
        """Return the weights of the clients that finished these waves; parts on the server come from the bank."""
        done = [(client, wave.done[client]) for wave in waves for client in sorted(wave.done)]
        weights: dict[str, dict[int, StateDict]] = {}
        for client, said in done:
            for part, state in said.weights.items():
                weights.setdefault(part, {})[client] = state
        for part in set(self._bank.parts) - set(self._parts):
            if self._bank.is_per_client(part):
                weights[part] = {client: self._bank.get(part, client).state() for client, _ in done}
        samples = {client: n for wave in waves for client, n in wave.samples.items()}
        at = waves[-1].at if waves else self._progress.at()
        return Record(at=at, samples=samples, weights=weights)
