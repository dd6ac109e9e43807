"""Events of clients: what each may say, and when. Pure.

Law: a method that raises has changed nothing. WireError: the client may not say this now. Refused: it may not take
part.
"""

from __future__ import annotations

from dataclasses import replace

from sl_common.bounded import MAX_COUNT
from sl_common.errors import Refused, WireError
from sl_common.messages.events import Joined, Left
from sl_common.messages.facts import ClientDone, ClientJoined, ClientLeft, ClientReady, ClientsDoubtful
from sl_common.messages.training import Aligned, Alive, Done, Leave, Ready, Smashed, Welcome
from sl_common.network.ties import copies
from sl_common.tensors import StateDict, check_copies, check_state
from sl_server.core.claims import check_ready, due_of
from sl_server.core.departures import Departures
from sl_server.core.guard import guarded_batch, guarded_state
from sl_server.core.state import RunState
from sl_server.core.wave import Wave


class Intake:
    """Takes the events of clients, or refuses them."""

    def __init__(self, state: RunState, departures: Departures) -> None:
        self._run, self._config, self._network, self._constants = (
            state.run,
            state.config,
            state.network,
            state.constants,
        )
        self._progress, self._roster, self._outbox = state.progress, state.roster, state.outbox
        self._agreement, self._rejoin, self._singles, self._bank = (
            state.agreement,
            state.rejoin,
            state.singles,
            state.bank,
        )
        self._departures = departures

    def place(self, name: str, shard: int | None, shards: int | None) -> tuple[str, int]:
        """Return the name and shard that a newcomer would get; change nothing. Raises Refused."""
        ended = self._progress.ended
        if ended is not None:
            raise Refused("over", f"the run is over: {ended.reason}")
        return self._roster.place(name, shard, shards)

    def joined(self, client: str, event: Joined) -> None:
        """Give a newcomer its place, and welcome it."""
        name, shard = self.place(client, event.shard, event.shards)
        member = self._roster.join(name, shard)
        self._outbox.report(ClientJoined(client=name, shard=shard))
        config = self._config.to_json()
        shards = max(
            self._config.shards, shard + 1
        )  # there may be more clients with data of their own than the run began with
        welcome = Welcome(config=config, client=name, shard=shard, shards=shards, run=self._run)
        self._outbox.say(member.name, welcome)

    def ready(self, client: str, event: Ready) -> None:
        """Let a client take part in the waves to come."""
        member = self._roster[client]
        if member.ready:
            raise WireError("a second ready in one life")
        check_ready(self._config, event, member.name)
        self._singles.check_client(f"client {member.name!r}", event.samples)
        for text in self._agreement.check(member.name, member.shard, event):
            self._outbox.report(ClientsDoubtful(clients=(member.name,), text=text))
        member.samples, member.batches, member.ready = event.samples, event.batches, True
        self._rejoin.arrive(member, event, self._progress.checkpoint)
        self._outbox.report(ClientReady(client=member.name, shard=member.shard, samples=event.samples))

    def smashed(self, client: str, event: Smashed) -> None:
        """Take a batch, which then waits for its cohort."""
        if self._is_late(client, event):
            return
        batch = guarded_batch(event, self._config.server.guard)
        self._network.check(batch)
        self._current_wave(f"batch {event.step}").take(self._roster[client].shard, batch)

    def done(self, client: str, event: Done) -> None:
        """Take the end of a client's wave, with its weights."""
        if self._is_late(client, event):
            return
        member, wave = self._roster[client], self._current_wave("done")
        self._check_digests(event, wave)
        done = replace(event, weights=self._checked_weights(event, member.name))
        begin = wave.begins.get(member.shard)
        due = None
        if begin is not None and not begin.evaluate:
            due = due_of(self._config, member.samples, member.batches, begin)
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

    def _check_digests(self, done: Done, wave: Wave) -> None:
        parts = () if wave.evaluate else self._config.protocol.learner.parts
        if {(part, len(sha)) for part, sha in done.digests.items()} != {(part, 32) for part in parts}:
            raise WireError(
                f"done carries digests of {sorted(done.digests)}, expected 32 bytes for each of {sorted(parts)}"
            )

    def _checked_weights(self, done: Done, name: str) -> dict[str, StateDict]:
        """The weights that a client brings, clipped where the guard says so."""
        whose = {part: f"{name}'s {part}" for part in done.weights}
        guard, given = self._config.server.guard, self._constants
        weights = {p: guarded_state(state, guard, whose[p], given.get(p, {})) for p, state in done.weights.items()}
        for part, state in weights.items():
            own = self._network.part(part).state_dict()
            check_state(state, {k: (t.dtype, tuple(t.shape)) for k, t in own.items()}, whose[part], given.get(part, {}))
            check_copies(state, own, copies(self._network.ties, part), whose[part])
        return weights

    def left(self, client: str, event: Left | Leave) -> None:
        """Take a client out of the run; where it was lost, `run.on_lost` may have the run go back for it."""
        member = self._roster[client]
        if isinstance(event, Left) and self._config.run.on_lost == "redo":
            self._departures.lose(member)
        self._departures.leave(member, event.reason)

    def aligned(self, client: str, event: Aligned) -> None:
        """Take the result of an alignment, unless its client has left meanwhile, and send it on."""
        member, wave = self._roster.find(client), self._progress.wave
        if member is None or wave is None or member.shard not in wave.aligning:
            return
        if (event.round, event.wave) != (wave.at.round, wave.at.wave):
            return
        wave.aligning.discard(member.shard)
        self._bank.get("aux", member.shard).load(event.weights["aux"], "an aligned auxiliary network")
        self._outbox.say(member.name, event)

    def alive(self, event: Alive) -> None:
        """Check a sign of life, which changes nothing."""
        if event.samples > MAX_COUNT:
            raise WireError(f"alive after {event.samples} samples, at most {MAX_COUNT} are possible")

    def tick(self, now: float) -> None:
        """Set the time, and give up the clients that are not back in time after a restart."""
        self._progress.now = now
        for m in self._rejoin.give_up(now):
            self._progress.gathered = True
            reason = f"did not come back within run.rejoin_s = {self._config.run.rejoin_s:g} s after the server did"
            self._outbox.report(ClientLeft(client=m.name, shard=m.shard, reason=reason, was_ready=False))

    def _is_late(self, client: str, said: Smashed | Done) -> bool:
        """True for a message of a wave that went on without this client; the client is told, or was told meanwhile."""
        late, when = self._roster[client].late, (said.round, said.wave)
        if not late:
            return False
        late[:] = [other for other in late if other >= when]  # it has come so far
        return when in late

    def _current_wave(self, what: str) -> Wave:
        wave = self._progress.wave
        if wave is None:
            raise WireError(f"{what} while no wave is under way")
        return wave
