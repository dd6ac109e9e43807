"""One part of a network: a module, its optimiser, and the few verbs that a learner or a head may use on it.

Learners touch torch only through `forward`, `backward` and `step`; a shell may wrap these with a timer (`span`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sl_common.errors import ConfigError, first_line
from sl_common.seeds import Draw, seed_of
from sl_common.tensors import StateDict, check_state, constants_of, copy_state, state_digest
from sl_common.training.backward import backward_from, backward_to, has_large_products
from sl_common.training.modules import buffers_untouched, draws_random_numbers, require_gradient, seeded
from sl_common.training.optim import Optimizer
from sl_common.training.torch_optimizers import check_optimizer_state

Tree = Any  # a tree that sl_common.tree can write: dicts, lists and tuples of plain values, bytes and tensors
SpanFactory = Callable[[str], AbstractContextManager[object]]
Alone = AbstractContextManager[object]  # a lock on the process's one random generator
_NO_LOCK: Alone = contextlib.nullcontext()
_Result = TypeVar("_Result")


def no_span(_phase: str) -> AbstractContextManager[object]:
    """Return a span that measures nothing."""
    return contextlib.nullcontext()


class Segment:
    """One part of a network on one participant.

    The optimiser's state persists for the whole run, whatever weights are loaded.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        device: torch.device | str = "cpu",
        span: SpanFactory = no_span,
        alone: Alone = _NO_LOCK,
        halves: bool = True,
        channels_last: bool = False,
    ) -> None:
        """Make a segment of `module` on `device`.

        `alone` is held while the process's one random generator is seeded for a pass; give a lock if several threads
        use segments. With `halves` a backward pass may be split where a peer waits for the gradient of its input. With
        `channels_last` images lie in memory as (B, H, W, C) inside the segment, which changes last bits; states,
        digests and gradients of inputs keep their form.
        """
        self._alone = alone
        self.device = torch.device(device)
        self.module = module.to(self.device)
        self._channels_last = channels_last
        if channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.span = span
        params = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = optimizer.make(params) if params else None
        self._draws = draws_random_numbers(module)
        self._splits = halves and has_large_products(self.module)
        self._second_half: Callable[[], None] | None = None  # the deferred half of the last backward pass
        self._stepping = False  # an optimiser step is deferred
        self._buffered = [m for m in module.modules() if m._buffers]
        self._constants = constants_of(self.module.state_dict())  # tensors that were not finite at the start

    def forward(
        self, x: Tensor, draw: Draw = (), *, train: bool = True, grad: bool = True, keep_buffers: bool = False
    ) -> Tensor:
        """Return the module's output for x (B, …).

        `draw` names, and seeds, all random numbers of the pass; in evaluation there are none. With `keep_buffers`
        BatchNorm uses the batch's statistics and leaves its own as they were.
        """
        self.run_deferred_step()
        if self.module.training != train:
            self.module.train(train)
        untouched = buffers_untouched(self.module) if keep_buffers else contextlib.nullcontext()
        with self.span("forward"), torch.set_grad_enabled(grad), untouched:
            x = x.to(self.device, non_blocking=True)
            if self._channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            if not (train and self._draws):
                return self.module(x)  # type: ignore[no-any-return]
            with self._alone, seeded(seed_of(*draw), self.device):
                return self.module(x)  # type: ignore[no-any-return]

    def backward(self, output: Tensor, grad: Tensor | None = None, *, awaited: Tensor | None = None) -> None:
        """Replace this segment's gradients by those of d loss/d output, or of a scalar loss.

        `awaited` is a leaf that the scalar loss was computed from. Its gradient is there when this returns; those of
        large weights may be computed later, before the step, with the same bits.
        """
        self.run_deferred_step()
        with self.span("backward"):
            self.clear()
            if not output.requires_grad:
                return
            require_gradient(output, grad)
            if awaited is not None and self._splits:
                self._second_half = _in_halves(lambda: backward_to(awaited, output))
            else:
                backward_from(output, torch.ones_like(output) if grad is None else grad.to(output.device))

    def gradient(self, loss: Tensor, z: Tensor, *, differentiable: bool = False) -> Tensor:
        """Return d loss/dz alone, shaped as z; nothing is computed or kept for this segment's own parameters.

        With `differentiable` the result has a graph, for a loss on the gradient itself.
        """
        with self.span("backward"):
            (gradient,) = torch.autograd.grad(loss, z, create_graph=differentiable)
        return gradient

    def buffers(self) -> Callable[[], None]:
        """Remember the buffers as they are, and return a function that restores them.

        The function also drops a backward pass whose step was not taken.
        """
        self.run_deferred_step()
        before = [(m, name, b, b.clone()) for m in self._buffered for name, b in m._buffers.items() if b is not None]

        def back() -> None:
            self._stepping, self._second_half = False, None
            self.clear()
            with torch.no_grad():
                for owner, name, buffer, values in before:
                    owner._buffers[name] = buffer.copy_(values)

        return back

    def clear(self) -> None:
        """Forget the gradients of the last step.

        `backward` does so too; a learner that waits for a reply calls this in the meantime.
        """
        self.run_deferred_step()
        self._second_half = None
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One optimiser step on the gradients of the last backward pass."""
        second_half, self._second_half = self._second_half, None
        if second_half is not None:
            with self.span("backward"):
                _in_halves(second_half)
        with self.span("step"):
            if self.optimizer is not None:
                self.optimizer.step()

    def defer_step(self) -> None:
        """Defer the optimiser step until `run_deferred_step`, or until the segment is used again.

        A reply to a client need not wait for the step.
        """
        self._stepping = True

    def run_deferred_step(self) -> None:
        """Take the deferred step, if there is one."""
        if self._stepping:
            self._stepping = False
            self.step()

    def set_eps(self, eps: float) -> None:
        """Set the eps of an Adam optimiser, from the next step on."""
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["eps"] = eps

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of this round."""
        self.run_deferred_step()
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr

    def state(self) -> dict[str, Tensor]:
        """Return a copy of parameters and buffers on the CPU."""
        self.run_deferred_step()
        return copy_state(self.module.state_dict())

    def digest(self) -> bytes:
        """Return the SHA-256 of parameters and buffers."""
        self.run_deferred_step()
        return state_digest(self.module.state_dict())

    def load(self, state: StateDict, what: str = "a segment") -> None:
        """Copy weights in place; the optimiser's state stays.

        Raise WireError if they do not fit, or are not finite in places where the module was finite when this segment
        was made.
        """
        self.run_deferred_step()
        own = self.module.state_dict()
        check_state(state, {name: (t.dtype, tuple(t.shape)) for name, t in own.items()}, what, self._constants)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def snapshot(self) -> Tree:
        """Return weights, buffers and the state of the optimiser."""
        self.run_deferred_step()
        optimizer = None if self.optimizer is None else copy.deepcopy(self.optimizer.state_dict())
        return {"module": self.state(), "optimizer": optimizer}

    def restore(self, tree: Tree) -> None:
        """Restore a snapshot of a segment like this one. Raise WireError if the weights do not fit."""
        self._stepping, self._second_half = False, None
        self.load(tree["module"], "a snapshot")
        if self.optimizer is not None:
            self.clear()
            check_optimizer_state(tree["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(copy.deepcopy(tree["optimizer"]))

    def check(self, part: str) -> None:
        """Raise WireError if the present weights could not be loaded again."""
        self.run_deferred_step()
        own = self.module.state_dict()
        check_state(own, {name: (t.dtype, tuple(t.shape)) for name, t in own.items()}, part, self._constants)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(t.numel() * t.element_size() for t in self.module.state_dict().values())


def _in_halves(work: Callable[[], _Result]) -> _Result:
    """Run half of a backward pass.

    Raise ConfigError, with the key that avoids it, if torch cannot: the trial before the run had other data.
    """
    try:
        return work()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ConfigError(
            "server.reply_first = true: the head's backward pass cannot be made in two halves "
            f"({first_line(error)}); set server.reply_first = false"
        ) from error
