"""The network of a run, split and measured: both sides build it from the same configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.errors import WireError
from sl_common.imports import is_user_code
from sl_common.messages.training import Smashed
from sl_common.models import Block, cut_index, fill, join
from sl_common.network.parts import blocks_of, make_auxiliary, nbytes_of_blocks
from sl_common.network.ties import Tie, check_frozen_copies, ties_of
from sl_common.network.trial import Tried, try_backward, try_out
from sl_common.seeds import seed_of
from sl_common.tensors import StateDict, all_finite, check_state, constants_of

PARTS = ("lower", "head", "aux")
BODY_SLACK = 1 << 16  # bytes that an encoding may add to a message body


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """Blocks on either side of the cut, tried out once on zeros."""

    blocks: tuple[Block, ...]
    cut: int
    cut_shape: tuple[int, ...]  # shape of one sample
    cut_dtype: torch.dtype
    batch_size: int  # samples of the largest batch
    classes: int
    aux: nn.Module | None = None  # the learner's auxiliary network
    ties: tuple[Tie, ...] = ()  # tensors that have several names
    halves: bool = True  # the head's backward pass may be made in two halves, by a trial on the server
    cautions: tuple[str, ...] = ()  # findings of a trial on the server, one sentence each

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
        """Build the network as a client with this shard does, or as the server does.

        `parts` names the parts that are needed. Without the head, a built-in model has no memory for it: the head is
        then neither tried out nor usable. `fits` is called with the auxiliary network's bytes before it takes memory,
        and raises ConfigError if there is no room. Raise ConfigError if the model cannot be made, cut there, or run on
        the configured input.
        """
        own = shard is not None and config.client.initial == "own"
        seed = seed_of(config.run.seed, "init", shard or 0) if own else config.run.seed
        hollow = "head" not in parts and not is_user_code(config.model.name)
        blocks = blocks_of(config, seed, allowed, hollow=hollow)
        cut = cut_index(blocks, config.model.cut)
        if hollow:
            fill(join(blocks[:cut]), seed)
        tried = try_out(blocks, cut, config)
        z = tried.z
        network = cls(
            aux=make_auxiliary(config, z, cut, allowed, lambda nbytes: fits(nbytes or nbytes_of_blocks(blocks))),
            blocks=tuple(blocks),
            cut=cut,
            cut_shape=tuple(z.shape[1:]),
            cut_dtype=z.dtype,
            batch_size=config.largest_batch,
            classes=config.classes,
        )
        if is_user_code(config.model.name):
            return network._examine(config, allowed, tried, on_server=shard is None)
        return network

    def _examine(self, config: RunConfig, allowed: Collection[str] | None, tried: Tried, *, on_server: bool) -> Self:
        """Return the network with its ties, and on the server with the trial of its backward pass."""
        sides = {"lower": self.lower, "head": self.head} | ({} if self.aux is None else {"aux": self.aux})
        ties = ties_of(sides, config.model.name, config.model.cut, tried.changed)
        check_frozen_copies(ties, config, list(self.blocks), allowed)
        if not on_server:
            return replace(self, ties=ties)
        halves, cautions = try_backward(config, sides["lower"], sides["head"], tried.z)
        return replace(self, ties=ties, halves=halves, cautions=tuple(cautions))

    @property
    def lower(self) -> nn.Sequential:
        """The client's blocks. The same modules each time: copy them to train them twice."""
        return join(self.blocks[: self.cut])

    @property
    def head(self) -> nn.Sequential:
        """The server's blocks."""
        return join(self.blocks[self.cut :])

    def part(self, name: str) -> nn.Module:
        """Return the module of a part: lower, head or aux."""
        module = {"lower": self.lower, "head": self.head, "aux": self.aux}[name]
        assert module is not None, f"this run has no part {name}"
        return module

    @property
    def smashed_nbytes(self) -> int:
        """Bytes of the activations of one full batch."""
        return self.batch_size * math.prod(self.cut_shape) * self.cut_dtype.itemsize

    @property
    def limit_bytes(self) -> int:
        """Largest body of a message in this run."""
        z = torch.empty(self.batch_size, *self.cut_shape, dtype=self.cut_dtype, device="meta")
        return message_limit(z, self.classes, self.weights_nbytes)

    @property
    def weights_nbytes(self) -> int:
        """Bytes of all weights and buffers."""
        nbytes: int = sum(t.numel() * t.element_size() for t in self._tensors())
        return nbytes

    @property
    def limit_tensors(self) -> int:
        """Largest number of tensors in one list of a message in this run."""
        return sum(1 for _ in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        """Yield all weights and buffers."""
        for module in [block for _, block in self.blocks] + ([] if self.aux is None else [self.aux]):
            yield from module.state_dict().values()

    def check(self, batch: Smashed) -> None:
        """Raise WireError unless a batch has the shape of this run; finite numbers are the guard's concern."""
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
        labels = batch.y.tolist()  # one call; for the few labels of a batch Python is faster than torch
        low, high = min(labels), max(labels)
        if low < 0 or high >= self.classes:
            raise WireError(f"labels reach from {low} to {high}, this run has classes 0 to {self.classes - 1}")

    def check_query(self, z: Tensor) -> None:
        """Raise WireError unless the head can score these activations, (B, *cut)."""
        size = len(z) if z.dim() else 0
        if not 1 <= size <= self.batch_size or tuple(z.shape[1:]) != self.cut_shape or z.dtype != self.cut_dtype:
            raise WireError(
                f"activations are {z.dtype} {tuple(z.shape)}, this run's cut has {self.cut_dtype} "
                f"{(f'1 to {self.batch_size}', *self.cut_shape)}"
            )
        if not all_finite(z):
            raise WireError("activations hold NaN or Inf")


def message_limit(z: Tensor, classes: int, weights: int) -> int:
    """Return the largest body of a message.

    z (B, *cut) is the largest batch at the cut, `weights` the bytes of all weights.
    """
    count = len(z)
    scores = 4 * count * classes  # bytes of the scores in an answer
    return max(z.numel() * z.element_size() + 8 * count, scores, weights) + BODY_SLACK


def trained(module: nn.Module, state: StateDict, what: str) -> nn.Module:
    """Return the module, as it was made, with these weights, in evaluation mode and without gradients.

    Raise WireError if they do not fit.
    """
    own = module.state_dict()
    check_state(state, {name: (t.dtype, tuple(t.shape)) for name, t in own.items()}, what, constants_of(own))
    module.load_state_dict(dict(state))
    return module.requires_grad_(False).eval()
