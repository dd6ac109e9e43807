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
from sl_server.simulation.vectorized.waves import Rows, StackedWave, groups, next_batches, open_course


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
        self._heard: list[SimulatedClient] = []
        self._courses: dict[int, StackedWave] = {}

    @cached_property
    def _stack(self) -> Stack:
        """Return the stack, made when the first wave begins: all clients have their seats by then."""
        lowers = [seat.bank.get("lower") for _, seat in sorted(self.seats.items())]
        config = self.coordinator.config
        return Stack(lowers, config.client.optimizer, config.input, self._device)

    # --- messages from the server

    def _tell(self, client: SimulatedClient, message: ToClient) -> None:
        match message:
            case Begin():
                self._begin(client, cast(Begin, client.receive(message)))
            case Gradient():
                self._count("down", message)
                for frame in self._sizes.pass_by(message, client.session.endpoint, client.endpoint):
                    self._count("down", frame)
                assert client.seat is not None
                course = self._courses.get(client.seat.shard)
                if course is not None and course.awaits is not None:
                    course.dz = message.dz
            case _:
                client.hear(message)
                self._heard.append(client)

    def _begin(self, client: SimulatedClient, begin: Begin) -> None:
        seat = client.seat
        assert seat is not None
        seat.load(begin)
        self._courses[seat.shard] = open_course(client, begin, cast(Rows, seat.data))

    # --- the clients' work

    def _go_on(self) -> Iterator[bool]:
        heard, self._heard = self._heard, []
        for client in heard:
            yield client.go_on()
        self._learn()
        moving = [course for _, course in sorted(self._courses.items()) if course.awaits is None]
        said: dict[int, list[Smashed]] = {course.place: [] for course in moving}
        for _ in range(self.coordinator.config.client.window):
            for group in groups(self._stack, [course for course in moving if course.awaits is None]):
                for course, batch in zip(group, self._forward(group), strict=True):
                    said[course.place].append(batch)
        for course in moving:
            self._say(course, said[course.place])
            yield True

    def _learn(self) -> None:
        """Run backward and step for all clients whose gradient has arrived."""
        replied: dict[Pass, list[StackedWave]] = {}
        for _, course in sorted(self._courses.items()):
            if course.awaits is not None and course.dz is not None:
                replied.setdefault(course.awaits, []).append(course)
        for passed, courses in replied.items():
            dz = {course.place: course.dz for course in courses if course.dz is not None}
            self._stack.learn(passed, dz, courses[0].begin.lr)
            for course in courses:
                course.awaits = course.dz = None

    def _forward(self, group: Sequence[StackedWave]) -> list[Smashed]:
        """Compute the next batch of each of these clients."""
        x, y = next_batches(group)
        begin = group[0].begin
        learns = group[0].learns
        passed = self._stack.forward([course.place for course in group], x, train=not begin.evaluate, grad=learns)
        zs = passed.z.detach().to("cpu").contiguous().unbind()
        batches = []
        for course, z, labels in zip(group, zs, y.unbind(), strict=True):
            batches.append(
                Smashed(
                    step=course.steps,
                    z=z,
                    y=labels,
                    round=begin.round,
                    wave=begin.wave,
                    train=not begin.evaluate,
                    needs_grad=learns,
                )
            )
            course.steps, course.samples = course.steps + 1, course.samples + len(labels)
            course.awaits = passed if learns else None
            course.go_on()
        return batches

    def _say(self, course: StackedWave, batches: Sequence[Smashed]) -> None:
        """Send a client's batches, or its Done if there are no more and it awaits none."""
        client = course.client
        for batch in batches:
            self._count("up", batch)
            for frame in self._sizes.pass_by(batch, client.endpoint, client.session.endpoint):
                self._count("up", frame)
            self.sessions.take(client.session, batch)
        if course.following is None and course.awaits is None:
            assert client.seat is not None
            del self._courses[course.place]
            client.say(client.seat.done(course.begin, course.tally()))
