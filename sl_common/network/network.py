"""The network of a run, split and measured: what both sides build from the same configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, WireError
from sl_common.imports import is_user_code
from sl_common.kinds import alike, is_real
from sl_common.messages.training import Smashed
from sl_common.models import Block, build, cut_index, fill, join
from sl_common.models.auxiliary import Fit
from sl_common.network.contents import Tie, check_contents, settle_memory, ties_of
from sl_common.network.trial import initialise, reason_against_halves, try_out, untrained_without_gradient
from sl_common.protocol.mix import Unmixed
from sl_common.seeds import seed_of
from sl_common.tensors import StateDict, all_finite, check_state, constants_of
from sl_common.training.segment import buffers_untouched, seeded

PARTS = ("lower", "head", "aux")
BODY_SLACK = 1 << 16  # bytes that an encoding may add to a message body


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """Blocks on either side of the cut, tried out once on zeros."""

    blocks: tuple[Block, ...]
    cut: int
    cut_shape: tuple[int, ...]  # of one sample
    cut_dtype: torch.dtype
    batch_size: int  # of the largest batch
    classes: int
    aux: nn.Module | None = None  # what the learner puts on its own activations
    ties: tuple[Tie, ...] = ()  # tensors that have several names
    halves: bool = True  # the head's backward pass may be made in two halves, as far as a trial on the server tells
    cautions: tuple[str, ...] = ()  # what a trial on the server found, one sentence each

    @classmethod
    def build(
        cls,
        config: RunConfig,
        allowed: Collection[str] | None = None,
        *,
        shard: int | None = None,
        parts: Collection[str] = PARTS,
        fits: Callable[[int], None] = lambda _nbytes: None,
    ) -> Self:
        """As a client builds it that has this shard, or as the server does.

        `parts`: what is needed of it. Without the head, a model of ours has no memory for that: it is neither tried out nor to be used.
        `fits` is asked before the auxiliary network takes memory, with its bytes, and raises ConfigError if there is no room.
        Raises ConfigError if the model cannot be made, cut there, or run on the configured input.
        """
        own = shard is not None and config.client.initial == "own"
        seed = seed_of(config.run.seed, "init", shard or 0) if own else config.run.seed
        hollow = "head" not in parts and not is_user_code(config.model.name)
        blocks = _blocks(config, seed, allowed, hollow=hollow)
        cut = cut_index(blocks, config.model.cut)
        if hollow:
            fill(join(blocks[:cut]), seed)
        tried = try_out(blocks, cut, config)
        z = tried.z
        cut_shape = tuple(z.shape[1:])
        aux = _auxiliary(config, z, cut, allowed, lambda nbytes: fits(nbytes or _nbytes(blocks)))
        ties: tuple[Tie, ...] = ()
        halves, cautions = True, list[str]()
        if is_user_code(config.model.name):
            sides = {"lower": join(blocks[:cut]), "head": join(blocks[cut:])} | ({} if aux is None else {"aux": aux})
            ties = ties_of(sides, config.model.name, config.model.cut, tried.changed)
            _check_copies(ties, config, blocks, allowed)
            if shard is None:
                halves, cautions = _tried_backward(config, sides["lower"], sides["head"], z)
        return cls(
            aux=aux,
            ties=ties,
            halves=halves,
            cautions=tuple(cautions),
            blocks=tuple(blocks),
            cut=cut,
            cut_shape=cut_shape,
            cut_dtype=z.dtype,
            batch_size=config.largest_batch,
            classes=config.classes,
        )

    @property
    def lower(self) -> nn.Sequential:
        """The client's blocks. The same modules each time: copy them to train them twice."""
        return join(self.blocks[: self.cut])

    @property
    def head(self) -> nn.Sequential:
        """The server's blocks."""
        return join(self.blocks[self.cut :])

    def part(self, name: str) -> nn.Module:
        """lower, head or aux."""
        module = {"lower": self.lower, "head": self.head, "aux": self.aux}[name]
        assert module is not None, f"this run has no part {name}"
        return module

    @property
    def smashed_nbytes(self) -> int:
        """Bytes of the activations of one full batch."""
        return self.batch_size * math.prod(self.cut_shape) * self.cut_dtype.itemsize

    @property
    def limit_bytes(self) -> int:
        """No message of this run has a larger body."""
        z = torch.empty(self.batch_size, *self.cut_shape, dtype=self.cut_dtype, device="meta")
        return message_limit(z, self.classes, self.weights_nbytes)

    @property
    def weights_nbytes(self) -> int:
        """Bytes of all weights and buffers."""
        nbytes: int = sum(t.numel() * t.element_size() for t in self._tensors())
        return nbytes

    @property
    def limit_tensors(self) -> int:
        """No message of this run has more of them in its lists."""
        return sum(1 for _ in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        """All weights and buffers."""
        for module in [block for _, block in self.blocks] + ([] if self.aux is None else [self.aux]):
            yield from module.state_dict().values()

    def check(self, batch: Smashed) -> None:
        """Raise WireError unless a batch is shaped as this run agreed; whether its numbers are finite is the guard's question."""
        size = len(batch.y) if batch.y.dim() == 1 else -1
        if not 1 <= size <= self.batch_size or batch.y.dtype != torch.int64:
            raise WireError(
                f"labels are {batch.y.dtype} {tuple(batch.y.shape)}, this run has int64 (1 to {self.batch_size},)"
            )
        if tuple(batch.z.shape) != (size, *self.cut_shape) or batch.z.dtype != self.cut_dtype:
            raise WireError(
                f"activations are {batch.z.dtype} {tuple(batch.z.shape)}, "
                f"this run's cut has {self.cut_dtype} {(size, *self.cut_shape)}"
            )
        labels = batch.y.tolist()  # one call; a batch has few, and Python is warm where torch is not
        low, high = min(labels), max(labels)
        if low < 0 or high >= self.classes:
            raise WireError(f"labels reach from {low} to {high}, this run has classes 0 to {self.classes - 1}")

    def check_query(self, z: Tensor) -> None:
        """Raise WireError unless these activations, (B, *cut), are ones that the head can score."""
        size = len(z) if z.dim() else 0
        if not 1 <= size <= self.batch_size or tuple(z.shape[1:]) != self.cut_shape or z.dtype != self.cut_dtype:
            raise WireError(
                f"activations are {z.dtype} {tuple(z.shape)}, this run's cut has {self.cut_dtype} "
                f"{(f'1 to {self.batch_size}', *self.cut_shape)}"
            )
        if not all_finite(z):
            raise WireError("activations hold NaN or Inf")


def message_limit(z: Tensor, classes: int, weights: int) -> int:
    """The largest body of a message where z (B, *cut) is the largest batch at the cut, and all weights have so many bytes."""
    count = len(z)
    scores = 4 * count * classes  # of a network that is asked
    return max(z.numel() * z.element_size() + 8 * count, scores, weights) + BODY_SLACK


def trained(module: nn.Module, state: StateDict, what: str) -> nn.Module:
    """The module, as it was made, with these weights, in evaluation mode and without gradients. Raises WireError if they do not fit."""
    own = module.state_dict()
    check_state(state, {name: (t.dtype, tuple(t.shape)) for name, t in own.items()}, what, constants_of(own))
    module.load_state_dict(dict(state))
    return module.requires_grad_(False).eval()


def outline(config: RunConfig) -> dict[str, nn.Module]:
    """Lower segment and head of a model of ours, without memory: for their sizes. To run them there would import torch's compiler."""
    blocks = _blocks(config, 0, None, hollow=True)
    cut = cut_index(blocks, config.model.cut)
    return {"lower": join(blocks[:cut]), "head": join(blocks[cut:])}


def _blocks(config: RunConfig, seed: int, allowed: Collection[str] | None, *, hollow: bool = False) -> list[Block]:
    name, args, shape = config.model.name, config.model.args, config.input
    blocks = build(name, input=shape, classes=config.classes, args=args, seed=seed, allowed=allowed, hollow=hollow)
    if is_user_code(name):
        initialise(blocks, config, seed_of(seed, "init", "lazy"))
        check_contents(join(blocks), name)
        settle_memory(join(blocks))
    return blocks


def _check_copies(
    ties: tuple[Tie, ...], config: RunConfig, blocks: list[Block], allowed: Collection[str] | None
) -> None:
    """Raise ConfigError where the copies of a frozen tensor on both sides of the cut would not be equal."""
    crossing = [tie for tie in ties if tie.crosses]
    if not crossing:
        return
    held = join(blocks).state_dict()
    names = [name for tie in crossing for name in tie.names if name in held]
    state = config.codec.state
    if (changed := [name for name in names if is_real(held[name].dtype)]) and state.kind != "identity":
        raise ConfigError(
            f"codec.state.kind = {state.kind!r}: {changed[0]} of model {config.model.name!r} is on both sides of the cut, and a copy that "
            "travels by this codec may be another one: take 'identity', or cut where both are on one side"
        )
    if config.client.initial == "own":
        others = join(_blocks(config, seed_of(config.run.seed, "init", "other"), allowed)).state_dict()
        if drawn := [name for name in names if not alike(held[name], others[name])]:
            raise ConfigError(
                f"client.initial = 'own': {drawn[0]} of model {config.model.name!r} is on both sides of the cut and drawn at random, so that "
                "no client's copy would be the head's: cut where both are on one side, or take 'shared'"
            )


def _tried_backward(config: RunConfig, lower: nn.Module, head: nn.Module, z: Tensor) -> tuple[bool, list[str]]:
    """Whether the head's backward pass may be made in halves, and what is to be said of both sides' passes. Raises ConfigError where the head
    would not be trained."""
    halves, cautions = True, []
    what = f"model {config.model.name!r} cut at {config.model.cut!r}"
    if config.server.reply_first and (reason := reason_against_halves(head, z)) is not None:
        halves = False
        cautions.append(
            f"server.reply_first = true: the backward pass of the head of {what} is made whole before replies go out, since it cannot be "
            f"made in two halves ({reason})"
        )
    reentrant = "as with torch.utils.checkpoint and use_reentrant=True, for which use_reentrant=False is the way out"
    learner, mix = config.protocol.learner, config.protocol.head.mix
    asks_none = learner.exchange == "activation" or not isinstance(mix, Unmixed)
    if asks_none and (names := untrained_without_gradient(head, z)):
        raise ConfigError(
            f"protocol.learner.kind = {learner.kind!r}, protocol.head.mix.kind = {mix.kind!r}: the head is trained on activations for which "
            f"nobody wants a gradient, and then {', '.join(names[:3])} of "
            f"{what} would not be trained, {reentrant}"
        )
    if names := untrained_without_gradient(lower, torch.zeros(2, *config.input)):
        cautions.append(f"{what}: {', '.join(names[:3])} of the lower segment get no gradient, {reentrant}")
    return halves, cautions


def auxiliary_fit(config: RunConfig, cut_shape: tuple[int, ...], cut: int, allowed: Collection[str] | None) -> Fit:
    """What an auxiliary network must fit at a cut."""
    seed = seed_of(config.run.seed, "init", "aux", "head")
    return Fit(
        cut=cut_shape,
        input=config.input,
        classes=config.classes,
        head=lambda: _blocks(config, seed, allowed)[cut:],
    )


def _nbytes(blocks: list[Block]) -> int:
    return sum(t.numel() * t.element_size() for _, block in blocks for t in block.state_dict().values())


def _auxiliary(
    config: RunConfig, z: Tensor, place: int, allowed: Collection[str] | None, fits: Callable[[int], None]
) -> nn.Module | None:
    """Made from a seed of its own and tried out on the cut's activations."""
    chosen = getattr(config.protocol.learner, "aux", None)
    if chosen is None:
        return None
    cut, wanted = tuple(z.shape[1:]), config.input
    fit = auxiliary_fit(config, cut, place, allowed)
    try:
        fits(chosen.nbytes(fit))
        with seeded(seed_of(config.run.seed, "init", "aux"), torch.device("cpu")):
            aux: nn.Module = chosen.make(fit)
        with buffers_untouched(aux):
            found = tuple(aux(z).shape[1:])
    except ConfigError as error:
        raise ConfigError(f"protocol.learner.{error}") from error
    except Exception as error:  # whatever the modules raise
        raise ConfigError(f"protocol.learner.aux: does not fit activations {cut}: {error}") from error
    expected = (config.classes,) if chosen.predicts else wanted
    if found != expected:
        raise ConfigError(f"protocol.learner.aux: gives {found} per sample, expected {expected}")
    return aux
