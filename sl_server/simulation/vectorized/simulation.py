"""The simulation that computes the clients' lower segments as one, for experiments with hundreds of clients.

Results, messages and counts equal those of the plain simulation; only last bits may differ, because batched products
and fused optimisers may add in another order. Messages of a step reach the coordinator directly, and their bytes are
those of frames made once (sizes.py); all other messages go through the endpoints.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.messages.training import Begin, Gradient, Smashed, ToClient
from sl_server.simulation.simulation import Count, SimulatedClient, Simulation
from sl_server.simulation.vectorized.eligibility import reason_against
from sl_server.simulation.vectorized.sizes import Sizes
from sl_server.simulation.vectorized.stack import Pass, Stack
from sl_server.simulation.vectorized.waves import Rows, StackedWave, groups, next_batches, open_wave


class Stacked(Simulation):
    """One run in this process, its clients' lower segments in one stack."""

    reason_against = staticmethod(reason_against)

    def __init__(
        self,
        config: RunConfig,
        *,
        data: Path | None = None,
        allowed: Collection[str] | None = None,
        device: str = "cpu",
        client_device: str = "cpu",
        count: Count = lambda _direction, _sent: None,
    ) -> None:
        """Raises ConfigError if this run cannot be stacked. The stack is on `device` too."""
        super().__init__(config, data=data, allowed=allowed, device=device, client_device=client_device, count=count)
        reason = self.reason_against(config, self.coordinator.network)
        if reason is not None:
            raise ConfigError(reason)
        self._device = device
        self._sizes = Sizes()
        # clients with a message that is not about a wave, and is not answered yet
        self._to_answer: list[SimulatedClient] = []
        self._waves: dict[int, StackedWave] = {}

    @cached_property
    def _stack(self) -> Stack:
        """Return the stack, made when the first wave begins: all clients have their seats by then."""
        lowers = [seat.bank.get("lower") for _, seat in sorted(self.seats.items())]
        config = self.coordinator.config
        return Stack(lowers, config.client.optimizer, config.input, self._device)

    # --- messages from the server

    def _deliver(self, client: SimulatedClient, message: ToClient) -> None:
        match message:
            case Begin():
                self._begin(client, cast(Begin, client.receive(message)))
            case Gradient():
                self._count("down", message)
                for frame in self._sizes.pass_by(message, client.session.endpoint, client.endpoint):
                    self._count("down", frame)
                assert client.seat is not None
                wave = self._waves.get(client.seat.shard)
                if wave is not None and wave.awaits is not None:
                    wave.dz = message.dz
            case _:
                client.deliver(message)
                self._to_answer.append(client)

    def _begin(self, client: SimulatedClient, begin: Begin) -> None:
        seat = client.seat
        assert seat is not None
        seat.load(begin)
        self._waves[seat.shard] = open_wave(client, begin, cast(Rows, seat.data))

    # --- the clients' work

    def _run_clients(self) -> Iterator[bool]:
        waiting, self._to_answer = self._to_answer, []
        for client in waiting:
            yield client.advance()
        self._learn()
        moving = [wave for _, wave in sorted(self._waves.items()) if wave.awaits is None]
        said: dict[int, list[Smashed]] = {wave.place: [] for wave in moving}
        for _ in range(self.coordinator.config.client.window):
            for group in groups(self._stack, [wave for wave in moving if wave.awaits is None]):
                for wave, batch in zip(group, self._forward(group), strict=True):
                    said[wave.place].append(batch)
        for wave in moving:
            self._send(wave, said[wave.place])
            yield True

    def _learn(self) -> None:
        """Run backward and step for all clients whose gradient has arrived."""
        replied: dict[Pass, list[StackedWave]] = {}
        for _, wave in sorted(self._waves.items()):
            if wave.awaits is not None and wave.dz is not None:
                replied.setdefault(wave.awaits, []).append(wave)
        for passed, waves in replied.items():
            dz = {wave.place: wave.dz for wave in waves if wave.dz is not None}
            self._stack.learn(passed, dz, waves[0].begin.lr)
            for wave in waves:
                wave.awaits = wave.dz = None

    def _forward(self, group: Sequence[StackedWave]) -> list[Smashed]:
        """Compute the next batch of each of these clients."""
        x, y = next_batches(group)
        begin = group[0].begin
        learns = group[0].learns
        passed = self._stack.forward([wave.place for wave in group], x, train=not begin.evaluate, grad=learns)
        zs = passed.z.detach().to("cpu").contiguous().unbind()
        batches = []
        for wave, z, labels in zip(group, zs, y.unbind(), strict=True):
            batches.append(
                Smashed(
                    step=wave.steps,
                    z=z,
                    y=labels,
                    round=begin.round,
                    wave=begin.wave,
                    train=not begin.evaluate,
                    needs_grad=learns,
                )
            )
            wave.steps, wave.samples = wave.steps + 1, wave.samples + len(labels)
            wave.awaits = passed if learns else None
            wave.look_ahead()
        return batches

    def _send(self, wave: StackedWave, batches: Sequence[Smashed]) -> None:
        """Send a client's batches, or its Done if there are no more and it awaits none."""
        client = wave.client
        for batch in batches:
            self._count("up", batch)
            for frame in self._sizes.pass_by(batch, client.endpoint, client.session.endpoint):
                self._count("up", frame)
            self.sessions.take(client.session, batch)
        if wave.following is None and wave.awaits is None:
            assert client.seat is not None
            del self._waves[wave.place]
            client.send(client.seat.done(wave.begin, wave.tally()))
