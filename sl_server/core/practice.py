"""Practice of a user's network before any client connects: everything that a run does with it, on copies. Pure.

Law: passes and steps are made by the code of a run, with learning rates of 0 and samples of zeros, or of noise where
zeros give no finite numbers. Numbers that are not finite prove nothing about the network: a run has other numbers.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from sl_common.batch import Batch
from sl_common.config.run_config import RunConfig
from sl_common.copied import copied
from sl_common.errors import ConfigError, Diverged, WireError, first_line
from sl_common.imports import is_user_code
from sl_common.messages.training import Aligned, Alive, Directive, Gradient, Smashed
from sl_common.network.network import Network
from sl_common.protocol import All, Always, Arrived, At, Await, AwaitAligned, Draws, LocalLoss
from sl_common.protocol.align import AlignmentSamples
from sl_common.seeds import torch_generator
from sl_common.training.bank import Bank
from sl_common.training.optim import Optimizer
from sl_common.training.segment import Segment

_SIZES = (2, 4)  # samples of the batches of a wave, unless a run has none so large
_TRAINING, _EVALUATING = (f"in {mode} (batches of 2 and 4 samples)" for mode in ("training", "evaluation"))
_COPYING = "when it is copied for each client"
_TARGETS = "when the head tells an alignment its targets (protocol.gate.align_every)"
_ALIGNING = (
    "when its auxiliary network is aligned (protocol.gate.align_every), which takes a second backward pass through "
    "protocol.learner.aux; its forms 'linear', 'pooled' and 'mlp' allow that"
)


def practise(config: RunConfig, network: Network) -> None:
    """Raise ConfigError where the modules would fail in the middle of a run.

    They may fail in a backward pass or a second one, in evaluation, in the second step, or by weights that no message
    can hold.
    """
    if not is_user_code(config.model.name):
        return
    for noise in (False, True):
        practice = _Practice(config, network)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                practice.run(noise=noise)
        except ConfigError:
            raise
        except (Diverged, WireError):  # by its numbers
            continue
        except Exception as error:  # whatever the modules and autograd raise
            if noise:  # which it may not take, as those do not that look numbers up
                return
            raise ConfigError(
                f"{practice.what} fails {practice.doing} (protocol.learner.kind = "
                f"{config.protocol.learner.kind!r}): {first_line(error)}"
            ) from error
        return


class _Practice:
    """A client's parts and the server's, copied, and what goes between them in two batches."""

    def __init__(self, config: RunConfig, network: Network) -> None:
        self._config = config
        self._network = network
        self.doing = _COPYING
        learner = config.protocol.learner
        self._learner = learner.model_copy(update={"send_every": 1}) if isinstance(learner, LocalLoss) else learner
        protocol = config.protocol
        joins = isinstance(protocol.barrier, All) and protocol.head.copies == "shared" and config.run.clients > 1
        self._members = range(2 if joins else 1)
        self._reply: Gradient | None = None
        self._stored: tuple[Smashed, Gradient] | None = None  # the first batch of a wave that aligns

    @property
    def what(self) -> str:
        """The network, by its keys."""
        return f"model {self._config.model.name!r} cut at {self._config.model.cut!r}"

    def run(self, *, noise: bool) -> None:
        """Each kind of wave that this run may have, and an evaluation."""
        self._make()
        batches = [
            self._batch(step, min(size, max(self._config.largest_batch, 2)), noise=noise)
            for step, size in enumerate(_SIZES)
        ]
        self.doing = _TRAINING
        for directive in self._directives():
            self._wave(batches, directive)
        self.doing = _EVALUATING
        for batch in batches:
            self._evaluate(batch)
        for side, bank in (("client", self._client), ("server", self._server)):
            for part in bank.parts:
                self._check_state(part, bank.get(part), side)

    def _make(self) -> None:
        client, server, protocol = self._config.client, self._config.server, self._config.protocol
        below = dict.fromkeys(self._learner.parts, client.optimizer)
        if "aux" in below:
            below["aux"] = client.aux_optimizer or client.optimizer
        above = {"head": server.optimizer} | ({"aux": server.alignment.optimizer} if protocol.aligns else {})
        halves = server.reply_first and self._network.halves
        self._client = Bank({part: partial(self._segment, part, rule) for part, rule in below.items()})
        self._server = Bank({part: partial(self._segment, part, rule, halves=halves) for part, rule in above.items()})

    def _segment(self, part: str, optimizer: Optimizer, *, halves: bool = True) -> Segment:
        made = Segment(copied(self._network.part(part)), optimizer, halves=halves)
        made.set_lr(0.0)
        return made

    def _batch(self, step: int, size: int, *, noise: bool) -> Batch:
        shape = (size, *self._config.input)
        x = torch.randn(shape, generator=torch_generator("practice", step)) if noise else torch.zeros(shape)
        y = torch.arange(size) % 2 * (self._config.classes - 1)
        return Batch(step=step, x=x, y=y, stored=torch.zeros(shape))

    def _directives(self) -> list[Directive]:
        gate = self._config.protocol.gate
        found = [Directive(align=self._config.protocol.aligns)]
        if not isinstance(gate, Always):
            return [*found, Directive(update=False)]
        return [Directive(warm=True), *found] if gate.warm_start else found

    def _wave(self, batches: list[Batch], directive: Directive) -> None:
        exchange = self._learner.train(self._client, batches, directive, Draws(seed=0, round=0, shard=0))
        answer: object = None
        with contextlib.suppress(StopIteration):
            while True:
                answer = self._answer(exchange.send(answer), directive)

    def _answer(self, asked: Smashed | Await | AwaitAligned | Alive, directive: Directive) -> object:
        match asked:
            case Smashed():
                self._reply = self._serve(asked, directive)
                return asked.step
            case Await():
                if self._reply is None or self._reply.dz is None:
                    raise ConfigError(
                        f"{self.what}: no gradient comes out of the head for the activations that it is given: it "
                        "detaches them"
                    )
                return self._reply
            case AwaitAligned():
                return self._aligned()
        return None

    def _serve(self, said: Smashed, directive: Directive) -> Gradient:
        z = self._arrived(said.z, len(said.y))
        wants = said.needs_grad or (self._config.protocol.aligns and self._config.server.alignment.targets == "stored")
        cohort = [
            Arrived(client=member, batch=replace(said, z=z.clone(), needs_grad=wants), samples=len(said.y))
            for member in self._members
        ]
        at = At(seed=0, step=said.step, wave_size=len(cohort))
        reply = self._config.protocol.head.step(self._server, cohort, at)[0]
        self._server.run_deferred_step()
        if directive.align and said.step == 0:
            self._stored = replace(said, z=z), reply
        return reply

    def _arrived(self, z: Tensor, samples: int) -> Tensor:
        """As it comes over the wire."""
        found, wanted = (z.dtype, tuple(z.shape)), (self._network.cut_dtype, (samples, *self._network.cut_shape))
        if found != wanted:
            raise ConfigError(
                f"{self.what}: {self.doing} the activations of {samples} samples are {found[0]} {found[1]}, when the "
                f"network was made they were {wanted[0]} {wanted[1]}"
            )
        return z.detach().clone(memory_format=torch.contiguous_format)

    def _aligned(self) -> Aligned:
        assert self._stored is not None
        batch, reply = self._stored
        how = self._config.server.alignment.model_copy(update={"epochs": 2})
        aux = self._server.get("aux")
        self.doing = _TARGETS
        stored = reply.dz * len(batch.y) if how.targets == "stored" and reply.dz is not None else None
        targets = how.refresh(self._server.get("head"), batch.z, batch.y, (0,)) if stored is None else stored
        self.doing = _ALIGNING
        how.run(aux, AlignmentSamples(z=batch.z, y=batch.y, targets=targets), (0,))
        self.doing = _TRAINING
        return Aligned(round=0, wave=0, weights={"aux": aux.state()}, before=0.0, after=0.0)

    def _evaluate(self, batch: Batch) -> None:
        z = self._client.get("lower").forward(batch.x, train=False, grad=False)
        said = Smashed(step=batch.step, z=self._arrived(z, len(batch.y)), y=batch.y, train=False, needs_grad=False)
        self._config.protocol.head.evaluate(self._server, 0, said)

    def _check_state(self, part: str, segment: Segment, side: str) -> None:
        now, before = (
            {name: f"{t.dtype} {tuple(t.shape)}" for name, t in module.state_dict().items()}
            for module in (segment.module, self._network.part(part))
        )
        for name in sorted(now.keys() | before.keys()):
            if now.get(name) != before.get(name):
                raise ConfigError(
                    f"{self.what}: {name} is {now.get(name, 'not there')} after training and "
                    f"{before.get(name, 'not there')} before: what a run averages and keeps has one type and shape; "
                    "register_buffer(…, persistent=False) keeps it out of that"
                )
        for moments in () if segment.optimizer is None else segment.optimizer.state.values():
            for name, moment in moments.items():
                if isinstance(moment, Tensor) and moment.layout != torch.strided:
                    raise ConfigError(
                        f"{side}.optimizer: {name} of a parameter of {self.what} is {moment.layout}, which no "
                        "checkpoint holds: let its gradient be dense (nn.Embedding(sparse=False)), or the optimiser "
                        "keep nothing (sgd with momentum = 0)"
                    )
